"""The pictures of an evaluation, and what of them is the same whatever model completes them."""

from dataclasses import dataclass, field

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.pairs import seeds_for
from ..data.reading import ImageCollator, ImageReader
from ..methods.corruptions import Corruption
from .features import FeatureNetwork
from .scores import look


@dataclass
class Hiding:
    """What is hidden, and all that is kept and depends on it.

    Attributes:
        corruption: T. crossed: whether the original then completes the rest from what a model filled in (App. E.2).
        references: {set: figures of original, blank and true pictures}. completed: {(set, batch): the original's completions}.
        features: {(set, batch, network): those of the holes of true pictures}.
    """

    corruption: Corruption
    crossed: bool = False
    references: dict = field(default_factory=dict)
    completed: dict = field(default_factory=dict)
    features: dict = field(default_factory=dict)


class Pictures:
    """Undecoded rows of several sets, decoded in batches; this process's share of them.

    Args:
        splits: {set: rows}. keep: hold in memory what was decoded, and the features of whole true pictures.
        accelerator: spreads the pictures over its processes; one process if None. seed: fixes T and generation.
    """

    def __init__(self, splits: dict[str, list], reader: ImageReader, batch_size: int, seed: int, accelerator, keep: bool):
        self.splits, self.reader, self.batch_size, self.seed, self.keep = splits, reader, batch_size, seed, keep
        self.rank, self.world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
        self._batches, self._whole = {}, {}

    def batches(self, name: str, progress: bool):
        """(pixel values (B, C, H, W), seeds (B, 3), places (B,) in the set), decoded once if they are kept."""
        batches, kept, seen = self._batches.get(name), [], 0
        if batches is None:
            items = [{"image": row, "seeds": seeds_for(self.seed, i)} for i, row in enumerate(self.splits[name])]
            batches = DataLoader(items[self.rank :: self.world], self.batch_size, collate_fn=ImageCollator(self.reader))
        for batch in tqdm(batches, f"evaluating {name}", leave=False, disable=not progress or self.rank > 0):
            if self.keep:
                kept.append(batch)
            pixels = batch["pixel_values"]
            yield pixels, batch["seeds"], self.rank + self.world * torch.arange(seen, seen + len(pixels))
            seen += len(pixels)
        if self.keep:
            self._batches[name] = kept

    def true_features(self, key: tuple, truth, hole, networks: list[FeatureNetwork], regions, hiding: Hiding) -> dict:
        """{(network, region): (features, logits)} of a batch of true pictures; of a classifier always of whole ones too.

        Args:
            key: (set, number of the batch). truth: (B, C, H, W) in [0, 1]. hole: (B, 1, H, W).
        """
        found = {}
        for network in networks:
            for region in dict.fromkeys((*regions, "whole") if network.classifies else regions):
                kept = self._whole if region == "whole" else hiding.features
                if (*key, network) not in kept:
                    seen = network(look(truth, hole, network, region))
                    if not self.keep:
                        found[network, region] = seen
                        continue
                    kept[*key, network] = tuple(None if x is None else x.cpu() for x in seen)
                found[network, region] = tuple(None if x is None else x.to(network.mean.device) for x in kept[*key, network])
        return found
