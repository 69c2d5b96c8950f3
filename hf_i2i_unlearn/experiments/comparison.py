"""Methods compared from one original: what each forgets at a matched cost on the retain set, and not at one lucky point."""

import itertools
from collections.abc import Callable, Sequence

from ..errors import InputError
from ..evaluation.evaluator import Evaluator
from ..evaluation.features import FeatureNetwork
from ..evaluation.metrics import Metric
from ..evaluation.tables import title_of_metric
from ..markdown import table
from ..methods.corruptions import Corruption
from ..methods.distances import MSE, Distance
from ..methods.method import Method
from ..methods.noise import Noise, StandardNormal
from ..models.base import I2IModel
from ..training.config import UnlearningConfig
from .runs import FAILED, Comparison, Pictures, Setting
from .tables import best_within, flat_figures


def compare(
    load: Callable[[], I2IModel],
    processor,
    train: dict,
    rows: dict[str, list],
    corruption: Corruption,
    methods: list[Method],
    training: UnlearningConfig,
    *,
    learning_rates: tuple[float, ...] | None = None,
    alphas: tuple[float, ...] | None = None,
    measure_at: tuple[int, ...] | None = None,
    original: I2IModel | None = None,
    eval_corruption: Corruption | None = None,
    distance: Distance = MSE,
    noise: Noise | None = None,
    metrics: tuple[Metric, ...] = (),
    features: Sequence[FeatureNetwork] = (),
    augment: Callable | None = None,
    on_corrupt: str = "refuse",
) -> list[dict]:
    """Every method at every learning rate and alpha, measured on the way. `comparison_table` prints the best points.

    Args:
        load: gives a fresh original at every call. processor: its image processor.
        train: {"forget": dataset, "retain": dataset} of undecoded rows. rows: {"forget": rows, "retain": rows} to evaluate on.
        corruption: T in training. eval_corruption: T in evaluation; the same, or its first one, if None.
        methods: those of `METHODS`, or your own. training: options of all runs.
        learning_rates, alphas: tried for each method; those of `training` if None. measure_at: steps; the last ends the run
            [training.max_steps]. original: one that stays as it is, if there is one already.
        distance, noise, augment, on_corrupt: as in `UnlearningTrainer`. metrics, features: what is measured besides.

    Returns:
        A point per run and step, {"method": name, "learning_rate", "alpha", "run", "steps", "seconds", "retain_mse",
        "retain_original_mse", ..., "forget_NAME", ...}. Runs whose weights are no finite numbers have none.

    Raises:
        InputError: two methods of one name, no method or step, or every run has failed.
    """
    _refuse_methods(methods)
    steps = sorted(measure_at or [training.max_steps])
    if not steps or steps[0] < 1:
        raise InputError(
            f"measure_at is the steps at which to measure, 1 or more each; got {measure_at or training.max_steps}."
        )
    original = (original or load()).eval().requires_grad_(False).to(training.device)
    where = eval_corruption or corruption.at(0)
    where.check(original.grid)
    runs = Comparison(
        None, load, original, processor, Pictures(train, rows), training, corruption, steps[-1],
        lambda model, setting, step, what: flat_sets(evaluator(model, progress=False)),
        lambda label: noise or StandardNormal(), distance, on_corrupt, augment,
    )  # fmt: skip
    evaluator = Evaluator(
        original, rows, runs.reader, where, seed=training.seed, keep_original=True, metrics=metrics, features=features
    )
    rates, weights = learning_rates or [training.learning_rate], alphas or [training.alpha]
    return gather(runs, plan_of(methods, rates, weights), steps)


def _refuse_methods(methods):
    """Raise InputError unless these are `Method` objects of different names."""
    for method in methods:
        if not isinstance(method, Method):
            raise InputError(f"methods are Method objects, such as METHODS['ours'], got {method!r}.")
    names = [method.name for method in methods]
    if not names or len(set(names)) < len(names):
        raise InputError(f"methods are one or more of different names, which tell their points apart; got {names}.")


def flat_sets(result: dict[str, dict]) -> dict[str, float]:
    """A result of `Evaluator` as one row: {"retain_mse", ..., "forget_drift"}."""
    return {f"{name}_{key}": value for name, split in result.items() for key, value in flat_figures(split).items()}


def plan_of(methods: list[Method], learning_rates, alphas, **limits) -> list[Setting]:
    """All settings; alpha has no meaning for a method without a forget term. limits: other fields of `Setting`."""
    return [
        Setting(method, rate, alpha, **limits)
        for method, rate, alpha in itertools.product(methods, learning_rates, alphas)
        if method.sign or alpha == alphas[0]
    ]


def gather(runs: Comparison, plan: list[Setting], steps: list[int]) -> list[dict]:
    """Make the runs of a plan, and list what they show; see `compare`.

    Raises:
        InputError: every run has failed.
    """
    points = []
    for number, setting in enumerate(plan, 1):
        found = runs.run(setting, steps, ["figures"], f"[{number}/{len(plan)}] ")
        base = {"method": setting.method.name, "learning_rate": setting.learning_rate, "alpha": setting.alpha}
        points += [
            base | {"run": setting.name, "steps": step, "seconds": point["seconds"]} | point["figures"]["figures"]
            for step, point in found.items()
            if "failed" not in point
        ]
    if not points:
        raise InputError(f"Every run has failed: {FAILED}; give smaller learning rates.")
    return points


def best_points(points: list[dict], tolerance: float, methods: list[str] | None = None) -> dict[str, dict | None]:
    """{method: the point that forgets most of those whose retain error rose by at most this share}, None where there is none.

    Args:
        points: see `compare`. methods: names, in the order wanted; those of the points if None.
    """
    limit = points[0]["retain_original_mse"] * (1 + tolerance)
    return {
        name: best_within(
            [p for p in points if p["method"] == name], lambda p: p["retain_mse"], lambda p: p["forget_mse"], limit
        )
        for name in methods or dict.fromkeys(p["method"] for p in points)
    }


def comparison_frontier(points: list[dict], path, tolerance: float = 0.05) -> None:
    """Draw what each method forgets against what that costs on retain, on logarithmic axes, through its best points.

    Args:
        points: see `compare`. path: PNG file to write. tolerance: the rise of the retain error, as a share; drawn as a line.
    """
    from ..reporting.plots import frontier

    frontier(points, {f"{name}_mse": points[0][f"{name}_original_mse"] for name in ("retain", "forget")}, path, tolerance)


def comparison_table(
    points: list[dict], tolerance: float = 0.05, metrics: tuple[Metric, ...] = (), methods: list[str] | None = None
) -> str:
    """The best point of each method within a tolerated rise of the retain error, as Markdown.

    Args:
        points: see `compare`. metrics: those that were added: a pair of columns each. methods: see `best_points`.
    """
    first, known = points[0], {metric.name: metric for metric in metrics}
    head = ["method", "lr", "alpha", "steps", "s", "retain MSE", "PSNR", "drift", "forget MSE", "PSNR"]
    for name in known:
        head += [f"{which} {title_of_metric(name, known)}" for which in ("retain", "forget")]

    def cells(point, prefix=""):
        retain, forget = (
            [f"{point[f'{which}_{prefix}mse']:.3f}", f"{point[f'{which}_{prefix}psnr']:.1f}"] for which in ("retain", "forget")
        )
        drift = "0" if prefix else f"{point['retain_drift']:.3f}"
        more = [m.text(point[f"{which}_{prefix}{m.name}"]) for m in metrics for which in ("retain", "forget")]
        return [*retain, drift, *forget, *more]

    rows = [["original", "", "", "", "", *cells(first, "original_")]]
    for name, p in best_points(points, tolerance, methods).items():
        if p is None:
            rows.append([name, "no point within the tolerance", *[""] * (len(head) - 2)])
            continue
        how = [name, f"{p['learning_rate']:g}", f"{p['alpha']:g}", p["steps"], f"{p['seconds']:.0f}"]
        rows.append([*how, *cells(p)])
    return f"Best point of each method whose retain error rose by at most {tolerance:.0%}:\n\n{table(head, rows)}"
