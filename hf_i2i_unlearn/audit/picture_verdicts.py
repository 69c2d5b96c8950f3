"""A verdict per picture: can it still be completed?

Pictures differ in difficulty: anybody completes a clear sky. So the error of a completion is taken in units of the picture's
own blank-fill error (the mean colour of its visible part), and compared with the original model's errors on pictures that it
never saw, in the same units and under the same mask.
"""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.decoding import picture_hash
from ..data.pairs import seeds_for
from ..data.reading import ImageReader
from ..errors import InputError
from ..evaluation.metrics import hole_mse
from ..methods.corruptions import CenterCrop, Corruption, Extend, Outpaint, RandomBlock, RandomMask
from ..models.base import I2IModel
from .statistics import share

CANNOT, NEVER_SEEN, IN_PART, STILL, NOTHING = (
    "cannot be completed", "as if never seen", "in part", "still completed", "nothing to complete",
)  # fmt: skip
GRADES = {
    CANNOT: "its error lies above 95 of 100 pictures that the original never saw",
    NEVER_SEEN: "its error has risen by a quarter or more, and lies above half of the pictures that the original never saw; "
    "or, where a model that never saw it was given, reaches nine tenths of that model's",
    IN_PART: "its error has risen by a quarter or more, but not so far",
    STILL: "its error has not risen by a quarter",
    NOTHING: "what is hidden has the one colour of the rest: anybody completes it",
}
HONOURED = (CANNOT, NEVER_SEEN)
RISE = 1.25
NEAR = 0.9  # of the error of a model that never saw the picture
FLAT = 1e-4  # a blank-fill error below this, in normalised units, is that of a picture without content in the hole
FEWEST = 20  # unseen pictures; fewer percentiles say nothing, and nobody can vouch for a verdict


@dataclass(frozen=True)
class Bounds:
    """Percentiles of the original's relative errors on unseen pictures under one mask, and how many there were."""

    low: float  # the 5th
    median: float
    high: float  # the 95th
    count: int

    @classmethod
    def of(cls, errors: np.ndarray) -> "Bounds":
        """errors: (N,). Of none, no error is high."""
        if not len(errors):
            return cls(0.0, sys.float_info.max, sys.float_info.max, 0)
        low, median, high = np.percentile(errors, [5, 50, 95]).tolist()
        return cls(low, median, high, len(errors))

    def grade(self, before: float, after: float, twin: float | None = None) -> str:
        """The grade of a picture by its relative errors before and after, and that of a model that never saw it."""
        if after > self.high:
            return CANNOT
        if after < RISE * before:
            return STILL
        return NEVER_SEEN if after > self.median or (twin is not None and after >= NEAR * twin) else IN_PART


def other_masks(grid: tuple[int, int], trained: list[Corruption], count: int = 3) -> list[Corruption]:
    """Masks that were not trained with, for this grid."""
    rows, cols = grid
    found = [
        RandomMask(0.5), Extend("left", max(1, cols // 2)), CenterCrop(max(1, rows // 2)), Outpaint(max(1, rows // 2)),
        CenterCrop(max(1, rows // 4)), RandomMask(0.75), RandomBlock(max(1, rows // 2)), Extend("down", max(1, rows // 4)),
        Extend("right", max(1, cols // 2)),
    ]  # fmt: skip
    known, chosen = {str(c) for c in trained}, []
    for corruption in found:
        if str(corruption) not in known and 0 < corruption.hidden(grid) < rows * cols:
            known.add(str(corruption))
            chosen.append(corruption)
    return chosen[:count]


@dataclass
class Judge:
    """Gives every forget picture its verdict.

    Args:
        original: the original model. reader: reads pictures, without augmentation.
        trained: the masks of training. others: masks that were not trained with.
        twin: a model trained like the original without the forget pictures, if there is one. By the percentiles alone even
            it would complete half of them "too well": pictures differ.
        seed: fixes T and generation; the draws of picture i depend on (seed, i) alone.
    """

    original: I2IModel
    reader: ImageReader
    trained: list[Corruption]
    others: list[Corruption]
    batch_size: int = 64
    seed: int = 0
    progress: bool = True
    twin: I2IModel | None = None

    def __call__(self, model: I2IModel, forget: list, unseen: list) -> dict:
        """The verdicts, as plain data.

        Args:
            model: the unlearned model.
            forget, unseen: undecoded rows: those to be forgotten, and some that the original never saw.

        Returns:
            {"masks": {T: {"trained", "unseen": {"low", "median", "high", "count"}}},
            "pictures": [{"sha256", "grade": the worst under a trained mask, "memorised",
            "masks": {T: {"before", "after", "grade", with a twin "twin"}}}],
            "unreadable": hashes, "grades": {grade: count}, "honoured", "honoured_other_masks", "memorised": {"count", "of",
            "share", "low", "high"} with Wilson's 95% interval}. Errors are in units of the picture's blank-fill error.

        Raises:
            InputError: no forget picture can be read.
        """
        masks = [*self.trained, *self.others]
        bounds = self.bounds(unseen, masks)
        models = {"before": self.original, "after": model} | ({} if self.twin is None else {"twin": self.twin})
        kept, found, unreadable = self.errors(models, forget, masks, "forget pictures")
        if not kept:
            raise InputError(f"None of the {len(forget)} forget pictures can be read, so there is nothing to judge.")
        names = [str(t) for t in self.trained]
        pictures = []
        for number, row in enumerate(kept):
            cells = {t: _cell(bounds[t], {kind: values[number] for kind, values in found[t].items()}) for t in found}
            pictures.append({"sha256": picture_hash(row)} | summary(cells, names, bounds) | {"masks": cells})
        return {
            "masks": {t: {"trained": t in names, "unseen": vars(b)} for t, b in bounds.items()},
            "pictures": pictures,
            "unreadable": [picture_hash(row) for row in unreadable],
        } | counted(pictures, names)

    def bounds(self, unseen: list, masks: list[Corruption]) -> dict[str, Bounds]:
        """{T: the bounds that the original's errors on unseen pictures set}."""
        _, reference, _ = self.errors({"before": self.original}, unseen, masks, "unseen pictures")
        return {t: Bounds.of(found["before"][found["blank"] > FLAT]) for t, found in reference.items()}

    @torch.no_grad()
    def errors(self, models: dict, rows: list, masks: list[Corruption], title: str):
        """(rows that can be read, {T: {"blank" or a model: (N,) relative errors}}, the other rows).

        The errors of "blank" are in normalised units.
        """
        found: dict[str, dict[str, list]] = {str(t): {name: [] for name in ("blank", *models)} for t in masks}
        kept, unreadable = [], []
        device, modes = next(self.original.parameters()).device, [(m, m.training) for m in models.values()]
        for model in models.values():
            model.eval()
        for start in tqdm(range(0, len(rows), self.batch_size), f"verdicts: {title}", leave=False, disable=not self.progress):
            numbered = list(enumerate(rows))[start : start + self.batch_size]
            pictures: list[Any] = [(i, row, self.reader.decode(row, named=False)) for i, row in numbered]
            unreadable += [row for _, row, picture in pictures if picture is None]
            pictures = [item for item in pictures if item[2] is not None]
            if not pictures:
                continue
            kept += [row for _, row, _ in pictures]
            pixels = self.reader.pixels([picture for *_, picture in pictures]).to(device)
            seeds = np.array([seeds_for(self.seed, i) for i, *_ in pictures])
            for t in masks:
                mask = t(self.original.grid, seeds[:, 0])
                hole = self.original.hole(mask).to(device)
                blank = hole_mse(blank_fill(pixels, hole), pixels, hole)
                found[str(t)]["blank"].append(blank)
                for name, model in models.items():
                    error = hole_mse(model.generate(pixels, mask, seeds[:, 1]), pixels, hole)
                    found[str(t)][name].append(error / blank.clamp_min(FLAT))
        for model, mode in modes:
            model.train(mode)
        joined = {
            t: {k: torch.cat(v).cpu().numpy() if v else np.zeros(0) for k, v in part.items()} for t, part in found.items()
        }
        return kept, joined, unreadable


class Standing:
    """How far a run is: so many of its forget pictures are forgotten under the masks of training, at this cost on retain.

    The original's errors are taken once, at the first call, so that a look costs a pass of the model that is trained.

    Args:
        judge: with the masks of training. forget, unseen: as it takes them; retain: rows that must be completed as before.
    """

    def __init__(self, judge: Judge, forget: list, unseen: list, retain: list):
        self.judge, self.forget, self.unseen, self.retain = judge, forget, unseen, retain
        self._known: tuple | None = None

    def __call__(self, model: I2IModel) -> tuple[int, int, float]:
        """(pictures that can no longer be completed, pictures, the mean error on retain in units of the original's)."""
        judge, masks = self.judge, self.judge.trained
        if self._known is None:
            before = [self._errors(judge.original, rows) for rows in (self.forget, self.retain)]
            twin = None if judge.twin is None else self._errors(judge.twin, self.forget)
            self._known = judge.bounds(self.unseen, masks), twin, *before
        bounds, twin, known, retained = self._known
        after, names = self._errors(model, self.forget), [str(t) for t in masks]
        grades = []
        for i in range(len(after[names[0]]["blank"])):
            errors = {t: {"blank": known[t]["blank"][i], "before": known[t]["errors"][i]} for t in names}
            if twin is not None:
                errors = {t: errors[t] | {"twin": twin[t]["errors"][i]} for t in names}
            cells = {t: _cell(bounds[t], errors[t] | {"after": after[t]["errors"][i]}) for t in names}
            grades.append(summary(cells, names, bounds)["grade"])
        judged = [grade for grade in grades if grade != NOTHING]
        now = self._errors(model, self.retain)
        risen = [now[t]["errors"].mean() / max(retained[t]["errors"].mean(), FLAT) for t in names]
        return sum(grade in HONOURED for grade in judged), len(judged), float(np.mean(risen))

    def _errors(self, model, rows):
        return self.judge.errors({"errors": model}, rows, self.judge.trained, "how far")[1]


def blank_fill(pixels: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """The mean colour of each picture's visible part, (B, C, 1, 1): a fill that knows nothing."""
    seen = (~hole).to(pixels)
    return (pixels * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True)


def _cell(bounds: Bounds, errors: dict[str, float]) -> dict:
    rounded = {kind: round(float(errors[kind]), 4) for kind in ("before", "after", "twin") if kind in errors}
    twin = float(errors["twin"]) if "twin" in errors else None
    grade = bounds.grade(float(errors["before"]), float(errors["after"]), twin)
    return rounded | {"grade": NOTHING if errors["blank"] <= FLAT else grade}


def summary(cells: dict[str, dict], trained: list[str], bounds: dict[str, Bounds]) -> dict:
    """{"grade": the worst under a trained mask, "memorised"}.

    Memorised: the original knew it better than 95 of 100 unseen pictures.
    """
    grades = [cells[t]["grade"] for t in trained if cells[t]["grade"] != NOTHING]
    order = list(GRADES)
    known = any(cells[t]["before"] < bounds[t].low for t in trained if cells[t]["grade"] != NOTHING)
    return {"grade": max(grades, key=order.index) if grades else NOTHING, "memorised": known}


def counted(pictures: list[dict], trained: list[str]) -> dict:
    """How many have which grade, and so many of so many with an interval."""
    judged = [p for p in pictures if p["grade"] != NOTHING]
    others = [
        all(c["grade"] in (*HONOURED, NOTHING) for t, c in p["masks"].items() if t not in trained) for p in judged
    ]  # under every one of them
    return {
        "grades": {grade: sum(p["grade"] == grade for p in pictures) for grade in GRADES},
        "honoured": so_many([p["grade"] in HONOURED for p in judged]),
        "honoured_other_masks": so_many(others),
        "memorised": so_many([p["memorised"] for p in judged]),
    }


def so_many(flags: list[bool]) -> dict:
    """{"count", "of", "share", "low", "high"}; the share is None of none."""
    if not flags:
        return {"count": 0, "of": 0, "share": None, "low": None, "high": None}
    found = share(sum(flags), len(flags))
    return {"count": sum(flags), "of": len(flags), "share": found["accuracy"], "low": found["low"], "high": found["high"]}
