"""Before and after: how well pictures of each set are completed, and how far the unlearned model moved on the retain set."""

import copy

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.pairs import seeds_for
from ..data.reading import ImageCollator, ImageReader
from ..errors import InputError, RunError
from ..methods.corruptions import Corruption
from ..models.base import I2IModel
from .features import FeatureNetwork
from .scores import REGIONS, SCORES, _Scores, look, update_scores


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
        keep_original: hold in memory what is the same at every call, for repeated calls on few pictures: the decoded pictures,
            their features, and the original's completions.
        features: networks to measure the pictures by besides (`SCORES`). regions: what they see, of `REGIONS`.
        inception_splits: see `InceptionScore`.
        cross_validation: App. E.2. What the model makes of the hole is all that is kept; the original completes the rest from it,
            and the result is compared with the true picture as a whole.
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
        features: list[FeatureNetwork] = (),
        regions: tuple[str, ...] = REGIONS,
        inception_splits: int = 1,
        cross_validation: bool = False,
    ):
        for name, rows in splits.items():
            if len(rows) == 0:
                raise InputError(f"There are no {name} pictures to evaluate on; choose a split or classes that hold some.")
            if features and accelerator and len(rows) < accelerator.num_processes:
                raise InputError(f"{len(rows)} {name} pictures are fewer than the {accelerator.num_processes} processes.")
        for region in regions:
            if region not in REGIONS:
                raise InputError(f"'{region}' is no region of a picture; choose from {', '.join(REGIONS)}.")
        self.features, self.inception_splits, self.cross_validation = list(features), inception_splits, cross_validation
        self.regions = ("whole",) if cross_validation else tuple(regions)  # all of such a picture is generated
        self.original, self.splits, self.reader, self.corruption = original, splits, reader, corruption
        self.batch_size, self.seed, self.accelerator, self.keep_original = batch_size, seed, accelerator, keep_original
        self._pictures, self._whole = {}, {}  # batches, and features of whole true pictures: the same under every T
        self._references, self._completed, self._holes = {}, {}, {}  # what depends on T

    def under(self, corruption: Corruption, cross_validation: bool = False) -> "Evaluator":
        """An evaluator of the same pictures under another T; what is kept and does not depend on T is shared."""
        other = copy.copy(self)
        other.corruption, other.cross_validation = corruption, cross_validation
        other.regions = ("whole",) if cross_validation else self.regions
        other._references, other._completed, other._holes = {}, {}, {}
        return other

    @torch.no_grad()
    def __call__(self, model: I2IModel, progress: bool = True) -> dict[str, dict[str, float]]:
        """{"forget": {...}, "retain": {...}} with count, mse, psnr, original_mse, original_psnr and drift.

        With feature networks also "features", a list of one dict per network and region: how it was measured, and the `SCORES`, each
        alone, with the prefix "original_" and, for the hole filled with one colour, "blank_"; "true_" are those of true pictures.

        Raises:
            RunError: completions that are no finite numbers, where there are feature networks.
        """
        training = model.training
        model.eval()
        try:
            return {name: self._split(name, model, progress) for name in self.splits}
        finally:
            model.train(training)

    def _split(self, name, model, progress):
        original = self._unwrapped()
        device = next(original.parameters()).device
        rank, world = (self.accelerator.process_index, self.accelerator.num_processes) if self.accelerator else (0, 1)
        sums = torch.zeros(6, dtype=torch.float64)
        scores = [_Scores(network, r, self.inception_splits) for network in self.features for r in self.regions]
        known, seen = name in self._references, 0
        for number, (pixels, seeds) in enumerate(self._batches(name, rank, world, progress)):
            pixels = pixels.to(device)
            mask = self.corruption(original.grid, seeds[:, 0])
            before = self._original(name, number, pixels, mask, seeds[:, 1])
            after = before if model is original else self._complete(model, pixels, mask, seeds[:, 1])
            hole = original.hole(mask).to(device)
            if self.cross_validation:
                hole = torch.ones_like(hole)
            columns = [torch.ones(len(pixels), device=device)]
            for completion in (after, before):
                columns += [hole_mse(completion, pixels, hole), self._psnr(completion, pixels, hole)]
            columns.append(hole_mse(after, before, hole))
            sums += torch.stack(columns).double().sum(1).cpu()
            pictures = {} if model is original else {"": after}
            if not known:
                pictures["original_"] = before
            if scores and pictures:
                if not all(bool(completed.isfinite().all()) for completed in pictures.values()):
                    raise RunError(
                        "Some completions hold values that are no finite numbers, so no features of them can be measured."
                    )
                places = rank + world * torch.arange(seen, seen + len(pixels))
                seen += len(pixels)
                truth = self.reader.unit(pixels)
                true = self._true_features(name, number, truth, hole)
                update_scores(
                    scores, truth, true, {k: self.reader.unit(p) for k, p in pictures.items()}, hole, places, not known
                )
        if self.accelerator:
            sums = self.accelerator.reduce(sums.to(self.accelerator.device), "sum").cpu()
        count, *totals = sums.tolist()
        names = ("mse", "psnr", "original_mse", "original_psnr", "drift")
        result = {"count": int(count), **{key: total / count for key, total in zip(names, totals)}}
        if scores:
            result["features"] = self._scores(name, scores, model is original)
        return result

    def _scores(self, name, scores, is_original):
        """The figures of all networks and regions. Those of original, blank and true pictures are the same at every call."""
        reference = self._references.get(name)
        found = [score.compute(self.accelerator) for score in scores] if not (reference and is_original) else reference
        if reference is None:
            reference = [{k: v for k, v in f.items() if k.removesuffix("_std") not in SCORES} for f in found]
            self._references[name] = reference
        if is_original:
            found = [{k.removeprefix("original_"): v for k, v in f.items() if k.startswith("original_")} for f in reference]
        return [f | r for f, r in zip(found, reference)]

    def _batches(self, name, rank, world, progress):
        """(pixel values, seeds) of this process's share, decoded once if they are kept."""
        items = [{"image": row, "seeds": seeds_for(self.seed, i)} for i, row in enumerate(self.splits[name])][rank::world]
        batches = self._pictures.get(name)
        if batches is None:
            batches = DataLoader(items, self.batch_size, collate_fn=ImageCollator(self.reader))
        kept = []
        for batch in tqdm(batches, f"evaluating {name}", leave=False, disable=not progress or rank > 0):
            if self.keep_original:
                kept.append(batch)
            yield batch["pixel_values"], batch["seeds"]
        if self.keep_original:
            self._pictures[name] = kept

    def _true_features(self, name, number, truth, hole):
        """{(network, region): (features, logits)} of a batch of true pictures; of a classifier always of whole ones too."""
        found = {}
        for network in self.features:
            for region in dict.fromkeys((*self.regions, "whole") if network.classifies else self.regions):
                kept, key = (self._whole if region == "whole" else self._holes), (name, number, network)
                if key not in kept:
                    seen = network(look(truth, hole, network, region))
                    if not self.keep_original:
                        found[network, region] = seen
                        continue
                    kept[key] = tuple(None if x is None else x.cpu() for x in seen)
                found[network, region] = tuple(None if x is None else x.to(network.mean.device) for x in kept[key])
        return found

    def _complete(self, model, pixels, mask, seeds):
        completed = model.generate(pixels, mask, seeds)
        if not self.cross_validation:
            return completed
        return self._unwrapped().generate(completed, ~mask, seeds)

    def _unwrapped(self):
        return getattr(self.original, "module", self.original)

    def _original(self, name, number, pixels, mask, seeds):
        if not self.keep_original:
            return self._complete(self._unwrapped(), pixels, mask, seeds)
        if (name, number) not in self._completed:
            self._completed[name, number] = self._complete(self._unwrapped(), pixels, mask, seeds).cpu()
        return self._completed[name, number].to(pixels.device)

    def _psnr(self, completion, truth, hole):
        return -10 * hole_mse(self.reader.unit(completion), self.reader.unit(truth), hole).clamp_min(1e-10).log10()


def hole_mse(a: torch.Tensor, b: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """Mean squared difference over the hidden pixels, (B, C, H, W) x 2 and (B, 1, H, W) boolean -> (B,)."""
    error = (a - b).square() * hole
    return error.flatten(1).sum(1) / (hole.flatten(1).sum(1) * a.shape[1])
