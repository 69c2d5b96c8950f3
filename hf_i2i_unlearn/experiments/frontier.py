"""What a comparison of methods leaves in its folder: tables, the frontier, and the completions of the best points."""

import csv
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..data.reading import ImageReader
from ..evaluation.completions import completions
from ..evaluation.evaluator import Evaluator
from ..methods.corruptions import Corruption
from ..models.base import I2IModel
from ..reporting.plots import completion_grid, frontier, to_show
from ..storage import write_json, write_text
from .comparison import best_points, comparison_table, flat_sets


class Frontier:
    """Measures runs, with some of their completions, and writes what they show.

    Args:
        folder: of the comparison. original: the original model. rows: {"retain": rows, "forget": rows} to evaluate on.
        reader: reads them. corruption: T in evaluation. pictures: per set in the grid.
    """

    def __init__(
        self,
        folder: Path,
        original: I2IModel,
        rows: dict[str, list],
        reader: ImageReader,
        corruption: Corruption,
        seed: int,
        pictures: int,
        show_forgotten: bool = False,
    ):
        self.folder, self.original, self.reader, self.corruption = folder, original, reader, corruption
        self.sets, self.shown = list(rows), to_show(rows, pictures, show_forgotten)
        self.evaluator = Evaluator(original, rows, reader, corruption, seed=seed, keep_original=True)

    def measure(self, model, setting, step, what) -> dict[str, float]:
        """The figures of a model; its completions of the pictures to show are kept in a file."""
        columns = {name: column.contiguous() for name, column in self._completed("model", model).items()}
        file = self._file(setting.name, step)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(columns, file)
        return flat_sets(self.evaluator(model, progress=False))

    def _file(self, run, step):
        return self.folder / "runs" / f"{run}-{step}.safetensors"

    def _completed(self, name, model):
        return {s: self._columns(name, model, rows)[name] for s, rows in self.shown.items()}

    def _columns(self, name, model, rows):
        return completions({name: model}, self.reader, self.corruption, rows)

    def write(self, points: list[dict], methods: list[str], tolerance: float, command: str) -> str:
        """Write results.csv, results.json, table.md, frontier.png and before_after.png; returns the table."""
        table, best = comparison_table(points, tolerance, methods=methods), best_points(points, tolerance, methods)
        before = {f"{n}_{k}": points[0][f"{n}_original_{k}"] for n in self.sets for k in ("mse", "psnr")}
        with open(self.folder / "results.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(points[0]))
            writer.writeheader()
            writer.writerows(points)
        content = {"original": before, "best": best, "points": points, "torch": torch.__version__}
        write_json(self.folder / "results.json", content)
        write_text(self.folder / "table.md", f"{table}\n\n```bash\n{command}\n```\n")
        frontier(points, before, self.folder / "frontier.png", tolerance)
        grid = {name: self._columns("original", self.original, rows) for name, rows in self.shown.items()}
        for method, point in best.items():
            if point:
                saved = load_file(self._file(point["run"], point["steps"]))
                for name in grid:
                    grid[name][method] = saved[name]
        if grid:
            completion_grid(grid, self.folder / "before_after.png")
        return table
