"""Before and after: how well pictures of each set are completed, and how far the unlearned model moved on the retain set."""

import copy

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .corruptions import Corruption
from .data import ImageCollator, ImageReader, seeds_for
from .errors import InputError, RunError
from .features import FeatureNetwork, crop_to_hole
from .metrics import (
    Accuracy,
    CosineSimilarity,
    GaussianStatistics,
    InceptionScore,
    frechet_distance,
)
from .models.base import I2IModel

FIGURES = {
    "mse": "mean squared error in the hole, normalised units",
    "psnr": "PSNR in the hole, dB, mean over pictures (pixels clipped to [0, 1])",
    "drift": "mean squared difference in the hole between the model's completion and the original model's, normalised units",
}
REGIONS = ("whole", "hole")  # what a feature network is shown: the whole picture, or the hole alone (`crop_to_hole`)

# What is measured with a feature network, by completions of the model, of the original, and by a hole of one colour ("blank").
SCORES = {
    "fid": "Frechet distance of the features of completed and true pictures; FID (Heusel et al., 2017) with Inception features",
    "inception_score": "exp of the mean KL divergence of p(class | picture) from p(class) (Salimans et al., 2016)",
    "similarity": "mean cosine similarity of the features of a completed picture and of the true one (App. C.2, with CLIP's)",
    "accuracy": "share of completed pictures which the network gives the class that it gives the true, whole picture",
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


class _Scores:
    """What one network makes of one region of all pictures of a set: sums for the true, and for every kind of completed pictures."""

    def __init__(self, network: FeatureNetwork, region: str, splits: int):
        self.network, self.region, self.splits = network, region, splits
        self.gauss, self.inception, self.similarity, self.accuracy = {}, {}, {}, {}

    def add(self, kind, features, logits, truth, places, labels):
        """One batch; kind is "true_", "", "original_" or "blank_". truth: the features of the true pictures."""
        self.gauss.setdefault(kind, GaussianStatistics()).update(features)
        if kind != "true_":
            self.similarity.setdefault(kind, CosineSimilarity()).update(features, truth)
        if logits is not None:
            self.inception.setdefault(kind, InceptionScore(self.splits)).update(logits, places)
            self.accuracy.setdefault(kind, Accuracy()).update(logits, labels)

    def compute(self, accelerator=None) -> dict:
        if accelerator:
            for sums in (self.gauss, self.inception, self.similarity, self.accuracy):
                for kind in sums:  # in the same order on every process
                    sums[kind].reduce(accelerator)
        true = self.gauss["true_"]
        result = self.network.describe() | {"region": self.region, "count": true.count, "dimensions": true.dimensions}
        result["few_samples"] = true.count < true.dimensions
        for kind in self.gauss:
            if kind != "true_":
                result[kind + "fid"] = frechet_distance(true, self.gauss[kind])
                result[kind + "similarity"] = self.similarity[kind].compute()
            if kind in self.inception:
                result[kind + "inception_score"], deviation = self.inception[kind].compute()
                if self.splits > 1:
                    result[kind + "inception_score_std"] = deviation
                result[kind + "accuracy"] = self.accuracy[kind].compute()
        return result


def look(images, hole, network, region):
    """What a network is shown of (B, C, H, W) pictures in [0, 1]: all, or the hole alone."""
    return images if region == "whole" else crop_to_hole(images, hole, network.size, network.fill(images.shape[1]))


def update_scores(scores, truth, true, pictures, hole, places, blank=True):
    """Add a batch to all scores, each picture seen once by each network.

    Args:
        scores: list of `_Scores`. truth: (B, C, H, W) in [0, 1]. true: {(network, region): (features, logits)} of them.
        pictures: {kind: completed pictures}. hole: (B, 1, H, W). places: (B,) numbers of the pictures in the set.
        blank: measure the hole filled with the network's mean colour as well.
    """
    for score in scores:
        network, region = score.network, score.region
        labels = true[network, "whole"][1].argmax(1) if network.classifies else None
        true_features, true_logits = true[network, region]
        score.add("true_", true_features, true_logits, None, places, labels)
        kinds = dict(pictures)
        if blank:
            kinds["blank_"] = torch.where(hole, network.fill(truth.shape[1]).view(1, -1, 1, 1), truth)
        for kind, images in kinds.items():
            score.add(kind, *network(look(images, hole, network, region)), true_features, places, labels)


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


# FID is the Frechet distance in Inception's features; in others it is called FD here, for its numbers do not compare.
TITLES = {"fid": "FID", "inception_score": "IS", "similarity": "similarity", "accuracy": "accuracy"}


def title_of(key: str, how: dict) -> str:
    """The name of a score in a table's head."""
    if key == "fid" and "inception" not in how["kind"]:
        return "FD"
    return "CLIP" if key == "similarity" and how["kind"] == "clip" else TITLES[key]


def feature_table(results: dict[str, dict]) -> str:
    """Results of `Evaluator` with feature networks, of one corruption, as Markdown: a row per model, original and blank hole first.

    Args:
        results: {model name: result}; all of one original, corruption and selection of pictures.
    """
    lines = []
    first = next(iter(results.values()))
    for place, how in enumerate(first["retain"]["features"]):
        keys = [key for key in SCORES if key in how]
        head = [f"{name} {title_of(key, how)}" for key in keys for name in ("retain", "forget")]
        lines += [describe_scores(how), "", f"| model | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
        rows = {"true pictures": (first, "true_"), "blank hole": (first, "blank_"), "original": (first, "original_")}
        for model, (result, kind) in (rows | {name: (result, "") for name, result in results.items()}).items():
            figures = [result[s]["features"][place].get(kind + key) for key in keys for s in ("retain", "forget")]
            lines.append(f"| {model} | {' | '.join('' if f is None else f'{f:.3g}' for f in figures)} |")
        lines.append("")
    return "\n".join(lines).strip()


def describe_scores(how: dict) -> str:
    """One line on how the figures of a row of "features" were measured."""
    seen = "whole pictures" if how["region"] == "whole" else "the hole alone"
    few = "; **fewer pictures than dimensions, FID is biased upwards**" if how["few_samples"] else ""
    return (
        f"Features of {seen}: {how['network']} (weights sha256 {how['weights_sha256'][:12]}), {how['dimensions']} dimensions, "
        f"input {'x'.join(map(str, how['input']))}, {how['resize']}, range {how['range']}, {how['count']} pictures per set{few}."
    )


def feature_rows(found: dict[str, dict[str, dict]]) -> list[dict]:
    """{T: {model: result}} as flat rows: one per T, model, set, network and region, with all its figures."""
    rows = []
    for corruption, results in found.items():
        for model, result in results.items():
            for which, figures in result.items():
                base = {"corruption": corruption, "model": model, "set": which, "network": "", "region": ""}
                base |= {k: v for k, v in figures.items() if k != "features"}
                rows += [base | {k: v for k, v in how.items() if k != "input"} for how in figures.get("features", [{}])]
    return rows


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
        models: {column title: model}; rows: undecoded rows. start: the number of the first one, which its T depends on. The hole
            of T(x) is drawn grey.
    """
    first = next(iter(models.values()))
    batch = ImageCollator(reader)([{"image": row, "seeds": seeds_for(seed, i)} for i, row in enumerate(rows, start)])
    mask = corruption(first.grid, batch["seeds"][:, 0])
    pixels = batch["pixel_values"].to(next(first.parameters()).device)
    truth = reader.unit(pixels)
    columns = {"image": truth, "T(x)": torch.where(first.hole(mask).to(truth.device), 0.5, truth)}
    return columns | {name: reader.unit(model.generate(pixels, mask, batch["seeds"][:, 1])) for name, model in models.items()}
