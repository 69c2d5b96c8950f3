"""Pictures made small once, for what is trained on them for many epochs."""

import io
from pathlib import Path

import datasets
from PIL import Image, ImageOps


def pack(source: datasets.Dataset, image_column: str, size: int, encoding: dict, file) -> datasets.Dataset:
    """Write a map-style dataset as one parquet file, its pictures cut to squares of `size` pixels and encoded anew.

    Args:
        encoding: keywords of `PIL.Image.save`, such as {"format": "PNG"}. file: the parquet file; its folder is made.

    Returns:
        What was written. Other columns and file names stay as they were.
    """
    decoder = datasets.Image(decode=True)

    def small(row):
        picture = decoder.decode_example(row[image_column])
        picture = ImageOps.fit(
            picture if picture.mode == "L" else picture.convert("RGB"), (size, size), Image.Resampling.BICUBIC
        )
        buffer = io.BytesIO()
        picture.save(buffer, **encoding)
        return {image_column: {"bytes": buffer.getvalue(), "path": row[image_column]["path"]}}

    source = source.cast_column(image_column, datasets.Image(decode=False))
    packed = source.map(small, desc=f"packing {Path(file).stem}").cast_column(image_column, datasets.Image())
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    packed.to_parquet(str(file))
    return packed
