"""Pack pictures small: resized to squares, encoded anew, in one parquet file a split.

    python recipes/pack.py --dataset photos/ --size 32 --output_dir photos-32

What is trained for many epochs at one size should not be decoded and resized at its full size each time, and has to travel to
other machines. The result is a source for `--dataset` of all recipes; labels and file names stay as they were.
"""

import io
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from PIL import Image, ImageOps

from hf_i2i_unlearn import InputError, by_classes, load_source, select
from hf_i2i_unlearn.commands.cli import parse, run
from hf_i2i_unlearn.data.options import SourceArguments
from hf_i2i_unlearn.reporting.run_folder import refuse_full_folder

ENCODERS = {"png": {"format": "PNG"}, "jpeg": {"format": "JPEG", "quality": 90}, "webp": {"format": "WEBP", "quality": 80}}


@dataclass
class Arguments(SourceArguments):
    """What to pack, and how."""

    splits: list[str] = field(default_factory=lambda: ["train", "validation"], metadata={"help": "Splits to pack."})
    classes: list[str] | None = field(default=None, metadata={"help": "These classes only; all if not given."})
    size: int = field(default=64, metadata={"help": "Side in pixels; the longer side is cropped at the centre."})
    encoding: str = field(default="png", metadata={"choices": list(ENCODERS), "help": "png loses nothing; webp is smallest."})
    output_dir: str = field(default="packed", metadata={"help": "Folder for the parquet files; must be new or empty."})


def main():
    (args,) = parse((Arguments,), __doc__)
    if args.size < 1:
        raise InputError(f"size is the side of a picture in pixels, 1 or more; got {args.size}.")
    refuse_full_folder(args.output_dir, resuming=False)
    decoder = datasets.Image(decode=True)

    def pack(row):
        source = row[args.image_column]
        picture = decoder.decode_example(source)
        picture = ImageOps.fit(
            picture if picture.mode == "L" else picture.convert("RGB"), (args.size, args.size), Image.Resampling.BICUBIC
        )
        buffer = io.BytesIO()
        picture.save(buffer, **ENCODERS[args.encoding])
        return {args.image_column: {"bytes": buffer.getvalue(), "path": source["path"]}}

    for split in args.splits:
        source = load_source(args.dataset, split, args.dataset_config)
        if args.classes:
            source = select(source, by_classes(source, args.classes, args.label_column), True, args.image_column)
        source = source.cast_column(args.image_column, datasets.Image(decode=False))
        packed = source.map(pack, desc=f"packing {split}").cast_column(args.image_column, datasets.Image())
        file = Path(args.output_dir, f"{split}.parquet")
        file.parent.mkdir(parents=True, exist_ok=True)
        packed.to_parquet(str(file))
        print(f"{file}: {len(packed):,} pictures, {file.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    run(main)
