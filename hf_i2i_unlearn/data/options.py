"""The options that name pictures: where they come from, which are forgotten and which retained."""

from dataclasses import dataclass, field

from ..errors import InputError


@dataclass
class SourceArguments:
    """Where pictures come from."""

    dataset: str = field(
        default="mnist-demo",
        metadata={
            "help": "Pictures: a Hub id, a folder of class folders (imagefolder), a parquet file, folder or pattern, tar "
            "shards as webdataset packs them (a pattern such as 'shards/{split}-*.tar'; see --image_column), or mnist-demo "
            "(real digits, embedded). {split} in a pattern stands for the name of the split."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration name of a Hub dataset."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(
        default="validation", metadata={"help": "Split to evaluate on; 'none' evaluates on the training pictures."}
    )
    streaming: bool = field(default=False, metadata={"help": "Stream instead of loading; needs --max_steps."})
    stream_attempts: int = field(
        default=8,
        metadata={"help": "How often in a row a stream is tried whose source does not answer; waits double, from 1 s to 60 s."},
    )
    image_column: str = field(
        default="image", metadata={"help": "Column that holds the pictures; in tar shards the extension, such as jpg."}
    )
    label_column: str = field(
        default="label", metadata={"help": "Column that holds the classes; in tar shards the extension, such as cls."}
    )
    background: str = field(
        default="white", metadata={"help": "The colour behind transparent pictures: a name such as white, or #rrggbb."}
    )

    def check_whole_splits(self, held_out: bool = True) -> None:
        """For commands that take pictures from all over a split, which a stream cannot.

        Args:
            held_out: whether the command takes pictures of `eval_split`.

        Raises:
            InputError: `streaming` is on, or there is no `eval_split` where one is needed.
        """
        if self.streaming:
            raise InputError(
                "--streaming does not go with this command, which takes pictures from all over a split; leave it out."
            )
        if held_out and self.eval_split in (None, "none"):
            raise InputError("--eval_split 'none' does not go with this command, which needs pictures that are not trained on.")


@dataclass
class SplitArguments(SourceArguments):
    """Which pictures are forgotten and which are retained. Name the forget set in exactly one of the four ways."""

    forget_classes: list[str] | None = field(default=None, metadata={"help": "Classes to forget, by name or number."})
    forget_column: str | None = field(
        default=None, metadata={"help": "Column to select forget pictures by (with --forget_values)."}
    )
    forget_values: list[str] | None = field(default=None, metadata={"help": "Values of that column to forget."})
    forget_rows: str | None = field(default=None, metadata={"help": "Row numbers to forget, from 0: '3,17,100-199'."})
    forget_list: str | None = field(
        default=None,
        metadata={
            "help": "The takedown request: a text file with one picture per line, by file name (enough of the path to be "
            "unique), or by a value of --forget_column; or a .csv or .jsonl file. Every line must be found."
        },
    )
    forget_list_column: str | None = field(
        default=None,
        metadata={"help": "Column of a .csv or .jsonl --forget_list; 'file_name', or --forget_column, if not given."},
    )
    copies: str = field(
        default="refuse",
        metadata={
            "help": "Exact copies of forget pictures under other names (equal files or equal pixels), which would be trained "
            "to stay: refuse; forget them too; keep them; or skip, which does not look for them and saves reading every "
            "picture once. With the library imagehash near copies are listed too."
        },
    )
    retain_classes: list[str] | None = field(
        default=None, metadata={"help": "Classes to retain; all that is not forgotten if not given."}
    )
    retain_dataset: str | None = field(default=None, metadata={"help": "Take the retain pictures from this dataset instead."})
    retain_per_class: int | None = field(
        default=None,
        metadata={
            "help": "Only so many retain pictures of each class are available (App. D.1); they are over-sampled, as the retain "
            "set is cycled. 0: none, with proxies."
        },
    )
    proxy_classes: list[str] | None = field(
        default=None,
        metadata={"help": "Classes that stand in for the retain set in training (section 4.3), never in the figures."},
    )
    proxy_dataset: str | None = field(default=None, metadata={"help": "Dataset that stands in for the retain set in training."})
    hold_out: float = field(
        default=0.0,
        metadata={
            "help": "With --eval_split none: the share of the retain pictures that is kept out of training, to compare with; "
            "at most --eval_samples, and none of fewer than 40."
        },
    )
    eval_samples: int = field(default=500, metadata={"help": "Pictures per set for the figures, evenly spread; 0 = all."})
    card_names: bool = field(
        default=False,
        metadata={
            "help": "Name the forget pictures (file names, values, rows) in the card and in run.yaml. They may be those of the "
            "people concerned, so otherwise there is a count, and of files and rows a hash, by which they can be checked."
        },
    )
    show_forgotten: bool = field(
        default=False,
        metadata={
            "help": "Show pictures of the forget set, and completions of them, in what is drawn: grids, card and report. "
            "Otherwise the retain set alone is shown."
        },
    )

    def __post_init__(self):
        if not 0 <= self.hold_out < 1:
            raise InputError(f"--hold_out is a share of the retain pictures, 0 or more and below 1; got {self.hold_out}.")

    @property
    def private(self) -> tuple[str, ...]:
        """Options that may name the people concerned, and that neither card nor run.yaml shows unless `card_names` is set."""
        return () if self.card_names else ("forget_values", "forget_rows")
