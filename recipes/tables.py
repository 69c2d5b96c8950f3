"""The paper's tables for one original model: every method with the same tuning effort, over seeds, at a matched retain cost.

    python recipes/tables.py --config recipes/configs/tables_photos.yaml --model model_cards/photos-mae --dataset photos-32 \
        --tables main alpha retain_per_class noise ratio cross_validation lora bound --output_dir tables-photos-mae

Each method is tuned with the first seed over --learning_rates x --alphas x --measure_at: of the points whose retain cost stays within
--tolerance of the original's, the one that forgets most, judged on one half of the evaluation pictures. That setting is repeated
with the other seeds, and everything is reported on the other half. The ablations vary one thing in the setting chosen for "ours".

main: Tables 1 and 2, the frontier, the control, and "ours, proxy retain" where --proxy_classes or --proxy_dataset are given.
alpha: Table 3. retain_per_class: Fig. D.6. noise: Fig. E.20 and a low-rank Sigma. ratio: Fig. E.18, E.19. cross_validation: Table
E.4. lora: adapters against all encoder weights. bound: the frontier of runs with a retain bound.

The output folder gets results.md, points.csv, figures, and the weights of "ours" under models/. Whatever a run has shown is kept in
runs/ and never made again: give the command once more after a break, or with more tables, seeds or settings. Families are told by
the checkpoint. One process. Without options it makes two tables of the embedded digits, in a minute or two.
"""

import csv
import itertools
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path

import yaml
from tables_options import FREE, METRICS, Arguments
from transformers.utils.logging import disable_progress_bar

from hf_i2i_unlearn import METHODS, CenterRatio, Evaluator, InputError, UnlearningConfig, load_processor
from hf_i2i_unlearn.commands.cli import command_line, parse, run
from hf_i2i_unlearn.commands.words import find_distance, parse_corruption
from hf_i2i_unlearn.data.augmentation import AUGMENTATIONS
from hf_i2i_unlearn.data.options import SplitArguments
from hf_i2i_unlearn.evaluation.feature_loaders import load_features
from hf_i2i_unlearn.evaluation.tables import describe_scores
from hf_i2i_unlearn.experiments import tables
from hf_i2i_unlearn.experiments.comparison import FAILED, Comparison, Setting
from hf_i2i_unlearn.models.auto import DEMOS
from hf_i2i_unlearn.originals.quality import load_original
from hf_i2i_unlearn.reporting.plots import frontier, metric_curves
from hf_i2i_unlearn.reporting.run_folder import claim_folder, write_json

DEMO = "tables_mnist_mae"


class Tables:
    """All tables of one original. Each method of the name of a table returns its Markdown."""

    def __init__(self, args: Arguments, training: UnlearningConfig):
        self.args, self.folder, self.tuned = args, Path(training.output_dir), {}
        path = DEMOS.get(args.model, args.model)
        self.networks = [] if args.features == ["none"] else load_features(args.features)
        self.networks = [network.to(training.device) for network in self.networks]
        self.described = [network.describe() for network in self.networks]

        def load():
            return load_original(path, args.generation, args.generation_steps)

        self.original = load().requires_grad_(False).to(training.device)
        self.whats = args.eval_corruptions or [args.corruption]
        for word in self.whats:
            parse_corruption(word).check(self.original.grid)
        constant = str(getattr(training.lr_scheduler_type, "value", training.lr_scheduler_type)) == "constant"
        self.runs = Comparison(
            self.folder, load, self.original, load_processor(path), args, training, parse_corruption(args.corruption),
            max(args.measure_at), self.measure, args.noise_rank, args.on_corrupt, AUGMENTATIONS[args.augment],
            args.variant, find_distance(args.distance),
        )  # fmt: skip
        splits = self.runs.splits()
        self.description = splits.description
        pictures = tables.halves({"retain": splits.eval_retain, "forget": splits.eval_forget})
        self.counts = {name: len(rows) for name, rows in pictures.items()}
        self.evaluator = Evaluator(
            self.original,
            pictures,
            self.runs.reader,
            self.runs.corruption,
            args.batch_size,
            training.seed,
            keep_original=True,
            features=self.networks,
        )
        self.evaluators = {}
        private = () if args.card_names else ("forget_values", "forget_rows")
        free = FREE | ({"measure_at"} if constant else set())  # a constant rate has no memory of how long the run was to be
        claim_folder(
            self.folder,
            args,
            training,
            what="runs",
            free=free,
            leave_out=private,
            networks=self.described,
        )
        self.key = "mse" if args.select_by == "mse" or not self.networks else f"{args.select_by} 0"

    def measure(self, model, setting, step, what):
        """The figures of both sets and halves under a T, or its cross-validation."""
        if what not in self.evaluators:
            word = what.removeprefix("cross_validation ")
            self.evaluators[what] = self.evaluator.under(parse_corruption(word), word != what)
        result = self.evaluators[what](model, progress=False)
        how = self.folder / "how.json"
        if not how.exists():
            seen = result["retain report"].get("features", [])
            write_json(
                how,
                [
                    {k: v for k, v in f.items() if k.split("_")[-1] not in ("fid", "score", "similarity", "accuracy")}
                    for f in seen
                ],
            )
        return {name: tables.flat_figures(figures) for name, figures in result.items()}

    def tune(self, method, lora=0):
        """(setting, step, whether its retain cost is within the tolerance) of a method; every one has the same effort.

        None if all its runs have failed.
        """
        if (method, lora) in self.tuned:
            return self.tuned[method, lora][0]
        args, rates = self.args, self.args.learning_rates
        if lora:
            rates = args.lora_learning_rates or [3 * rate for rate in rates]
        alphas = args.alphas if METHODS[method].sign else args.alphas[:1]  # the control has none
        plan = [Setting(method, rate, alpha, args.seeds[0], lora=lora) for rate, alpha in itertools.product(rates, alphas)]
        points = []
        for number, setting in enumerate(plan, 1):
            found = self.runs.run(setting, args.measure_at, self.whats[:1], f"[tuning {number}/{len(plan)}] ")
            points += [{"setting": setting, "step": step} | point for step, point in found.items() if "failed" not in point]
        if not points:
            return None
        best, within = tables.choose(points, self.whats[0], self.key, 1 + args.tolerance)
        self.tuned[method, lora] = (best["setting"], best["step"], within), points
        return self.tuned[method, lora][0]

    def points(self, setting, step, seeds, label):
        """The points of a setting with every seed, under all T; of "ours" also under those of the tables ratio and cross_validation."""
        found = []
        for number, seed in enumerate(seeds, 1):
            mine, whats, save = replace(setting, seed=seed), list(self.whats), None
            if self.is_ours(setting, step) and seed in self.args.ablation_seeds:
                whats += self.more_whats()
                save = self.folder / "models" / f"{mine.name}-{step}"
            point = self.runs.run(mine, [step], whats, f"[{label} {number}/{len(seeds)}] ", save)[step]
            if "failed" in point:
                print(f"{mine.name} has failed: {point['failed']}", flush=True)
                continue
            found.append(point)
            if save is not None:
                self.write_run(save, mine, step)
        return found

    def ours(self):
        """(setting without a seed, step) chosen for "ours"."""
        if (tuned := self.tune("ours")) is None:
            raise InputError(f"Every run of 'ours' has failed: {FAILED}; give smaller --learning_rates.")
        setting, step, _ = tuned
        return replace(setting, seed=None), step

    def is_ours(self, setting, step):
        return ("ours", 0) in self.tuned and (replace(setting, seed=None), step) == self.ours()

    def more_whats(self):
        whats = [f"cross_validation {self.whats[0]}"] if "cross_validation" in self.args.tables else []
        return whats + (list(self.ratios().values()) if "ratio" in self.args.tables else [])

    def ratios(self):
        """{label: T} of the crop ratios, those that this grid can tell apart."""
        grid, found = self.original.grid, {}
        for share in self.args.crop_ratios:
            hidden = CenterRatio(share).hidden(grid)
            if 0 < hidden < grid[0] * grid[1] and hidden not in [n for n, _ in found.values()]:
                found[f"{hidden / (grid[0] * grid[1]):.3g}"] = hidden, f"ratio:{share:g}"
        return {label: what for label, (_, what) in found.items()}

    def ablation(self, options: dict, label) -> dict:
        """{name: points} of the setting of "ours", with other options each."""
        setting, step = self.ours()
        seeds = self.args.ablation_seeds
        found = {n: self.points(replace(setting, **o), step, seeds, f"{label} {n}") for n, o in options.items()}
        return {name: points for name, points in found.items() if points}

    def blocks(self, rows, whats, first="method", title="{what}") -> str:
        """A table of errors, and one per network of the hole alone and of whole pictures, for every T."""
        parts = []
        for what in whats:
            parts.append(f"### {title.format(what=f'`{what}`')}")
            seen = next(iter(rows.values()))[0]["figures"][what]["retain report"]
            for place in ["", *(f"{r} {n}" for n in range(len(self.networks)) for r in ("hole", "whole"))]:
                if not place or f"fid {place}" in seen:
                    region, _, n = place.partition(" ")
                    name = (
                        f"Features of {'the hole alone' if region == 'hole' else 'whole pictures'}: {self.name_of(int(n))}"
                        if place
                        else "Errors"
                    )
                    parts += [f"{name}:", tables.table(rows, what, place, self.described, first)]
        return "\n\n".join(parts)

    def name_of(self, place) -> str:
        return Path(self.networks[place].name).name

    def draw(self, rows, x, label, log=False) -> str:
        """Curves of the metrics in the hole of the first T against what was varied."""
        place = "hole 0" if self.networks else ""
        file = f"{x}.png"
        metric_curves(tables.curve_rows(rows, self.whats[0], place, x), x, METRICS, self.folder / file, label, log)
        return f"![{x}]({file})"

    # The tables

    def main(self):
        args, rows, notes = self.args, {}, []
        for method in args.methods:
            if (tuned := self.tune(method)) is None:
                notes.append(f"{method}: every run has failed ({FAILED})")
                continue
            setting, step, within = tuned
            name = method if within else f"{method} (†)"
            rows[name] = self.points(setting, step, args.seeds, method)
            notes.append(
                f"{name}: lr {setting.learning_rate:g}, {f'alpha {setting.alpha:g}, ' if METHODS[method].sign else ''}{step} steps"
            )
        if args.proxy_classes or args.proxy_dataset:
            setting, step = self.ours()
            rows["ours, proxy retain"] = self.points(replace(setting, proxy=True), step, args.seeds, "ours, proxy retain")
            notes.append("ours, proxy retain: as ours")
        rows = {name: points for name, points in rows.items() if points}
        if not rows:
            raise InputError(f"Every run has failed: {FAILED}; give smaller --learning_rates.")
        dagger = (
            " †: no point stays within the tolerance; the one that costs least." if any("†" in name for name in rows) else ""
        )
        return "\n\n".join([self.blocks(rows, self.whats), f"Chosen: {'; '.join(notes)}.{dagger}", self.frontier()])

    def frontier(self, bounded=()) -> str:
        """Draw all points that were tuned over, on the reported half, by what they were chosen by."""
        what, flat = self.whats[0], []
        for (method, lora), (_, points) in self.tuned.items():
            flat += [self.flat(method, p) for p in points if not lora]
        flat += [self.flat("ours, bounded", p) for p in bounded]
        point = next(iter(self.tuned.values()))[1][0]
        before = {
            f"{s}_{k}": tables.figure(point, what, s, f, kind="original_")
            for s in ("retain", "forget")
            for k, f in (("cost", self.key), ("mse", "mse"))
        }
        title = tables.head(self.key, self.described)
        if " " in self.key:
            title += f" ({'hole' if 'hole' in self.key else 'whole picture'}, {self.name_of(0)})"
        frontier(
            flat,
            before,
            self.folder / ("frontier-bound.png" if bounded else "frontier.png"),
            self.args.tolerance,
            "cost",
            title,
        )
        return f"![frontier]({'frontier-bound.png' if bounded else 'frontier.png'})"

    def flat(self, method, point):
        what = self.whats[0]
        return {"method": method, "retain_drift": tables.figure(point, what, "retain", "drift")} | {
            f"{which}_cost": tables.figure(point, what, which, self.key) for which in ("retain", "forget")
        }

    def alpha(self):
        rows = self.ablation({a: {"alpha": a} for a in self.args.alpha_values}, "alpha")
        return (
            self.blocks({f"{a:g}": p for a, p in rows.items()}, self.whats, "alpha")
            + "\n\n"
            + self.draw(rows, "alpha", "alpha", True)
        )

    def retain_per_class(self):
        options = {f"{n}": {"retain_per_class": n} for n in self.args.retain_counts} | {"all": {}}
        rows = self.ablation(options, "retain pictures per class")
        return (
            self.blocks(rows, self.whats, "pictures")
            + "\n\n"
            + self.draw(rows, "retain_per_class", "retain pictures per class")
        )

    def noise(self):
        rows = self.ablation({n: {"noise": n} for n in self.args.noises}, "noise")
        return self.blocks(rows, self.whats, "noise") + "\n\n" + self.draw(rows, "noise", "noise")

    def ratio(self):
        setting, step = self.ours()
        point, whats, parts = self.points(setting, step, self.args.ablation_seeds, "ratio")[0], self.ratios(), []
        for place in [f"{region} {n}" for n in range(len(self.networks)) for region in ("hole", "whole")] or [""]:
            region, _, n = place.partition(" ")
            parts += [
                f"{place and f'Features of {region}: {self.name_of(int(n))}' or 'Errors'}:",
                tables.table_over(point, whats, place, self.described, "share cropped"),
            ]
        rows = []
        for label, what in whats.items():
            some = tables.curve_rows({label: [point]}, what, "hole 0" if self.networks else "", "ratio")
            rows += [row | {"model": "ours", "ratio": float(label)} for row in some]
        metric_curves(rows, "ratio", METRICS, self.folder / "ratio.png", "share of the picture that is cropped")
        return "\n\n".join([*parts, "![ratio](ratio.png)"])

    def cross_validation(self):
        setting, step = self.ours()
        rows = {"ours": self.points(setting, step, self.args.ablation_seeds, "cross_validation")}
        return self.blocks(rows, [f"cross_validation {self.whats[0]}"])

    def lora(self):
        args, rows = self.args, {}
        self.ours()
        for name, rank in (("all encoder weights", 0), (f"LoRA, rank {args.lora_rank}", args.lora_rank)):
            if (tuned := self.tune("ours", rank)) is None:
                continue
            setting, step, within = tuned
            rows[name if within else f"{name} (†)"] = self.points(setting, step, args.ablation_seeds, name)
        return (
            self.blocks(rows, self.whats, "trained")
            + "\n\nBoth tuned with the same effort; adapters with larger learning rates."
        )

    def bound(self):
        found = self.ablation({f"{b:g}": {"retain_bound": b} for b in self.args.bounds}, "bound")
        rows = {}
        for name, points in found.items():
            held = [p["bound"]["retain_distance"] for p in points]
            rows[
                f"{name} (distance {sum(held) / len(held):.3g}, {'holds' if all(p['bound']['holds'] for p in points) else 'broken'})"
            ] = points
        return self.blocks(rows, self.whats, "bound") + "\n\n" + self.frontier([p for points in found.values() for p in points])

    # What is written

    def write_run(self, save, setting, step):
        """run.yaml beside saved weights, as recipes/evaluate.py and recipes/audit.py read it."""
        args = self.args
        private = () if args.card_names else ("forget_values", "forget_rows")
        steps = {"mage": "decoding_steps", "diffusion": "denoising_steps"}.get(self.original.family, "steps")
        options = {
            f.name: getattr(args, f.name)
            for f in fields(SplitArguments)
            if f.name not in (*private, "proxy_classes", "proxy_dataset")
        }
        generation = dict(args.generation) | ({} if args.generation_steps is None else {"steps": args.generation_steps})
        options |= {"model": args.model, "corruption": args.corruption, "eval_corruption": self.whats[0], "on_corrupt": args.on_corrupt,
                    "augment": args.augment, "noise_rank": args.noise_rank, "max_steps": step}  # fmt: skip
        options |= {steps if k == "steps" else k: v for k, v in generation.items()}
        own = {k: v for k, v in asdict(setting).items() if k not in ("proxy", "lora", "retain_per_class")}
        (save / "run.yaml").write_text(yaml.safe_dump(options | own, sort_keys=False))

    def page(self, parts: dict[str, str]):
        """results.md and points.csv."""
        args, d = self.args, self.description
        counts = ", ".join(f"{n} {name}" for name, n in self.counts.items())
        by = (
            "the hole error"
            if self.key == "mse"
            else f"the Frechet distance of {'the hole alone' if 'hole' in self.key else 'whole pictures'} ({self.name_of(0)})"
        )
        text = [
            f"# Tables of `{args.model}`",
            f"Dataset {d['dataset']}; forget: {d['forget']} ({d['forget_size']} pictures); retain: {d['retain']} ({d['retain_size']}). Evaluation: "
            f"{d['evaluation']}; {counts}. T in training: `{args.corruption}`, augmentation: {args.augment}.",
            f"Every method was tuned with seed {args.seeds[0]} over learning rates {', '.join(f'{r:g}' for r in args.learning_rates)}, alpha "
            f"{', '.join(f'{a:g}' for a in args.alphas)} and {', '.join(map(str, args.measure_at))} steps. Chosen is the point that forgets most of those "
            f"whose retain cost is at most {1 + args.tolerance:g} times the original's, both by {by} under `{self.whats[0]}`, **on one half of the "
            "evaluation pictures (select); all figures here are those of the other half (report)**, which no choice has seen. Other seeds only "
            "repeat the chosen setting; the ablations change one thing in that of `ours`. R: retain (should stay as the original), F: "
            f"forget (should move away). Mean ± standard deviation over seeds ({', '.join(map(str, args.seeds))} in the main table, "
            f"{', '.join(map(str, args.ablation_seeds))} in the others); (x1.10): times the original. Accuracy: share of pictures that get the "
            "class of the true picture. FD is the Frechet distance in the features of the network named, no FID unless that is Inception.",
        ]
        how = self.folder / "how.json"
        if self.networks and how.exists():
            text += [f"- {describe_scores(h)}" for h in yaml.safe_load(how.read_text())]
        titles = {
            "main": "Tables 1 and 2: methods",
            "alpha": "Table 3: alpha",
            "retain_per_class": "Figure D.6: retain pictures per class",
            "noise": "Figure E.20: noise, and Sigma",
            "ratio": "Figures E.18, E.19: crop ratio",
            "cross_validation": "Table E.4: cross validation",
            "lora": "LoRA against all encoder weights",
            "bound": "Runs with a retain bound",
        }
        for name, part in parts.items():
            text += [f"## {titles[name]}", part]
        private = () if args.card_names else ("forget_values", "forget_rows")
        text += [f"```bash\n{command_line('recipes/tables.py', private)}\n```"]
        (self.folder / "results.md").write_text("\n\n".join(text) + "\n")
        rows = []
        for file in sorted((self.folder / "runs").glob("*.json")):
            content = yaml.safe_load(file.read_text())
            rows += tables.point_rows(file.stem, content["points"])
        with open(self.folder / "points.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(k for r in rows for k in r)))
            writer.writeheader()
            writer.writerows(rows)


MAKERS: dict[str, Callable] = {
    "main": Tables.main,
    "alpha": Tables.alpha,
    "retain_per_class": Tables.retain_per_class,
    "noise": Tables.noise,
    "ratio": Tables.ratio,
    "cross_validation": Tables.cross_validation,
    "lora": Tables.lora,
    "bound": Tables.bound,
}


def check(args: Arguments) -> None:
    """Raise InputError for options that make no sense, before anything is loaded."""
    for kind, given, known in (("table", args.tables, MAKERS), ("method", args.methods, METHODS)):
        for word in given:
            if word not in known:
                raise InputError(f"'{word}' is no {kind}; choose from {', '.join(known)}.")
    for name in ("tables", "methods", "learning_rates", "alphas", "measure_at", "seeds", "ablation_seeds"):
        if not getattr(args, name):
            raise InputError(f"--{name} is empty; give one value or more.")
    if min(args.measure_at) < 1:
        raise InputError(f"'{min(args.measure_at)}' in --measure_at is no number of steps; give 1 or more.")
    if args.retain_per_class is not None:
        raise InputError("--retain_per_class is what a table varies; give --retain_counts.")
    if (args.proxy_classes or args.proxy_dataset) and not args.retain_classes:
        raise InputError(
            "Name the --retain_classes when there are proxies, so that no proxy is in the figures of the retain set."
        )


def main():
    args, training = parse((Arguments, UnlearningConfig), __doc__, demo=DEMO)
    check(args)
    disable_progress_bar()
    made = Tables(args, training)
    parts = {}
    for name in [n for n in MAKERS if n in args.tables]:
        parts[name] = MAKERS[name](made)
        made.page(parts)
        print(f"\n## {name}\n\n{parts[name]}\n", flush=True)
    print(f"In {training.output_dir}: results.md, points.csv, figures, runs/ and models/.")


if __name__ == "__main__":
    run(main)
