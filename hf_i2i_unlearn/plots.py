"""Pictures of what happened."""

from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

SET_COLOURS = {"retain": "#0072B2", "forget": "#D55E00"}  # Okabe-Ito, told apart by colour-blind readers


def completion_grid(sets: dict[str, dict[str, torch.Tensor]], path) -> None:
    """Draw the before/after grid (Fig. 3 of the paper): a row per picture, a column per stage.

    Args:
        sets: {"retain": columns, "forget": columns}, each {column title: (N, C, H, W) in [0, 1]}.
        path: PNG file to write.
    """
    titles = list(next(iter(sets.values())))
    rows = [(name, n) for name, columns in sets.items() for n in range(len(columns[titles[0]]))]
    figure, axes = plt.subplots(
        len(rows), len(titles), figsize=(1.25 * len(titles) + 0.5, 1.2 * len(rows) + 0.35), squeeze=False, layout="constrained"
    )
    for (name, n), line in zip(rows, axes):
        for axis, title in zip(line, titles):
            picture = sets[name][title][n].float().cpu().movedim(0, -1).squeeze(-1)  # (H, W) or (H, W, 3)
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set(color=SET_COLOURS[name], linewidth=2)
        line[0].set_ylabel(name, color=SET_COLOURS[name], fontsize=11, fontweight="bold")
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=10)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
