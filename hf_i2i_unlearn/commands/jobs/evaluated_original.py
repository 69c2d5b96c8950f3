"""One measurement of an original: words turned into objects, the figures, and what is written of them."""

from pathlib import Path

from accelerate import Accelerator
from transformers.utils.logging import disable_progress_bar

from ...data.reading import ImageReader, load_processor
from ...data.requests import load_classes
from ...data.sources import first_rows, undecoded
from ...data.splits import build_splits
from ...errors import InputError
from ...evaluation.evaluator import Evaluator
from ...evaluation.feature_loaders import load_features
from ...evaluation.features import hash_weights
from ...evaluation.trivial import TRIVIAL, TrueTokens
from ...experiments.measurement import Cells, draw_completions, plan_of, write_results
from ...experiments.originals import SECTION, against_trivial_text, card_results
from ...models.auto import DEMOS
from ...models.base import I2IModel
from ...originals.quality import against_trivial, load_original
from ...reporting.model_card import update_card
from ...reporting.plots import to_show
from ...reporting.run_folder import RunFolder
from ..cli import command_line
from ..words import parse_corruption

FREE = (
    "models",
    "trivial",
    "corruptions",
    "output_dir",
    "batch_size",
    "pictures",
    "show_forgotten",
    "use_cpu",
    "update_card",
    "streaming",
)


def run_measurement(args) -> None:
    """Measure the original and what it stands beside; write the folder and a section of the card.

    Args:
        args: `Arguments` of the command.

    Raises:
        InputError: words or models that do not go together, or a folder that holds figures of other options.
    """
    accelerator = Accelerator(cpu=args.use_cpu)
    disable_progress_bar()
    plan = plan_of(list(map(parse_corruption, args.corruptions)))
    words = {name.split()[0]: make for name, make in TRIVIAL.items()}
    if unknown := set(args.trivial) - words.keys():
        raise InputError(f"'{unknown.pop()}' is no trivial completion; choose from {', '.join(words)}.")
    others = read_models(args.models)
    networks = [] if args.features == ["none"] else [n.to(accelerator.device) for n in load_features(args.features)]
    models = load_models(args, others, accelerator.device)
    original = models["original"]
    for corruption, _ in plan.values():
        corruption.check(original.grid)
    rules = {name: make(original) for name, make in TRIVIAL.items() if name.split()[0] in args.trivial}
    if original.family == "mage":
        rules["true tokens"] = TrueTokens(original)  # no completion, but the most that one can reach
    weights = {name: name for name in rules} | {name: hash_weights(model) for name, model in models.items()}
    processor = load_processor(DEMOS.get(args.model, args.model))
    reader = ImageReader(processor, original.channels, None, args.on_corrupt, args.background)
    rows, description = pictures(args)
    if accelerator.is_main_process:
        described = [network.describe() for network in networks]
        RunFolder(args.output_dir).claim(args, free=FREE, leave_out=private(args), networks=described)
    accelerator.wait_for_everyone()
    evaluator = Evaluator(
        original, rows, reader, next(iter(plan.values()))[0], args.batch_size, args.seed, accelerator, keep_original=True,
        features=networks,
    )  # fmt: skip
    found = Cells(args.output_dir, evaluator, plan, rules | models, weights, weights["original"]).measure()
    if accelerator.is_main_process:
        shown = {"original": original} | rules | models
        draw_completions(args.output_dir, plan, shown, reader, to_show(rows, args.pictures, args.show_forgotten), args.seed)
        write(args, found, rows, description)


def read_models(words):
    """['name=folder'] -> {name: folder}."""
    found = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not (equals and name and path) or name in found or name in ("original", *TRIVIAL):
            raise InputError(f"'{word}' in --models must be NAME=FOLDER, with a name that is not taken.")
        found[name] = path
    return found


def load_models(args, others: dict[str, str], device) -> dict[str, I2IModel]:
    """{"original": model, name: model}, all on the device.

    Raises:
        InputError: models of different kinds.
    """
    models = {"original": load(args, args.model)} | {name: load(args, path) for name, path in others.items()}
    first = models["original"]
    for name, model in models.items():
        model.to(device)
        if type(model) is not type(first) or model.grid != first.grid or model.image_size != first.image_size:
            raise InputError(f"'{others[name]}' and '{args.model}' are models of different kinds or sizes.")
    return models


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
    source = load_classes(args, name, args.classes, args.streaming)
    rows = first_rows(undecoded(source, args.image_column), args.eval_samples)
    if not rows:
        raise InputError(f"The split '{name}' holds no picture of these classes; choose another --eval_split or --classes.")
    which = f"classes {', '.join(args.classes)}" if args.classes else "all classes"
    return {name: rows}, f"{args.dataset}, split '{name}', {which}"


def write(args, found: dict, rows: dict[str, list], description: str) -> None:
    """table.md, results.json, results.csv, and the section of the card."""
    verdicts = {what: {which: against_trivial(results, which) for which in rows} for what, results in found.items()}
    counts = " and ".join(f"{len(r)} {name}" for name, r in rows.items())
    text = f"Pictures: {description}; {counts}. The original: `{args.model}`.\n\n{against_trivial_text(found, verdicts)}"
    command = f"```bash\n{command_line('recipes/evaluate_original.py', private(args))}\n```"
    page = f"# {Path(args.model).name}: {SECTION.lower()}\n\n{text}\n\n{command}"
    write_results(args.output_dir, found, page, description=description, against_trivial=verdicts)
    print(f"\n{text}\n\nIn {args.output_dir}: table.md, results.json, results.csv.")
    if args.update_card and RunFolder(args.model).card.is_file():
        update_card(args.model, SECTION, f"{text}\n\n{command}", card_results(found, args.dataset))
        print(f"The card of {args.model} has them in '{SECTION}'.")


def private(args) -> tuple[str, ...]:
    """Options that are kept out of what is written."""
    return () if args.card_names else ("forget_values", "forget_rows")
