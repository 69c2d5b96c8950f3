"""Measure an original model against completions that have learnt nothing: is there anything to unlearn?

    python recipes/evaluate_original.py --model model_cards/photos-mae --dataset photos-32 --corruptions center:4 center:2 \
        --features classifier:model_cards/photos-classifier

It completes held-out pictures under every T of --corruptions with the original, with the mean colour of what is visible, by
biharmonic inpainting and with further checkpoints (--models never_saw=FOLDER), and says whether the original beats the trivial ones.
With --forget_classes (and --retain_classes) both sets are measured apart. The output folder gets table.md, results.json,
results.csv and pictures; the card in the model's folder a section "Against trivial completions". A broken-off measurement goes
on. Without options it measures the embedded original of digits, in a few seconds.
"""

import csv
import json
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator
from huggingface_hub import EvalResult
from transformers.utils.logging import disable_progress_bar

from hf_i2i_unlearn import Evaluator, ImageReader, InputError, by_classes, load_processor, load_source, select, undecoded
from hf_i2i_unlearn.commands.cli import JsonDict, command_line, parse, run
from hf_i2i_unlearn.commands.words import CORRUPTION_HELP, parse_corruption
from hf_i2i_unlearn.data.options import SplitArguments
from hf_i2i_unlearn.data.sources import first_rows
from hf_i2i_unlearn.data.splits import build_splits
from hf_i2i_unlearn.evaluation.completions import completions
from hf_i2i_unlearn.evaluation.feature_loaders import FEATURES_HELP, load_features
from hf_i2i_unlearn.evaluation.features import hash_weights
from hf_i2i_unlearn.evaluation.tables import describe_scores, feature_rows
from hf_i2i_unlearn.evaluation.trivial import TRIVIAL, TrueTokens
from hf_i2i_unlearn.models.auto import DEMOS
from hf_i2i_unlearn.originals.quality import against_trivial, load_original, original_table, verdict
from hf_i2i_unlearn.reporting.model_card import update_card
from hf_i2i_unlearn.reporting.plots import completion_grid
from hf_i2i_unlearn.reporting.run_folder import claim_folder, kept

DEMO = "evaluate_original_mnist_mae"
SECTION = "Against trivial completions"
FREE = ("models", "trivial", "corruptions", "output_dir", "batch_size", "pictures", "use_cpu", "card", "streaming")


@dataclass
class Arguments(SplitArguments):
    """What to measure."""

    model: str = field(default="mnist-demo", metadata={"help": "The original: folder, Hub id or a demo."})
    models: list[str] = field(
        default_factory=list,
        metadata={"help": "Further checkpoints of its kind, such as one that never saw some classes, as NAME=FOLDER."},
    )
    trivial: list[str] = field(
        default_factory=lambda: [name.split()[0] for name in TRIVIAL],
        metadata={"help": f"Trivial completions, of {', '.join(name.split()[0] for name in TRIVIAL)}."},
    )
    classes: list[str] | None = field(
        default=None, metadata={"help": "Measure on these classes alone, where no forget classes are named; all if not given."}
    )
    corruptions: list[str] = field(
        default_factory=lambda: ["center:8", "center:4"], metadata={"help": f"T(x), several of: {CORRUPTION_HELP}."}
    )
    features: list[str] = field(
        default_factory=lambda: ["inception", "clip"],
        metadata={"help": f"Networks, several of: {FEATURES_HELP}; none measures without."},
    )
    generation_steps: int | None = field(default=None, metadata={"help": "Steps of generation (diffusion, MAGE)."})
    generation: JsonDict = field(
        default_factory=JsonDict,
        metadata={
            "help": 'Options of the family, as JSON or in YAML, such as {"margin": 0} (MAGE); else as pretrained (run.yaml).'
        },
    )
    sampler: str | None = field(
        default=None, metadata={"choices": ["ddim", "ddpm"], "help": "Diffusion: ddpm at full steps is the reference."}
    )
    batch_size: int = field(default=64, metadata={"help": "Pictures per device and pass."})
    on_corrupt: str = field(
        default="refuse", metadata={"choices": ["refuse", "skip"], "help": "What an unreadable picture does."}
    )
    pictures: int = field(
        default=4, metadata={"help": "Pictures per set in the grid of completions, one grid per T; 0 = none."}
    )
    card: bool = field(default=True, metadata={"help": "Add the figures to the card in the model's folder, if there is one."})
    output_dir: str = field(default="evaluated-original", metadata={"help": "Folder for the figures."})
    seed: int = field(default=0, metadata={"help": "Fixes T and generation."})
    use_cpu: bool = field(default=False, metadata={"help": "Use the CPU even where there is a GPU."})


def main():
    (args,) = parse((Arguments,), __doc__, demo=DEMO)
    accelerator = Accelerator(cpu=args.use_cpu)
    disable_progress_bar()
    corruptions = {str(c): c for c in map(parse_corruption, args.corruptions)}
    trivial = {name: make for name, make in TRIVIAL.items() if name.split()[0] in args.trivial}
    if unknown := set(args.trivial) - {name.split()[0] for name in TRIVIAL}:
        raise InputError(f"'{unknown.pop()}' is no trivial completion; choose from {', '.join(n.split()[0] for n in TRIVIAL)}.")
    others = read_models(args.models)
    networks = [] if args.features == ["none"] else load_features(args.features)
    original = load(args, args.model)
    models = {"original": original} | {name: load(args, path) for name, path in others.items()}
    for name, model in models.items():
        model.to(accelerator.device)
        if type(model) is not type(original) or model.grid != original.grid or model.image_size != original.image_size:
            raise InputError(f"'{others[name]}' and '{args.model}' are models of different kinds or sizes.")
    for network in networks:
        network.to(accelerator.device)
    for corruption in corruptions.values():
        corruption.check(original.grid)
    rules = {name: make(original) for name, make in trivial.items()}
    if original.family == "mage":
        rules["true tokens"] = TrueTokens(original)  # no completion, but the most that one can reach
    keys = {name: hash_weights(model) for name, model in models.items()}
    reader = ImageReader(load_processor(DEMOS.get(args.model, args.model)), original.channels, None, args.on_corrupt)
    rows, description = pictures(args)
    folder = Path(args.output_dir)
    if accelerator.is_main_process:
        claim_folder(folder, args, free=FREE, leave_out=private(args), networks=[n.describe() for n in networks])
    accelerator.wait_for_everyone()

    first, found = None, {}
    for what, corruption in corruptions.items():
        evaluator, found[what] = None, {}
        for name, model in (rules | models).items():
            if accelerator.is_main_process:
                print(f"{what}: {name}", flush=True)

            def measure():
                nonlocal first, evaluator
                if first is None:
                    first = Evaluator(
                        original, rows, reader, corruption, args.batch_size, args.seed, accelerator, keep_original=True,
                        features=networks,
                    )  # fmt: skip
                evaluator = evaluator or first.under(corruption)
                return evaluator(model)

            file = folder / "cells" / f"{name}-{what}.json".replace(":", "-").replace(" ", "-")
            key = {"original": keys["original"], "weights": keys.get(name, name)}
            found[what][name] = kept(file, key, measure, accelerator)
        if args.pictures and accelerator.is_main_process:
            shown = {n: r[:: max(1, len(r) // args.pictures)][: args.pictures] for n, r in rows.items()}
            with torch.no_grad():
                grid = {
                    n: completions({"original": original} | rules | models, reader, corruption, r, args.seed)
                    for n, r in shown.items()
                }
            completion_grid(grid, folder / f"completions-{what.replace(':', '-')}.png")
    if accelerator.is_main_process:
        write(args, folder, found, rows, description)


def read_models(words):
    """['name=folder'] -> {name: folder}."""
    found = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not (equals and name and path) or name in found or name in ("original", *TRIVIAL):
            raise InputError(f"'{word}' in --models must be NAME=FOLDER, with a name that is not taken.")
        found[name] = path
    return found


def load(args, path):
    model = load_original(path, args.generation, args.generation_steps)
    if args.sampler:
        if not hasattr(model, "sample_with"):
            raise InputError(f"--sampler is an option of diffusion; '{path}' is of the family '{model.family}'.")
        from diffusers import DDIMScheduler, DDPMScheduler

        model.sample_with({"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[args.sampler])
    return model


def pictures(args):
    """{set: rows} and a line that says what they are: both sets of an unlearning run, or one of all classes or some."""
    if args.forget_classes or args.forget_values or args.forget_rows or args.forget_list:
        splits = build_splits(args)
        d = splits.description
        text = f"{d['dataset']}, {d['evaluation']}; forget: {d['forget']}; retain: {d['retain']}"
        return {"retain": splits.eval_retain, "forget": splits.eval_forget}, text
    if args.retain_classes:
        raise InputError("--retain_classes goes with --forget_classes; to measure on some classes alone take --classes.")
    name = args.train_split if args.eval_split in (None, "none") else args.eval_split
    source = load_source(args.dataset, name, args.dataset_config, args.streaming)
    if args.classes:
        source = select(source, by_classes(source, args.classes, args.label_column), True, args.image_column)
    rows = first_rows(undecoded(source, args.image_column), args.eval_samples)
    if not rows:
        raise InputError(f"The split '{name}' holds no picture of these classes; choose another --eval_split or --classes.")
    which = f"classes {', '.join(args.classes)}" if args.classes else "all classes"
    return {name: rows}, f"{args.dataset}, split '{name}', {which}"


def private(args):
    return () if args.card_names else ("forget_values", "forget_rows")


def write(args, folder, found, rows, description):
    """table.md, results.json, results.csv, and the section of the card."""
    verdicts = {what: {which: against_trivial(results, which) for which in rows} for what, results in found.items()}
    counts = " and ".join(f"{len(r)} {name}" for name, r in rows.items())
    parts = [f"Pictures: {description}; {counts}. The original: `{args.model}`."]
    result = next(iter(next(iter(found.values())).values()))
    parts += [describe_scores(how) for how in result[next(iter(rows))].get("features", ())]
    for what, results in found.items():
        for which in rows:
            title = f"`{what}`" + (f", {which}" if len(rows) > 1 else "")
            parts += [f"### {title}", original_table(results, which)]
            if any(name in results for name in TRIVIAL):
                parts.append(verdict(verdicts[what][which], title))
    text = "\n\n".join(parts)
    command = f"```bash\n{command_line('recipes/evaluate_original.py', private(args))}\n```"
    (folder / "table.md").write_text(f"# {Path(args.model).name}: {SECTION.lower()}\n\n{text}\n\n{command}\n")
    made_with = {p: version(p) for p in ("torch", "transformers", "diffusers", "datasets")}
    everything = {"description": description, "results": found, "against_trivial": verdicts, "made_with": made_with}
    (folder / "results.json").write_text(json.dumps(everything, indent=1))
    table = feature_rows(found)
    with open(folder / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(k for r in table for k in r)))
        writer.writeheader()
        writer.writerows(table)
    print(f"\n{text}\n\nIn {folder}: table.md, results.json, results.csv.")
    if args.card and (Path(args.model) / "README.md").is_file():
        update_card(args.model, SECTION, f"{text}\n\n{command}", card_results(found, args.dataset))
        print(f"The card of {args.model} has them in '{SECTION}'.")


def card_results(found, dataset):
    """The original's figures for the metadata."""
    name, results = Path(dataset).name, {}
    for row in feature_rows({what: {"original": r["original"]} for what, r in found.items()}):
        where = (
            f" of {'whole pictures' if row['region'] == 'whole' else 'the hole alone'} by {Path(row['network']).name}"
            if row["region"]
            else ""
        )
        for key, kind in {
            "mse": "mse",
            "psnr": "psnr",
            "fid": "frechet_distance",
            "similarity": "similarity",
            "accuracy": "accuracy",
        }.items():
            if key in row:
                title = (
                    f"{key} in the hole ({row['corruption']})"
                    if key in ("mse", "psnr")
                    else f"{kind.replace('_', ' ')}, features{where} ({row['corruption']})"
                )
                results[row["set"], title] = EvalResult(
                    task_type="image-to-image",
                    dataset_type=name,
                    dataset_name=name,
                    dataset_config=row["set"],
                    metric_type=kind,
                    metric_name=title,
                    metric_value=round(row[key], 4),
                )
    return list(results.values())


if __name__ == "__main__":
    run(main)
