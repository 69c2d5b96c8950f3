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
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.utils.logging import disable_progress_bar

from hf_i2i_unlearn import METHODS, Evaluator, ImageReader, InputError, UnlearningConfig, load_processor
from hf_i2i_unlearn.commands.cli import JsonDict, command_line, parse, run
from hf_i2i_unlearn.commands.options import ObjectiveArguments
from hf_i2i_unlearn.commands.words import CORRUPTION_HELP, NOISE_HELP, find_distance, parse_corruption
from hf_i2i_unlearn.data.options import SplitArguments
from hf_i2i_unlearn.data.splits import build_splits
from hf_i2i_unlearn.evaluation.completions import completions
from hf_i2i_unlearn.experiments.comparison import FAILED, Comparison, Setting, best_within
from hf_i2i_unlearn.models.auto import DEMOS
from hf_i2i_unlearn.originals.quality import load_original
from hf_i2i_unlearn.reporting.plots import completion_grid, frontier
from hf_i2i_unlearn.reporting.run_folder import claim_folder

DEMO = "compare_mnist_mae"


@dataclass
class Arguments(ObjectiveArguments, SplitArguments):
    """What to compare."""

    model: str = field(
        default="mnist-demo",
        metadata={
            "help": "The original of any family: Hub id, folder, or a demo: mnist-demo, mnist-demo-unet, mnist-demo-mage."
        },
    )
    generation: JsonDict = field(
        default_factory=JsonDict,
        metadata={"help": 'Options of generation of the family, as JSON or in YAML, such as {"steps": 6}.'},
    )
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


FREE = ("methods", "learning_rates", "alphas", "tolerance", "pictures")  # what may differ within one comparison


def main():
    args, training = parse((Arguments, UnlearningConfig), __doc__, demo=DEMO)
    unknown = [m for m in args.methods if m not in METHODS]
    if unknown:
        raise InputError(f"'{unknown[0]}' is no method; choose from {', '.join(METHODS)}.")
    folder = Path(training.output_dir)
    disable_progress_bar()
    path = DEMOS.get(args.model, args.model)
    original = load_original(path, args.generation).requires_grad_(False).to(training.device)
    processor = load_processor(path)
    eval_corruption = parse_corruption(args.eval_corruption or args.corruption)
    eval_corruption.check(original.grid)
    splits = build_splits(args)
    rows = {"retain": splits.eval_retain, "forget": splits.eval_forget}
    reader = ImageReader(processor, original.channels)
    evaluator = Evaluator(original, rows, reader, eval_corruption, seed=training.seed, keep_original=True)
    shown = {name: r[:: max(1, len(r) // args.pictures)][: args.pictures] for name, r in rows.items()}
    claim_folder(folder, args, training, what="runs", free=FREE)

    def measure(model, setting, step, what):
        columns = {n: completions({"model": model}, reader, eval_corruption, r)["model"] for n, r in shown.items()}
        save_file({n: c.contiguous() for n, c in columns.items()}, folder / "runs" / f"{setting.name}-{step}.safetensors")
        result = evaluator(model, progress=False)
        return {f"{name}_{key}": value for name, split in result.items() for key, value in split.items()}

    (folder / "runs").mkdir(exist_ok=True)
    comparison = Comparison(
        folder, lambda: load_original(path, args.generation), original, processor, args, training, parse_corruption(args.corruption),
        max(args.measure_at), measure, args.noise_rank, variant=args.variant, distance=find_distance(args.distance),
    )  # fmt: skip
    proxy = bool(args.proxy_classes or args.proxy_dataset)
    limits = {"noise": args.noise, "retain_per_class": args.retain_per_class, "proxy": proxy}
    plan = [  # alpha has no meaning for the control
        Setting(m, lr, alpha, **limits)
        for m, lr, alpha in itertools.product(args.methods, args.learning_rates, args.alphas)
        if METHODS[m].sign or alpha == args.alphas[0]
    ]
    points = []
    for number, setting in enumerate(plan, 1):
        found = comparison.run(setting, args.measure_at, ["figures"], f"[{number}/{len(plan)}] ")
        base = {"method": setting.method, "learning_rate": setting.learning_rate, "alpha": setting.alpha, "run": setting.name}
        points += [
            base | {"steps": s, "seconds": p["seconds"]} | p["figures"]["figures"]
            for s, p in found.items()
            if "failed" not in p
        ]

    if not points:
        raise InputError(f"Every run has failed: {FAILED}; give smaller --learning_rates.")
    first = points[0]
    before = {f"{n}_{k}": first[f"{n}_original_{k}"] for n in rows for k in ("mse", "psnr")}
    limit = before["retain_mse"] * (1 + args.tolerance)
    best = {
        m: best_within([p for p in points if p["method"] == m], lambda p: p["retain_mse"], lambda p: p["forget_mse"], limit)
        for m in args.methods
    }
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
