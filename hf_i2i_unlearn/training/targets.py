"""Representations by the original encoder that need not be computed twice, kept on disk and read through memory maps.

A file's folder is a hash of all that its content depends on: weights and settings of the original, T, the bytes of the
pictures in their order, the image processor, the precision and the versions of the libraries. Whatever changes, the folder is
another one.
"""

import itertools
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from huggingface_hub import cached_assets_path
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from ..data.decoding import encoded_bytes
from ..data.reading import ImageReader
from ..data.streams import ForgetRetainStream
from ..errors import InputError, RunError
from ..methods.corruptions import Corruption
from ..models.base import I2IModel
from ..storage import HALF_WRITTEN, content_hash, write_aside

logger = logging.getLogger(__name__)


LAYOUT = 2  # of the files; a new number leaves the old ones alone


SHARD = 256  # pictures in a file, which are what an interrupted computation can lose


def check_cacheable(model: I2IModel, corruption: Corruption, augment, train_dataset) -> None:
    """Raise InputError unless a retain picture has the same target E0(T(x_r)) whenever it is shown."""
    if corruption.is_random:
        reason = f"the corruption '{corruption}' hides other patches each time; choose a fixed one such as center:8"
    elif augment is not None:
        reason = "augmentation changes the pictures each time; train without"
    elif model.draws_beside_t:
        reason = f"an encoder pass of the family '{model.family}' draws more than T (noise, time or tokens), anew each time"
    elif model.patch and model.patch.below:
        reason = "the patches below are switched on and off in training; train this one alone, by --patch_training alone"
    elif isinstance(train_dataset, ForgetRetainStream):
        reason = "the pictures of a stream have no numbers to find them by; train without streaming"
    else:
        return
    raise InputError(f"cache_targets needs retain targets that never change, but {reason}, or leave out cache_targets.")


class TargetStore:
    """Where targets of one original under one T are kept.

    Args:
        folder: None is the `assets` folder of the Hugging Face cache.
        original: E0, perhaps the model to be trained with its adapters off. mask: (1, rows, cols), T.
        precision: that of autocast.
    """

    def __init__(self, folder, original: I2IModel, mask: torch.Tensor, precision: str = "no"):
        self.folder = Path(folder or cached_assets_path("hf_i2i_unlearn", namespace="targets"))
        self.original, self.mask = original, mask
        versions = [library.__version__ for library in (torch, transformers, diffusers)]
        self.identity = content_hash(itertools.chain([LAYOUT, versions, precision, mask], identity(original)))

    def retain(self, rows, reader: ImageReader, batch_size: int = 64, accelerator=None, progress: bool = True):
        """Targets of all rows, as `RetainTargets`; those that are not on disk yet are computed, a share by each process.

        Raises:
            InputError: the disk is too small, or a picture cannot be read (where the reader refuses such).
            RunError: the disk refuses to be written to.
        """
        rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
        processor = reader.processor.to_dict() if hasattr(reader.processor, "to_dict") else vars(reader.processor)
        key = content_hash(
            itertools.chain(
                [self.identity, "retain", processor, reader.decoder.mode, reader.decoder.background, reader.decoder.side],
                map(content, rows),
            )
        )
        targets = RetainTargets(self.folder / key, len(rows))
        remove_stale(self.folder / key)
        shards = [k for k, file in enumerate(targets.files) if not readable(file)]
        logger.info("%d of %d files of retain targets are there already.", len(targets.files) - len(shards), len(targets.files))
        mine = [k for k in shards if k % world == rank]
        for done, k in enumerate(tqdm(mine, "retain targets", leave=False, disable=not progress or rank > 0)):
            encoded = self._encode(rows, range(k * SHARD, min(len(rows), (k + 1) * SHARD)), reader, batch_size)
            self._check_space(encoded.nbytes * (len(mine) - done))
            save(encoded, targets.files[k])
        if accelerator:
            accelerator.wait_for_everyone()
        if not all(map(readable, targets.files)):
            raise InputError(
                f"Retain targets of other processes are not in '{self.folder}'; set --targets_dir to a shared folder."
            )
        return targets

    def forget(self, noise, count: int, kind: str, seed: int, make) -> torch.Tensor:
        """The fixed forget target that `make` computes from `count` draws of `noise`, or the same from an earlier run."""
        device = next(self.original.parameters()).device.type  # whose random numbers are its own
        key = content_hash([self.identity, "forget", kind, count, seed, device, type(noise).__name__, vars(noise)])
        file = self.folder / key / "0.safetensors"
        if not readable(file):
            save(make(), file)
        return load_file(file)["targets"]

    @torch.no_grad()
    def _encode(self, rows, numbers, reader, batch_size):
        """(len(numbers), ...) on the CPU. What cannot be read is black here; training leaves its pairs out."""
        black = Image.new(reader.decoder.mode, self.original.image_size[::-1])
        device, parts = next(self.original.parameters()).device, []
        for start in range(0, len(numbers), batch_size):
            pixels = reader.pixels([reader.decode(rows[i]) or black for i in numbers[start : start + batch_size]]).to(device)
            mask = self.mask.expand(len(pixels), *self.mask.shape[1:])
            parts.append(self.original(pixels, self.original.draw(pixels, mask, [0] * len(pixels))).cpu())
        return torch.cat(parts)

    def _check_space(self, needed):
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise InputError(
                f"The retain targets need {needed / 1e9:.3g} GB more, and '{self.folder}' has {free / 1e9:.3g} GB left; set "
                "--targets_dir to a larger disk, or leave out cache_targets."
            )


class RetainTargets:
    """E0(T(x_r)) of all pictures of the retain set by their row number. Files are mapped when they are first read."""

    def __init__(self, folder: Path, count: int):
        self.files = [folder / f"{k}.safetensors" for k in range(-(-count // SHARD))]
        self._mapped = {}

    def __getitem__(self, rows) -> torch.Tensor:
        """(B,) row numbers -> (B, ...)."""
        return torch.stack([self._shard(row // SHARD)[row % SHARD] for row in map(int, rows)])

    def _shard(self, k):
        if k not in self._mapped:
            self._mapped[k] = load_file(self.files[k])["targets"]
        return self._mapped[k]

    def __getstate__(self):  # a worker maps the files itself
        return {"files": self.files, "_mapped": {}}


def save(targets: torch.Tensor, file: Path) -> None:
    """Write a file of targets at once. Raises RunError where the disk refuses."""
    try:
        write_aside(file, lambda aside: save_file({"targets": targets.detach().cpu().contiguous()}, aside))
    except (OSError, SafetensorError) as error:
        raise RunError(f"Cannot keep targets in '{file.parent}': {error}. Set --targets_dir to a disk with room.") from error


def remove_stale(folder: Path) -> None:
    """Remove what a killed run has left half-written; nobody takes an hour to write one file."""
    for file in folder.glob(HALF_WRITTEN):
        if file.stat().st_mtime < time.time() - 3600:
            file.unlink(missing_ok=True)


def readable(file: Path) -> bool:
    """Whether the file is there and whole; only its header is read."""
    try:
        load_file(file)
        return True
    except FileNotFoundError:
        return False
    except (OSError, SafetensorError) as error:
        logger.warning("%s is damaged (%s) and will be made again.", file, error)
        return False


def identity(original: I2IModel):
    """All that E0 depends on: its settings and weights. A fresh adapter, which is off, is no part of it."""
    model: Any = getattr(original, "_orig_mod", original)
    model = getattr(model, "module", model)
    plain = getattr(model, "patched", model)
    simple = (bool, int, float, str, tuple, type(None))
    yield type(plain).__name__
    yield {k: v for k, v in vars(plain).items() if isinstance(v, simple) and k != "training"}
    config = getattr(plain.model, "config", {})  # a family of somebody else may have none
    config = json.loads(config.to_json_string()) if hasattr(config, "to_json_string") else config
    yield {k: v for k, v in config.items() if k != "_name_or_path"}
    for name, tensor in sorted(plain.state_dict().items()):
        if not (plain is not model and ".lora_" in name):
            yield name.replace(".base_layer.", "."), tensor


def content(row: dict) -> bytes:
    """The encoded picture of an undecoded row; of one that names a file, that file's bytes."""
    try:
        return encoded_bytes(row["image"])
    except (OSError, TypeError, AttributeError):  # the reader refuses or skips it
        return b"unreadable"
