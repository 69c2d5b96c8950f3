"""Several models measured under several T from one original, each once, and what that leaves in a folder."""

import csv
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from ..data.reading import ImageReader
from ..evaluation.completions import completions
from ..evaluation.evaluator import Evaluator
from ..evaluation.tables import feature_rows
from ..methods.corruptions import Corruption
from ..places import without_absolute
from ..reporting.plots import completion_grid
from ..reporting.run_folder import RESULTS
from ..storage import kept, read_kept, write_json, write_text

CROSSED = "cross_validation "  # stands before the name of a T under which is cross-validated


def plan_of(corruptions: Sequence[Corruption], crossed: Sequence[Corruption] = ()) -> dict[str, tuple[Corruption, bool]]:
    """{name: (T, whether the original completes the rest)}. crossed: T under which is cross-validated (App. E.2)."""
    plan = {str(corruption): (corruption, False) for corruption in corruptions}
    return plan | {f"{CROSSED}{corruption}": (corruption, True) for corruption in crossed}


class Cells:
    """Every model under every T, each measured once and kept in `folder`/cells.

    Args:
        evaluator: of the original. plan: see `plan_of`. models: {name: model}.
        weights: {name: hash}, on which with that of the original (`original_hash`) a finished cell depends.
    """

    def __init__(self, folder, evaluator: Evaluator, plan: dict, models: dict, weights: dict[str, str], original_hash: str):
        self.folder, self.evaluator, self.plan, self.models = Path(folder), evaluator, plan, models
        self.weights, self.original_hash = weights, original_hash

    def measure(self) -> dict[str, dict[str, dict]]:
        """{T: {model: result of `Evaluator`}}; all processes call this, and what is there is not made again."""
        accelerator = self.evaluator.accelerator
        todo = [(what, name) for what in self.plan for name in self.models if self._known(what, name) is None]
        if accelerator:
            accelerator.wait_for_everyone()  # nobody writes before everybody knows what is missing
        found: dict[str, dict[str, dict]] = {}
        for what, (corruption, crossed) in self.plan.items():
            evaluator, found[what] = self.evaluator.under(corruption, crossed), {}
            for name, model in self.models.items():
                if (what, name) in todo and (accelerator is None or accelerator.is_main_process):
                    print(f"[{todo.index((what, name)) + 1}/{len(todo)}] {name}, {what}", flush=True)
                file, key = self._file(what, name), self._key(name)
                found[what][name] = kept(file, key, partial(evaluator, model), accelerator)  # type: ignore[misc]
        return found

    def _known(self, what, name):
        return read_kept(self._file(what, name), self._key(name))

    def _file(self, what, name):
        return self.folder / "cells" / f"{name}-{what}.json".replace(":", "-").replace(" ", "-")

    def _key(self, name):
        return {"weights": self.weights[name], "original": self.original_hash}


def some(rows: dict[str, list], count: int) -> dict[str, list]:
    """Up to `count` rows of each set, evenly spread."""
    return {name: r[:: max(1, len(r) // count)][:count] for name, r in rows.items()}


@torch.no_grad()
def draw_completions(folder, plan: dict, models: dict, reader: ImageReader, rows: dict, seed: int) -> list[str]:
    """A grid of completions per T, of the rows that `plots.to_show` gives; the names of the files."""
    made = []
    for what, (corruption, crossed) in plan.items():
        if rows and not crossed:
            grid = {n: completions(models, reader, corruption, r, seed) for n, r in rows.items()}
            made.append(f"completions-{what.replace(':', '-')}.png")
            completion_grid(grid, Path(folder) / made[-1])
    return made


def write_results(folder, found: dict, page: str, **more) -> None:
    """Write table.md (the page), results.json and results.csv. found: see `Cells.measure`. more: for results.json."""
    folder = Path(folder)
    write_text(folder / "table.md", without_absolute(page, folder) + "\n")
    made_with = {p: version(p) for p in ("torch", "transformers", "diffusers", "datasets")}
    write_json(folder / RESULTS, {"results": found, "made_with": made_with} | without_absolute(more, folder))
    rows = feature_rows(found)
    with open(folder / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(k for r in rows for k in r)))
        writer.writeheader()
        writer.writerows(rows)
