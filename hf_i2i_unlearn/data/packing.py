"""Pictures made small once, for what is trained on them for many epochs."""

import io
import os
from pathlib import Path

import datasets
from PIL import Image, ImageOps

from ..errors import InputError
from .decoding import Decoder, Unreadable


def pack(
    source: datasets.Dataset,
    image_column: str,
    size: int,
    encoding: dict,
    file,
    on_corrupt: str = "refuse",
    background: str = "white",
    root=None,
) -> datasets.Dataset:
    """Write a map-style dataset as one parquet file, its pictures cut to squares of `size` pixels and encoded anew.

    Args:
        encoding: keywords of `PIL.Image.save`, such as {"format": "PNG"}. file: the parquet file; its folder is made.
        on_corrupt: "refuse" raises at an unreadable picture, "skip" leaves its row out.
        background: behind transparent pictures. root: the folder of the pictures; names are given as seen from it.

    Returns:
        What was written. Other columns stay as they were, and so do file names, without where they lay on this machine.

    Raises:
        InputError: an unreadable picture, where such are refused.
    """
    decoder = Decoder(None, background, size)

    def small(row):
        try:
            picture = decoder(row[image_column])
        except Unreadable as error:
            if on_corrupt == "skip":
                return {image_column: None}
            name = (row[image_column] or {}).get("path") or "an image without a name"
            raise InputError(
                f"Cannot read {name}: {error}. Repair or remove it, or skip such pictures with --on_corrupt skip."
            ) from error
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        picture.save(buffer, **encoding)
        return {image_column: {"bytes": buffer.getvalue(), "path": _name(row[image_column]["path"], root)}}

    source = source.cast_column(image_column, datasets.Image(decode=False))
    packed = source.map(small, desc=f"packing {Path(file).stem}")
    if on_corrupt == "skip":
        packed = packed.filter(lambda image: image is not None, input_columns=image_column)
    packed = packed.cast_column(image_column, datasets.Image())
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    packed.to_parquet(str(file))
    return packed


def _name(path: str | None, root) -> str | None:
    """A file's name as seen from the folder of the pictures; of one that lies elsewhere, the name alone."""
    if path is None or not os.path.isabs(path):
        return path
    below = os.path.relpath(path, root) if root else ".."
    return Path(path).name if below.startswith("..") else Path(below).as_posix()
