"""Measure unlearned checkpoints: error, drift, FID, Inception score, similarity and a classifier of the hole, before and after.

    accelerate launch recipes/evaluate.py --models unlearned-mnist-mae

The original, the pictures and T are read from run.yaml in the (first) folder; options change them. Several checkpoints of one
original, as `name=folder`, stand side by side. Each is measured under every T of --corruptions, on held-out pictures of both sets,
with every network of --features, which sees whole pictures and the hole alone. On several processes each takes its share.

The output folder gets results.json (figures, each with how it was measured), results.csv, table.md and pictures. A finished figure
is written at once, and a broken-off evaluation goes on when the command is given again. One unlearned folder also gets the section
"Metrics" in its card. Without options it measures what the demo left behind, in a minute or two.
"""

import argparse
import csv
import json
import tempfile
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from huggingface_hub import EvalResult
from transformers.utils.logging import disable_progress_bar

from hf_i2i_unlearn import Evaluator, ImageReader, InputError, load_model, load_processor, merge
from hf_i2i_unlearn.commands.cli import command_line, find_config, parse, run
from hf_i2i_unlearn.commands.words import CORRUPTION_HELP, parse_corruption
from hf_i2i_unlearn.data.options import SplitArguments
from hf_i2i_unlearn.data.splits import build_splits
from hf_i2i_unlearn.evaluation.completions import completions, embeddings
from hf_i2i_unlearn.evaluation.feature_loaders import FEATURES_HELP, load_features
from hf_i2i_unlearn.evaluation.features import hash_weights
from hf_i2i_unlearn.evaluation.words import REGIONS
from hf_i2i_unlearn.evaluation.tables import feature_rows, feature_table, markdown_table
from hf_i2i_unlearn.models.auto import DEMOS, family_options
from hf_i2i_unlearn.reporting.model_card import update_card
from hf_i2i_unlearn.reporting.plots import completion_grid, embedding_map, metric_curves
from hf_i2i_unlearn.reporting.run_folder import claim_folder, write_json

DEMO = "evaluate_mnist_mae"
METRICS = {"fid": "Frechet distance", "inception_score": "Inception score", "similarity": "similarity", "accuracy": "accuracy"}
ABLATIONS = ("alpha", "retain_per_class", "noise", "max_steps", "learning_rate")
FREE = {
    "models",
    "corruptions",
    "cross_validation",
    "output_dir",
    "batch_size",
    "pictures",
    "tsne",
    "figures",
    "use_cpu",
    "card",
}


TRAINING_SECTION = "Metrics on training pictures"


@dataclass
class Arguments(SplitArguments):
    """What to measure. What is not given is as in the run (run.yaml of the first folder)."""

    models: list[str] = field(
        default_factory=list,
        metadata={"help": "Unlearned checkpoints or patches, folders or Hub ids, as FOLDER or NAME=FOLDER."},
    )
    original: str | None = field(default=None, metadata={"help": "The original checkpoint."})
    original_patches: list[str] | None = field(default=None, metadata={"help": "Patches that belong to the original."})
    corruptions: list[str] | None = field(default=None, metadata={"help": f"T(x), several of: {CORRUPTION_HELP}."})
    cross_validation: list[str] | None = field(
        default=None,
        metadata={
            "help": "T under which to cross-validate too (App. E.2): the original completes the rest from what the model filled in."
        },
    )
    features: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Networks, several of: {FEATURES_HELP}. none measures without; demo for mnist-demo, else inception and clip."
        },
    )
    regions: list[str] = field(
        default_factory=lambda: list(REGIONS), metadata={"help": f"What they see, of {', '.join(REGIONS)}."}
    )
    inception_splits: int = field(default=1, metadata={"help": "Parts of which the Inception score is averaged."})
    generation_steps: int | None = field(default=None, metadata={"help": "Steps of generation (diffusion, MAGE)."})
    batch_size: int = field(default=64, metadata={"help": "Pictures per device and pass."})
    on_corrupt: str = field(
        default="refuse", metadata={"choices": ["refuse", "skip"], "help": "What an unreadable picture does."}
    )
    pictures: int = field(
        default=3, metadata={"help": "Pictures per set in the grid of completions, one grid per T; 0 = none."}
    )
    tsne: int = field(
        default=0, metadata={"help": "Pictures per set in a t-SNE map of the embeddings (50 in Fig. 4); 0 = none."}
    )
    figures: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Draw and list the metrics against an option in which runs differ that are otherwise like the first model's, of "
            f"{', '.join(ABLATIONS)}."
        },
    )
    card: bool = field(
        default=True, metadata={"help": "Add the figures to the card, where one folder with a card is measured."}
    )
    output_dir: str = field(default="evaluated", metadata={"help": "Folder for the figures."})
    seed: int = field(default=0, metadata={"help": "Fixes T and generation."})
    use_cpu: bool = field(default=False, metadata={"help": "Use the CPU even where there is a GPU."})


def main():
    args, runs = read_arguments()
    accelerator = Accelerator(cpu=args.use_cpu)
    disable_progress_bar()
    folder = Path(args.output_dir)
    paths = dict(named(word) for word in args.models)
    if len(paths) < len(args.models):
        raise InputError(f"Two of the models have the same name; give them names: NAME=FOLDER. Got {' '.join(args.models)}.")
    if not args.original:
        raise InputError("--original is missing: the checkpoint that was unlearned (there is no run.yaml that names it).")
    if not args.corruptions:
        raise InputError(f"--corruptions is missing, such as center:8. {CORRUPTION_HELP}.")
    for option in args.figures:
        if option not in ABLATIONS:
            raise InputError(f"'{option}' is no option to draw against; choose from {', '.join(ABLATIONS)}.")
    networks = [] if args.features == ["none"] else load_features(args.features)
    for network in networks:
        network.to(accelerator.device)

    original = load_model(args.original, args.original_patches or (), **family_options(first_run(runs), args.generation_steps))
    if args.original_patches:
        merge(original)
    original = original.to(accelerator.device).eval()
    models = {}
    for name, path in paths.items():
        options = family_options(runs[name] or first_run(runs), args.generation_steps)
        options.pop("subfolder", None)  # that of the original
        models[name] = load_model(path, **options).to(accelerator.device).eval()
        if type(models[name]) is not type(original) or models[name].grid != original.grid:
            raise InputError(f"'{path}' and the original '{args.original}' are models of different kinds or sizes.")
    hashes = {name: hash_weights(model) for name, model in models.items()}
    original_hash = hash_weights(original)
    plan = {str(c): (c, False) for c in map(parse_corruption, args.corruptions)}
    plan |= {f"cross_validation {c}": (c, True) for c in map(parse_corruption, args.cross_validation or [])}
    for corruption, _ in plan.values():
        corruption.check(original.grid)
    processor = load_processor(DEMOS.get(args.original, args.original))
    reader = ImageReader(processor, original.channels, None, args.on_corrupt)
    splits = build_splits(args)
    rows = {"retain": splits.eval_retain, "forget": splits.eval_forget}
    if accelerator.is_main_process:
        private = () if args.card_names else ("forget_values", "forget_rows")
        claim_folder(folder, args, free=FREE, leave_out=private, networks=[n.describe() for n in networks])
    accelerator.wait_for_everyone()

    def cell(name, what):
        return folder / "cells" / f"{name}-{what.replace(':', '-').replace(' ', '-')}.json"

    def finished(name, what):
        file = cell(name, what)
        found = json.loads(file.read_text()) if file.exists() else {}
        return found.get("weights_sha256") == hashes[name] and found.get("original_sha256") == original_hash

    todo = [(what, name) for what in plan for name in models if not finished(name, what)]
    accelerator.wait_for_everyone()  # nobody writes before everybody knows what is missing
    last = None
    for number, (what, name) in enumerate(todo, 1):
        if accelerator.is_main_process:
            print(f"[{number}/{len(todo)}] {name}, {what}", flush=True)
        corruption, crossed = plan[what]
        if what != last:
            evaluator = Evaluator(
                original, rows, reader, corruption, args.batch_size, args.seed, accelerator, features=networks,
                regions=tuple(args.regions), inception_splits=args.inception_splits, cross_validation=crossed,
            )  # fmt: skip
            last = what
        result = evaluator(models[name])
        if accelerator.is_main_process:
            content = {"model": paths[name], "weights_sha256": hashes[name], "original_sha256": original_hash, "result": result}
            write_json(cell(name, what), content)
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    found = {what: {name: json.loads(cell(name, what).read_text())["result"] for name in models} for what in plan}
    made = draw(args, folder, original, models, reader, rows, plan, networks, found, runs)
    table = write_tables(args, folder, found, splits.description, runs)
    print(f"\n{table}\n\nIn {folder}: results.json, results.csv, table.md{''.join(f', {m}' for m in made)}.")
    if not args.card or len(paths) > 1 or not (Path(next(iter(paths.values()))) / "README.md").is_file():
        return
    if other_forget_set(args, first_run(runs)):
        print("Its card was left as it is: these are other pictures than those that the run was to forget.")
    else:
        trained = on_training(args)
        update_card(
            paths[next(iter(paths))],
            TRAINING_SECTION if trained else "Metrics",
            card_text(args, found),
            card_results(found, splits.description["dataset"], ", training pictures" if trained else ""),
        )
        print(f"The card of {next(iter(paths.values()))} has them as well.")


def other_forget_set(args, run: dict) -> bool:
    """Whether the forget set was chosen otherwise than in the run, whose card is about its own."""
    if run.get("forget_classes"):
        return set(args.forget_classes or ()) != set(run["forget_classes"])
    if run.get("forget_list"):
        return not args.forget_list  # it may have moved
    return bool(run and (args.forget_classes or args.forget_list))  # by rows or values, which a run.yaml does not name


def on_training(args) -> bool:
    """Whether the figures are of pictures that the run was trained on: of those to be forgotten themselves."""
    return args.eval_split in (None, "none", args.train_split)


def named(word: str) -> tuple[str, str]:
    """'name=folder' -> (name, folder); a folder alone is named by its last part."""
    name, equals, path = word.partition("=")
    return (name, path) if equals else (Path(word).name, word)


def read_arguments():
    """The options, with what is not given as in the run of the first model; and the run.yaml of every model, {} where there is none."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--models", nargs="*")
    early.add_argument("--config")
    given, rest = early.parse_known_args()
    if given.models is None and given.config is None and Path("unlearned-mnist-mae").is_dir():
        given.config = DEMO
    given.config = given.config and str(find_config(given.config))
    options = (yaml.safe_load(Path(given.config).read_text()) or {}) if given.config and Path(given.config).is_file() else {}
    words = given.models if given.models is not None else options.get("models") or []
    runs = {}
    for name, path in map(named, words):
        file = Path(path) / "run.yaml"
        runs[name] = (yaml.safe_load(file.read_text()) or {}) if file.is_file() else {}
    asked = {word.split("=")[0].lstrip("-") for word in rest} | options.keys()
    run, ways = first_run(runs), {"forget_classes", "forget_column", "forget_values", "forget_rows", "forget_list"}
    # The availability of retain pictures concerns training alone.
    unwanted = {"retain_per_class", "proxy_classes", "proxy_dataset", "streaming"} | (ways if asked & ways else set())
    known = {f.name for f in fields(SplitArguments)} - unwanted
    inherited = {k: v for k, v in run.items() if k in known | {"on_corrupt"}}
    if "model" in run:
        inherited |= {"original": run["model"], "original_patches": run.get("patches")}
        inherited["corruptions"] = (run.get("eval_corruption") or run["corruption"]).split(",")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(inherited | options, file)
        file.flush()
        rest += ["--models", *words] if words else []
        if given.config and not options:
            rest += ["--config", given.config]  # to be refused in words
        (args,) = parse((Arguments,), __doc__, rest, demo=file.name)
    if not args.models:
        raise InputError("--models is missing: one or more unlearned checkpoints. recipes/unlearn_mae.py makes one.")
    if args.features is None:
        args.features = ["demo"] if args.dataset == "mnist-demo" else ["inception", "clip"]
    return args, runs


def first_run(runs: dict) -> dict:
    """The options of the first model's run."""
    return next(iter(runs.values()), {})


@torch.no_grad()
def draw(args, folder, original, models, reader, rows, plan, networks, found, runs) -> list[str]:
    """Completion grids, t-SNE, metric against crop ratio and against run options; the names of the files."""
    made = []
    for what, (corruption, crossed) in plan.items():
        if args.pictures and not crossed:
            shown = {n: r[:: max(1, len(r) // args.pictures)][: args.pictures] for n, r in rows.items()}
            grid = {n: completions({"original": original} | models, reader, corruption, r, args.seed) for n, r in shown.items()}
            made.append(f"completions-{what.replace(':', '-')}.png")
            completion_grid(grid, folder / made[-1])
    if args.tsne and networks:
        corruption = next(iter(plan.values()))[0]
        shown = {n: r[:: max(1, len(r) // args.tsne)][: args.tsne] for n, r in rows.items()}
        for region in args.regions:
            groups = {}
            for n, r in shown.items():
                groups |= {
                    f"{n} {k}": v
                    for k, v in embeddings(
                        {"original": original} | models, reader, corruption, r, networks[0], region, args.seed
                    ).items()
                }
            made.append(f"tsne-{region}.png")
            embedding_map(groups, folder / made[-1], args.seed)
    table = feature_rows(found)
    grid = next(iter(models.values())).grid
    crops = {
        w: c.hidden(grid) / (grid[0] * grid[1]) for w, (c, x) in plan.items() if w.startswith(("center:", "ratio:")) and not x
    }
    if len(crops) > 1:
        chosen = [r | {"ratio": crops[r["corruption"]]} for r in table if r["corruption"] in crops]
        made += curves(chosen, "ratio", folder, "share of the picture that is cropped")
    for option in args.figures:
        first, models_of_it = next(iter(plan)), alike(runs, option)
        chosen = [r | {option: runs[r["model"]].get(option)} for r in table if r["corruption"] == first]
        chosen = [r for r in chosen if r["model"] in models_of_it]
        if any(r[option] is None for r in chosen):
            # No limit on the retain pictures means all of them: a word in the figure.
            chosen = [r | {option: "all" if r[option] is None else f"{r[option]:g}"} for r in chosen]
        made += curves(chosen, option, folder, option.replace("_", " "), log=option in ("alpha", "learning_rate", "max_steps"))
    return made


def curves(rows, x, folder, label, log=False):
    made = []
    for network, region in dict.fromkeys((r["network"], r["region"]) for r in rows):
        chosen = [r for r in rows if (r["network"], r["region"]) == (network, region)]
        name = f"{x}-{network.replace('/', '-').replace(' ', '-')}-{region}.png" if network else f"{x}.png"
        metric_curves(chosen, x, {"mse": "hole MSE"} | METRICS, folder / name, label, log)
        made.append(name)
    return made


def write_tables(args, folder, found, description, runs) -> str:
    parts = [f"Dataset {description['dataset']}, {description['evaluation']}; forget: {description['forget']}."]
    for what, results in found.items():
        how = (
            " (the original completes the rest from what the model filled in; errors of whole pictures)" if " " in what else ""
        )
        parts += [f"## {what}{how}"]
        for name, result in results.items():
            parts += [f"### {name}" if len(results) > 1 else "", markdown_table(result)]
        if "features" in result["retain"]:
            parts += [feature_table(results)]
    for option in args.figures:
        parts += [f"## Against {option}", ablation_table(found, runs, option)]
    private = () if args.card_names else ("forget_values", "forget_rows")
    parts += [f"```bash\n{command_line('recipes/evaluate.py', private)}\n```"]
    text = "\n\n".join(p for p in parts if p)
    (folder / "table.md").write_text(text + "\n")
    made_with = {p: version(p) for p in ("torch", "transformers", "diffusers", "datasets")}
    everything = {"description": description, "results": found, "runs": runs_of(runs), "made_with": made_with}
    (folder / "results.json").write_text(json.dumps(everything, indent=1))
    rows = feature_rows(found)
    with open(folder / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(k for r in rows for k in r)))
        writer.writeheader()
        writer.writerows(rows)
    return text.rsplit("```bash", 1)[0].rstrip()


def alike(runs, option) -> list[str]:
    """The models whose runs differ from the first one's in nothing but this option, as far as `ABLATIONS` tell."""
    first = first_run(runs)
    return [name for name, run in runs.items() if all(run.get(o) == first.get(o) for o in ABLATIONS if o != option)]


def runs_of(runs):
    return {name: {k: run.get(k) for k in ("method", *ABLATIONS)} for name, run in runs.items()}


def ablation_table(found, runs, option) -> str:
    """Table 3 of the paper: a column per value of the option, a row per metric and set, of the first T."""
    rows = feature_rows({next(iter(found)): next(iter(found.values()))})
    models = sorted(alike(runs, option), key=lambda m: (runs[m].get(option) is None, runs[m].get(option)))
    values = [runs[m].get(option) for m in models]
    lines = [f"| {option} | | {' | '.join('all' if v is None else f'{v}' for v in values)} |", "|---" * (len(models) + 2) + "|"]
    for place, (network, region) in enumerate(dict.fromkeys((r["network"], r["region"]) for r in rows)):
        for key, title in (({} if place else {"mse": "hole MSE"}) | METRICS).items():
            for which in ("retain", "forget"):
                at = {r["model"]: r.get(key) for r in rows if (r["network"], r["region"], r["set"]) == (network, region, which)}
                if any(v is not None for v in at.values()):
                    where = f" ({network}, {region})" if key != "mse" else ""
                    lines.append(f"| {title}{where} | {which} | {' | '.join(f'{at[m]:.3g}' for m in models)} |")
    return "\n".join(lines)


def card_text(args, found) -> str:
    which = (
        "training pictures: the forget set here is of those that were to be forgotten"
        if on_training(args)
        else "pictures of the evaluation split"
    )
    parts = [f"Measured by `recipes/evaluate.py` after training, on {which}. A blank hole is the floor."]
    for what, results in found.items():
        parts += [f"### {what}", markdown_table(next(iter(results.values())))]
        if "features" in next(iter(results.values()))["retain"]:
            parts.append(feature_table({"this model": next(iter(results.values()))}))
    private = () if args.card_names else ("forget_values", "forget_rows")
    return "\n\n".join([*parts, f"```bash\n{command_line('recipes/evaluate.py', private)}\n```"])


def card_results(found, dataset, where="") -> list[EvalResult]:
    """Before and after of every figure, for the metadata."""
    results = []
    for row in feature_rows(found):
        for key in METRICS:
            if key not in row:
                continue
            place = (
                f"features of {'whole pictures' if row['region'] == 'whole' else 'the hole alone'} by {row['network']}{where}"
            )
            for when, prefix in (("before", "original_"), ("after", "")):
                results.append(
                    EvalResult(
                        task_type="image-to-image",
                        dataset_type=dataset,
                        dataset_name=dataset,
                        dataset_config=row["set"],
                        metric_type=key if key != "fid" or "Inception" in row["network"] else "frechet_distance",
                        metric_name=f"{METRICS[key]}, {place} ({row['corruption']}), {when} unlearning",
                        metric_value=round(row[prefix + key], 4),
                    )
                )
    return results


if __name__ == "__main__":
    run(main)
