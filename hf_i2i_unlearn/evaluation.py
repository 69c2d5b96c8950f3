"""Before and after: how well pictures of each set are completed, and how far the unlearned model moved on the retain set."""

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .corruptions import Corruption
from .data import ImageCollator, ImageReader, seeds_for
from .errors import InputError
from .models.base import I2IModel

FIGURES = {
    "mse": "mean squared error in the hole, normalised units",
    "psnr": "PSNR in the hole, dB, mean over pictures (pixels clipped to [0, 1])",
    "drift": "mean squared difference in the hole between the model's completion and the original model's, normalised units",
}


class Evaluator:
    """Completes the pictures of both sets with a model and compares them with the truth and with the original model.

    Figures (`FIGURES`) are means over pictures, summed in float64 and over all processes. T of picture i depends on (seed, i)
    alone, so two calls, and two models, are compared on the same holes.

    Args:
        original: the original model (theta_0, phi_0).
        splits: {"forget": rows, "retain": rows}, lists of undecoded rows.
        reader: reads the pictures, without augmentation.
        corruption: T in this evaluation.
        batch_size: pictures per pass. seed: fixes T.
        accelerator: spreads the pictures over its processes; one process if None.
        keep_original: hold the original's completions in memory, for repeated calls on few pictures.
    """

    def __init__(
        self,
        original: I2IModel,
        splits: dict[str, list],
        reader: ImageReader,
        corruption: Corruption,
        batch_size: int = 64,
        seed: int = 0,
        accelerator=None,
        keep_original: bool = False,
    ):
        for name, rows in splits.items():
            if len(rows) == 0:
                raise InputError(f"There are no {name} pictures to evaluate on; choose a split or classes that hold some.")
        self.original, self.splits, self.reader, self.corruption = original, splits, reader, corruption
        self.batch_size, self.seed, self.accelerator = batch_size, seed, accelerator
        self._kept = {} if keep_original else None

    @torch.no_grad()
    def __call__(self, model: I2IModel, progress: bool = True) -> dict[str, dict[str, float]]:
        """{"forget": {...}, "retain": {...}} with count, mse, psnr, original_mse, original_psnr and drift."""
        training, device = model.training, next(model.parameters()).device
        model.eval()
        try:
            return {name: self._split(name, model, device, progress) for name in self.splits}
        finally:
            model.train(training)

    def _split(self, name, model, device, progress):
        rank, world = (self.accelerator.process_index, self.accelerator.num_processes) if self.accelerator else (0, 1)
        items = [{"image": row, "seeds": seeds_for(self.seed, i)} for i, row in enumerate(self.splits[name])][rank::world]
        loader = DataLoader(items, self.batch_size, collate_fn=ImageCollator(self.reader))
        sums = torch.zeros(6, dtype=torch.float64)
        for number, batch in enumerate(tqdm(loader, f"evaluating {name}", leave=False, disable=not progress or rank > 0)):
            pixels, seeds = batch["pixel_values"].to(device), batch["seeds"]
            mask = self.corruption(model.grid, seeds[:, 0])
            before = self._original(name, number, pixels, mask, seeds[:, 1])
            after = model.generate(pixels, mask, seeds[:, 1])
            hole = model.hole(mask).to(device)
            columns = [torch.ones(len(pixels), device=device)]
            for completion in (after, before):
                columns += [hole_mse(completion, pixels, hole), self._psnr(completion, pixels, hole)]
            columns.append(hole_mse(after, before, hole))
            sums += torch.stack(columns).double().sum(1).cpu()
        if self.accelerator:
            sums = self.accelerator.reduce(sums.to(self.accelerator.device), "sum").cpu()
        count, *totals = sums.tolist()
        names = ("mse", "psnr", "original_mse", "original_psnr", "drift")
        return {"count": int(count), **{key: total / count for key, total in zip(names, totals)}}

    def _original(self, name, number, pixels, mask, seeds):
        original = getattr(self.original, "module", self.original)
        if self._kept is None:
            return original.generate(pixels, mask, seeds)
        if (name, number) not in self._kept:
            self._kept[name, number] = original.generate(pixels, mask, seeds).cpu()
        return self._kept[name, number].to(pixels.device)

    def _psnr(self, completion, truth, hole):
        return -10 * hole_mse(self.reader.unit(completion), self.reader.unit(truth), hole).clamp_min(1e-10).log10()


def hole_mse(a: torch.Tensor, b: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """Mean squared difference over the hidden pixels, (B, C, H, W) x 2 and (B, 1, H, W) boolean -> (B,)."""
    error = (a - b).square() * hole
    return error.flatten(1).sum(1) / (hole.flatten(1).sum(1) * a.shape[1])


def markdown_table(result: dict[str, dict[str, float]]) -> str:
    """The before/after table of a result of `Evaluator`, one row per set."""
    lines = [
        "| set | pictures | hole MSE before | after | PSNR before | after | drift |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ("retain", "forget"):
        r = result[name]
        lines.append(
            f"| {name} | {r['count']} | {r['original_mse']:.3f} | {r['mse']:.3f} | {r['original_psnr']:.1f} dB | "
            f"{r['psnr']:.1f} dB | {r['drift']:.3f} |"
        )
    return "\n".join(lines)


@torch.no_grad()
def completions(models: dict[str, I2IModel], reader: ImageReader, corruption: Corruption, rows: list, seed: int = 0) -> dict:
    """Columns for `plots.completion_grid`: {"image", "T(x)" and every name in `models`: (N, C, H, W) in [0, 1]}.

    Args:
        models: {column title: model}; rows: undecoded rows. The hole of T(x) is drawn grey.
    """
    first = next(iter(models.values()))
    batch = ImageCollator(reader)([{"image": row, "seeds": seeds_for(seed, i)} for i, row in enumerate(rows)])
    mask = corruption(first.grid, batch["seeds"][:, 0])
    pixels = batch["pixel_values"].to(next(first.parameters()).device)
    truth = reader.unit(pixels)
    columns = {"image": truth, "T(x)": torch.where(first.hole(mask).to(truth.device), 0.5, truth)}
    return columns | {name: reader.unit(model.generate(pixels, mask, batch["seeds"][:, 1])) for name, model in models.items()}
