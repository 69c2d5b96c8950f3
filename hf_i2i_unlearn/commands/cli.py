"""Command lines: dataclasses as options, a YAML file as their defaults, a help that can be read.

Every command imports this first, so it imports nothing heavy: no model, and neither the Trainer nor its arguments.
"""

import argparse
import difflib
import errno
import json
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from ..errors import InputError, NotForgotten, Preempted, RunError
from ..places import resolved_options, without_absolute
from ..reporting.hub import PushError
from . import PROGRAM

CONFIGS = Path(__file__).parents[1] / "demo" / "configs"  # those of the embedded demo, which come with the package

# Of the 120 options of TrainingArguments, those that a first reader may want. --help_all shows the rest.
COMMON = {
    "output_dir", "alpha", "distance", "learning_rate", "muon_learning_rate", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "seed", "eval_steps", "save_steps", "bf16", "use_cpu",
    "resume_from_checkpoint", "report_to", "load_best_model_at_end", "dataloader_num_workers", "push_to_hub", "hub_model_id",
    "hub_private_repo", "hub_revision", "hub_token",
}  # fmt: skip


# Options by other names: those of older versions, which cards and run.yaml have, and that of diffusers.
ALIASES = {
    "denoising_steps": "generation_steps",
    "decoding_steps": "generation_steps",
    "num_inference_steps": "generation_steps",
}


class JsonDict(dict):
    """A dict option: JSON on the command line, a mapping in YAML."""

    def __init__(self, value=()):
        super().__init__(json.loads(value) if isinstance(value, str) else value)


def parse(dataclasses, description: str, argv=None, demo: str | None = None):
    """Instances of the dataclasses from the command line.

    A command line with neither `--model` nor `--config` runs the embedded demo: it reads the configuration `demo`. The defaults
    that `--help` shows are not the demo's, but those of a command of one's own.

    `--config file.yaml` (or a name, see `find_config`) sets defaults, which other options override. `--help` shows our own
    options and the common ones of the Trainer, `--help_all` every one.

    Raises:
        InputError: the YAML file is missing, or it or the command line names an unknown option or a value that is none.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = _Parser(
        dataclasses, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--config", help="YAML file of options, or the name of one that comes with the package; the command line overrides it."
    )
    parser.add_argument("--help_all", action="store_true", help="Show every option of transformers.TrainingArguments too.")
    if "--help_all" in argv:
        argv = ["--help"]
    else:
        trainer_options = _trainer_options(dataclasses)
        for action in parser._actions:
            if action.dest in trainer_options - COMMON:
                action.help = argparse.SUPPRESS
    file, known = _config_of(argv, demo), {action.dest: action for action in parser._actions}
    if file:
        parser.set_defaults(**_read_yaml(file, known))
    *parsed, unknown = parser.parse_args_into_dataclasses([_by_its_name(word, known) for word in argv], True)
    _refuse_unknown(unknown, known)
    return tuple(parsed[: len(dataclasses)])


class _Parser(HfArgumentParser):
    """Says what is wrong in one sentence; without the usage, which has two hundred options."""

    def error(self, message):
        raise InputError(f"{message[:1].upper()}{message[1:].rstrip('.')}; --help explains the options.")


def _by_its_name(word: str, known) -> str:
    """A word of the command line; an option by another name (`ALIASES`) gets its own."""
    if not word.startswith("--"):
        return word
    option, equals, value = word[2:].partition("=")
    name = option.replace("-", "_")
    real = ALIASES.get(name)
    return f"--{real}{equals}{value}" if real in known and name not in known else word


def _refuse_unknown(words: list[str], known) -> None:
    """Raise InputError for what the parser left over, with the nearest options."""
    if not words:
        return
    option = next((word for word in words if word.startswith("-")), words[0])
    name = option.split("=")[0].lstrip("-").replace("-", "_")
    others = {alias: real for alias, real in ALIASES.items() if real in known}
    found = difflib.get_close_matches(name, [*known, *others], 3, 0.6)
    near = list(dict.fromkeys(others.get(n, n) for n in found))
    meant = f"did you mean {' or '.join(f'--{n}' for n in near)}?" if near else "--help_all lists the options."
    if not option.startswith("-"):
        raise InputError(f"'{option}' belongs to no option; options are written --name value.")
    raise InputError(f"'{option.split('=')[0]}' is no option; {meant}")


def given_options(argv=None, demo: str | None = None) -> set[str]:
    """Names of the options that a command line gives, itself or in its configuration; see `parse`, which it went through."""
    argv = sys.argv[1:] if argv is None else list(argv)
    given = {word[2:].partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    file = _config_of(argv, demo)
    return given | set(_yaml_of(file)[0] if file else ())


def _config_of(argv: list[str], demo: str | None) -> str | None:
    """The configuration that a command line reads: that of `--config`, or the demo's without `--model`."""
    config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config.add_argument("--config")
    config.add_argument("--model")
    given, _ = config.parse_known_args(argv)
    asks = {"-h", "--help"} & set(argv) and demo in {file.stem for file in CONFIGS.glob("*.yaml")}
    return given.config or (demo if given.model is None and not asks else None)


def _trainer_options(dataclasses) -> set[str]:
    """Names of the options of `TrainingArguments`, where one is built on it; importing it for its names alone takes seconds."""
    bases = {base for one in dataclasses for base in one.__mro__ if base.__module__ == "transformers.training_args"}
    return {option.name for base in bases for option in fields(base)}


def find_config(file: str | Path) -> Path:
    """The file that `--config` means: that file, or one that comes with the package.

    Those are known by name (`unlearn_mnist_mae`), and by the path that they had in a clone, which stands in cards and notes
    (`recipes/configs/unlearn_mnist_mae.yaml`).
    """
    file = Path(file)
    packaged = CONFIGS / f"{file.stem}.yaml"
    named = file.parent == Path() and file.suffix in ("", ".yaml") or file.parts[-3:-1] == ("recipes", "configs")
    return packaged if named and not file.is_file() and packaged.is_file() else file


def _yaml_of(file) -> tuple[dict, dict]:
    """The options of a configuration, as values and as they are written."""
    try:
        text = find_config(file).read_text()
        options, as_written = yaml.safe_load(text) or {}, yaml.load(text, yaml.BaseLoader) or {}
        if Path(file).name == "run.yaml":  # of a run, whose places are as seen from its folder
            options, as_written = (resolved_options(o, Path(file).parent) for o in (options, as_written))
        return options, as_written
    except OSError as error:
        raise InputError(f"Cannot read the configuration '{file}': {error}.") from None
    except yaml.YAMLError as error:
        raise InputError(f"'{file}' is not valid YAML: {error}.") from None


def _read_yaml(file, known):
    options, as_written = _yaml_of(file)
    for names in (options, as_written):
        for name in [n for n in names if n not in known and ALIASES.get(n) in known]:
            names.setdefault(ALIASES[name], names.pop(name))
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise InputError(f"'{file}' sets the unknown option '{name}'{f'; did you mean {near[0]}?' if near else '.'}")
    return {name: _as_option(value, as_written[name], known[name]) for name, value in options.items()}


def _as_option(value, written, action):
    """A value of YAML as the option takes it: one value for a list is a list of one, and a number for a text is its text."""
    if value is None or isinstance(value, dict):
        return value
    if action.type is str:
        texts = [None if one is None else text for one, text in zip(value, written)] if isinstance(value, list) else written
        value = texts
    return [value] if action.nargs in ("+", "*") and not isinstance(value, list) else value


def run(main) -> None:
    """Call a command's `main`, and end in an exit status that scripts can trust, with one sentence in place of a traceback.

    0: done. 1: a run, a push or a disk has failed. 2: bad input. 3: less is forgotten than `--require_forgotten` asks for.
    75: SIGTERM has ended the run, which can be gone on with (EX_TEMPFAIL of sysexits.h).
    """
    try:
        main()
        _end_process_group()
    except (InputError, PushError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 75 if isinstance(error, Preempted) else 1)
    except NotForgotten as error:
        if str(error):  # else the command has said it
            print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: Cannot write '{error.filename}': {error.strerror}. Make room there, and start again.", file=sys.stderr)
        sys.exit(1)


def _end_process_group() -> None:
    """Left to the end of the interpreter, gloo's threads now and then abort a process whose work is done."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def command_line(recipe: str, leave_out=()) -> str:
    """The command that is running, for a card; the values of tokens, and of the options in `leave_out`, are replaced by dots.

    Absolute paths are given as seen from here (`places.portable`).

    recipe: its path in the repository, which a card names unless the console script was used.
    """
    words, hidden = [], False
    for word in sys.argv[1:]:
        if word.startswith("--"):
            option, given, _ = word.partition("=")
            name = option[2:].replace("-", "_")
            hidden = name.endswith("token") or name in leave_out
            words += [f"{option}=..." if given else option, *([] if given else ["..."])] if hidden else [word]
        elif not hidden:
            words.append(word)
    launched = sys.argv[0].split() if sys.argv[0].startswith(f"{PROGRAM} ") else ["accelerate", "launch", recipe]
    return shlex.join([*launched, *without_absolute(words, ".")])
