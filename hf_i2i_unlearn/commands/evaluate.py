"""Measure unlearned checkpoints: error, drift, FID, Inception score, similarity and a classifier of the hole, before and after.

    hf-i2i-unlearn evaluate --models unlearned-mnist-mae

The original, the pictures and T are read from run.yaml in the (first) folder; options change them. Several checkpoints of one
original, as `name=folder`, stand side by side. Each is measured under every T of --corruptions, on held-out pictures of both
sets, with every network of --features, which sees whole pictures and the hole alone. On several processes each takes its share.

The output folder gets results.json (figures, each with how it was measured), results.csv, table.md and pictures. A finished
figure is written at once, and a broken-off evaluation goes on when the command is given again. The folder that is measured and
its card stay as they are, unless --update_card true. Without options it measures what the demo left behind, in a minute or two.
"""

import argparse
import tempfile
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from ..data.options import SplitArguments
from ..errors import InputError
from ..evaluation.words import FEATURES_HELP, REGIONS
from ..reporting.run_folder import RunFolder
from .cli import find_config, parse
from .words import CORRUPTION_HELP

DEMO = "evaluate_mnist_mae"
ABLATIONS = ("alpha", "retain_per_class", "noise", "max_steps", "learning_rate")


@dataclass
class Arguments(SplitArguments):
    """What to measure. What is not given is as in the run (run.yaml of the first folder)."""

    models: list[str] = field(
        default_factory=list,
        metadata={"help": "Unlearned checkpoints or patches, folders or Hub ids, as FOLDER or NAME=FOLDER."},
    )
    original: str | None = field(default=None, metadata={"help": "The original checkpoint."})
    original_patches: list[str] | None = field(default=None, metadata={"help": "Patches that belong to the original."})
    corruptions: list[str] | None = field(default=None, metadata={"help": f"T(x), several of: {CORRUPTION_HELP}."})
    cross_validation: list[str] | None = field(
        default=None,
        metadata={
            "help": "T under which to cross-validate too (App. E.2): the original completes the rest from what the model "
            "filled in."
        },
    )
    features: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Networks, several of: {FEATURES_HELP}. none measures without; demo for mnist-demo, else inception and "
            "clip."
        },
    )
    regions: list[str] = field(
        default_factory=lambda: list(REGIONS), metadata={"help": f"What they see, of {', '.join(REGIONS)}."}
    )
    inception_splits: int = field(default=1, metadata={"help": "Parts of which the Inception score is averaged."})
    generation_steps: int | None = field(default=None, metadata={"help": "Steps of generation (diffusion, MAGE)."})
    batch_size: int = field(default=64, metadata={"help": "Pictures per device and pass."})
    on_corrupt: str = field(
        default="refuse", metadata={"choices": ["refuse", "skip"], "help": "What an unreadable picture does."}
    )
    pictures: int = field(
        default=3, metadata={"help": "Pictures per set in the grid of completions, one grid per T; 0 = none."}
    )
    tsne: int = field(
        default=0, metadata={"help": "Pictures per set in a t-SNE map of the embeddings (50 in Fig. 4); 0 = none."}
    )
    figures: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Draw and list the metrics against an option in which runs differ that are otherwise like the first "
            f"model's, of {', '.join(ABLATIONS)}."
        },
    )
    update_card: bool = field(
        default=False,
        metadata={"help": "Put the figures into the folder of the run too, and into its card, where one is measured."},
    )
    output_dir: str = field(default="evaluated", metadata={"help": "Folder for the figures."})
    seed: int = field(default=0, metadata={"help": "Fixes T and generation."})
    use_cpu: bool = field(default=False, metadata={"help": "Use the CPU even where there is a GPU."})


def main() -> None:
    args, runs = read_arguments()

    from .jobs.evaluated import run_evaluation

    run_evaluation(args, runs)


def read_arguments():
    """The options, what is not given being as in the run of the first model; and the options of every model's run, or {}."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--models", nargs="*")
    early.add_argument("--config")
    given, rest = early.parse_known_args()
    if given.models is None and given.config is None and Path("unlearned-mnist-mae").is_dir():
        given.config = DEMO
    given.config = given.config and str(find_config(given.config))
    options = (yaml.safe_load(Path(given.config).read_text()) or {}) if given.config and Path(given.config).is_file() else {}
    words = given.models if given.models is not None else options.get("models") or []
    runs = {}
    for name, path in map(named, words):
        runs[name] = RunFolder(path).options
    asked = {word.split("=")[0].lstrip("-") for word in rest} | options.keys()
    run, ways = first_run(runs), {"forget_classes", "forget_column", "forget_values", "forget_rows", "forget_list"}
    # The availability of retain pictures concerns training alone.
    unwanted = {"retain_per_class", "proxy_classes", "proxy_dataset", "streaming"} | (ways if asked & ways else set())
    known = {f.name for f in fields(SplitArguments)} - unwanted
    inherited = {k: v for k, v in run.items() if k in known | {"on_corrupt"}}
    if "model" in run:
        inherited |= {"original": run["model"], "original_patches": run.get("patches")}
        inherited["corruptions"] = (run.get("eval_corruption") or run["corruption"]).split(",")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(inherited | options, file)
        file.flush()
        rest += ["--models", *words] if words else []
        if given.config and not options:
            rest += ["--config", given.config]  # to be refused in words
        (args,) = parse((Arguments,), __doc__, rest, demo=file.name)
    if not args.models:
        raise InputError("--models is missing: one or more unlearned checkpoints. hf-i2i-unlearn unlearn makes one.")
    if args.features is None:
        args.features = ["demo"] if args.dataset == "mnist-demo" else ["inception", "clip"]
    return args, runs


def named(word: str) -> tuple[str, str]:
    """'name=folder' -> (name, folder); a folder alone is named by its last part."""
    name, equals, path = word.partition("=")
    return (name, path) if equals else (Path(word).name, word)


def first_run(runs: dict) -> dict:
    """The options of the first model's run."""
    return next(iter(runs.values()), {})
