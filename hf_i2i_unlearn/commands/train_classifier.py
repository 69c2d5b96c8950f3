"""Train a small classifier of your own pictures, whose features then measure completions offline.

    hf-i2i-unlearn train-classifier --config classifier_mnist

made the feature network of the embedded demo. All pictures are decoded once and held in memory as bytes, so it is meant for
small ones. A killed run goes on with `--resume_from_checkpoint true`. The result is a folder that
`transformers.AutoModelForImageClassification` loads, with its accuracy in the card; `hf-i2i-unlearn evaluate --features
classifier:FOLDER` uses it.
"""

from dataclasses import dataclass, field

from ..data.options import SourceArguments
from ..originals.config import PretrainingConfig
from .cli import JsonDict, command_line, parse


@dataclass
class Arguments(SourceArguments):
    """The network and what it sees."""

    image_size: int = field(default=64, metadata={"help": "Side in pixels to which pictures are brought."})
    channels: int = field(default=3, metadata={"choices": [1, 3], "help": "1 reads pictures as grey."})
    network: JsonDict = field(
        default_factory=JsonDict, metadata={"help": "Fields of ResNetConfig, as JSON or in the YAML file."}
    )
    classes: list[str] | None = field(default=None, metadata={"help": "Train on these classes only; all if not given."})
    min_view: float = field(default=0.35, metadata={"help": "Smallest part of a picture seen in training, of the sides."})
    whole: float = field(default=0.5, metadata={"help": "Share of the pictures that are seen whole."})
    hole: float = field(default=0.5, metadata={"help": "Central part for the second accuracy, of the sides."})
    flip: bool = field(default=False, metadata={"help": "Mirror half of the pictures."})
    rotation: float = field(default=0.0, metadata={"help": "Largest rotation in degrees."})
    on_corrupt: str = field(
        default="refuse", metadata={"choices": ["refuse", "skip"], "help": "What an unreadable picture does."}
    )
    half: bool = field(default=False, metadata={"help": "Save the result in half precision."})


def main() -> None:
    args, training = parse((Arguments, PretrainingConfig), __doc__)

    from ..originals.classifier_run import train_classifier

    train_classifier(args, training, command_line("recipes/train_classifier.py"))
