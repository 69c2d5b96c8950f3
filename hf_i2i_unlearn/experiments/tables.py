"""The paper's tables from what runs have shown (`runs`): figures by name, the choice of a point, means over seeds, Markdown.

A point is {"seconds", "figures": {T: {"retain select": figures, "retain report": ..., "forget select": ..., ...}}} with the
figures of `flat_figures`. Points are chosen by the half "select" of the evaluation pictures and reported on the other.
"""

import statistics
from collections.abc import Callable
from typing import Any

from ..evaluation.scores import SCORES, shown_scores
from ..evaluation.tables import title_of
from ..markdown import table as markdown

HALVES = ("select", "report")


ERRORS = ("mse", "psnr", "drift")
FEW = "few_samples"


RATIOS = ("mse", "fid")  # given as multiples of the original's too


HEADS = {"mse": "hole error", "psnr": "PSNR", "drift": "drift"}


def halves(rows: dict[str, list]) -> dict[str, list]:
    """{set: rows} -> {"set select": every other row, "set report": the others}."""
    return {f"{name} {half}": r[place::2] for name, r in rows.items() for place, half in enumerate(HALVES)}


def flat_figures(result: dict) -> dict[str, float]:
    """What `Evaluator` says of one set, as numbers alone: "mse", "original_mse", ..., and of network number n "fid hole n"."""
    found = {k: v for k, v in result.items() if k != "features"}
    numbers: dict[str, int] = {}
    for how in result.get("features", ()):
        place = numbers.setdefault(how["weights_sha256"] + how["network"], len(numbers))
        for kind in ("", "original_", "blank_", "true_"):
            found |= {f"{kind}{key} {how['region']} {place}": how[kind + key] for key in SCORES if kind + key in how}
        found[f"{FEW} {how['region']} {place}"] = how[FEW]
    return found


def figure(point: dict, what: str, which: str, key: str, half: str = "report", kind: str = "") -> Any:
    """One number of a point, of the T `what` and the set `which`; None where there is none.

    kind: "original_" for that of the original, "blank_" for that of a blank hole.
    """
    return point["figures"][what][f"{which} {half}"].get(kind + key)


def ratio(point: dict, what: str, which: str, key: str, half: str = "report") -> float:
    """A figure as a multiple of the original's."""
    return figure(point, what, which, key, half) / figure(point, what, which, key, half, "original_")


def best_within(points: list[dict], cost: Callable, gain: Callable, limit: float) -> dict | None:
    """The point that forgets most among those whose cost on the retain set is within the limit; None if there is none.

    Args:
        points: of one method. cost, gain: numbers of a point.
    """
    return max((p for p in points if cost(p) <= limit), key=gain, default=None)


def choose(points: list[dict], what: str, key: str, bound: float) -> tuple[dict, bool]:
    """The point that forgets most (highest `key` on forget) of those whose `key` on retain is at most `bound` times the
    original's.

    Only the half "select" is looked at.

    Returns:
        The point, and whether it is within the bound: where none is, it is the one that costs least.
    """
    best = best_within(
        points, lambda p: ratio(p, what, "retain", key, "select"), lambda p: ratio(p, what, "forget", key, "select"), bound
    )
    if best is not None:
        return best, True
    return min(points, key=lambda p: ratio(p, what, "retain", key, "select")), False


def mean_and_spread(values: list[float]) -> tuple[float, float | None]:
    """Mean and standard deviation over seeds (None for one)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def columns_of(point: dict, what: str, place: str) -> list[str]:
    """The figures that a table of one T and place ("", "hole 0", "whole 0") has columns for."""
    sets = point["figures"][what]
    some, few = sets["retain report"], any(found.get(f"{FEW} {place}") for found in sets.values())
    keys = [f"{score} {place}" for score in shown_scores(few)] if place else ERRORS
    return [key for key in keys if key in some]


def table(rows: dict[str, list[dict]], what: str, place: str, networks: list[dict], first: str = "method") -> str:
    """A Markdown table: a row per label, retain (R) and forget (F) side by side, mean and standard deviation over the points.

    Original and blank hole stand first. What is named in `RATIOS` is followed by its multiple of the original's.

    Args:
        rows: {label: points, one per seed}. what: a T.
        place: "" for errors, "hole 0" for what network 0 sees of the hole alone.
        networks: how they describe themselves (`FeatureNetwork.describe`). first: head of the first column.
    """
    point = next(iter(rows.values()))[0]
    keys = columns_of(point, what, place)
    lines = []
    for label, kind in {"original": "original_", "blank hole": "blank_"}.items():
        values = [figure(point, what, which, key, kind=kind) for key in keys for which in ("retain", "forget")]
        if label == "original" or any(v is not None for v in values):
            lines.append([label, *("" if v is None else number(v) for v in values)])
    for label, points in rows.items():
        cells = [cell(points, what, which, key) for key in keys for which in ("retain", "forget")]
        lines.append([label, *cells])
    return markdown(_heads(first, keys, networks), lines)


def _heads(first, keys, networks):
    return [first, *(f"{head(key, networks)} {mark}" for key in keys for mark in ("R", "F"))]


def head(key: str, networks: list[dict]) -> str:
    """The title of a column: the Frechet distance is called FID in Inception's features alone."""
    score, _, place = key.partition(" ")
    return title_of(score, networks[int(place.split()[1])]) if place else HEADS[score]


def cell(points: list[dict], what: str, which: str, key: str) -> str:
    """'13.4 ± 0.2 (x1.10)'."""
    mean, spread = mean_and_spread([figure(p, what, which, key) for p in points])
    text = number(mean) + ("" if spread is None else f" ± {spread:.2g}")
    if key.split()[0] in RATIOS and figure(points[0], what, which, key, kind="original_"):
        text += f" (x{mean_and_spread([ratio(p, what, which, key) for p in points])[0]:.2f})"
    return text


def number(value: float) -> str:
    """Three digits, and none before the point cut off."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def curve_rows(points: dict, what: str, place: str, x: str) -> list[dict]:
    """Rows for `metric_curves`: a point per value of x, mean over seeds, with the original's figures.

    Args:
        points: {value of x: points}. what: a T. place: as in `table`.
    """
    rows = []
    for value, several in points.items():
        for which in ("retain", "forget"):
            row = {"model": str(value), "set": which, x: value}
            for key in columns_of(several[0], what, place):
                name = key.split()[0]
                row[name] = mean_and_spread([figure(p, what, which, key) for p in several])[0]
                before = figure(several[0], what, which, key, kind="original_")
                row |= {} if before is None else {f"original_{name}": before}
            rows.append(row)
    return rows


def table_over(point: dict, whats: dict[str, str], place: str, networks: list[dict], first: str) -> str:
    """A Markdown table with a row per T, every cell 'original -> after': Fig. E.18 and E.19 in numbers.

    Args:
        point: of one model. whats: {label: T}. place, networks, first: as in `table`.
    """
    keys = columns_of(point, next(iter(whats.values())), place)
    lines = []
    for label, what in whats.items():
        cells = []
        for key in keys:
            for which in ("retain", "forget"):
                before, after = figure(point, what, which, key, kind="original_"), figure(point, what, which, key)
                cells.append(number(after) if before is None else f"{number(before)} -> {number(after)}")
        lines.append([label, *cells])
    return markdown(_heads(first, keys, networks), lines)


def point_rows(run: str, points: dict) -> list[dict]:
    """A run's points as flat rows for a CSV file: one per step, T, set and half. points: {step: point}."""
    rows = []
    for step, point in points.items():
        for what, sets in point["figures"].items():
            for name, figures in sets.items():
                which, half = name.split()
                rows.append({"run": run, "steps": int(step), "corruption": what, "set": which, "half": half} | figures)
    return rows
