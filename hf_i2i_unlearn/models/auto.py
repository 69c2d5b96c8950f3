"""One loader for all that this package reads and writes: checkpoints of every family, and patches on top of an original."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from transformers.utils import cached_file

from ..demo import DEMOS
from ..errors import InputError
from ..places import resolved
from .base import HUB, PATCHES_FILE, I2IModel
from .ledger import FILE, Ledger
from .patches import load_patches

# What config.json calls the model (`model_type` of transformers, `_class_name` of diffusers) -> module:class. A family is
# imported when it is met, for the libraries of the others take seconds to import.
FAMILIES = {
    "vit_mae": "mae.modeling:I2IMAE",
    "mage": "mage.modeling:I2IMage",
    "UNet2DModel": "diffusion.modeling:I2IUNet",
    "UNet2DConditionModel": "diffusion.modeling:I2IUNet",
}

PIPELINE = "UNet2DModel"  # the kind that reads whole pipelines of diffusers


def load_model(path: str, patches: Sequence[str] = (), family: type[I2IModel] | None = None, **options) -> I2IModel:
    """A model of the family that the checkpoint's own configuration names, or of a given one.

    Args:
        path: Hub id or folder of a checkpoint, of a diffusers pipeline, or of a patch, which brings its original and the
            patches below it; a folder with a ledger, which brings the original and all patches that are on; or a demo's name.
        patches: Hub ids or folders of patches to put on top, in this order.
        family: a class that reads the checkpoint, such as one of your own: a subclass of `I2IModel` with a class method
            `from_pretrained(path, **options)`. None finds one of the package's by `family_of`.
        options: of the family's `from_pretrained`; its revision is that of `path`.

    Raises:
        InputError: nothing there, a model of no known family, or a `family` that is none.
    """
    check_family(family)
    hub = {name: options[name] for name in HUB if name in options}
    original, below = split_patch(path, **hub)
    if below or original != path:
        revision = options.pop("revision", None)
        if revision is not None and below:  # peft takes a patch from the main branch
            below[-1] = snapshot_download(path, revision=revision, **{name: options[name] for name in HUB if name in options})
        return load_model(original, [*below, *patches], family, **options)
    path = DEMOS.get(path, path)
    if family is None:
        family = _family_of(path, options.get("subfolder"), **hub)
    model = family.from_pretrained(path, **options)
    if patches:
        load_patches(model, patches)
    return model


def family_of(path: str, subfolder: str | None = None, **hub) -> type[I2IModel]:
    """The class that `load_model` reads a checkpoint or a patch's original with; its `family` is one word. No weights are read.

    Args:
        path, subfolder: as in `load_model`. hub: revision, token, cache_dir, local_files_only.

    Raises:
        InputError: nothing there, or a model of no known family.
    """
    original, below = split_patch(path, **hub)
    if below:  # the revision is the patch's
        hub.pop("revision", None)
    return _family_of(DEMOS.get(original, original), subfolder, **hub)


def _family_of(path: str, subfolder: str | None, **hub) -> type[I2IModel]:
    if subfolder is None and config_file(path, "model_index.json", **hub):
        return family_class(PIPELINE)
    config = config_file(path, "config.json", subfolder=subfolder or "", **hub)
    if config is None:
        raise InputError(f"'{path}' has no config.json and no adapter_config.json; give a checkpoint or a patch.")
    kind = config.get("_class_name") or config.get("model_type")
    if kind not in FAMILIES:
        raise InputError(
            f"'{path}' holds a '{kind}' model; known are {', '.join(FAMILIES)}. For another give load_model its `family`, a "
            "subclass of I2IModel."
        )
    return family_class(kind)


def family_class(kind: str) -> type[I2IModel]:
    """The family that reads what config.json calls `kind`, one of `FAMILIES`."""
    module, name = FAMILIES[kind].split(":")
    return getattr(importlib.import_module(f".{module}", __package__), name)


def check_family(family) -> None:
    """Raise InputError unless `family` is None or a class that `load_model` can read a checkpoint with."""
    if family is None:
        return
    is_family = isinstance(family, type) and issubclass(family, I2IModel)
    if not is_family or not callable(getattr(family, "from_pretrained", None)):
        name = family.__name__ if isinstance(family, type) else repr(family)
        raise InputError(f"family is {name}, expected a subclass of I2IModel with a class method from_pretrained(path, ...).")


def family_options(run: dict, generation_steps: int | None = None, family: type[I2IModel] | None = None) -> dict:
    """What `load_model` takes besides the path, from the options of a run.

    Args:
        run: the options, as its run.yaml holds them. What is None or "none" there is left to the family.
        generation_steps: takes the place of the run's, if the family has such steps.
        family: whose `run_options` count; None: those of all families of the package.
    """
    families = [family] if family else [family_class(kind) for kind in FAMILIES]
    names = {name: argument for one in families for name, argument in one.run_options.items()}
    found = {names[name]: value for name, value in run.items() if name in names and value not in (None, "none")}
    if generation_steps is not None and ("steps" in found or family and "steps" in names.values()):
        found["steps"] = generation_steps
    return found


def split_patch(path: str, **hub) -> tuple[str, list[str]]:
    """A patch as its original and the patches on it, itself last; a ledger's folder likewise; anything else as (path, []).

    Raises:
        InputError: nothing there, a patch that does not name its original, or a ledger whose patches are not as entered.
    """
    if path not in DEMOS and Path(path, FILE).is_file():
        ledger = Ledger(path)
        ledger.check_patches()
        return str(ledger.original), [ledger.patch(entry) for entry in ledger.active]
    config = None if path in DEMOS else config_file(path, "adapter_config.json", **hub)
    if config is None:
        return path, []
    original = config.get("base_model_name_or_path")
    if not original:
        raise InputError(f"The patch '{path}' does not name its original (base_model_name_or_path in adapter_config.json).")
    below = config_file(path, PATCHES_FILE, **hub) or []
    return resolved(original, path), [*(resolved(patch, path) for patch in below), str(path)]


def config_file(path: str, name: str, **hub):
    """What a JSON file of a folder or Hub repository holds; None if it is not there. Raises InputError if nothing is."""
    try:
        file = cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"Cannot load a model from '{path}': {reason} Give a folder or a Hub id.") from error
    return None if file is None else json.loads(Path(file).read_text())
