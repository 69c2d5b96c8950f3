"""Verify, months later, that a model cannot complete the pictures of a request.

    hf-i2i-unlearn verify --model unlearned --forget_list request.txt

The record of the run (request.json and run.yaml, in the model's folder or in that of --record) says what was asked and
certified. The pictures are given again, in the way they were asked for: a record holds hashes and no names. They are checked
against those hashes, the weights against the certified ones, and every picture gets its verdict anew. It works for a
checkpoint, a patch, a merged model, and a model that somebody has trained further.

One line says yes or no, and how many pictures of how many. The output folder gets verified.json and verified.html with what
stands behind it. Exit status 0: the request holds. 3: fewer pictures than --require_forgotten are forgotten, or the pictures
are not those of the request. 2: bad input.
"""

import sys
from argparse import ArgumentParser
from dataclasses import dataclass, field, fields
from pathlib import Path

from ..data.options import SplitArguments
from ..errors import InputError, NotForgotten
from ..places import check_places
from .cli import find_config, parse
from .options import check_required


@dataclass
class VerifyArguments(SplitArguments):
    """What is verified. What is not given is as in the run."""

    model: str = field(default="", metadata={"help": "The model to verify: folder or Hub id of a checkpoint or patch."})
    record: str | None = field(
        default=None, metadata={"help": "The output folder of the run that was certified; that of the model if not given."}
    )
    original: str | None = field(default=None, metadata={"help": "The original checkpoint, where it has moved."})
    never_trained: str | None = field(
        default=None,
        metadata={
            "help": "A model trained like the original but without the forget pictures: a verdict then compares each picture "
            "with what that model makes of it. That of the run if not given; 'none' for none."
        },
    )
    require_forgotten: float = field(
        default=0.95, metadata={"help": "The share of the pictures that must not be completed any longer."}
    )
    output_dir: str = field(default="verified", metadata={"help": "Folder for verified.json and verified.html."})
    on_corrupt: str = field(
        default="refuse", metadata={"choices": ["refuse", "skip"], "help": "What an unreadable picture does."}
    )
    batch_size: int = field(default=64, metadata={"help": "Pictures per pass."})
    generation_steps: int | None = field(
        default=None, metadata={"help": "Steps of generation (diffusion, MAGE); those of the run if not given."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Use the CPU even where there is a GPU."})
    verbose: bool = field(default=False, metadata={"help": "Print what stands behind the line as well."})

    def __post_init__(self):
        super().__post_init__()
        check_required(self.require_forgotten)


def main() -> None:
    args, run = read_arguments(sys.argv[1:])
    from transformers.utils.logging import disable_progress_bar

    from ..reporting.request import answer, details
    from .jobs.certificate import verify, write_verified

    disable_progress_bar()  # of loading
    found = verify(args, run)
    write_verified(Path(args.output_dir), found)
    holds = found["certified"] and (found["honoured"]["share"] or 0) >= args.require_forgotten
    print(answer(found, holds))
    if args.verbose:
        print("\n".join([*details(found), *found["checks"], f"In {args.output_dir}: verified.json and verified.html."]))
    if not holds:
        raise NotForgotten


def read_arguments(argv) -> tuple[VerifyArguments, dict]:
    """The options, with what is not given as in the run; and the options of the run.

    Raises:
        InputError: no model, or no record of a run.
    """
    early = ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--model", "--record", "--config"):
        early.add_argument(name)
    given, _ = early.parse_known_args(argv)
    if "--help" in argv or "-h" in argv or "--help_all" in argv:
        return parse((VerifyArguments,), __doc__, argv)[0], {}

    import yaml

    from ..reporting.run_folder import OPTIONS, REQUEST, RunFolder

    file = find_config(given.config) if given.config else None
    options = (yaml.safe_load(file.read_text()) or {}) if file and file.is_file() else {}
    model = given.model or options.get("model")
    if not model:
        raise InputError("--model is missing: the folder or Hub id of the model to verify.")
    folder = RunFolder(given.record or options.get("record") or model)
    run = folder.options
    if not run or not folder.request:
        missing = REQUEST if run else OPTIONS
        raise InputError(f"'{folder.path}' has no {missing}; give --record the output folder of the run that was certified.")
    ways = {"forget_classes", "forget_column", "forget_values", "forget_rows", "forget_list"}
    asked = {word.split("=")[0].lstrip("-") for word in argv if word.startswith("--")} | options.keys()
    known = {f.name for f in fields(SplitArguments)} - {"streaming", "retain_per_class", "proxy_classes", "proxy_dataset"}
    known |= {"never_trained"}  # or the verdicts would be others
    inherited = {k: v for k, v in run.items() if k in known - (ways if asked & ways else set()) and k not in asked}
    check_places(inherited, inherited, folder.path)
    words = []
    for name, value in inherited.items():
        if value is not None:
            words += [f"--{name}", *([str(v) for v in value] if isinstance(value, list) else [str(value)])]
    (args,) = parse((VerifyArguments,), __doc__, [*words, *argv])
    return args, run
