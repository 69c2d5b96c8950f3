"""What a measurement of unlearned checkpoints draws and tabulates: maps, curves, ablations, and the section of a card."""

from functools import partial
from pathlib import Path

from huggingface_hub import EvalResult

from ..evaluation.completions import embeddings
from ..evaluation.metrics import BUILT_IN, Metric
from ..evaluation.tables import added, before_after, feature_rows, feature_tables, text_of, title_of_metric
from ..reporting.plots import embedding_map, metric_curves
from .measurement import CROSSED, some

METRICS = {
    "fid": "Frechet distance",
    "kid": "kernel distance",
    "inception_score": "Inception score",
    "similarity": "similarity",
    "accuracy": "accuracy",
}
DISTANCES = {"fid": "frechet_distance", "kid": "kernel_distance"}  # what they are called in features that are not Inception's
LOGARITHMIC = ("alpha", "learning_rate", "max_steps")


class Ablations:
    """Runs that differ from the first one in one option.

    Args:
        runs: {model: the options of its run, {} if they are not known}. options: those in which runs are compared.
    """

    def __init__(self, runs: dict[str, dict], options: tuple[str, ...]):
        self.runs, self.options = runs, options

    def alike(self, option: str) -> list[str]:
        """The models whose runs differ from the first one's in nothing but this option."""
        first, others = next(iter(self.runs.values()), {}), [o for o in self.options if o != option]
        return [name for name, run in self.runs.items() if all(run.get(o) == first.get(o) for o in others)]

    def described(self) -> dict[str, dict]:
        """{model: method and the options of its run}, for results.json."""
        return {name: {k: run.get(k) for k in ("method", *self.options)} for name, run in self.runs.items()}

    def table(self, found: dict, option: str) -> dict:
        """Table 3 of the paper: a column per value of the option, a row per metric and set, of the first T."""
        rows = feature_rows({next(iter(found)): next(iter(found.values()))})
        models = sorted(self.alike(option), key=lambda m: (self.runs[m].get(option) is None, self.runs[m].get(option)))
        values = [self.runs[m].get(option) for m in models]
        lines = []
        for place, (network, region) in enumerate(dict.fromkeys((r["network"], r["region"]) for r in rows)):
            here = [r for r in rows if (r["network"], r["region"]) == (network, region)]
            for key, title in (({} if place else {"mse": "hole error"}) | METRICS).items():
                where = f" ({network}, {region})" if key != "mse" else ""
                for which in ("retain", "forget"):
                    at = {r["model"]: r.get(key) for r in here if r["set"] == which}
                    if any(v is not None for v in at.values()):
                        lines.append([f"{title}{where}", which, *(f"{at[m]:.3g}" for m in models)])
        head = [option, "", *("all" if v is None else f"{v}" for v in values)]
        return {"title": f"Against {option}", "caption": "", "head": head, "rows": lines}

    def draw(self, found: dict, option: str, folder) -> list[str]:
        """The metrics of the first T against the option; the names of the files."""
        first, models = next(iter(found)), self.alike(option)
        chosen = [r for r in feature_rows({first: found[first]}) if r["model"] in models]
        chosen = [r | {option: self.runs[r["model"]].get(option)} for r in chosen]
        if any(r[option] is None for r in chosen):
            # No limit on the retain pictures means all of them: a word in the figure.
            chosen = [r | {option: "all" if r[option] is None else f"{r[option]:g}"} for r in chosen]
        return curves(chosen, option, folder, option.replace("_", " "), log=option in LOGARITHMIC)


def curves(rows: list[dict], x: str, folder, label: str, log: bool = False) -> list[str]:
    """The metrics against `x`, a figure per network and region; the names of the files. rows: of `feature_rows`, with `x`."""
    made = []
    for network, region in dict.fromkeys((r["network"], r["region"]) for r in rows):
        chosen = [r for r in rows if (r["network"], r["region"]) == (network, region)]
        name = f"{x}-{network.replace('/', '-').replace(' ', '-')}-{region}.png" if network else f"{x}.png"
        metric_curves(chosen, x, {"mse": "hole error"} | METRICS, Path(folder) / name, label, log)
        made.append(name)
    return made


def draw_maps(folder, corruption, models, reader, rows, network, regions, count: int, seed: int) -> list[str]:
    """A t-SNE map of the embeddings of `count` pictures a set per region; the names of the files."""
    made = []
    for region in regions:
        groups = {}
        for n, r in some(rows, count).items():
            seen = embeddings(models, reader, corruption, r, network, region, seed)
            groups |= {f"{n} {k}": v for k, v in seen.items()}
        made.append(f"tsne-{region}.png")
        embedding_map(groups, Path(folder) / made[-1], seed)
    return made


def draw_crops(folder, found: dict, plan: dict, grid: tuple[int, int]) -> list[str]:
    """The metrics against the share that centred crops hide, where there are several; the names of the files."""
    crops = {
        what: corruption.hidden(grid) / (grid[0] * grid[1])
        for what, (corruption, crossed) in plan.items()
        if what.startswith(("center:", "ratio:")) and not crossed
    }
    if len(crops) < 2:
        return []
    chosen = [r | {"ratio": crops[r["corruption"]]} for r in feature_rows(found) if r["corruption"] in crops]
    return curves(chosen, "ratio", folder, "share of the picture that is cropped")


def result_tables(found: dict[str, dict[str, dict]]) -> list[dict]:
    """{T: {model: result}} as tables: errors of every model, then what the networks see, T by T."""
    tables = []
    for what, results in found.items():
        crossed = " (the original completes the rest from what the model filled in; errors of whole pictures)"
        title = what + (crossed if what.startswith(CROSSED) else "")
        for name, result in results.items():
            tables.append(before_after(result, title=title, caption=name if len(results) > 1 else ""))
        tables += feature_tables(results, title)
    return tables


def card_tables(found: dict[str, dict[str, dict]]) -> list[dict]:
    """The tables for the card of the one model that was measured."""
    tables = []
    for what, results in found.items():
        result = next(iter(results.values()))
        tables += [before_after(result, title=what), *feature_tables({"this model": result}, what)]
    return tables


LINES = 10  # of the table in a card; evaluation.md has the rest


def card_summary(found: dict[str, dict[str, dict]]) -> dict:
    """The table of ten lines at most that a card shows of the one model that was measured: sets before and after.

    The first T and what the first network makes of it come first, then the hole error under the other T.
    """
    rows, (first, *others) = [], [what for what in found if not what.startswith(CROSSED)] or list(found)

    def line(title, figures, key, text):
        cells = [figures[name].get(prefix + key) for name in ("retain", "forget") for prefix in ("original_", "")]
        if all(cell is not None for cell in cells):
            rows.append([title, *map(text, cells)])

    result = next(iter(found[first].values()))
    metrics: dict[str, Metric] = {metric.name: metric for metric in BUILT_IN}
    for key in [*metrics, *added(result)]:
        line(f"{title_of_metric(key, metrics)}, {first}", result, key, partial(text_of, key, metrics=metrics))
    features = {name: result[name].get("features", []) for name in ("retain", "forget")}
    network = features["retain"][0]["network"] if features["retain"] else None
    for place, how in enumerate(features["retain"]):
        if how["network"] == network:
            seen = "whole pictures" if how["region"] == "whole" else "the hole alone"
            distance = "kid" if any(f[place]["few_samples"] for f in features.values()) else "fid"
            for key in (distance, "similarity", "accuracy"):
                line(f"{METRICS[key]}, {seen}, {first}", {n: f[place] for n, f in features.items()}, key, "{:.3g}".format)
    for what in others:
        line(f"{metrics['mse'].title}, {what}", next(iter(found[what].values())), "mse", metrics["mse"].text)
    head = ["what was measured", "retain before", "after", "forget before", "after"]
    return {"title": "", "caption": "", "head": head, "rows": rows[:LINES]}


def card_results(found: dict, dataset: str, where: str = "") -> list[EvalResult]:
    """Before and after of every score, for a card's metadata. where: after the name of the network."""
    results = []
    for row in feature_rows(found):
        seen = "whole pictures" if row["region"] == "whole" else "the hole alone"
        for key, title in METRICS.items():
            if key not in row:
                continue
            for when, prefix in (("before", "original_"), ("after", "")):
                how = f"features of {seen} by {row['network']}{where} ({row['corruption']})"
                results.append(
                    EvalResult(
                        task_type="image-to-image",
                        dataset_type=dataset,
                        dataset_name=dataset,
                        dataset_config=row["set"],
                        metric_type=key if key not in DISTANCES or "Inception" in row["network"] else DISTANCES[key],
                        metric_name=f"{title}, {how}, {when} unlearning",
                        metric_value=round(row[prefix + key], 4),
                    )
                )
    return results
