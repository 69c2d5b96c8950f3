"""Figures of the evaluator as tables (`markdown`), and as rows of a CSV file."""

from ..markdown import table
from .metrics import BUILT_IN, Metric
from .scores import shown_scores
from .statistics import KERNEL_SAMPLES

FIGURES = {
    "mse": "mean squared error in the hole, normalised units",
    "psnr": "PSNR in the hole, dB, mean over pictures (pixels clipped to [0, 1])",
    "drift": "mean squared difference in the hole between the model's completion and the original model's, normalised units",
}


def markdown_table(result: dict[str, dict], metrics: tuple[Metric, ...] = ()) -> str:
    """The before/after table of a result of `Evaluator`, one row per set. metrics: see `before_after`."""
    shown = before_after(result, metrics)
    return table(shown["head"], shown["rows"])


def before_after(result: dict[str, dict], metrics: tuple[Metric, ...] = (), caption: str = "", title: str = "") -> dict:
    """A result of `Evaluator` as a table: a row per set, a pair of columns per metric.

    Args:
        metrics: those that were added; they know their titles. What a result has and none of them is named by its key.
    """
    shown = {metric.name: metric for metric in (*BUILT_IN, *metrics)}
    keys = [key for key in dict.fromkeys((*shown, *added(result))) if key in result["retain"]]
    head = ["set", "pictures"]
    for key in keys:
        head += [f"{title_of_metric(key, shown)} before", "after"]
    rows = []
    for name in ("retain", "forget"):
        cells = [text_of(key, result[name][prefix + key], shown) for key in keys for prefix in ("original_", "")]
        rows.append([name, str(result[name]["count"]), *cells, f"{result[name]['drift']:.3f}"])
    return {"title": title, "caption": caption, "head": [*head, "drift"], "rows": rows}


def added(result: dict[str, dict]) -> list[str]:
    """The names of the metrics in a result that are not built in."""
    some, known = next(iter(result.values())), {metric.name for metric in BUILT_IN}
    return [key for key in some if f"original_{key}" in some and key not in known]


def title_of_metric(key: str, metrics: dict[str, Metric]) -> str:
    """The title of a metric, by its name."""
    return (metrics[key].title if key in metrics else "") or key


def text_of(key: str, value: float, metrics: dict[str, Metric]) -> str:
    """A figure as its metric writes it; three digits where that is not known."""
    return metrics[key].text(value) if key in metrics else f"{value:.3g}"


# FID and KID are distances in Inception's features; in others they are FD and KD here, for their numbers do not compare.
TITLES = {"fid": "FID", "kid": "KID", "inception_score": "IS", "similarity": "similarity", "accuracy": "accuracy"}


def title_of(key: str, how: dict) -> str:
    """The name of a score in a table's head."""
    if key in ("fid", "kid") and "inception" not in how["kind"]:
        return {"fid": "FD", "kid": "KD"}[key]
    return "CLIP" if key == "similarity" and how["kind"] == "clip" else TITLES[key]


def feature_table(results: dict[str, dict]) -> str:
    """`feature_tables` as Markdown."""
    return "\n\n".join(f"{one['caption']}\n\n{table(one['head'], one['rows'])}" for one in feature_tables(results))


def feature_tables(results: dict[str, dict], title: str = "") -> list[dict]:
    """Results of `Evaluator` with feature networks, of one corruption: a row per model, original and blank hole first.

    Args:
        results: {model name: result}; all of one original, corruption and selection of pictures.

    Returns:
        A table per network and region.
    """
    found, first = [], next(iter(results.values()))
    for place, how in enumerate(first["retain"].get("features", ())):
        few = any_few(first, place)
        keys = [key for key in shown_scores(few) if key in how]
        head = ["model", *(f"{name} {title_of(key, how)}" for key in keys for name in ("retain", "forget"))]
        rows = {"true pictures": (first, "true_"), "blank hole": (first, "blank_"), "original": (first, "original_")}
        lines = []
        for model, (result, kind) in (rows | {name: (result, "") for name, result in results.items()}).items():
            cells = [(key, s) for key in keys for s in ("retain", "forget")]
            figures = [result[s]["features"][place].get(kind + key) for key, s in cells]
            lines.append([model, *("" if f is None else f"{f:.3g}" for f in figures)])
        found.append({"title": title, "caption": describe_scores(how, few), "head": head, "rows": lines})
    return found


def any_few(result: dict, place: int) -> bool:
    """Whether a set has fewer pictures than there are dimensions, of the row `place` of "features"."""
    return any(figures["features"][place]["few_samples"] for figures in result.values() if "features" in figures)


def describe_scores(how: dict, few: bool | None = None) -> str:
    """One line on how the figures of a row of "features" were measured.

    few: whether a set has fewer pictures than there are dimensions; as in `how` if None.
    """
    seen = "whole pictures" if how["region"] == "whole" else "the hole alone"
    few = how["few_samples"] if few is None else few
    why = " No Frechet distance is given of fewer pictures than dimensions: it would mean nothing." if few else ""
    if few and "kid" in how:
        why += f" The kernel distance is given, of the first {KERNEL_SAMPLES:,} pictures at most; 0 is no difference."
    return (
        f"Features of {seen}: {how['network']} (weights sha256 {how['weights_sha256'][:12]}), {how['dimensions']} dimensions, "
        f"input {'x'.join(map(str, how['input']))}, {how['resize']}, range {how['range']}, "
        f"{how['count']} pictures per set.{why}"
    )


def feature_rows(found: dict[str, dict[str, dict]]) -> list[dict]:
    """{T: {model: result}} as flat rows: one per T, model, set, network and region, with the figures that tables show."""
    rows = []
    for corruption, results in found.items():
        for model, result in results.items():
            for which, figures in result.items():
                base = {"corruption": corruption, "model": model, "set": which, "network": "", "region": ""}
                base |= {k: v for k, v in figures.items() if k != "features"}
                for place, how in enumerate(figures.get("features", [{}])):
                    hidden = "fid" if any_few(result, place) else "kid"
                    rows.append(base | {k: v for k, v in how.items() if k != "input" and not k.endswith(hidden)})
    return rows
