"""Pictures of what happened, drawn without pyplot, so that a notebook that asks for one keeps its own way of showing."""

import itertools
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ..errors import InputError

SET_COLOURS = {"retain": "#0072B2", "forget": "#D55E00"}  # Okabe-Ito, told apart by colour-blind readers


STAGES = {"image": "picture", "T(x)": "what is seen"}  # what stands above a column, where that is not its name


def to_show(rows: dict[str, list], count: int, show_forgotten: bool) -> dict[str, list]:
    """Up to `count` rows of each set for a grid, evenly spread; those of the forget set only where that was asked for.

    All that is drawn of pictures comes by here: nothing of a picture that was taken down leaves by accident.
    """
    shown = {name: some for name, some in rows.items() if show_forgotten or name != "forget"}
    return {name: some[:: max(1, len(some) // count)][:count] for name, some in shown.items()} if count else {}


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
    figure = Figure(figsize=(1.15 * cols + 0.5, 1.15 * rows + 0.35), layout="constrained")
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
                    spine.set(color=SET_COLOURS.get(name, "#000000"), linewidth=2)
            line[0].set_ylabel(name, color=SET_COLOURS.get(name, "#000000"), fontsize=11, fontweight="bold")
        if beside or name == next(iter(sets)):
            for axis, stage in zip(axes[0], stages):
                axis.set_title(STAGES.get(stage, stage), fontsize=10)
    _save(figure, path)


# Okabe-Ito again; a marker each, so that the lines are told apart in grey as well.
METHOD_STYLES = {
    "ours": ("#0072B2", "o"),
    "random_encoder": ("#56B4E9", "s"),
    "max_loss": ("#E69F00", "^"),
    "noisy_label": ("#009E73", "D"),
    "retain_label": ("#CC79A7", "v"),
    "control": ("#555555", "x"),
    "ours, bounded": ("#000000", "P"),
}
# For methods that are not in the paper, in the order in which they come: no pair of the above, and none twice for a while.
MORE_COLOURS = ("#8A2BE2", "#A0522D", "#708090", "#C71585", "#2F4F4F")
MORE_MARKERS = ("*", "h", "<", ">", "p", "X", "d")


def method_styles(names) -> dict[str, tuple[str, str]]:
    """{method: (colour, marker)} of these methods, those of `METHOD_STYLES` first."""
    known = {name: style for name, style in METHOD_STYLES.items() if name in names}
    others = [name for name in dict.fromkeys(names) if name not in METHOD_STYLES]
    return known | dict(zip(others, zip(itertools.cycle(MORE_COLOURS), itertools.cycle(MORE_MARKERS))))


def frontier(
    points: list[dict], original: dict, path, tolerance: float, figure: str = "mse", title: str = "hole error"
) -> None:
    """Draw forgetting against what it cost on retain, one line per method through its best points, on logarithmic axes.

    Left both are multiples of the original model's figure: who changes both sets alike lies on the diagonal, by any method.

    Args:
        points: rows with method, retain_drift, and retain_* and forget_* of the figure.
        original: {"retain_*", "forget_*"} of the original model.
        path: PNG file to write.
        tolerance: the rise of the retain figure, as a share, at which methods are compared; drawn as a line.
        figure, title: what forgetting and its cost are measured by; higher is worse.
    """
    floor = 1e-6  # of a drift: that of a model that is the original lies at 0, which has no logarithm
    costs = [p[f"retain_{figure}"] / original[f"retain_{figure}"] for p in points]
    drifts = [max(p["retain_drift"], floor) for p in points]
    gains = [p[f"forget_{figure}"] / original[f"forget_{figure}"] for p in points]
    panels = Figure(figsize=(9.5, 4.2), layout="constrained")
    axes = panels.subplots(1, 2, sharey=True)
    for axis, xs in zip(axes, (costs, drifts)):
        for name, (colour, marker) in method_styles([p["method"] for p in points]).items():
            mine = sorted((x, y) for p, x, y in zip(points, xs, gains) if p["method"] == name)
            best = [(x, y) for x, y in mine if all(y >= other for other_x, other in mine if other_x <= x)]
            axis.scatter(*zip(*mine), color=colour, marker=marker, alpha=0.3, s=22)
            axis.plot(*zip(*best), color=colour, marker=marker, label=name, linewidth=1.6, markersize=6)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
        axis.grid(alpha=0.25)
    for axis in (axes[0].xaxis, axes[0].yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
        axis.set_major_formatter("x{x:g}")
        axis.set_minor_locator(NullLocator())
    axes[1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[1].xaxis.set_major_formatter("{x:g}")
    axes[1].xaxis.set_minor_locator(NullLocator())  # their labels would overlap
    axes[0].axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes[0].axvline(1 + tolerance, color="black", linewidth=0.8, linestyle="--")
    both = [0.9 * min([1, *costs, *gains]), 1.1 * max([1, *costs, *gains])]
    view = axes[0].get_xlim(), axes[0].get_ylim()
    axes[0].plot(both, both, color="black", linewidth=0.8, alpha=0.4)
    axes[0].set(xlim=view[0], ylim=view[1])
    axes[0].set_xlabel("on retain: times the original's (left is better)", fontsize=9)
    axes[0].set_ylabel("on forget: times the original's (higher forgets more)", fontsize=9)
    axes[0].set_title(f"{title}. Dotted: the original; dashed: tolerance; diagonal: both alike", fontsize=8)
    axes[1].set_xlabel("drift from the original's completions on retain (left is better)", fontsize=9)
    if axes[1].get_legend_handles_labels()[0]:
        axes[1].legend(fontsize=8)
    _save(panels, path)


# One per model; the marker tells them apart in grey.
SERIES_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def embedding_map(groups: dict[str, torch.Tensor], path, seed: int = 0) -> None:
    """Draw t-SNE of the embeddings of true and completed pictures (Fig. 4): one map of all groups, retain beside forget.

    Args:
        groups: {"retain true", "retain MODEL", ..., "forget true", ...: (N, D)}; the first word of a name is its set.
        path: PNG file to write.

    Raises:
        InputError: scikit-learn is not installed, or there are too few pictures.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise InputError("t-SNE needs scikit-learn; install it: pip install 'hf_i2i_unlearn[metrics]'.") from None
    points = torch.nn.functional.normalize(torch.cat(list(groups.values())).double(), dim=1).cpu().numpy()
    if len(points) < 12:
        raise InputError(f"t-SNE of {len(points)} pictures shows nothing; take more (--tsne).")
    perplexity = min(30.0, (len(points) - 1) / 4)
    places = TSNE(2, init="pca", perplexity=perplexity, random_state=seed).fit_transform(points)
    kinds = list(dict.fromkeys(name.partition(" ")[2] for name in groups if not name.endswith(" true")))
    figure = Figure(figsize=(4.2 * len(kinds), 4), layout="constrained")
    axes = figure.subplots(1, len(kinds), squeeze=False)
    start, at = 0, {}
    for name, group in groups.items():
        at[name] = places[start : start + len(group)]
        start += len(group)
    for axis, kind in zip(axes[0], kinds):
        for which, colour in SET_COLOURS.items():
            if f"{which} true" in at:
                axis.scatter(*at[f"{which} true"].T, s=26, facecolors="none", edgecolors=colour, label=f"{which}, true")
                axis.scatter(*at[f"{which} {kind}"].T, s=26, marker="x", color=colour, label=f"{which}, completed")
        axis.set(xticks=[], yticks=[])
        axis.set_title(kind, fontsize=10)
    axes[0, 0].legend(fontsize=8)
    _save(figure, path)


def metric_curves(
    rows: list[dict], x: str, metrics: dict[str, str], path, x_label: str | None = None, log: bool = False
) -> None:
    """Draw metrics of both sets against a number or a word (Fig. D.6, E.18, E.19, E.20): lines, or bars for words.

    The dotted lines are the original model's.

    Args:
        rows: {"set", "model", x, and every metric, perhaps with "original_" + metric}. Models with one point each (the runs
            of an ablation) make one line; models with several make one each.
        metrics: {key: title}, a panel each; a metric that no row has is left out. path: PNG file to write.
        log: a logarithmic axis.
    """
    metrics = {key: title for key, title in metrics.items() if any(key in row for row in rows)}
    models = list(dict.fromkeys(row["model"] for row in rows))
    several = any(sum(r["model"] == m and r["set"] == "retain" for r in rows) > 1 for m in models)
    series = {m: [r for r in rows if r["model"] == m] for m in models} if several else {"": rows}
    words = any(isinstance(row[x], str) for row in rows)
    columns = min(3, len(metrics))
    lines = -(-len(metrics) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.8 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[len(metrics) :]:
        axis.set_axis_off()
    for axis, (key, title) in zip(axes.flat, metrics.items()):
        for (name, mine), marker in zip(series.items(), itertools.cycle(SERIES_MARKERS)):
            for place, (which, colour) in enumerate(SET_COLOURS.items()):
                points = sorted((r for r in mine if r["set"] == which and key in r), key=lambda r: _order(r[x]))
                xs, ys = [r[x] for r in points], [r[key] for r in points]
                label = f"{which} {name}".strip()
                if words:
                    at = [i + 0.38 * (place - 0.5) for i in range(len(xs))]
                    axis.bar(at, ys, 0.36, color=colour, label=label, hatch=("", "//")[place], edgecolor="white")
                    axis.set_xticks(range(len(xs)), xs, fontsize=8)
                else:
                    axis.plot(xs, ys, color=colour, marker=marker, linestyle=("-", "--")[place], label=label)
                before = [(r[x], r["original_" + key]) for r in points if "original_" + key in r]
                if before and not words and mine is next(iter(series.values())):
                    axis.plot(*zip(*before), color=colour, linestyle=":", linewidth=1.2, label=f"{which} original")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(x_label or x, fontsize=9)
        axis.grid(alpha=0.25)
        if log and not words:
            axis.set_xscale("log")
            axis.set_xticks(sorted({r[x] for r in rows}), [f"{v:g}" for v in sorted({r[x] for r in rows})], fontsize=8)
            axis.minorticks_off()
    axes[0, 0].legend(fontsize=7)
    _save(figure, path)


def _order(value):
    """Numbers by size, numbers in words too, and then words: '5', '50', '100', 'all'."""
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, value


def _save(figure, path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def loss_curve(history: list[dict], path) -> None:
    """Draw the training loss of a Trainer's log history over the steps; nothing where none was logged."""
    points = [(line["step"], line["loss"]) for line in history if "loss" in line]
    if not points:
        return
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.plot(*zip(*points), color="#0072B2", linewidth=1.2)
    axis.set(xlabel="step", ylabel="training loss")
    axis.grid(alpha=0.25)
    _save(figure, path)


def came_back_plot(points: dict[str, list[tuple[float, float, float]]], path) -> None:
    """Draw what an attacker brings back against what forgetting cost on retain pictures: left and low is better.

    Args:
        points: {way of forgetting: a point a seed: (retain error, times that of the model that knew the pictures; the share
            that came back, 0 to 1; seconds of training)}. path: PNG file to write.
    """
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axis = figure.subplots()
    for (name, mine), marker in zip(points.items(), itertools.cycle(SERIES_MARKERS)):
        costs, shares, seconds = zip(*mine)
        label = f"{name} ({sum(seconds) / len(seconds):.0f} s)"
        axis.scatter(costs, [100 * share for share in shares], marker=marker, s=45, label=label, zorder=3)
    axis.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axis.axhline(0, color="black", linewidth=0.8, linestyle=":")
    axis.set_ylim(-4, 104)
    axis.xaxis.set_major_formatter("x{x:.4g}")
    axis.set_xlabel("retain error, times that of the model that knew them (left is better)", fontsize=9)
    axis.set_ylabel("came back in an attack, % (lower is better)", fontsize=9)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    _save(figure, path)


def _annotate(axis, labels):
    """Write (text, x, y) beside its point: above it, or below it where another label stands."""
    axis.autoscale_view()
    above: list = []
    for text, x, y in labels:
        place = axis.transAxes.inverted().transform(axis.transData.transform((x, y)))  # shares of the panel
        taken = any(abs(place[0] - other[0]) < 0.25 and abs(place[1] - other[1]) < 0.04 for other in above)
        above += [] if taken else [place]
        axis.annotate(text, (x, y), (5, -9 if taken else 3), textcoords="offset points", fontsize=7)


def forgotten_plot(families: dict[str, dict[str, list[tuple[float, float]]]], path) -> None:
    """Draw how far the pictures are forgotten against how far other completions moved: left and high is better.

    Args:
        families: {family: {model: a point a seed: (drift, error on the pictures)}}, a panel each, in units of the error of the
            model that never saw them. What is special in a model stands behind its name in brackets, and at its point.
        path: PNG file to write.
    """
    across = min(3, len(families))
    down = -(-len(families) // across)
    figure = Figure(figsize=(1.2 + 4.2 * across, 1 + 3.6 * down), layout="constrained")
    names = list(dict.fromkeys(name.partition(" (")[0] for points in families.values() for name in points))
    colours = {name: f"C{number % 10}" for number, name in enumerate(names)}
    markers = dict(zip(names, itertools.cycle(SERIES_MARKERS)))
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes[len(families) :]:
        figure.delaxes(axis)
    for axis, (family, points) in zip(axes, families.items()):
        labels = []
        for name, mine in points.items():
            drifts, errors = zip(*mine)
            model, _, special = name.rstrip(")").partition(" (")
            axis.scatter(drifts, errors, marker=markers[model], color=colours[model], s=40, label=model, zorder=3)
            if special:
                labels.append((special, drifts[0], errors[0]))
        axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
        axis.set_yscale("log", base=2)
        _annotate(axis, labels)
        axis.yaxis.set_major_formatter("x{x:g}")
        axis.set_title(family, fontsize=10)
        axis.set_xlabel("drift of other completions (left is better)", fontsize=9)
        axis.grid(alpha=0.25)
    for axis in axes[: len(families) : across]:
        axis.set_ylabel("error on the pictures, times that of\na model that never saw them (higher: forgotten)", fontsize=9)
    handles = {label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(list(handles.values()), list(handles), fontsize=8, loc="outside lower center", ncols=4)
    _save(figure, path)
