"""The paper's tables of one original: each is Markdown, some with a figure beside it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import InputError
from ..methods.method import Method
from ..reporting.plots import frontier, metric_curves
from . import tables
from .runs import FAILED
from .tuning import CROSSED, Tuning

# The panels of a figure of curves.
METRICS = {
    "mse": "hole error",
    "drift": "drift",
    "fid": "Frechet distance",
    "inception_score": "Inception score",
    "similarity": "similarity",
    "accuracy": "accuracy",
}


class PaperTables:
    """All tables of one original. Each method of the name of a table returns its Markdown.

    Args:
        tuning: chooses settings and measures them. methods: of the main table.
        networks: how the feature networks describe themselves. proxies: whether there are pictures that stand in for retain.
    """

    def __init__(self, tuning: Tuning, methods: list[Method], networks: list[dict], proxies: bool = False):
        self.tuning, self.methods, self.networks, self.proxies = tuning, methods, networks, proxies
        self.effort, self.whats, self.folder, self.key = tuning.effort, tuning.whats, tuning.folder, tuning.key

    def main(self) -> str:
        """Tables 1 and 2."""
        rows, notes = {}, []
        for method in self.methods:
            if (tuned := self.tuning.tune(method)) is None:
                notes.append(f"{method}: every run has failed ({FAILED})")
                continue
            setting, step, within = tuned
            name = method.name if within else f"{method} (†)"
            rows[name] = self.tuning.points(setting, step, self.effort.seeds, method.name)
            weight = f"alpha {setting.alpha:g}, " if method.sign else ""
            notes.append(f"{name}: lr {setting.learning_rate:g}, {weight}{step} steps")
        if self.proxies and self.tuning.subject in self.methods:
            (setting, step), name = self.tuning.chosen(), f"{self.tuning.subject}, proxy retain"
            rows[name] = self.tuning.points(replace(setting, proxy=True), step, self.effort.seeds, name)
            notes.append(f"{name}: as {self.tuning.subject}")
        rows = {name: points for name, points in rows.items() if points}
        if not rows:
            raise InputError(f"Every run has failed: {FAILED}; give smaller --learning_rates.")
        dagger = any("†" in name for name in rows)
        note = " †: no point stays within the tolerance; the one that costs least." if dagger else ""
        return "\n\n".join([self.blocks(rows, self.whats), f"Chosen: {'; '.join(notes)}.{note}", self.frontier()])

    def alpha(self) -> str:
        """Table 3."""
        rows = self.tuning.ablation({a: {"alpha": a} for a in self.effort.alpha_values}, "alpha")
        table = self.blocks({f"{a:g}": p for a, p in rows.items()}, self.whats, "alpha")
        return f"{table}\n\n{self.draw(rows, 'alpha', 'alpha', True)}"

    def retain_per_class(self) -> str:
        """Fig. D.6."""
        options = {f"{n}": {"retain_per_class": n} for n in self.effort.retain_counts} | {"all": {}}
        rows = self.tuning.ablation(options, "retain pictures per class")
        curves = self.draw(rows, "retain_per_class", "retain pictures per class")
        return f"{self.blocks(rows, self.whats, 'pictures')}\n\n{curves}"

    def noise(self) -> str:
        """Fig. E.20."""
        rows = self.tuning.ablation({n: {"noise": n} for n in self.effort.noises}, "noise")
        return f"{self.blocks(rows, self.whats, 'noise')}\n\n{self.draw(rows, 'noise', 'noise')}"

    def ratio(self) -> str:
        """Fig. E.18 and E.19."""
        setting, step = self.tuning.chosen()
        point = self.tuning.points(setting, step, self.effort.ablation_seeds, "ratio")[0]
        whats, parts = {label: str(corruption) for label, corruption in self.tuning.ratios().items()}, []
        for place in self.places()[1:] or [""]:
            region, _, n = place.partition(" ")
            title = f"Features of {region}: {self.name_of(int(n))}" if place else "Errors"
            parts += [f"{title}:", tables.table_over(point, whats, place, self.networks, "share cropped")]
        rows = []
        for label, what in whats.items():
            some = tables.curve_rows({label: [point]}, what, "hole 0" if self.networks else "", "ratio")
            rows += [row | {"model": self.tuning.subject.name, "ratio": float(label)} for row in some]
        metric_curves(rows, "ratio", METRICS, self.folder / "ratio.png", "share of the picture that is cropped")
        return "\n\n".join([*parts, "![ratio](ratio.png)"])

    def cross_validation(self) -> str:
        """Table E.4."""
        setting, step = self.tuning.chosen()
        points = self.tuning.points(setting, step, self.effort.ablation_seeds, "cross_validation")
        return self.blocks({self.tuning.subject.name: points}, [f"{CROSSED}{self.whats[0]}"])

    def lora(self) -> str:
        """Adapters against all encoder weights."""
        effort, rows = self.effort, {}
        self.tuning.chosen()
        for name, rank in (("all encoder weights", 0), (f"LoRA, rank {effort.lora_rank}", effort.lora_rank)):
            if (tuned := self.tuning.tune(self.tuning.subject, rank)) is None:
                continue
            setting, step, within = tuned
            label = name if within else f"{name} (†)"
            rows[label] = self.tuning.points(setting, step, effort.ablation_seeds, name)
        table = self.blocks(rows, self.whats, "trained")
        return f"{table}\n\nBoth tuned with the same effort; adapters with larger learning rates."

    def bound(self) -> str:
        """Runs with a retain bound, and their frontier."""
        found = self.tuning.ablation({f"{b:g}": {"retain_bound": b} for b in self.effort.bounds}, "bound")
        rows = {}
        for name, points in found.items():
            held = [p["bound"]["retain_distance"] for p in points]
            word = "holds" if all(p["bound"]["holds"] for p in points) else "broken"
            rows[f"{name} (distance {sum(held) / len(held):.3g}, {word})"] = points
        bounded = [p for points in found.values() for p in points]
        return f"{self.blocks(rows, self.whats, 'bound')}\n\n{self.frontier(bounded)}"

    # What they share

    def places(self) -> list[str]:
        """ "" for errors, and "hole N" and "whole N" for what network N sees."""
        return ["", *(f"{region} {n}" for n in range(len(self.networks)) for region in ("hole", "whole"))]

    def name_of(self, network: int) -> str:
        """The name of a feature network."""
        return Path(self.networks[network]["network"]).name

    def blocks(self, rows: dict[str, list[dict]], whats: list[str], first: str = "method") -> str:
        """A table of errors, and one per network of the hole alone and of whole pictures, for every T."""
        parts = []
        for what in whats:
            parts.append(f"### `{what}`")
            seen = next(iter(rows.values()))[0]["figures"][what]["retain report"]
            for place in self.places():
                if not place or f"fid {place}" in seen:
                    region, _, n = place.partition(" ")
                    seen_by = "the hole alone" if region == "hole" else "whole pictures"
                    name = f"Features of {seen_by}: {self.name_of(int(n))}" if place else "Errors"
                    parts += [f"{name}:", tables.table(rows, what, place, self.networks, first)]
        return "\n\n".join(parts)

    def draw(self, rows: dict, x: str, label: str, log: bool = False) -> str:
        """Curves of the metrics in the hole of the first T against what was varied."""
        place = "hole 0" if self.networks else ""
        metric_curves(tables.curve_rows(rows, self.whats[0], place, x), x, METRICS, self.folder / f"{x}.png", label, log)
        return f"![{x}]({x}.png)"

    def frontier(self, bounded: Sequence[dict] = ()) -> str:
        """Draw all points that were tuned over, on the reported half, by what they were chosen by."""
        what, flat = self.whats[0], []
        for (method, lora), (_, points) in self.tuning.tuned.items():
            flat += [self._flat(method, p) for p in points if not lora]
        flat += [self._flat(f"{self.tuning.subject}, bounded", p) for p in bounded]
        point = next(iter(self.tuning.tuned.values()))[1][0]
        before = {
            f"{s}_{k}": tables.figure(point, what, s, f, kind="original_")
            for s in ("retain", "forget")
            for k, f in (("cost", self.key), ("mse", "mse"))
        }
        title = tables.head(self.key, self.networks)
        if " " in self.key:
            title += f" ({'hole' if 'hole' in self.key else 'whole picture'}, {self.name_of(0)})"
        file = "frontier-bound.png" if bounded else "frontier.png"
        frontier(flat, before, self.folder / file, self.effort.tolerance, "cost", title)
        return f"![frontier]({file})"

    def _flat(self, method, point):
        what = self.whats[0]
        return {"method": method, "retain_drift": tables.figure(point, what, "retain", "drift")} | {
            f"{which}_cost": tables.figure(point, what, which, self.key) for which in ("retain", "forget")
        }


MAKERS: dict[str, tuple[str, Callable]] = {
    "main": ("Tables 1 and 2: methods", PaperTables.main),
    "alpha": ("Table 3: alpha", PaperTables.alpha),
    "retain_per_class": ("Figure D.6: retain pictures per class", PaperTables.retain_per_class),
    "noise": ("Figure E.20: noise, and Sigma", PaperTables.noise),
    "ratio": ("Figures E.18, E.19: crop ratio", PaperTables.ratio),
    "cross_validation": ("Table E.4: cross validation", PaperTables.cross_validation),
    "lora": ("LoRA against all encoder weights", PaperTables.lora),
    "bound": ("Runs with a retain bound", PaperTables.bound),
}
