"""The package overrides and calls private parts of `transformers.Trainer`: each says why, and is still there.

transformers may rename them in any release. Then nothing would fail by itself: our method would simply be called no more.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap

import pytest
import transformers
from transformers import Trainer

import hf_i2i_unlearn
from hf_i2i_unlearn.training.base_trainer import I2ITrainer

MARK = "# Overrides Trainer: "
SOURCE = inspect.getsource(inspect.getmodule(Trainer))


def our_trainers() -> list[type]:
    """Every class of the package that is a Trainer."""
    found = []
    for module in pkgutil.walk_packages(hf_i2i_unlearn.__path__, "hf_i2i_unlearn."):
        rooms = module.name.split(".")
        if rooms[1] in ("training", "originals"):
            members = vars(importlib.import_module(module.name)).values()
            found += [c for c in members if inspect.isclass(c) and issubclass(c, Trainer) and c.__module__ == module.name]
    return found


def private_methods(cls: type) -> dict:
    return {n: m for n, m in vars(cls).items() if inspect.isfunction(m) and re.match(r"_[a-z]", n)}


def reason(method) -> str | None:
    """What the first line of the method's body says it is overridden for, if it says so."""
    match = re.search(re.escape(MARK) + r"(.+)", inspect.getsource(method))
    return match and match[1]


OVERRIDES = [(c, n, m) for c in our_trainers() for n, m in private_methods(c).items() if hasattr(Trainer, n) or reason(m)]


def test_the_trainers_are_found():
    assert {c.__name__ for c in our_trainers()} >= {"I2ITrainer", "UnlearningTrainer", "PretrainingTrainer"}
    assert len(OVERRIDES) >= 11


def complaint(cls, name, method, trainer=Trainer, source=SOURCE) -> str | None:
    """What is wrong with an override, in a sentence."""
    if not reason(method):
        return f"{cls.__name__}.{name} overrides Trainer.{name}; say why in its first line: '{MARK}...'."
    version, what = transformers.__version__, f"It is overridden because: {reason(method)}"
    where = f"{method.__module__}:{method.__code__.co_firstlineno}"
    if not hasattr(trainer, name) or not re.search(rf"self\.{name}\b", source):
        return (
            f"Trainer.{name} is gone from transformers {version}, or is called no more, so {cls.__name__}.{name} does nothing. "
            f"{what} Look at {where}, and for what took its place in transformers/trainer.py; mend the override, or keep that "
            "version out in setup.cfg."
        )
    ours, theirs = (list(inspect.signature(m).parameters) for m in (method, getattr(trainer, name)))
    if ours != theirs and "kwargs" not in ours:
        return (
            f"Trainer.{name} of transformers {version} takes {theirs}, but {cls.__name__}.{name} takes {ours}; give it the "
            f"same. {what} Look at {where}."
        )
    return None


@pytest.mark.parametrize("cls, name, method", OVERRIDES, ids=[f"{c.__name__}.{n}" for c, n, _ in OVERRIDES])
def test_an_overridden_method_is_still_there(cls, name, method):
    assert complaint(cls, name, method) is None


def test_a_method_that_is_gone_is_named():
    cls, name, method = next(o for o in OVERRIDES if o[:2] == (I2ITrainer, "_save_checkpoint"))
    for trainer, source in (object, SOURCE), (Trainer, SOURCE.replace("self._save_checkpoint(", "self._write_checkpoint(")):
        said = complaint(cls, name, method, trainer, source)
        assert "Trainer._save_checkpoint is gone" in said
        assert "leaves no half checkpoint" in said and "base_trainer:" in said


def private_parts() -> list[tuple[type, str, str]]:
    """(class, name, the lines around) of each `self._name` in a trainer of ours that the package itself does not make."""
    found = []
    for cls in our_trainers():
        ours = [c for c in cls.__mro__ if c.__module__.startswith("hf_i2i_unlearn")]
        own = {name for c in ours for name in vars(c)} | {
            n.attr for c in ours for n in of_self(c) if isinstance(n.ctx, ast.Store)
        }
        lines = textwrap.dedent(inspect.getsource(cls)).splitlines()
        for node in of_self(cls):
            if re.match(r"_[a-z]", node.attr) and node.attr not in own:
                found.append((cls, node.attr, "\n".join(lines[node.lineno - 2 : node.lineno])))
    return found


def of_self(cls: type) -> list[ast.Attribute]:
    """Each `self.name` in the source of a class."""
    nodes = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(cls))))
    attributes = [n for n in nodes if isinstance(n, ast.Attribute)]
    return [n for n in attributes if isinstance(n.value, ast.Name) and n.value.id == "self"]


def test_private_parts_that_are_used_are_still_there():
    parts = private_parts()
    assert {name for _, name, _ in parts} >= {"_train_batch_size", "_prepare_inputs"}
    for cls, name, lines in parts:
        assert "#" in lines, f"{cls.__name__} uses Trainer's private {name}; say why in a comment above:\n{lines}"
        made = hasattr(Trainer, name) or re.search(rf"self\.{name}\b.* = ", SOURCE)
        assert made, (
            f"transformers {transformers.__version__} has no Trainer.{name} any more; {cls.__name__} uses it here:\n{lines}\n"
            "Find what took its place in Trainer.__init__, then mend the line or lower the bound in setup.cfg."
        )
