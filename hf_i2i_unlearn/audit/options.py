"""Options of an audit, and those of the run that it is about."""

from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from ..commands.words import CORRUPTION_HELP
from ..data.options import SplitArguments
from ..errors import InputError

PARTS = ("relearning", "membership", "probe", "leakage")
# Options of the audit that, where given, take the place of the run's.
GIVEN = ("dataset", "train_split", "eval_split", "forget_list", "forget_values", "forget_rows")


@dataclass
class AuditArguments:
    """What to audit, and how hard. What is not given is as in the run (run.yaml of the folder)."""

    model: str = field(default="", metadata={"help": "The output folder of an unlearning run."})
    original: str | None = field(default=None, metadata={"help": "The original checkpoint; that of the run."})
    dataset: str | None = field(default=None, metadata={"help": "Pictures; those of the run."})
    train_split: str | None = field(default=None, metadata={"help": "Split that was trained on; that of the run."})
    eval_split: str | None = field(
        default=None, metadata={"help": "Split that no model was trained on, 'none' if there is none; that of the run."}
    )
    forget_list: str | None = field(default=None, metadata={"help": "The takedown request, if it has moved since the run."})
    forget_values: list[str] | None = field(
        default=None, metadata={"help": "The values that were forgotten, where run.yaml does not name them."}
    )
    forget_rows: str | None = field(default=None, metadata={"help": "The rows that were, where run.yaml does not name them."})
    corruption: str | None = field(
        default=None, metadata={"help": f"T of training, several parted by commas, if not that of the run: {CORRUPTION_HELP}."}
    )
    parts: list[str] = field(default_factory=lambda: list(PARTS), metadata={"help": f"What to run, of {', '.join(PARTS)}."})
    samples: int = field(default=300, metadata={"help": "Pictures per set and purpose, evenly spread; 0 = all."})
    membership_samples: int = field(
        default=1000, metadata={"help": "The same for membership inference, whose interval is wide with few; 0 = all."}
    )
    relearn_pictures: int = field(default=50, metadata={"help": "k: forget pictures that the relearning attacker has."})
    relearn_samples: int = field(default=100, metadata={"help": "Held-out forget pictures that relearning is measured on."})
    relearn_steps: int = field(default=200, metadata={"help": "Steps of relearning at most."})
    relearn_learning_rates: list[float] = field(
        default_factory=lambda: [1e-5, 1e-4, 1e-3], metadata={"help": "Learning rates tried; the attacker's best one counts."}
    )
    relearn_batch_size: int = field(default=32, metadata={"help": "Pictures per step of relearning."})
    tolerance: float = field(
        default=0.25, metadata={"help": "Within this share of the original's hole error a picture counts as completed again."}
    )
    never_trained: str | None = field(
        default=None,
        metadata={"help": "A checkpoint trained like the original but without the forget pictures, to compare with."},
    )
    never_seen_classes: list[str] | None = field(
        default=None, metadata={"help": "Classes of the dataset that the original never saw, to compare with."}
    )
    relearn_scrambled: bool = field(
        default=True, metadata={"help": "Compare with the original whose encoder weights are shuffled: one that knows nothing."}
    )
    masks: list[str] | None = field(
        default=None, metadata={"help": "Other T to complete pictures from; a list that suits the model's grid if not given."}
    )
    probe_features: int = field(
        default=2048, metadata={"help": "Longest representation a probe reads; longer ones are projected."}
    )
    generation_steps: int | None = field(
        default=None, metadata={"help": "Steps of generation (diffusion, MAGE); those of the run if not given."}
    )
    batch_size: int = field(default=64, metadata={"help": "Pictures per pass when nothing is trained."})
    seed: int = field(default=0, metadata={"help": "Fixes every draw."})
    use_cpu: bool = field(default=False, metadata={"help": "Use the CPU even where there is a GPU."})

    def check(self) -> None:
        """Raise InputError for a value that makes no sense."""
        for part in self.parts:
            if part not in PARTS:
                raise InputError(f"'{part}' is no part of an audit; choose from {', '.join(PARTS)}.")
        for name, least in {
            "relearn_pictures": 1,
            "relearn_samples": 1,
            "relearn_steps": 1,
            "relearn_batch_size": 1,
            "probe_features": 1,
            "batch_size": 1,
            "samples": 0,
            "membership_samples": 0,
        }.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} must be {least} or more, got {getattr(self, name)}.")
        if not self.tolerance > 0:
            raise InputError(f"tolerance is a share larger than 0, such as 0.25; got {self.tolerance}.")
        if not self.relearn_learning_rates or min(self.relearn_learning_rates) <= 0:
            raise InputError(f"relearn_learning_rates must be one or more numbers above 0, got {self.relearn_learning_rates}.")


def read_run(folder: str) -> dict:
    """The options of an unlearning run. Raises InputError if the folder has no run.yaml."""
    file = Path(folder, "run.yaml")
    if not folder or not file.is_file():
        raise InputError(f"'{folder}' has no run.yaml; give --model the output folder of an unlearning run.")
    run = yaml.safe_load(file.read_text()) or {}
    if missing := sorted({"model", "dataset", "corruption"} - run.keys()):
        raise InputError(
            f"'{file}' lacks {', '.join(missing)}; give the output folder of an unlearning run, not of a comparison."
        )
    return run


def split_arguments(args: AuditArguments, run: dict) -> SplitArguments:
    """The selection of the run with what the audit's options change, and every picture of the real retain set available."""
    known = {f.name: run[f.name] for f in fields(SplitArguments) if f.name in run}
    given = {n: v for n in GIVEN if (v := getattr(args, n)) is not None}
    whole = {"retain_per_class": None, "proxy_classes": None, "proxy_dataset": None, "eval_samples": args.membership_samples}
    return SplitArguments(**known | given | whole)


def default_masks(grid: tuple[int, int]) -> list[str]:
    """Masks of every kind that fit the grid: random ones, a smaller and a larger centre, each side, and all but the centre."""
    side = min(grid)
    small, large, third = max(1, side // 4), max(1, side * 3 // 4), max(1, side // 3)
    return [
        "random:0.25", "random:0.5", "random:0.75", f"center:{small}", f"center:{large}", f"left:{third}", f"right:{third}",
        f"up:{third}", f"down:{third}", f"outpaint:{third}",
    ]  # fmt: skip
