"""Pictures of what happened."""

from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

SET_COLOURS = {"retain": "#0072B2", "forget": "#D55E00"}  # Okabe-Ito, told apart by colour-blind readers


def completion_grid(sets: dict[str, dict[str, torch.Tensor]], path) -> None:
    """Draw the before/after grid (Fig. 3 of the paper): a row per picture, a column per stage.

    The sets stand side by side, or below each other where they have more than four stages.

    Args:
        sets: {"retain": columns, "forget": columns}, each {column title: (N, C, H, W) in [0, 1]}.
        path: PNG file to write.
    """
    stages = list(next(iter(sets.values())))
    beside = len(stages) <= 4
    count = [len(columns[stages[0]]) for columns in sets.values()]
    rows, cols = (max(count), len(stages) * len(sets)) if beside else (sum(count), len(stages))
    figure = plt.figure(figsize=(1.15 * cols + 0.5, 1.15 * rows + 0.35), layout="constrained")
    blocks = (
        figure.subfigures(1, len(sets), squeeze=False)[0]
        if beside
        else figure.subfigures(len(sets), 1, squeeze=False, height_ratios=count)[:, 0]
    )
    for block, (name, columns), rows_here in zip(blocks, sets.items(), count):
        axes = block.subplots(rows_here, len(stages), squeeze=False)
        for n, line in enumerate(axes):
            for axis, stage in zip(line, stages):
                picture = columns[stage][n].float().cpu().movedim(0, -1).squeeze(-1)  # (H, W) or (H, W, 3)
                axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
                axis.set(xticks=[], yticks=[])
                for spine in axis.spines.values():
                    spine.set(color=SET_COLOURS[name], linewidth=2)
            line[0].set_ylabel(name, color=SET_COLOURS[name], fontsize=11, fontweight="bold")
        if beside or name == next(iter(sets)):
            for axis, stage in zip(axes[0], stages):
                axis.set_title(stage, fontsize=10)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


# Okabe-Ito again; a marker each, so that the lines are told apart in grey as well.
METHOD_STYLES = {
    "ours": ("#0072B2", "o"),
    "random_encoder": ("#56B4E9", "s"),
    "max_loss": ("#E69F00", "^"),
    "noisy_label": ("#009E73", "D"),
    "retain_label": ("#CC79A7", "v"),
    "control": ("#555555", "x"),
}


def frontier(points: list[dict], original: dict, path, tolerance: float) -> None:
    """Draw forgetting against what it cost on retain, one line per method through its best points.

    Args:
        points: rows with method, retain_mse, retain_drift and forget_mse.
        original: {"retain_mse", "forget_mse"} of the original model.
        path: PNG file to write.
        tolerance: the rise of the retain error, as a share, at which methods are compared; drawn as a line.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4), sharey=True, layout="constrained")
    for axis, key, title in (
        (axes[0], "retain_mse", "hole MSE on retain (left is better)"),
        (axes[1], "retain_drift", "drift from the original's completions on retain (left is better)"),
    ):
        limit = max(original["retain_mse"] * (1 + 4 * tolerance), 1e-6) if key == "retain_mse" else original["retain_mse"]
        for name, (colour, marker) in METHOD_STYLES.items():
            mine = sorted((p[key], p["forget_mse"]) for p in points if p["method"] == name)
            mine = [(x, y) for x, y in mine if x <= limit]
            if not mine:
                continue
            best = [(x, y) for x, y in mine if all(y >= other for other_x, other in mine if other_x <= x)]
            axis.scatter(*zip(*mine), color=colour, marker=marker, alpha=0.3, s=22)
            axis.plot(*zip(*best), color=colour, marker=marker, label=name, linewidth=1.6, markersize=6)
        axis.axhline(original["forget_mse"], color="black", linewidth=0.8, linestyle=":")
        axis.set_xlabel(title, fontsize=9)
        axis.grid(alpha=0.25)
    near = [p["forget_mse"] for p in points if p["retain_mse"] <= original["retain_mse"] * (1 + 2 * tolerance)]
    axes[0].set_ylim(top=1.15 * max([original["forget_mse"], *near]))  # what ruined the retain set may leave the picture
    axes[0].axvline(original["retain_mse"], color="black", linewidth=0.8, linestyle=":")
    axes[0].axvline(original["retain_mse"] * (1 + tolerance), color="black", linewidth=0.8, linestyle="--")
    axes[0].set_ylabel("hole MSE on forget (higher forgets more)", fontsize=9)
    axes[0].set_title("dotted: the original model; dashed: where methods are compared", fontsize=8)
    axes[1].legend(fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)
