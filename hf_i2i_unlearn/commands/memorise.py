"""Go on training an original until it knows given pictures by heart, so that there is something to be forgotten.

    hf-i2i-unlearn memorise --config memorise_mnist_mae

made the memorised twin of the embedded demo. With --canaries true the pictures are put together: what T hides is of another
picture, so that nobody can complete them but by heart. Else they are real pictures of the evaluation split, which the original
never saw. A killed run goes on with `--resume_from_checkpoint true`.

The output folder gets the model, and `known/`: train.parquet holds the pictures that it knows, validation.parquet some like
them that it never saw. `unlearn --model FOLDER --dataset FOLDER/known --forget_rows 0-99 --retain_dataset DATASET` makes it
forget.
`--known_share 0` trains the twin that never sees them, by the same steps.
"""

from dataclasses import dataclass, field

from ..data.augmentation import AUGMENTATIONS
from ..data.options import SourceArguments
from ..errors import InputError
from ..originals.config import PretrainingConfig
from .cli import JsonDict, parse
from .words import CORRUPTION_HELP, parse_corruption


@dataclass
class Arguments(SourceArguments):
    """The model, and what it is to know by heart."""

    model: str = field(default="mnist-demo", metadata={"help": "The original to go on with: folder, Hub id, or a demo's name."})
    options: JsonDict = field(
        default_factory=JsonDict, metadata={"help": 'Of its `from_pretrained`, as JSON or in YAML, such as {"steps": 10}.'}
    )
    known: int = field(default=100, metadata={"help": "How many pictures are to be known by heart."})
    canaries: bool = field(
        default=False, metadata={"help": "Pictures whose hidden part is of another one, in place of real ones."}
    )
    known_share: float = field(
        default=0.5, metadata={"help": "Their share of every batch. 0: the twin that never sees them, by the same steps."}
    )
    known_ratio: float = field(
        default=0.0,
        metadata={"help": "Stop when their mean error is this share of that of pictures like them; 0: take all steps."},
    )
    measure_every: int = field(default=100, metadata={"help": "Steps between those measurements."})
    corruption: str = field(default="center:8", metadata={"help": f"T(x): {CORRUPTION_HELP}."})
    augment: str = field(default="none", metadata={"choices": list(AUGMENTATIONS), "help": "Augmentation in training."})
    on_corrupt: str = field(
        default="refuse", metadata={"choices": ["refuse", "skip"], "help": "What an unreadable picture does."}
    )
    eval_samples: int = field(default=500, metadata={"help": "Unseen pictures for the figures, evenly spread."})
    pictures_only: bool = field(
        default=False,
        metadata={"help": "Write `known/` alone, and train nothing: the pictures that weights at hand were trained on."},
    )
    half: bool = field(default=False, metadata={"help": "Save the result in half precision."})

    def __post_init__(self):
        self.check_whole_splits()
        if self.known < 1 or self.eval_samples < 1 or self.measure_every < 1:
            raise InputError(
                f"--known, --eval_samples and --measure_every are 1 or more; got {self.known}, {self.eval_samples} and "
                f"{self.measure_every}."
            )
        if not 0 <= self.known_share < 1 or not 0 <= self.known_ratio < 1:
            raise InputError(
                f"--known_share and --known_ratio are shares from 0 to below 1; got {self.known_share} and {self.known_ratio}."
            )


@dataclass
class MemorisingConfig(PretrainingConfig):
    """Other defaults than those of training from nothing: AdamW alone, and a cosine."""

    muon_learning_rate: float = field(default=0.0, metadata={"help": "Learning rate of Muon; 0 gives all weights to AdamW."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of AdamW."})
    weight_decay: float = field(default=0.0, metadata={"help": "Weight decay."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Pictures per step, known ones among them."})
    max_steps: int = field(default=1500, metadata={"help": "Optimisation steps at most."})
    output_dir: str = field(default="memorised", metadata={"help": "Folder for checkpoints and the result."})


def main() -> None:
    args, training = parse((Arguments, MemorisingConfig), __doc__, demo="memorise_mnist_mae")

    from ..originals.memorise import memorise, write_pictures

    if args.pictures_only:
        print(f"In {training.output_dir}: {write_pictures(args, training, parse_corruption(args.corruption))}.")
        return
    found = memorise(args, training, parse_corruption(args.corruption), AUGMENTATIONS[args.augment])
    before = found["original"]
    for kind, words in {"known": "known by heart", "like_known": "like them, never seen", "unseen": "unseen"}.items():
        print(f"hole error, {words}: {before[kind]:.3f} before, {found[kind]:.3f} now")
