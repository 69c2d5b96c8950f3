"""Every method tuned with the same effort, and what the chosen settings show over seeds and under other T."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..evaluation.evaluator import Evaluator
from ..methods.corruptions import CenterRatio, Corruption
from ..methods.method import OURS, Method
from ..storage import read_json, write_json
from . import tables
from .effort import Effort
from .runs import FAILED, Comparison, Setting

CROSSED = "cross_validation "  # stands before the name of a T under which is cross-validated
HOW = "how.json"  # how the figures of feature networks were measured


class Tuning:
    """Chooses a setting for every method on one half of the evaluation pictures; its runs are measured on both halves.

    Args:
        runs: makes and keeps them; its `measure` becomes that of this object. evaluator: of the halves of the evaluation
            pictures (`tables.halves`). corruptions: {name: T} in evaluation; the first one chooses. effort: what is tried.
        key: the figure that retain cost and forgetting are matched by, such as "mse" or "fid hole 0".
        subject: the method whose setting the ablations change. save: (folder, setting, step) is called for its saved weights.
    """

    def __init__(
        self,
        runs: Comparison,
        evaluator: Evaluator,
        corruptions: dict[str, Corruption],
        effort: Effort,
        key: str = "mse",
        subject: Method = OURS,
        save: Callable | None = None,
    ):
        self.runs, self.evaluator, self.effort, self.key, self.subject = runs, evaluator, effort, key, subject
        self.folder, self.save = runs.folder, save
        self.whats = list(corruptions)
        self.corruptions, self.evaluators, self.tuned = dict(corruptions), {}, {}
        if "ratio" in effort.tables:
            self.corruptions |= {str(corruption): corruption for corruption in self.ratios().values()}
        runs.measure = self.measure

    def measure(self, model, setting, step, what) -> dict[str, dict[str, float]]:
        """The figures of both sets and halves under a T, or its cross-validation."""
        if what not in self.evaluators:
            name = what.removeprefix(CROSSED)
            self.evaluators[what] = self.evaluator.under(self.corruptions[name], name != what)
        result = self.evaluators[what](model, progress=False)
        how = self.folder / HOW
        if not how.exists():
            seen = result["retain report"].get("features", [])
            scores = ("fid", "score", "similarity", "accuracy")
            write_json(how, [{k: v for k, v in f.items() if k.split("_")[-1] not in scores} for f in seen])
        return {name: tables.flat_figures(figures) for name, figures in result.items()}

    @property
    def how(self) -> list[dict]:
        """How the figures of feature networks were measured."""
        return list(read_json(self.folder / HOW))

    def tune(self, method: Method, lora: int = 0) -> tuple[Setting, int, bool] | None:
        """(setting, step, whether its retain cost is within the tolerance) of a method; every one has the same effort.

        None if all its runs have failed.
        """
        if (method.name, lora) in self.tuned:
            return self.tuned[method.name, lora][0]
        effort, rates = self.effort, self.effort.learning_rates
        if lora:
            rates = effort.lora_learning_rates or [3 * rate for rate in rates]
        alphas = effort.alphas if method.sign else effort.alphas[:1]  # without a forget term there is no weight of it
        plan = [Setting(method, rate, alpha, effort.seeds[0], lora=lora) for rate, alpha in itertools.product(rates, alphas)]
        points = []
        for number, setting in enumerate(plan, 1):
            found = self.runs.run(setting, effort.measure_at, self.whats[:1], f"[tuning {number}/{len(plan)}] ")
            points += [{"setting": setting, "step": step} | point for step, point in found.items() if "failed" not in point]
        if not points:
            return None
        best, within = tables.choose(points, self.whats[0], self.key, 1 + effort.tolerance)
        self.tuned[method.name, lora] = (best["setting"], best["step"], within), points
        return self.tuned[method.name, lora][0]

    def points(self, setting: Setting, step: int, seeds: list[int], label: str) -> list[dict]:
        """A setting's points with every seed, under all T; the subject's also under those of ratio and cross_validation."""
        found = []
        for number, seed in enumerate(seeds, 1):
            mine, whats, save = replace(setting, seed=seed), list(self.whats), None
            if self._is_chosen(setting, step) and seed in self.effort.ablation_seeds:
                whats += self._more_whats()
                save = self.folder / "models" / f"{mine.name}-{step}"
            point = self.runs.run(mine, [step], whats, f"[{label} {number}/{len(seeds)}] ", save)[step]
            if "failed" in point:
                print(f"{mine.name} has failed: {point['failed']}", flush=True)
                continue
            found.append(point)
            if save is not None and self.save:
                self.save(Path(save), mine, step)
        return found

    def chosen(self) -> tuple[Setting, int]:
        """(setting without a seed, step) chosen for the subject.

        Raises:
            InputError: all its runs have failed.
        """
        if (tuned := self.tune(self.subject)) is None:
            raise InputError(f"Every run of '{self.subject}' has failed: {FAILED}; give smaller --learning_rates.")
        setting, step, _ = tuned
        return replace(setting, seed=None), step

    def ablation(self, options: dict[Any, dict], label: str) -> dict[Any, list[dict]]:
        """{name or value: points} of the subject's setting, with other options each."""
        setting, step = self.chosen()
        seeds = self.effort.ablation_seeds
        found = {n: self.points(replace(setting, **o), step, seeds, f"{label} {n}") for n, o in options.items()}
        return {name: points for name, points in found.items() if points}

    def ratios(self) -> dict[str, Corruption]:
        """{label: T} of the crop ratios, those that this grid can tell apart."""
        (rows, cols), found = self.runs.original.grid, {}
        for share in self.effort.crop_ratios:
            hidden = CenterRatio(share).hidden((rows, cols))
            if 0 < hidden < rows * cols and hidden not in [n for n, _ in found.values()]:
                found[f"{hidden / (rows * cols):.3g}"] = hidden, CenterRatio(share)
        return {label: corruption for label, (_, corruption) in found.items()}

    def _is_chosen(self, setting, step):
        return (self.subject.name, 0) in self.tuned and (replace(setting, seed=None), step) == self.chosen()

    def _more_whats(self):
        whats = [f"{CROSSED}{self.whats[0]}"] if "cross_validation" in self.effort.tables else []
        return whats + ([str(c) for c in self.ratios().values()] if "ratio" in self.effort.tables else [])
