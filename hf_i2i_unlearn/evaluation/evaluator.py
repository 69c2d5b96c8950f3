"""Before and after: how well pictures of each set are completed, and how far the unlearned model moved on the retain set."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..data.reading import ImageReader
from ..errors import InputError, RunError
from ..methods.corruptions import Corruption
from ..models.base import I2IModel
from .features import FeatureNetwork
from .metrics import BUILT_IN, Metric, check_metrics, hole_mse, measured
from .pictures import Hiding, Pictures
from .scores import SCORES, Scores, update_scores
from .words import REGIONS


def evaluate(
    model: I2IModel,
    original: I2IModel,
    rows: dict[str, list],
    reader: ImageReader,
    corruption: Corruption,
    *,
    metrics: tuple[Metric, ...] = (),
    features: Sequence[FeatureNetwork] = (),
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
    **options,
) -> dict[str, dict]:
    """One model measured once, before and after; `Evaluator` measures several, or again and again.

    Args:
        model, original: `I2IModel`s of one kind, on the device where they are to work.
        rows: {"forget": rows, "retain": rows} of undecoded rows. reader: reads them, with the model's processor. corruption: T.
        metrics, features: what is measured besides. options: others of `Evaluator`.

    Returns:
        {"forget": figures, "retain": figures}, see `Evaluator.__call__`. `markdown_table` prints it.

    Raises:
        InputError: an empty set, a T that does not fit the model, or a metric that is none. RunError: completions that are no
            finite numbers, where there are feature networks.
    """
    corruption.check(original.grid)
    evaluator = Evaluator(
        original, rows, reader, corruption, batch_size, seed, metrics=metrics, features=features, **options
    )  # fmt: skip
    return evaluator(model, progress)


class Evaluator:
    """Completes the pictures of both sets with a model and compares them with the truth and with the original model.

    Figures are means over pictures, summed in float64 and over all processes. T of picture i depends on (seed, i) alone, so two
    calls, and two models, are compared on the same holes.

    Args:
        original: the original model (theta_0, phi_0).
        splits: {"forget": rows, "retain": rows}, lists of undecoded rows.
        reader: reads the pictures, without augmentation.
        corruption: T in this evaluation.
        batch_size: pictures per pass. seed: fixes T.
        accelerator: spreads the pictures over its processes; one process if None.
        keep_original: hold in memory what is the same at every call, for repeated calls on few pictures: the decoded pictures,
            their features, and the original's completions.
        features: networks to measure the pictures by besides (`SCORES`). regions: what they see, of `REGIONS`.
        inception_splits: see `InceptionScore`.
        cross_validation: App. E.2. What the model makes of the hole is all that is kept; the original completes the rest from
            it, and the result is compared with the true picture as a whole.
        metrics: `Metric`s that are added to the built-in ones (`HoleError`, `PSNR`).

    Raises:
        InputError: an empty set, an unknown region, or a metric without a name of its own.
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
        features: Sequence[FeatureNetwork] = (),
        regions: tuple[str, ...] = REGIONS,
        inception_splits: int = 1,
        cross_validation: bool = False,
        metrics: tuple[Metric, ...] = (),
    ):
        _refuse(splits, features, regions, accelerator)
        check_metrics(metrics)
        self.original, self.reader, self.accelerator, self.keep_original = original, reader, accelerator, keep_original
        self.metrics, self.features, self.regions = (*BUILT_IN, *metrics), list(features), tuple(regions)
        self.inception_splits = inception_splits
        self.pictures = Pictures(splits, reader, batch_size, seed, accelerator, keep_original)
        self.hiding = Hiding(corruption, cross_validation)

    @property
    def corruption(self) -> Corruption:
        """T."""
        return self.hiding.corruption

    def under(self, corruption: Corruption, cross_validation: bool = False) -> "Evaluator":
        """An evaluator of the same pictures under another T; what is kept and does not depend on T is shared."""
        other = copy.copy(self)
        other.hiding = Hiding(corruption, cross_validation)
        return other

    @torch.no_grad()
    def __call__(self, model: I2IModel, progress: bool = True) -> dict[str, dict]:
        """The figures of each set, {"forget": {...}, "retain": {...}}.

        Each has count, drift and, of every metric, NAME and "original_" + NAME: mse, psnr, original_mse, ...

        With feature networks also "features", a list of one dict per network and region: how it was measured, and the `SCORES`,
        each alone, with the prefix "original_" and, for the hole filled with one colour, "blank_"; "true_" are those of true
        pictures.

        Raises:
            RunError: completions that are no finite numbers, where there are feature networks. InputError: a metric that does
                not give a number per picture.
        """
        training = model.training
        model.eval()
        try:
            return {name: self._split(name, model, progress) for name in self.pictures.splits}
        finally:
            model.train(training)

    def _split(self, name, model, progress):
        """The figures of one set."""
        original = self._unwrapped()
        regions = ("whole",) if self.hiding.crossed else self.regions  # all of a cross-validated picture is generated
        scores = [Scores(network, region, self.inception_splits) for network in self.features for region in regions]
        sums = torch.zeros(2 + 2 * len(self.metrics), dtype=torch.float64)
        for number, batch in enumerate(self.pictures.batches(name, progress)):
            seen = self._complete_all(model, original, (name, number), *batch)
            sums += self._errors(seen)
            if scores:
                self._look(scores, seen, (name, number), regions, model is original)
        if self.accelerator:
            sums = self.accelerator.reduce(sums.to(self.accelerator.device), "sum").cpu()
        count, *totals = sums.tolist()
        names = [prefix + metric.name for prefix in ("", "original_") for metric in self.metrics]
        result = {"count": int(count), **{key: total / count for key, total in zip([*names, "drift"], totals)}}
        if scores:
            result["features"] = self._scores(name, scores, model is original)
        return result

    def _complete_all(self, model, original, key, pixels, seeds, places) -> "_Seen":
        """A batch, and what both models make of it."""
        pixels = pixels.to(next(original.parameters()).device)
        mask = self.corruption(original.grid, seeds[:, 0])
        before = self._original(key, pixels, mask, seeds[:, 1])
        after = before if model is original else self._complete(model, pixels, mask, seeds[:, 1])
        hole = original.hole(mask).to(pixels.device)
        return _Seen(pixels, torch.ones_like(hole) if self.hiding.crossed else hole, after, before, places)

    def _errors(self, seen) -> torch.Tensor:
        """Sums over a batch: count, every metric after, every metric before, drift: (2 + 2 * metrics,) float64."""
        columns = [torch.ones(len(seen.pixels), device=seen.pixels.device)]
        for completion in (seen.after, seen.before):
            columns += [measured(m, completion, seen.pixels, seen.hole, self.reader.unit) for m in self.metrics]
        columns.append(hole_mse(seen.after, seen.before, seen.hole))
        return torch.stack([column.to(columns[0].device).double() for column in columns]).sum(1).cpu()

    def _look(self, scores, seen, key, regions, is_original):
        """Add what the feature networks see of a batch; original, blank and true pictures once only."""
        known = key[0] in self.hiding.references
        pictures = ({} if is_original else {"": seen.after}) | ({} if known else {"original_": seen.before})
        if not pictures:
            return
        if not all(bool(completed.isfinite().all()) for completed in pictures.values()):
            raise RunError("Some completions hold values that are no finite numbers, so no features of them can be measured.")
        truth = self.reader.unit(seen.pixels)
        true = self.pictures.true_features(key, truth, seen.hole, self.features, regions, self.hiding)
        completed = {kind: self.reader.unit(pixels) for kind, pixels in pictures.items()}
        update_scores(scores, truth, true, completed, seen.hole, seen.places, blank=not known)

    def _scores(self, name, scores, is_original):
        """The figures of all networks and regions. Those of original, blank and true pictures are the same at every call."""
        reference = self.hiding.references.get(name)
        found = [score.compute(self.accelerator) for score in scores] if not (reference and is_original) else reference
        if reference is None:
            reference = [{k: v for k, v in f.items() if k.removesuffix("_std") not in SCORES} for f in found]
            self.hiding.references[name] = reference
        if is_original:
            found = [{k.removeprefix("original_"): v for k, v in f.items() if k.startswith("original_")} for f in reference]
        return [f | r for f, r in zip(found, reference)]

    def _complete(self, model, pixels, mask, seeds):
        completed = model.generate(pixels, mask, seeds)
        return self._unwrapped().generate(completed, ~mask, seeds) if self.hiding.crossed else completed

    def _unwrapped(self):
        return getattr(self.original, "module", self.original)

    def _original(self, key, pixels, mask, seeds):
        if not self.keep_original:
            return self._complete(self._unwrapped(), pixels, mask, seeds)
        if key not in self.hiding.completed:
            self.hiding.completed[key] = self._complete(self._unwrapped(), pixels, mask, seeds).cpu()
        return self.hiding.completed[key].to(pixels.device)


class _Seen(NamedTuple):
    """A batch: true pictures (B, C, H, W), hole (B, 1, H, W), completions by model and original, places (B,) in the set."""

    pixels: torch.Tensor
    hole: torch.Tensor
    after: torch.Tensor
    before: torch.Tensor
    places: torch.Tensor


def _refuse(splits, features, regions, accelerator):
    """Raise InputError for sets that are empty or too small for the processes, and for an unknown region."""
    for name, rows in splits.items():
        if len(rows) == 0:
            raise InputError(f"There are no {name} pictures to evaluate on; choose a split or classes that hold some.")
        if features and accelerator and len(rows) < accelerator.num_processes:
            raise InputError(f"{len(rows)} {name} pictures are fewer than the {accelerator.num_processes} processes.")
    for region in regions:
        if region not in REGIONS:
            raise InputError(f"'{region}' is no region of a picture; choose from {', '.join(REGIONS)}.")
