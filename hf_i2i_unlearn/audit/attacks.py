"""What an auditor does to a model: errors in the hole, relearning, and a linear probe. No verdicts here."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.pairs import seeds_for
from ..data.reading import ImageCollator, ImageReader
from ..errors import InputError
from ..evaluation.metrics import HoleError, Metric, measured
from ..methods.corruptions import Corruption
from ..models.base import I2IModel
from ..models.patches import add_patch
from .statistics import share


@dataclass
class Setting:
    """How pictures are read, batched and measured. Draws of picture i depend on (seed, i) alone.

    metric: the error by which everything is judged; lower is better.
    """

    reader: ImageReader
    batch_size: int = 64
    seed: int = 0
    progress: bool = True
    metric: Metric = field(default_factory=HoleError)

    def batches(self, rows: list, title: str, device):
        """(pixel values on the device, seeds) of undecoded rows, in order; unreadable pictures as the reader has it."""
        items = [{"image": row, "seeds": seeds_for(self.seed, i)} for i, row in enumerate(rows)]
        loader = DataLoader(items, self.batch_size, collate_fn=ImageCollator(self.reader))
        for batch in tqdm(loader, title, leave=False, disable=not self.progress):
            yield batch["pixel_values"].to(device), batch["seeds"]

    def errors(self, completed: torch.Tensor, truth: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
        """The metric of normalised pictures, (B, C, H, W) x 2 and (B, 1, H, W) -> (B,) float64."""
        return measured(self.metric, completed, truth, hole, self.reader.unit).double()

    def pixels(self, rows: list) -> torch.Tensor:
        """All pictures at once, (N, C, H, W)."""
        return torch.cat([pixels for pixels, _ in self.batches(rows, "reading", "cpu")])


def device_of(model: I2IModel) -> torch.device:
    return next(model.parameters()).device


@torch.no_grad()
def hole_errors(model: I2IModel, rows: list, corruption: Corruption, setting: Setting, title: str = "completing") -> np.ndarray:
    """The error of each completed picture, by the metric of the setting: (N,)."""
    errors, training = [], model.training
    model.eval()
    for pixels, seeds in setting.batches(rows, title, device_of(model)):
        mask = corruption(model.grid, seeds[:, 0])
        hole = model.hole(mask).to(pixels.device)
        errors.append(setting.errors(model.generate(pixels, mask, seeds[:, 1]), pixels, hole).cpu())
    model.train(training)
    return torch.cat(errors).numpy()


def blank_errors(model: I2IModel, rows: list, corruption: Corruption, setting: Setting) -> np.ndarray:
    """The same for a fill that knows nothing: the mean colour of each picture's visible part. `model` gives the grid alone."""
    errors = []
    for pixels, seeds in setting.batches(rows, "blank fill", "cpu"):
        hole = model.hole(corruption(model.grid, seeds[:, 0]))
        visible = ~hole
        colour = (pixels * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True)  # (B, C, 1, 1)
        errors.append(setting.errors(torch.where(hole, colour, pixels), pixels, hole))
    return torch.cat(errors).numpy()


def measured_at(steps: int) -> list[int]:
    """The steps at which relearning is measured: 0 to 6, then each about a fifth later than the last; and `steps`."""
    found = [0]
    while found[-1] < steps:
        found.append(min(steps, max(found[-1] + 1, round(found[-1] * 1.2))))
    return found


def relearn(
    model: I2IModel,
    rows: list,
    held: list,
    corruption: Corruption,
    setting: Setting,
    *,
    target: float,
    learning_rate: float,
    steps: int,
    batch_size: int,
    title: str = "relearning",
    to_the_end: bool = False,
    weights: str = "all",
    beside: list | None = None,
    at_end: Callable[[I2IModel], None] | None = None,
) -> dict:
    """Ordinary training of a copy of the model on `rows` until the mean hole error on `held` is at most `target`.

    The family's own training loss, T = `corruption`, AdamW (0.9, 0.95) at a constant rate, gradients clipped at 1.

    Args:
        steps: the most that are taken. to_the_end: take them all, whatever the error.
        weights: of `options.WEIGHTS`: which ones are trained. beside: rows that make up half of every batch.
        at_end: is given the trained copy.

    Returns:
        {"learning_rate", "steps": the first measured step at or below the target or None, "error": the last one measured,
        "curve": [[step, mean hole error], ...]}; the curve ends where an error is not finite.
    """
    model = prepared(model, weights)
    pictures = [setting.pixels(some) for some in (rows, beside) if some]  # (K, C, H, W) each
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    places, reached, curve = measured_at(steps), None, []
    bar = tqdm(total=steps, desc=f"{title}, lr {learning_rate:g}", leave=False, disable=not setting.progress)
    quiet = replace(setting, progress=False)
    for step in range(steps + 1):
        if step in places:
            error = float(hole_errors(model, held, corruption, quiet).mean())
            if not math.isfinite(error):
                if step == 0:
                    raise InputError("The model's completions are not finite numbers; this checkpoint cannot be audited.")
                break
            curve.append([step, error])
            bar.set_postfix(error=f"{error:.3f}", target=f"{target:.3f}")
            if error <= target and reached is None:
                reached = step
            if reached is not None and not to_the_end:
                break
        if step < steps:
            _train_step(model, pictures, step, corruption, setting.seed, batch_size, optimizer, trained)
            bar.update()
    bar.close()
    if at_end is not None:
        at_end(model)
    return {
        "learning_rate": learning_rate,
        "steps": reached,
        "error": curve[-1][1],
        "curve": curve,
    }


def prepared(model: I2IModel, weights: str) -> I2IModel:
    """A copy of which an attacker trains one of `options.WEIGHTS`."""
    model = copy.deepcopy(model)
    if weights == "encoder":
        model.train_encoder_only()
    elif weights == "lora":
        add_patch(model, "the audited model", rank=8)
    return model


def _train_step(model, pictures, step, corruption, seed, batch_size, optimizer, trained):
    size, device = batch_size // len(pictures), device_of(model)
    batch, seeds = [], []
    for number, pixels in enumerate(pictures):
        count = min(size, len(pixels))
        places = range(step * count, (step + 1) * count)
        batch.append(pixels[[_of_cycle(t, len(pixels), seed) for t in places]])
        seeds += [seeds_for(seed + number, t) for t in places]
    both, draws = torch.cat(batch).to(device), np.array(seeds)
    model.train()
    mask = corruption(model.grid, draws[:, 1])
    model.training_loss(both, model.draw(both, mask, draws[:, 1])).mean().backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()


def _of_cycle(t: int, count: int, seed: int) -> int:
    """Every picture once before any again, as `data.Cycle` has it."""
    return int(np.random.default_rng([seed, t // count]).permutation(count)[t % count])


def best_relearning(model: I2IModel, *args, learning_rates: list[float], steps: int, **kwargs) -> dict:
    """`relearn` at the most favourable of several learning rates: the fewest steps, or the lowest error where none arrives.

    Returns:
        What `relearn` returns of the best one, and "tried": [{"learning_rate", "steps", "error"}, ...]. A rate is not followed
        beyond the fewest steps found so far.
    """
    tried, limit = [], steps
    for rate in learning_rates:
        tried.append(relearn(model, *args, learning_rate=rate, steps=limit, **kwargs))
        limit = limit if tried[-1]["steps"] is None else tried[-1]["steps"]
    best = min(tried, key=lambda t: (math.inf if t["steps"] is None else t["steps"], t["error"]))
    return best | {"tried": [{key: t[key] for key in ("learning_rate", "steps", "error")} for t in tried]}


@torch.no_grad()
def scrambled(model: I2IModel, seed: int = 0) -> I2IModel:
    """A copy whose encoder knows nothing: the values of each trainable encoder weight are shuffled among themselves."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for module in model.encoder_modules():
        for p in module.parameters():
            if p.requires_grad:
                order = torch.randperm(p.numel(), generator=generator).to(p.device)
                p.copy_(p.flatten()[order].view_as(p))
    return model


@torch.no_grad()
def features(model: I2IModel, rows: list, corruption: Corruption, setting: Setting, size: int) -> torch.Tensor:
    """E(T(x)) as one vector a picture, (N, F): tokens flattened and, beside that, averaged; at most `size` values flattened."""
    found, training = [], model.training
    model.eval()
    for pixels, seeds in setting.batches(rows, "encoding", device_of(model)):
        mask = corruption(model.grid, seeds[:, 0])
        encoded = model(pixels, model.draw(pixels, mask, seeds[:, 1])).float()  # (B, D) or (B, tokens, D)
        parts = [sketch(encoded.flatten(1), size, setting.seed)] + ([encoded.mean(1)] if encoded.ndim == 3 else [])
        found.append(torch.cat(parts, 1).cpu())
    model.train(training)
    return torch.cat(found)


def visible_pixels(model: I2IModel, rows: list, corruption: Corruption, setting: Setting, size: int) -> torch.Tensor:
    """T(x) itself as one vector a picture, (N, F), hidden pixels 0: what the input tells without any model."""
    found = []
    for pixels, seeds in setting.batches(rows, "visible pixels", "cpu"):
        hole = model.hole(corruption(model.grid, seeds[:, 0]))
        found.append(sketch(pixels.masked_fill(hole, 0).flatten(1), size, setting.seed))
    return torch.cat(found)


def sketch(x: torch.Tensor, size: int, seed: int = 0) -> torch.Tensor:
    """(B, D) -> (B, size) keeping inner products in expectation; x itself if D <= size.

    A random projection without its matrix (count sketch): every value is added, with a random sign, to a random place.
    """
    width = x.shape[1]
    if width <= size:
        return x
    generator = torch.Generator().manual_seed(seed)
    place = torch.randint(size, (width,), generator=generator).to(x.device)
    sign = (torch.randint(2, (width,), generator=generator) * 2 - 1).to(x)
    return x.new_zeros(len(x), size).index_add_(1, place, x * sign)


PENALTIES = (1e-2, 1e-1, 1.0)


def probe(fit_x, fit_y, test_x, test_y, seed: int = 0) -> dict[str, float]:
    """Accuracy of a multinomial logistic regression on (N, F) features, with Wilson's interval and that of chance.

    Features are standardised by those it is fitted on. The L2 penalty is the best of `PENALTIES` on a quarter of them, as an
    auditor would choose it.

    Returns:
        {"accuracy", "low", "high", "count", "chance": the share of the commonest class among the tested}
    """
    classes = sorted(set(fit_y))
    number = {c: i for i, c in enumerate(classes)}
    known = [i for i, y in enumerate(test_y) if y in number]
    test_x, test_y = test_x[known], torch.tensor([number[test_y[i]] for i in known])
    fit_y = torch.tensor([number[y] for y in fit_y])
    mean, std = fit_x.mean(0), fit_x.std(0).clamp_min(1e-6)
    fit_x, test_x = (fit_x - mean) / std, (test_x - mean) / std
    order = torch.randperm(len(fit_x), generator=torch.Generator().manual_seed(seed))
    choose, learn = order[::4], torch.cat([order[i::4] for i in (1, 2, 3)])

    def right(weights, x, y):
        return int(((x @ weights[:-1] + weights[-1]).argmax(1) == y).sum())

    trials = [right(_logistic(fit_x[learn], fit_y[learn], len(classes), p), fit_x[choose], fit_y[choose]) for p in PENALTIES]
    weights = _logistic(fit_x, fit_y, len(classes), PENALTIES[int(np.argmax(trials))])
    chance = test_y.bincount().max().item() / len(test_y)
    return share(right(weights, test_x, test_y), len(test_y)) | {"chance": chance}


def _logistic(x, y, classes: int, penalty: float) -> torch.Tensor:
    """Weights (F + 1, classes), the bias last: mean cross-entropy + penalty / 2 * sum of squares is least."""
    weights = torch.zeros(x.shape[1] + 1, classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weights[:-1] + weights[-1], y)
        value = value + penalty / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()
