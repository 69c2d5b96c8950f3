"""The same picture under another name: what is to be forgotten must not be trained to stay from a copy of it.

Every picture of a source is read once. Equal files are known by their sha256. Equal pixels are looked for where the size in
the file's header is that of a forget picture, so that few are decoded. Near copies (resized, saved again) are found by a
perceptual hash, for which all are decoded; they need the library `imagehash`.
"""

import hashlib
import importlib.util
import io
import logging
import os
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from .decoding import BROKEN, Decoder, Unreadable, encoded_bytes

logger = logging.getLogger(__name__)

NEAR = 6  # bits of 64 in which the perceptual hashes of near copies differ at most
NEAR_SIDE = 32  # pixels to which `imagehash` resizes: a large JPEG is reduced while it is decoded for it
PIECE = 512  # pictures that are read, hashed and compared together
EXACT = ("bytes", "pixels")
LISTED = 10_000  # near copies that are kept; beyond, they are counted


@dataclass(frozen=True)
class Copy:
    """One copy: `how` it is one ("bytes", "pixels" or "near"), in which source, its row there, its file's sha256 and name."""

    how: str
    source: str
    row: int
    sha256: str
    name: str = ""


@dataclass
class Copies:
    """What was found: {sha256 of a forget picture: its copies}.

    Attributes:
        looked_for: the kinds that were looked for. pictures: how many were looked at. unreadable: how many of them could not be
            read or decoded. unlisted: near copies beyond the `LISTED` first. seconds: what it took. catalogue: the forget
            pictures, to compare others with.
    """

    of: dict[str, list[Copy]] = field(default_factory=dict)
    looked_for: tuple[str, ...] = ()
    pictures: int = 0
    unreadable: int = 0
    unlisted: int = 0
    seconds: float = 0.0
    catalogue: "Catalogue | None" = field(default=None, repr=False, compare=False)

    def all(self, *how: str, source: str | None = None) -> list[Copy]:
        """The copies of these kinds, in one source or in all."""
        return [
            copy
            for found in self.of.values()
            for copy in found
            if copy.how in how and (source is None or copy.source == source)
        ]

    def rows(self, source: str) -> frozenset[int]:
        """Rows of a source that are exact copies."""
        return frozenset(copy.row for copy in self.all(*EXACT, source=source))

    def as_data(self) -> dict:
        """For a record: hashes and no names."""
        of = {
            forgotten: [{"how": c.how, "in": c.source, "sha256": c.sha256} for c in found]
            for forgotten, found in sorted(self.of.items())
        }
        return {
            "of": of, "looked_for": list(self.looked_for), "pictures": self.pictures, "unreadable": self.unreadable,
            "unlisted": self.unlisted, "seconds": round(self.seconds, 1),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Print:
    """What is known of one picture. size: sorted sides in the header; pixels, near: None if not decoded."""

    source: str
    row: int
    sha256: bytes
    name: str
    size: tuple[int, ...] | None = None
    pixels: bytes | None = None
    near: int | None = None


def can_find_near() -> bool:
    """Whether the library for perceptual hashes is here."""
    return importlib.util.find_spec("imagehash") is not None


def find_copies(forget, others: dict[str, object], near: bool | None = None) -> Copies:
    """Copies of the forget pictures in other sources. Each picture is read once, and nothing is kept of it but its hashes.

    Args:
        forget: iterable of (row number, undecoded image {"bytes", "path"} or None).
        others: {name of a source: such an iterable of the rows in it that are not to be forgotten}. All may be streams.
        near: whether near copies are looked for; None: if `imagehash` is here.
    """
    near, start = can_find_near() if near is None else near, time.monotonic()
    catalogue = Catalogue(prints(forget, "forget", None, near))
    result = compare(catalogue, {name: prints(rows, name, catalogue.sizes, near) for name, rows in others.items()}, near)
    result.seconds = time.monotonic() - start
    return result


def compare(catalogue: "Catalogue", others: dict[str, Iterable[Print]], near: bool) -> Copies:
    """`find_copies` among prints that have been made, or are made as they are read."""
    result = Copies(looked_for=(*EXACT, "near") if near else EXACT, catalogue=catalogue)
    for found in others.values():
        catalogue.add_copies(found, result)
    return result


class Catalogue:
    """Forget pictures by their prints, to compare others with."""

    def __init__(self, known: Iterable[Print]):
        self.files, self.names, self.pixels, near = {}, {}, {}, {}
        self.sizes = set()
        for one in known:
            self.files[one.sha256] = one.sha256.hex()
            self.names.setdefault(one.sha256.hex(), one.name)
            self.sizes.add(one.size)
            if one.pixels is not None:
                self.pixels.setdefault(one.pixels, one.sha256.hex())
            if one.near is not None:
                near.setdefault(one.near, one.sha256.hex())
        self.near, self.near_names = np.array(list(near), dtype=np.uint64), list(near.values())
        self.sizes.discard(None)

    def exact(self, one: "Print") -> tuple[str, str] | None:
        """How a picture is a copy, and the sha256 of the forget picture; None if it is none."""
        if one.sha256 in self.files:
            return "bytes", self.files[one.sha256]
        return ("pixels", self.pixels[one.pixels]) if one.pixels in self.pixels else None

    def add_copies(self, others: Iterable[Print], result: Copies) -> None:
        """Add to a result those of `others` that are copies."""
        of, piece, listed = defaultdict(list, result.of), [], len(result.all("near"))
        for one in others:
            result.pictures += 1
            result.unreadable += one.size is None
            exact = self.exact(one)
            if exact is not None:
                of[exact[1]].append(Copy(exact[0], one.source, one.row, one.sha256.hex(), one.name))
            elif one.near is not None and len(self.near):
                piece.append(one)
            if len(piece) == PIECE:
                listed, piece = self._add_near(piece, of, result, listed), []
        self._add_near(piece, of, result, listed)
        result.of = dict(of)

    def _add_near(self, piece, of, result, listed) -> int:
        if not piece:
            return listed
        hashes = np.array([one.near for one in piece], dtype=np.uint64)
        nearest, place = np.full(len(piece), 65), np.zeros(len(piece), int)
        for start in range(0, len(self.near), 4096):  # (pictures, forget pictures) bits that differ, a few MB at a time
            apart = np.bitwise_count(hashes[:, None] ^ self.near[None, start : start + 4096])
            best, least = apart.argmin(1), apart.min(1)
            closer = least < nearest
            nearest, place = np.where(closer, least, nearest), np.where(closer, best + start, place)
        for i in np.flatnonzero(nearest <= NEAR):
            listed += 1
            if listed > LISTED:
                result.unlisted += 1
            else:
                one = piece[i]
                of[self.near_names[place[i]]].append(Copy("near", one.source, one.row, one.sha256.hex(), one.name))
        return listed


def prints(rows, source: str, sizes: set | None = None, near: bool = False) -> Iterable[Print]:
    """The prints of (row number, undecoded image) in their order, made by as many threads as there are processors.

    Args:
        sizes: only pictures of these sizes are decoded for their pixels; None: all are. near: also the perceptual hash.
    """
    whole, small = Decoder(3), Decoder(3, side=NEAR_SIDE)

    def make(numbered):
        row, image = numbered
        return _print(row, image, source, whole, small, sizes, near)

    rows = tqdm(rows, f"looking for copies ({source})", getattr(rows, "total", None), unit=" pictures", leave=False, delay=2)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) as pool:
        piece = []
        for numbered in rows:
            piece.append(numbered)
            if len(piece) == PIECE:
                yield from (one for one in pool.map(make, piece) if one is not None)
                piece = []
        yield from (one for one in pool.map(make, piece) if one is not None)


def _print(row, image, source, whole, small, sizes, near) -> Print | None:
    """The print of one picture; None where there is none."""
    if image is None or (image.get("bytes") is None and image.get("path") is None):
        return None
    try:
        content = encoded_bytes(image)
    except (OSError, ValueError):
        return None
    name = image.get("path") or ""
    one = Print(source, row, hashlib.sha256(content).digest(), name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            size = tuple(sorted(Image.open(io.BytesIO(content)).size))  # sorted: EXIF may turn it
        wanted = sizes is None or size in sizes
        if not wanted and not near:
            return replace(one, size=size)
        picture = (whole if wanted else small)({"bytes": content, "path": name})
    except (*BROKEN, Unreadable):
        return one
    pixels = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).digest() if wanted else None
    return replace(one, size=size, pixels=pixels, near=_near(picture) if near else None)


def _near(picture: Image.Image) -> int:
    import imagehash

    return int(str(imagehash.phash(picture)), 16)
