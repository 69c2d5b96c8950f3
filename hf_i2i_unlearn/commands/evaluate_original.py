"""Measure an original model against completions that have learnt nothing: is there anything to unlearn?

    hf-i2i-unlearn evaluate-original --model model_cards/photos-mae --dataset photos-32 --corruptions center:4 center:2 \
        --features classifier:model_cards/photos-classifier

It completes held-out pictures under every T of --corruptions with the original, with the mean colour of what is visible, by
biharmonic inpainting and with further checkpoints (--models never_saw=FOLDER), and says whether the original beats the trivial
ones. With --forget_classes (and --retain_classes) both sets are measured apart. The output folder gets table.md, results.json,
results.csv and pictures; with --update_card true the card in the model's folder gets a section "Against trivial completions". A
broken-off measurement goes on. Without options it measures the embedded original of digits, in a few seconds.
"""

from dataclasses import dataclass, field

from ..data.options import SplitArguments
from ..evaluation.words import FEATURES_HELP, TRIVIAL_WORDS
from .cli import JsonDict, parse
from .words import CORRUPTION_HELP


@dataclass
class Arguments(SplitArguments):
    """What to measure."""

    model: str = field(default="mnist-demo", metadata={"help": "The original: folder, Hub id or a demo."})
    models: list[str] = field(
        default_factory=list,
        metadata={"help": "Further checkpoints of its kind, such as one that never saw some classes, as NAME=FOLDER."},
    )
    trivial: list[str] = field(
        default_factory=lambda: list(TRIVIAL_WORDS),
        metadata={"help": f"Trivial completions, of {', '.join(TRIVIAL_WORDS)}."},
    )
    classes: list[str] | None = field(
        default=None, metadata={"help": "Measure on these classes alone, where no forget classes are named; all if not given."}
    )
    corruptions: list[str] = field(
        default_factory=lambda: ["center:8", "center:4"], metadata={"help": f"T(x), several of: {CORRUPTION_HELP}."}
    )
    features: list[str] = field(
        default_factory=lambda: ["inception", "clip"],
        metadata={"help": f"Networks, several of: {FEATURES_HELP}; none measures without."},
    )
    generation_steps: int | None = field(default=None, metadata={"help": "Steps of generation (diffusion, MAGE)."})
    generation: JsonDict = field(
        default_factory=JsonDict,
        metadata={
            "help": 'Options of the family, as JSON or in YAML, such as {"margin": 0} (MAGE); else as pretrained (run.yaml).'
        },
    )
    sampler: str | None = field(
        default=None, metadata={"choices": ["ddim", "ddpm"], "help": "Diffusion: ddpm at full steps is the reference."}
    )
    batch_size: int = field(default=64, metadata={"help": "Pictures per device and pass."})
    on_corrupt: str = field(
        default="refuse", metadata={"choices": ["refuse", "skip"], "help": "What an unreadable picture does."}
    )
    pictures: int = field(
        default=4, metadata={"help": "Pictures per set in the grid of completions, one grid per T; 0 = none."}
    )
    update_card: bool = field(
        default=False, metadata={"help": "Add the figures to the card in the model's folder, if there is one."}
    )
    output_dir: str = field(default="evaluated-original", metadata={"help": "Folder for the figures."})
    seed: int = field(default=0, metadata={"help": "Fixes T and generation."})
    use_cpu: bool = field(default=False, metadata={"help": "Use the CPU even where there is a GPU."})


def main() -> None:
    (args,) = parse((Arguments,), __doc__, demo="evaluate_original_mnist_mae")

    from .jobs.evaluated_original import run_measurement

    run_measurement(args)
