"""The page of the paper's tables, results.md, and every point as a row of points.csv."""

import csv
import json

from ..evaluation.tables import describe_scores
from ..storage import write_text
from . import tables
from .paper_tables import MAKERS, PaperTables


def write_page(made: PaperTables, parts: dict[str, str], model: str, description: dict, augment: str, command: str) -> None:
    """Write results.md and points.csv to the folder of the tables.

    Args:
        parts: {name of a table: Markdown}, finished so far. model: its name. description: that of `Splits`.
        augment: the augmentation in training, in words. command: that made it.
    """
    d, runs = description, made.tuning.runs
    counts = ", ".join(f"{len(rows)} {name}" for name, rows in made.tuning.evaluator.pictures.splits.items())
    text = [
        f"# Tables of `{model}`",
        f"Dataset {d['dataset']}; forget: {d['forget']} ({d['forget_size']} pictures); retain: {d['retain']} "
        f"({d['retain_size']}). Evaluation: {d['evaluation']}; {counts}. T in training: `{runs.corruption}`, augmentation: "
        f"{augment}.",
        how_it_was_chosen(made),
    ]
    if made.networks:
        text += [f"- {describe_scores(how)}" for how in made.tuning.how]
    for name, part in parts.items():
        text += [f"## {MAKERS[name][0]}", part]
    write_text(made.folder / "results.md", "\n\n".join([*text, f"```bash\n{command}\n```"]) + "\n")
    rows = []
    for file in sorted((made.folder / "runs").glob("*.json")):
        rows += tables.point_rows(file.stem, json.loads(file.read_text())["result"])
    with open(made.folder / "points.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(k for r in rows for k in r)))
        writer.writeheader()
        writer.writerows(rows)


def how_it_was_chosen(made: PaperTables) -> str:
    """A paragraph on the effort, the choice and the signs of the tables."""
    effort, place = made.effort, "the hole alone" if "hole" in made.key else "whole pictures"
    by = "the hole error" if made.key == "mse" else f"the Frechet distance of {place} ({made.name_of(0)})"
    rates, alphas = (", ".join(f"{v:g}" for v in values) for values in (effort.learning_rates, effort.alphas))
    steps, seeds, others = (", ".join(map(str, v)) for v in (effort.measure_at, effort.seeds, effort.ablation_seeds))
    return (
        f"Every method was tuned with seed {effort.seeds[0]} over learning rates {rates}, alpha {alphas} and {steps} steps. "
        f"Chosen is the point that forgets most of those whose retain cost is at most {1 + effort.tolerance:g} times the "
        f"original's, both by {by} under `{made.whats[0]}`, **on one half of the evaluation pictures (select); all figures "
        "here are those of the other half (report)**, which no choice has seen. Other seeds only repeat the chosen setting; "
        f"the ablations change one thing in that of `{made.tuning.subject}`. R: retain (should stay as the original), "
        f"F: forget (should move away). Mean ± standard deviation over seeds ({seeds} in the main table, {others} in the "
        "others); (x1.10): times the original. Accuracy: share of pictures that get the class of the true picture. "
        "FD is the Frechet distance in the features of the network named, no FID unless that is Inception. KD, of fewer "
        "pictures than dimensions, is the kernel distance."
    )
