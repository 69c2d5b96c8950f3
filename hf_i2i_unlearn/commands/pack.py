"""Pack pictures small: resized to squares, encoded anew, in one parquet file a split.

    hf-i2i-unlearn pack --dataset photos/ --size 32 --output_dir photos-32

What is trained for many epochs at one size should not be decoded and resized at its full size each time, and has to travel to
other machines. The result is a source for `--dataset` of all commands; labels and file names stay as they were.
"""

from dataclasses import dataclass, field
from pathlib import Path

from ..data.options import SourceArguments
from ..errors import InputError
from .cli import parse

ENCODERS: dict[str, dict] = {
    "png": {"format": "PNG"},
    "jpeg": {"format": "JPEG", "quality": 90},
    "webp": {"format": "WEBP", "quality": 80},
}


@dataclass
class Arguments(SourceArguments):
    """What to pack, and how."""

    splits: list[str] = field(default_factory=lambda: ["train", "validation"], metadata={"help": "Splits to pack."})
    classes: list[str] | None = field(default=None, metadata={"help": "These classes only; all if not given."})
    size: int = field(default=64, metadata={"help": "Side in pixels; the longer side is cropped at the centre."})
    encoding: str = field(default="png", metadata={"choices": list(ENCODERS), "help": "png loses nothing; webp is smallest."})
    on_corrupt: str = field(
        default="refuse", metadata={"choices": ["refuse", "skip"], "help": "What an unreadable picture does."}
    )
    output_dir: str = field(default="packed", metadata={"help": "Folder for the parquet files; must be new or empty."})

    def __post_init__(self):
        if self.size < 1:
            raise InputError(f"size is the side of a picture in pixels, 1 or more; got {self.size}.")


def main() -> None:
    (args,) = parse((Arguments,), __doc__)

    from ..data.packing import pack
    from ..data.requests import load_classes
    from ..reporting.run_folder import refuse_full_folder

    refuse_full_folder(args.output_dir, resuming=False)
    for split in args.splits:
        file = Path(args.output_dir, f"{split}.parquet")
        source = load_classes(args, split, args.classes)
        packed = pack(
            source, args.image_column, args.size, ENCODERS[args.encoding], file, args.on_corrupt, args.background, args.dataset
        )
        print(f"{file}: {len(packed):,} pictures, {file.stat().st_size / 2**20:.1f} MiB")
