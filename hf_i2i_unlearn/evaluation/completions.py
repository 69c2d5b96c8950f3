"""Completed pictures and their embeddings, for pictures of them."""

import torch

from ..data.pairs import seeds_for
from ..data.reading import ImageCollator, ImageReader
from ..methods.corruptions import Corruption
from ..models.base import I2IModel
from .features import FeatureNetwork, crop_to_hole


@torch.no_grad()
def embeddings(
    models: dict[str, I2IModel],
    reader: ImageReader,
    corruption: Corruption,
    rows: list,
    network: FeatureNetwork,
    region: str = "whole",
    seed: int = 0,
    batch_size: int = 32,
) -> dict[str, torch.Tensor]:
    """Features of true and completed pictures, for `plots.embedding_map`: {"true" and every name in `models`: (N, D)}."""
    first, parts = next(iter(models.values())), {}
    for start in range(0, len(rows), batch_size):
        columns = completions(models, reader, corruption, rows[start : start + batch_size], seed, start)
        columns["true"] = columns.pop("image")
        seeds = [seeds_for(seed, i)[0] for i in range(start, min(len(rows), start + batch_size))]
        hole = first.hole(corruption(first.grid, seeds)).to(columns["true"].device)
        for name in ("true", *models):
            seen = columns[name]
            if region == "hole":
                seen = crop_to_hole(seen, hole, network.size, network.fill(seen.shape[1]))
            parts.setdefault(name, []).append(network.embed(seen).cpu())
    return {name: torch.cat(batches) for name, batches in parts.items()}


@torch.no_grad()
def completions(
    models: dict[str, I2IModel], reader: ImageReader, corruption: Corruption, rows: list, seed: int = 0, start: int = 0
) -> dict:
    """Columns for `plots.completion_grid`: {"image", "T(x)" and every name in `models`: (N, C, H, W) in [0, 1]}.

    Args:
        models: {column title: model}; rows: undecoded rows. start: the number of the first one, which its T depends on. The
            hole of T(x) is drawn grey.
    """
    first = next(iter(models.values()))
    batch = ImageCollator(reader)([{"image": row, "seeds": seeds_for(seed, i)} for i, row in enumerate(rows, start)])
    mask = corruption(first.grid, batch["seeds"][:, 0])
    pixels = batch["pixel_values"].to(next(first.parameters()).device)
    truth = reader.unit(pixels)
    columns = {"image": truth, "T(x)": torch.where(first.hole(mask).to(truth.device), 0.5, truth)}
    return columns | {name: reader.unit(model.generate(pixels, mask, batch["seeds"][:, 1])) for name, model in models.items()}
