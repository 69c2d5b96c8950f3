"""Forget and retain pictures as pairs.

Two facts hold for every source:
- one example is a PAIR (forget picture, retain picture), so every batch holds as many of one as of the other
  (algorithm 1); `per_device_train_batch_size` counts pairs;
- one EPOCH is one pass over the forget set; the retain set is cycled, each of its pictures shown once before any is
  shown again, and the cycle goes on over the end of an epoch.
"""

import numpy as np
import torch

from ..errors import InputError


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
        self._pass, self._order = -1, np.arange(0)  # the pass that the order is of

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
            "forget_row": self.forget.row(t),
            "retain_row": self.retain.row(t),
            "seeds": seeds_for(self.seed, t),
        }


class SingleImages(torch.utils.data.Dataset):
    """Undecoded rows of one map-style dataset with their seeds, for pretraining. Index t may exceed the length."""

    def __init__(self, dataset, seed: int = 0):
        self.images, self.seed = Cycle(dataset, seed, "training"), seed

    def __len__(self):
        return len(self.images)

    def __getitem__(self, t: int) -> dict:
        return {"image": self.images[t], "seeds": seeds_for(self.seed, t)}


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
