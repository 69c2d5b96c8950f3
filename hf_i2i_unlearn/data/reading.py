"""From the bytes of a file to a tensor: the one decoder, and the collators of training and evaluation.

Rows travel undecoded. Only a collator decodes, so nothing that is filtered out, or belongs to another process, costs a JPEG.
"""

import copy
import itertools
import logging
import random
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor

from ..demo import DEMOS
from ..errors import InputError, in_one_sentence
from .decoding import Decoder, Unreadable, picture_hash

logger = logging.getLogger(__name__)

ROOM = 2**26  # bytes of pixel values that are kept by each process that reads


class ImageReader:
    """Turns undecoded rows into the model's pixel values.

    Args:
        processor: the model's image processor (resize, rescale, normalise).
        channels: 1 reads pictures as grey, 3 as RGB.
        augment: called as augment(picture, rng) on each PIL picture, or None. `flip_and_crop` is the reference's.
        on_corrupt: what an unreadable picture does: "refuse" raises, "skip" leaves it out and counts it in `skipped`.
        background: the colour behind transparent pictures.
    """

    def __init__(self, processor, channels: int, augment=None, on_corrupt: str = "refuse", background: str = "white"):
        if on_corrupt not in ("refuse", "skip"):
            raise InputError(f"on_corrupt is 'refuse' or 'skip', got '{on_corrupt}'.")
        self.decoder = Decoder(channels, background, _side(processor))
        normalises = getattr(processor, "do_normalize", False)
        mean = (normalises and getattr(processor, "image_mean", None)) or [0.0]
        if len(mean) not in (1, channels):
            raise InputError(
                f"The image processor normalises {len(mean)} channels, the model takes {channels}; use the processor "
                "saved with the model."
            )
        self.processor, self.augment, self.on_corrupt = processor, augment, on_corrupt

    @property
    def plain(self) -> "ImageReader":
        """The same without augmentation."""
        if self.augment is None:
            return self
        other = copy.copy(self)
        other.augment = None
        return other

    def decode(self, row: dict, seed: int = 0, named: bool = True) -> Image.Image | None:
        """The picture of a row, or None if it is unreadable and those are skipped.

        named: whether the log may name it; of a forget picture it gives the hash, as a record does.
        """
        try:
            picture = self.decoder(row["image"])
        except Unreadable as error:
            name = (row["image"] or {}).get("path") or "an image without a name"
            if self.on_corrupt == "refuse":
                raise InputError(
                    f"Cannot read {name}: {error}. Repair or remove it, or skip such pictures with on_corrupt='skip'."
                ) from error
            logged = name if named else f"of the forget set, sha256 {picture_hash(row)}"
            logger.warning("Skipped unreadable picture %s (%s).", logged, str(error).partition(":")[0])
            return None
        return self.augment(picture, random.Random(seed)) if self.augment else picture

    def pixels(self, pictures: list[Image.Image]) -> torch.Tensor:
        """(B, C, H, W) float32 in the normalised space.

        Raises:
            InputError: the processor makes pictures of different sizes.
        """
        with in_one_sentence(
            "The image processor must bring all pictures to one size: give it a height and a width, or do_center_crop"
        ):
            return self.processor(pictures, return_tensors="pt")["pixel_values"]

    def black_and_white(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The normalised values of pixels 0 and 1, each (C,), or (1,) without normalisation."""
        if not getattr(self.processor, "do_normalize", False):
            return torch.tensor([0.0]), torch.tensor([1.0])
        mean, std = torch.tensor(self.processor.image_mean), torch.tensor(self.processor.image_std)
        return -mean / std, (1 - mean) / std

    def unit(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Normalised pixel values (B, C, H, W) -> pixels clipped to [0, 1], what a person sees."""
        if not getattr(self.processor, "do_normalize", False):
            return pixel_values.clamp(0, 1)
        mean, std = (
            torch.tensor(v, device=pixel_values.device).view(-1, 1, 1)
            for v in (self.processor.image_mean, self.processor.image_std)
        )
        return (pixel_values * std + mean).clamp(0, 1)


def _side(processor) -> int | None:
    """The longer side in pixels that a processor resizes to; None where it does not say."""
    size = getattr(processor, "size", None) or {}
    sides = [size.get(key) for key in ("height", "width", "shortest_edge", "longest_edge")]
    return max((side for side in sides if side), default=None)


def load_processor(path: str):
    """The image processor saved with a checkpoint (folder, Hub id or a demo's name), in its PIL version: without torchvision.

    Raises:
        InputError: there is none.
    """
    try:
        return AutoImageProcessor.from_pretrained(DEMOS.get(path, path), backend="pil")
    except (OSError, ValueError) as error:
        raise InputError(
            f"'{path}' has no image processor (preprocessor_config.json); save the one the model was trained with beside it: "
            "ViTImageProcessor(size=..., image_mean=..., image_std=...), or do_normalize=False, and .save_pretrained(folder)."
        ) from error


class PairCollator:
    """Pairs of rows -> {"forget": (B, C, H, W), "retain": (B, C, H, W), "seeds": int array (B, 3), "skipped": int,
    "forget_hashes": B sha256 of encoded forget pictures}.

    A pair of which one picture is unreadable is dropped whole, so the halves stay balanced; `skipped` counts them.
    The seeds of a pair are those of T for the retain picture, T for the forget picture, and n. They are no tensors, so
    that they stay on the CPU, where they are needed.

    `augment_forget` is False where the reader's augmentation is for retain pictures alone.

    With `targets` (row numbers of the retain set -> representations) a batch also has "retain_target": (B, ...).

    Pictures that come by again are not decoded again, as long as they are few or small (`ROOM`) and are not augmented.
    """

    def __init__(self, reader: ImageReader, targets=None):
        self.reader, self.targets, self.augment_forget = reader, targets, True
        self._known: dict[tuple[str, int], torch.Tensor] = {}  # pixel values (C, H, W) by set and row number
        self._room = ROOM if reader.augment is None else 0

    def __call__(self, pairs: list[dict | None]) -> dict:
        present = [pair for pair in pairs if pair is not None]
        if len(present) < len(pairs):
            return {}  # of a stream that is being resumed: nobody looks at it
        kept = []
        for pair in present:
            pictures = [self._picture(pair, name, pair["seeds"][k]) for k, name in enumerate(("retain", "forget"))]
            if all(picture is not None for _, picture in pictures):
                kept.append((*pictures, pair["seeds"], pair.get("retain_row"), picture_hash(pair["forget"])))
        if not kept:
            raise InputError(f"All {len(pairs)} pairs of a batch hold an unreadable picture; there is nothing to train on.")
        retain, forget, seeds, rows, hashes = zip(*kept)
        pixels = self._pixels([*retain, *forget])
        batch = {
            "retain": pixels[: len(kept)],
            "forget": pixels[len(kept) :],
            "seeds": np.array(seeds),
            "skipped": len(pairs) - len(kept),
            "forget_hashes": list(hashes),
        }
        return batch if self.targets is None else batch | {"retain_target": self.targets[rows]}

    def _picture(self, pair, name, seed):
        """A picture's set and row number, and its pixel values where they are known, else itself; None if it is unreadable."""
        key = name, pair.get(f"{name}_row")
        known = self._known.get(key)
        reader = self.reader if name == "retain" or self.augment_forget else self.reader.plain
        return key, reader.decode(pair[name], seed, name == "retain") if known is None else known

    def _pixels(self, pictures) -> torch.Tensor:
        """Pixel values of what `_picture` gave, (N, C, H, W); new ones are kept while there is room."""
        new = [number for number, (_, picture) in enumerate(pictures) if not isinstance(picture, torch.Tensor)]
        made = dict(zip(new, self.reader.pixels([pictures[number][1] for number in new]))) if new else {}
        for number, pixels in made.items():
            key = pictures[number][0]
            if key[1] is not None and key not in self._known and pixels.nbytes <= self._room:
                self._known[key] = pixels.clone()  # or it would hold its whole batch
                self._room -= pixels.nbytes
        return torch.stack([made.get(number, picture) for number, (_, picture) in enumerate(pictures)])


class ImageCollator:
    """Rows of single pictures -> {"pixel_values": (B, C, H, W), "seeds": int array (B, 3)}; unreadable ones are left out.

    A row with "augment": False is taken as it is.
    """

    def __init__(self, reader: ImageReader):
        self.reader = reader

    def __call__(self, rows: list[dict | None]) -> dict:
        present = [row for row in rows if row is not None]
        if len(present) < len(rows):
            return {}
        kept = []
        for row in present:
            reader = self.reader if row.get("augment", True) else self.reader.plain
            if (picture := reader.decode(row["image"], row["seeds"][0])) is not None:
                kept.append((picture, row["seeds"]))
        if not kept:
            raise InputError(f"All {len(rows)} pictures of a batch are unreadable; there is nothing to train on.")
        pictures, seeds = zip(*kept)
        return {"pixel_values": self.reader.pixels(list(pictures)), "seeds": np.array(seeds)}


def pixel_batches(dataset, reader: ImageReader, size: int = 64) -> Iterator[torch.Tensor]:
    """One pass over a dataset or stream of undecoded rows as (B, C, H, W) pixel values, without augmentation of any kind."""
    rows = iter(dataset)
    while chunk := list(itertools.islice(rows, size)):
        pictures = [picture for row in chunk if (picture := reader.decode(row)) is not None]
        if pictures:
            yield reader.pixels(pictures)
