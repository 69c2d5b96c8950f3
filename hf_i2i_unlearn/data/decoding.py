"""The one decoder: from an undecoded row to a picture as a person would see it.

Training, packing, evaluation and audit share it.
"""

import hashlib
import io
import struct
import warnings
import zlib

import fsspec
import numpy as np
from PIL import Image, ImageColor, ImageOps

from ..errors import InputError

# What Pillow raises for a file that is broken, no picture, or far too large.
BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError, MemoryError, NotImplementedError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
ROOM = 4  # times the wanted side: to what a huge JPEG is reduced while it is decoded; crops of 20% of its area still fit
DEEP_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's names for greys of 16 bits (and of 32)


class Unreadable(Exception):
    """A row whose picture cannot be had: why, in a few words."""


class Decoder:
    """Decodes {"bytes", "path"} as undecoded rows have it.

    What cameras and programs write comes out as it is seen: turned as EXIF says; 16-bit and float greys scaled by their depth;
    palettes and transparency on a background; CMYK with and without Adobe's inversion; the first frame of an animation.

    Args:
        channels: 1 gives grey pictures ("L"), 3 colour ones ("RGB"); None leaves grey ones grey.
        background: what shows through transparency, a colour as Pillow names it: "white", "#ff8800".
        side: the side in pixels that the pictures will be resized to. JPEGs much larger are reduced while they are decoded,
            which takes a fraction of time and memory; None decodes all in full.

    Raises:
        InputError: channels that are not 1 or 3, or no colour.
    """

    def __init__(self, channels: int | None, background: str = "white", side: int | None = None):
        if channels not in (1, 3, None):
            raise InputError(f"Pictures of 1 or 3 channels can be read, the model takes {channels}.")
        try:
            self.background = ImageColor.getrgb(background)[:3]
        except (ValueError, AttributeError):
            raise InputError(
                f"'{background}' is no colour for the background of transparent pictures; give a name such as white, or "
                "#rrggbb."
            ) from None
        self.mode, self.side = {1: "L", 3: "RGB", None: None}[channels], side

    def __call__(self, image: dict | None) -> Image.Image:
        """The picture, of mode "L" or "RGB".

        Raises:
            Unreadable: there is none, or it cannot be decoded.
        """
        if image is None or (image.get("bytes") is None and image.get("path") is None):
            raise Unreadable("the row has no picture")
        try:
            with warnings.catch_warnings():  # Pillow warns of large pictures, and of bits of metadata
                warnings.simplefilter("ignore")
                return self._decode(Image.open(io.BytesIO(encoded_bytes(image))))
        except BROKEN as error:
            raise Unreadable(f"{type(error).__name__}: {error}") from error

    def _decode(self, picture):
        if self.side is not None and picture.format == "JPEG" and min(picture.size) >= 2 * ROOM * self.side:
            picture.draft(picture.mode, (ROOM * self.side, ROOM * self.side))
        inverted = picture.mode == "CMYK" and picture.format == "JPEG" and "adobe" not in picture.info
        picture.load()
        picture = ImageOps.exif_transpose(picture)
        if inverted:  # Pillow takes every CMYK JPEG for one of Adobe's, which are stored inverted
            picture = Image.merge("CMYK", [band.point(lambda value: 255 - value) for band in picture.split()])
        if picture.mode in DEEP_GREY or picture.mode == "F":
            picture = _eight_bits(picture)
        if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
            picture = self._on_background(picture)
        wanted = self.mode or ("L" if picture.mode in ("L", "1") else "RGB")
        return picture if picture.mode == wanted else picture.convert("RGB").convert(wanted)

    def _on_background(self, picture):
        clear = picture.convert({"La": "LA", "RGBa": "RGBA"}.get(picture.mode, picture.mode)).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, (*self.background, 255)), clear).convert("RGB")


def encoded_bytes(image: dict) -> bytes:
    """The file of an undecoded image: its bytes, or those that its path names, here or anywhere that fsspec reaches.

    Raises:
        OSError: there is no such file.
    """
    if image.get("bytes") is not None:
        return image["bytes"]
    with fsspec.open(image["path"], "rb") as file:
        return file.read()


def picture_hash(row: dict) -> str:
    """sha256 of the encoded picture of an undecoded row, in hexadecimal; of one that cannot be had, that of no bytes."""
    try:
        content = encoded_bytes(row["image"])
    except (OSError, TypeError, AttributeError):  # the reader refuses or skips it
        content = b""
    return hashlib.sha256(content).hexdigest()


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A deep grey as "L", by the depth that its file can hold, not by the values in it.

    Integers have 16 bits, 32 only where a value says so. Floats lie in 0..1 as a rule; where they go beyond, in the smallest of
    0..255 and 0..65535 that holds them.
    """
    values = np.asarray(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("the picture holds values that are no finite numbers")
    top = values.max(initial=0)
    if picture.mode == "F":
        depth = next((d for d in (1.0, 255.0, 65535.0) if top <= d), top)
    else:
        depth = 65535.0 if top <= 65535 else 2.0**31 - 1
    return Image.fromarray((values / depth * 255).clip(0, 255).round().astype(np.uint8))
