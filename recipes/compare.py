"""Compare unlearning methods from one original model, under the same budget, pictures and seeds.

Each method is run at several learning rates and alphas and measured at several steps on the way, so that what it forgets can be
read at a matched cost on the retain set (the frontier) and not at one lucky point. The control, ordinary training on the
retain set alone, stands beside them. Without --model it compares all methods on the embedded demo, in a few minutes.

The output folder gets results.csv, results.json, table.md (the best point of each method within the tolerated rise of the retain
error), frontier.png and before_after.png. A broken-off comparison goes on where it was when the command is given again.
"""

import csv
import itertools
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, set_seed
from transformers.utils.logging import disable_progress_bar

from hf_i2i_unlearn import (
    CORRUPTION_HELP,
    DEMOS,
    I2IMAE,
    METHODS,
    NOISE_HELP,
    Evaluator,
    ForgetRetainPairs,
    ForgetRetainStream,
    I2IMage,
    I2IUNet,
    ImageReader,
    InputError,
    SplitArguments,
    UnlearningConfig,
    UnlearningTrainer,
    build_splits,
    command_line,
    completion_grid,
    completions,
    frontier,
    load_processor,
    make_noise,
    parse,
    parse_corruption,
    pixel_batches,
    run,
    write_run,
)

FAMILIES = {"mae": I2IMAE, "diffusion": I2IUNet, "mage": I2IMage}
DEMO = Path(__file__).parent / "configs" / "compare_mnist_mae.yaml"


@dataclass
class Arguments(SplitArguments):
    """What to compare."""

    family: str = field(default="mae", metadata={"choices": list(FAMILIES), "help": "What kind of model it is."})
    model: str = field(default="mnist-demo", metadata={"help": "The original checkpoint: Hub id, folder, or a demo: mnist-demo (mae), mnist-demo-unet, mnist-demo-mage."})
    methods: list[str] = field(default_factory=lambda: list(METHODS), metadata={"help": f"Of {', '.join(METHODS)}."})
    learning_rates: list[float] = field(
        default_factory=lambda: [1e-4, 3e-4, 1e-3], metadata={"help": "Tried for every method."}
    )
    alphas: list[float] = field(default_factory=lambda: [0.25], metadata={"help": "Tried for every method."})
    measure_at: list[int] = field(default_factory=lambda: [100, 200, 300], metadata={"help": "Steps at which to measure."})
    tolerance: float = field(
        default=0.05, metadata={"help": "Rise of the retain error at which methods are compared, as a share."}
    )
    corruption: str = field(default="center:8", metadata={"help": f"T(x) in training: {CORRUPTION_HELP}."})
    eval_corruption: str | None = field(default=None, metadata={"help": "T(x) in evaluation; as in training if not given."})
    noise: str = field(default="normal", metadata={"help": f"The noise n. {NOISE_HELP}."})
    noise_rank: int = field(default=64, metadata={"help": "Directions of --noise low_rank."})
    pictures: int = field(default=3, metadata={"help": "Pictures per set in the before/after grid."})


class Measure(TrainerCallback):
    """Measures the model at the wanted steps; the time this takes is not counted."""

    def __init__(self, steps, measure):
        self.steps, self.measure, self.seconds, self.rows = set(steps), measure, 0.0, []

    def on_step_begin(self, args, state, control, **kwargs):
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds += time.perf_counter() - self.started
        if state.global_step in self.steps:
            self.rows.append({"steps": state.global_step, "seconds": round(self.seconds, 1), **self.measure(state.global_step)})


def main():
    args, training = parse((Arguments, UnlearningConfig), __doc__, demo=DEMO)
    unknown = [m for m in args.methods if m not in METHODS]
    if unknown:
        raise InputError(f"'{unknown[0]}' is no method; choose from {', '.join(METHODS)}.")
    folder = Path(training.output_dir)
    disable_progress_bar()
    path = DEMOS.get(args.model, args.model)
    load = FAMILIES[args.family].from_pretrained
    original = load(path).frozen_copy()
    processor = load_processor(path)
    corruption = parse_corruption(args.corruption)
    eval_corruption = parse_corruption(args.eval_corruption or args.corruption)
    eval_corruption.check(original.grid)
    splits = build_splits(args)
    rows = {"retain": splits.eval_retain, "forget": splits.eval_forget}
    reader = ImageReader(processor, original.channels)
    noise = make_noise(
        args.noise, lambda: pixel_batches(splits.forget, reader), *reader.black_and_white(), args.noise_rank, training.seed
    )
    evaluator = Evaluator(original, rows, reader, eval_corruption, seed=training.seed, keep_original=True)
    shown = {name: r[:: max(1, len(r) // args.pictures)][: args.pictures] for name, r in rows.items()}
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    refuse_other_options(folder, args, training)

    def flat(result):
        return {f"{name}_{key}": value for name, split in result.items() for key, value in split.items()}

    points = []
    plan = [  # alpha has no meaning for the control
        (m, lr, alpha) for m, lr, alpha in itertools.product(args.methods, args.learning_rates, args.alphas)
        if METHODS[m].sign or alpha == args.alphas[0]
    ]  # fmt: skip
    for number, (method, lr, alpha) in enumerate(plan, 1):
        name = f"{method}-lr{lr:g}-alpha{alpha:g}"
        file = folder / "runs" / f"{name}.json"
        if not file.exists():
            print(f"[{number}/{len(plan)}] {name}", flush=True)
            set_seed(training.seed)
            model = load(path)

            def measure(step):
                columns = {n: completions({method: model}, reader, eval_corruption, r)[method] for n, r in shown.items()}
                save_file({n: c.contiguous() for n, c in columns.items()}, folder / "runs" / f"{name}-{step}.safetensors")
                return flat(evaluator(model, progress=False))

            callback = Measure(args.measure_at, measure)
            options = training.to_dict() | {
                "method": method, "learning_rate": lr, "alpha": alpha, "max_steps": max(args.measure_at), "save_strategy": "no",
                "output_dir": str(folder / "runs"), "eval_strategy": "no", "logging_strategy": "no",
                "noise_target": training.noise_target if method == "ours" else "fresh",
            }  # fmt: skip
            pairs = (ForgetRetainStream if args.streaming else ForgetRetainPairs)(splits.forget, splits.retain, training.seed)
            UnlearningTrainer(
                model,
                UnlearningConfig(**options),
                pairs,
                processor,
                corruption,
                noise=noise,
                original=original,
                callbacks=[callback],
            ).train()
            found = [{"method": method, "learning_rate": lr, "alpha": alpha, "run": name, **row} for row in callback.rows]
            file.write_text(json.dumps(found, indent=1))
        points += json.loads(file.read_text())

    first = points[0]
    before = {f"{n}_{k}": first[f"{n}_original_{k}"] for n in rows for k in ("mse", "psnr")}
    best = {m: best_within(points, m, before["retain_mse"] * (1 + args.tolerance)) for m in args.methods}
    table = markdown(before, best, args.tolerance)
    write_tables(folder, points, before, best, table)
    frontier(points, before, folder / "frontier.png", args.tolerance)
    grid = {n: completions({"original": original}, reader, eval_corruption, r) for n, r in shown.items()}
    for method, point in best.items():
        if point:
            saved = load_file(folder / "runs" / f"{point['run']}-{point['steps']}.safetensors")
            for n in grid:
                grid[n][method] = saved[n]
    completion_grid(grid, folder / "before_after.png")
    print(f"\n{table}\n\nIn {folder}: results.csv, results.json, table.md, frontier.png, before_after.png.")


def refuse_other_options(folder, args, training):
    """Write run.yaml; runs that were measured under other options than these must not be mixed with new ones."""
    file, new = folder / "run.yaml", folder / "run.yaml.new"
    write_run(new, args, training)
    if file.exists():
        free = ("methods", "learning_rates", "alphas", "tolerance", "pictures")  # what may differ within one comparison
        old, wanted = yaml.safe_load(file.read_text()), yaml.safe_load(new.read_text())
        changed = sorted(k for k in old.keys() | wanted.keys() if k not in free and old.get(k) != wanted.get(k))
        if changed:
            new.unlink()
            raise InputError(
                f"'{folder}' holds runs made with other options ({', '.join(changed)}); choose another --output_dir, or empty it."
            )
    new.replace(file)


def best_within(points, method, limit):
    """The point of a method that forgets most (highest forget error) among those whose retain error is within the limit."""
    fitting = [p for p in points if p["method"] == method and p["retain_mse"] <= limit]
    return max(fitting, key=lambda p: p["forget_mse"], default=None)


def markdown(before, best, tolerance):
    lines = [
        f"Best point of each method whose retain error rose by at most {tolerance:.0%}:",
        "",
        "| method | lr | alpha | steps | s | retain MSE | PSNR | drift | forget MSE | PSNR |",
        "|---|---|---|---|---|---|---|---|---|---|",
        f"| original | | | | | {before['retain_mse']:.3f} | {before['retain_psnr']:.1f} | 0 | {before['forget_mse']:.3f} "
        f"| {before['forget_psnr']:.1f} |",
    ]
    for method, p in best.items():
        if p is None:
            lines.append(f"| {method} | no point within the tolerance | | | | | | | | |")
            continue
        lines.append(
            f"| {method} | {p['learning_rate']:g} | {p['alpha']:g} | {p['steps']} | {p['seconds']:.0f} | {p['retain_mse']:.3f} | "
            f"{p['retain_psnr']:.1f} | {p['retain_drift']:.3f} | {p['forget_mse']:.3f} | {p['forget_psnr']:.1f} |"
        )
    return "\n".join(lines)


def write_tables(folder, points, before, best, table):
    with open(folder / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(points[0]))
        writer.writeheader()
        writer.writerows(points)
    everything = {"original": before, "best": best, "points": points, "torch": torch.__version__}
    (folder / "results.json").write_text(json.dumps(everything, indent=1))
    (folder / "table.md").write_text(f"{table}\n\n```bash\n{command_line('recipes/compare.py')}\n```\n")


if __name__ == "__main__":
    run(main)
