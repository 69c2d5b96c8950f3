"""Forget and retain pictures as one stream of pairs, and their way from file bytes to tensors.

Two facts hold for every source:
- one example is a PAIR (forget picture, retain picture), so every batch holds as many of one as of the other
  (algorithm 1); `per_device_train_batch_size` counts pairs;
- one EPOCH is one pass over the forget set; the retain set is cycled, each of its pictures shown once before any is
  shown again, and the cycle goes on over the end of an epoch.

Rows travel undecoded. Only the collator decodes, so nothing that is filtered out, or belongs to another process, costs
a JPEG.
"""

import itertools
import logging
import random
import time
from collections.abc import Iterator

import datasets
import fsspec
import numpy as np
import torch
from huggingface_hub.errors import HTTPError
from PIL import Image
from transformers import AutoImageProcessor

from .errors import InputError, RunError

logger = logging.getLogger(__name__)

LONGEST_WAIT = 60  # seconds between two attempts at a stream; the first is one second
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what PIL raises for a broken file


def undecoded(dataset, image_column: str = "image"):
    """`dataset` with only its image column, which yields {"bytes", "path"} instead of decoded pictures.

    Raises:
        InputError: there is no such column, or it holds no images.
    """
    dataset = undecoded_column(dataset, image_column).select_columns([image_column])
    return dataset if image_column == "image" else dataset.rename_column(image_column, "image")


def undecoded_column(dataset, image_column: str = "image"):
    """`dataset` with all columns, its image column undecoded."""
    features = dataset.features or {}
    if features and image_column not in features:
        raise InputError(f"The dataset has no column '{image_column}'; it has {sorted(features)}. Set the image column.")
    if features and not isinstance(features[image_column], datasets.Image):
        raise InputError(
            f"Column '{image_column}' holds {features[image_column]}, expected datasets.Image; cast it with "
            f"dataset.cast_column('{image_column}', datasets.Image())."
        )
    return dataset.cast_column(image_column, datasets.Image(decode=False))


def seeds_for(seed: int, index: int, count: int = 3) -> list[int]:
    """`count` independent seeds for example number `index` of a run: its draws never depend on batch or process."""
    return [int(s) >> 1 for s in np.random.SeedSequence([seed, index]).generate_state(count, np.uint64)]


class Cycle:
    """Endless random access to a finite dataset: item t is picture t % n of a fresh permutation per pass.

    Raises:
        InputError: the dataset is empty.
    """

    def __init__(self, dataset, seed: int, name: str = "dataset"):
        if len(dataset) == 0:
            raise InputError(f"The {name} set is empty; choose classes, rows or files that the dataset holds.")
        self.dataset, self.seed = dataset, seed
        self._pass, self._order = -1, None

    def __len__(self):
        return len(self.dataset)

    def row(self, t: int) -> int:
        """The number of item t in the dataset."""
        number, place = divmod(t, len(self.dataset))
        if number != self._pass:
            self._pass = number
            self._order = np.random.default_rng([self.seed, number]).permutation(len(self.dataset))
        return int(self._order[place])

    def __getitem__(self, t: int):
        return self.dataset[self.row(t)]


class ForgetRetainPairs(torch.utils.data.Dataset):
    """Pairs of undecoded rows from two map-style datasets; its length, hence an epoch, is that of the forget set.

    Index t may exceed the length: epoch e consists of the indices e * len .. (e + 1) * len - 1 (`EpochSampler`).

    Args:
        forget, retain: datasets of {"image": {"bytes", "path"}} rows, as `undecoded` makes them, or lists of such rows.
        seed: fixes the order of both sets and every random draw of a pair.
    """

    def __init__(self, forget, retain, seed: int = 0):
        self.forget, self.retain = Cycle(forget, seed, "forget"), Cycle(retain, seed + 1, "retain")
        self.seed = seed

    def __len__(self):
        return len(self.forget)

    def __getitem__(self, t: int) -> dict:
        return {
            "forget": self.forget[t],
            "retain": self.retain[t],
            "retain_row": self.retain.row(t),
            "seeds": seeds_for(self.seed, t),
        }


class Stream(torch.utils.data.IterableDataset):
    """What endless streams of rows have in common.

    Every process and every loader worker reads the whole stream and keeps its share before anything is decoded, so the order is
    the same for any number of either. A pass that ends is begun again, reshuffled. A source that does not answer is tried again
    from the row it stopped at, beyond what `datasets` retries by itself.

    Attributes:
        rows_per_batch: rows that a batch of all processes takes: workers take turns by so many. The trainer sets it.
        start: rows before this one are None, so that a resumed run passes over them undecoded. The trainer sets it.
    """

    rows_per_batch, start = 1, 0

    def __init__(self, seed: int, shuffle_buffer: int, attempts: int, source: str):
        if attempts < 1:
            raise InputError(f"A stream must be tried once at least; set stream_attempts to 1 or more, not {attempts}.")
        self.seed, self.shuffle_buffer, self.attempts, self.source = seed, shuffle_buffer, attempts, source

    def shuffled(self, stream, seed):
        if not self.shuffle_buffer:
            return stream
        # From one shard at a time (their order is shuffled too): reading several at once, `datasets` 5.2 sleeps for
        # five seconds at every end of a pass.
        return stream.shuffle(seed=seed, buffer_size=self.shuffle_buffer, max_buffer_input_shards=1)

    def share(self, rows):
        """(number, row) of those rows that belong to this loader worker."""
        worker = torch.utils.data.get_worker_info()
        if worker is not None:
            fsspec.asyn.reset_lock()  # a fork would wait for it for ever
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        return ((t, row) for t, row in enumerate(rows) if t // self.rows_per_batch % count == number)

    def endless(self, stream, name: str):
        """The rows of a stream, pass after pass.

        Raises:
            InputError: there are none. RunError: the source did not answer at `attempts` tries in a row.
        """
        stream = stream.with_format(None)  # an object of our own: workers have the epoch of a common one in shared memory
        for number in itertools.count():
            stream.set_epoch(number)
            done = failed = 0
            while True:
                try:
                    for row in itertools.islice(_rows(stream), done, None):
                        yield row
                        done, failed = done + 1, 0
                    break
                except (OSError, HTTPError) as error:
                    failed += 1
                    self._wait_or_give_up(error, name, done, failed)
            if not done:
                raise InputError(f"The {name} set is empty; choose classes, rows or files that the stream holds.")

    def _wait_or_give_up(self, error, name, done, failed):
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if failed >= self.attempts:
            raise RunError(
                f"{self.source} does not answer after {failed} attempts, at row {done} of the {name} set ({reason}). When it is "
                "there again, go on with --resume_from_checkpoint true; --stream_attempts says how long to wait."
            ) from error
        wait = min(2 ** (failed - 1), LONGEST_WAIT)
        logger.warning(
            "%s does not answer (%s); attempt %d of %d at row %d of the %s set follows in %d s.",
            self.source, reason, failed + 1, self.attempts, done, name, wait,
        )  # fmt: skip
        time.sleep(wait)


def _rows(stream, size: int = 100):
    """The rows of a `datasets.IterableDataset`, read in pieces (ten times faster); each worker gets all of them, not some shards."""
    for piece in stream.iter(size):
        columns = list(piece.values())
        for values in zip(*columns):
            yield dict(zip(piece, values))


class ForgetRetainStream(Stream):
    """Endless pairs from two streams (`datasets.IterableDataset`).

    Args:
        forget, retain: streams of undecoded rows, as `undecoded` makes them.
        seed: fixes shuffling and every random draw of a pair.
        shuffle_buffer: rows held (undecoded) for shuffling; 0 keeps the order of the source.
        attempts: how often in a row a source is tried that does not answer. source: its name, for messages.
    """

    def __init__(
        self, forget, retain, seed: int = 0, shuffle_buffer: int = 1000, attempts: int = 8, source: str = "The stream's source"
    ):
        super().__init__(seed, shuffle_buffer, attempts, source)
        self.forget, self.retain = self.shuffled(forget, seed), self.shuffled(retain, seed + 1)

    def __iter__(self) -> Iterator[dict | None]:
        for t, (forget, retain) in self.share(zip(self.endless(self.forget, "forget"), self.endless(self.retain, "retain"))):
            pair = {"forget": forget, "retain": retain}
            yield pair | {"seeds": seeds_for(self.seed, t)} if t >= self.start else None


class SingleImages(torch.utils.data.Dataset):
    """Undecoded rows of one map-style dataset with their seeds, for pretraining. Index t may exceed the length."""

    def __init__(self, dataset, seed: int = 0):
        self.images, self.seed = Cycle(dataset, seed, "training"), seed

    def __len__(self):
        return len(self.images)

    def __getitem__(self, t: int) -> dict:
        return {"image": self.images[t], "seeds": seeds_for(self.seed, t)}


class SingleImageStream(Stream):
    """Endless single pictures from a stream, as `ForgetRetainStream` reads two."""

    def __init__(
        self, images, seed: int = 0, shuffle_buffer: int = 1000, attempts: int = 8, source: str = "The stream's source"
    ):
        super().__init__(seed, shuffle_buffer, attempts, source)
        self.images = self.shuffled(images, seed)

    def __iter__(self) -> Iterator[dict | None]:
        for t, image in self.share(self.endless(self.images, "training")):
            yield {"image": image, "seeds": seeds_for(self.seed, t)} if t >= self.start else None


class EpochSampler(torch.utils.data.Sampler):
    """Yields the indices of the epoch that `epoch()` names; the dataset itself shuffles.

    The order then depends on the seed and the epoch alone, which is what makes a resumed run equal to a straight one.
    """

    def __init__(self, length: int, epoch):
        self.length, self.epoch = length, epoch

    def __len__(self):
        return self.length

    def __iter__(self):
        start = self.epoch() * self.length
        return iter(range(start, start + self.length))


class ImageReader:
    """Turns undecoded rows into the model's pixel values.

    Args:
        processor: the model's image processor (resize, rescale, normalise).
        channels: 1 reads pictures as grey, 3 as RGB.
        augment: called as augment(picture, rng) on each PIL picture, or None. `flip_and_crop` is the reference's.
        on_corrupt: what an unreadable picture does: "refuse" raises, "skip" leaves it out and counts it in `skipped`.
    """

    def __init__(self, processor, channels: int, augment=None, on_corrupt: str = "refuse"):
        if on_corrupt not in ("refuse", "skip"):
            raise InputError(f"on_corrupt is 'refuse' or 'skip', got '{on_corrupt}'.")
        if channels not in (1, 3):
            raise InputError(f"Pictures of 1 or 3 channels can be read, the model takes {channels}.")
        normalises = getattr(processor, "do_normalize", False)
        mean = (normalises and getattr(processor, "image_mean", None)) or [0.0]
        if len(mean) not in (1, channels):
            raise InputError(
                f"The image processor normalises {len(mean)} channels, the model takes {channels}; use the processor "
                "saved with the model."
            )
        self.processor, self.augment, self.on_corrupt = processor, augment, on_corrupt
        self.decoder = datasets.Image(mode={1: "L", 3: "RGB"}[channels])

    def decode(self, row: dict, seed: int = 0) -> Image.Image | None:
        """The picture of a row, or None if it is unreadable and those are skipped."""
        try:
            picture = self.decoder.decode_example(row["image"])
        except UNREADABLE as error:
            name = row["image"].get("path") or "an image without a name"
            if self.on_corrupt == "refuse":
                raise InputError(
                    f"Cannot read {name}: {type(error).__name__}: {error}. Repair or remove it, or skip such pictures "
                    "with on_corrupt='skip'."
                ) from error
            logger.warning("Skipped unreadable picture %s (%s).", name, type(error).__name__)
            return None
        return self.augment(picture, random.Random(seed)) if self.augment else picture

    def pixels(self, pictures: list[Image.Image]) -> torch.Tensor:
        """(B, C, H, W) float32 in the normalised space."""
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


def load_processor(path: str):
    """The image processor saved with a checkpoint (folder or Hub id), in its PIL version, which needs no torchvision.

    Raises:
        InputError: there is none.
    """
    try:
        return AutoImageProcessor.from_pretrained(path, backend="pil")
    except (OSError, ValueError) as error:
        raise InputError(
            f"'{path}' has no image processor (preprocessor_config.json); save the one the model was trained with beside it: "
            "ViTImageProcessor(size=..., image_mean=..., image_std=...), or do_normalize=False, and .save_pretrained(folder)."
        ) from error


class PairCollator:
    """Pairs of rows -> {"forget": (B, C, H, W), "retain": (B, C, H, W), "seeds": int array (B, 3), "skipped": int}.

    A pair of which one picture is unreadable is dropped whole, so the halves stay balanced; `skipped` counts them.
    The seeds of a pair are those of T for the retain picture, T for the forget picture, and n. They are no tensors, so
    that they stay on the CPU, where they are needed.

    With `targets` (row numbers of the retain set -> representations) a batch also has "retain_target": (B, ...).
    """

    def __init__(self, reader: ImageReader, targets=None):
        self.reader, self.targets = reader, targets

    def __call__(self, pairs: list[dict | None]) -> dict:
        if None in pairs:
            return {}  # of a stream that is being resumed: nobody looks at it
        kept = []
        for pair in pairs:
            pictures = [self.reader.decode(pair[name], pair["seeds"][k]) for k, name in enumerate(("retain", "forget"))]
            if None not in pictures:
                kept.append((*pictures, pair["seeds"], pair.get("retain_row")))
        if not kept:
            raise InputError(f"All {len(pairs)} pairs of a batch hold an unreadable picture; there is nothing to train on.")
        retain, forget, seeds, rows = zip(*kept)
        pixels = self.reader.pixels([*retain, *forget])  # (2B, C, H, W)
        batch = {
            "retain": pixels[: len(kept)],
            "forget": pixels[len(kept) :],
            "seeds": np.array(seeds),
            "skipped": len(pairs) - len(kept),
        }
        return batch if self.targets is None else batch | {"retain_target": self.targets[rows]}


class ImageCollator:
    """Rows of single pictures -> {"pixel_values": (B, C, H, W), "seeds": int array (B, 3)}; unreadable ones are left out."""

    def __init__(self, reader: ImageReader):
        self.reader = reader

    def __call__(self, rows: list[dict | None]) -> dict:
        if None in rows:
            return {}
        kept = [(p, row["seeds"]) for row in rows if (p := self.reader.decode(row["image"], row["seeds"][0])) is not None]
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


def flip(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Half of the pictures mirrored."""
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else picture


def flip_and_crop(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Half of the pictures mirrored, a random crop of 20-100% of the area and aspect 3/4..4/3 (the reference's)."""
    picture = flip(picture, rng)
    width, height = picture.size
    area = rng.uniform(0.2, 1) * width * height
    aspect = (3 / 4) ** rng.uniform(-1, 1)
    w, h = min(width, round((area * aspect) ** 0.5)), min(height, round((area / aspect) ** 0.5))
    left, top = rng.randint(0, width - w), rng.randint(0, height - h)
    return picture.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))


def jitter(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Small rotation (12 deg), shear (0.15), scale (+-15%) and shift (7%): for digits, which must not be mirrored."""
    width, height = picture.size
    angle, shear = np.deg2rad(rng.uniform(-12, 12)), rng.uniform(-0.15, 0.15)
    scale = 1 / rng.uniform(0.85, 1.15)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ [[1, shear], [0, 1]]
    centre = np.array([width / 2, height / 2])
    shift = centre - turn @ (centre + [rng.uniform(-0.07, 0.07) * width, rng.uniform(-0.07, 0.07) * height])
    matrix = (*turn[0], shift[0], *turn[1], shift[1])
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


AUGMENTATIONS = {"none": None, "flip": flip, "flip_and_crop": flip_and_crop, "jitter": jitter}
