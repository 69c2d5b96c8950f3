"""One evaluation of unlearned checkpoints: words turned into objects, the figures, and what is written of them."""

from accelerate import Accelerator
from transformers.utils.logging import disable_progress_bar

from ...data.reading import ImageReader, load_processor
from ...data.splits import Splits, build_splits
from ...errors import InputError
from ...evaluation.evaluator import Evaluator
from ...evaluation.feature_loaders import load_features
from ...evaluation.features import hash_weights
from ...experiments.measurement import Cells, draw_completions, plan_of, write_results
from ...experiments.unlearned import Ablations, card_results, card_summary, card_tables, draw_crops, draw_maps, result_tables
from ...markdown import tables as markdown
from ...models.auto import DEMOS, family_options, load_model
from ...models.base import I2IModel
from ...models.patches import merge
from ...reporting.model_card import write_section
from ...reporting.plots import to_show
from ...reporting.run_folder import METRICS, TRAINING_METRICS, RunFolder
from ..cli import command_line
from ..evaluate import ABLATIONS, first_run, named
from ..words import CORRUPTION_HELP, parse_corruption

FREE = {
    "models",
    "corruptions",
    "cross_validation",
    "output_dir",
    "batch_size",
    "pictures",
    "show_forgotten",
    "tsne",
    "figures",
    "use_cpu",
    "update_card",
}


def run_evaluation(args, runs: dict[str, dict]) -> None:
    """Measure the models, write the folder and, of a single one, the section of its card.

    Args:
        args: `Arguments` of the command. runs: {model: the options of its run, {} where they are not known}.

    Raises:
        InputError: words or models that do not go together, or a folder that holds figures of other options.
    """
    accelerator = Accelerator(cpu=args.use_cpu)
    disable_progress_bar()
    paths = dict(named(word) for word in args.models)
    _refuse(args, paths)
    plan = plan_of(*(list(map(parse_corruption, words or [])) for words in (args.corruptions, args.cross_validation)))
    networks = [] if args.features == ["none"] else [n.to(accelerator.device) for n in load_features(args.features)]
    original, models = load_models(args, paths, runs, accelerator.device)
    for corruption, _ in plan.values():
        corruption.check(original.grid)
    processor = load_processor(DEMOS.get(args.original, args.original))
    reader = ImageReader(processor, original.channels, None, args.on_corrupt, args.background)
    splits = build_splits(args, next((record for path in paths.values() if (record := RunFolder(path).request)), None))
    rows = {"retain": splits.eval_retain, "forget": splits.eval_forget}
    evaluator = Evaluator(
        original, rows, reader, next(iter(plan.values()))[0], args.batch_size, args.seed, accelerator, features=networks,
        regions=tuple(args.regions), inception_splits=args.inception_splits,
    )  # fmt: skip
    if accelerator.is_main_process:
        described = [network.describe() for network in networks]
        RunFolder(args.output_dir).claim(args, free=FREE, leave_out=private(args), networks=described)
    accelerator.wait_for_everyone()
    weights = {name: hash_weights(model) for name, model in models.items()}
    found = Cells(args.output_dir, evaluator, plan, models, weights, hash_weights(original)).measure()
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    made = draw(args, {"original": original} | models, reader, rows, plan, networks, found, runs)
    page = write(args, found, splits, runs)
    print(f"\n{page}\n\nIn {args.output_dir}: results.json, results.csv, table.md{''.join(f', {m}' for m in made)}.")
    if args.update_card and len(paths) == 1:
        write_card_section(args, next(iter(paths.values())), found, splits, first_run(runs))


def _refuse(args, paths):
    """Raise InputError for words that do not go together, before anything is loaded."""
    if len(paths) < len(args.models):
        raise InputError(f"Two of the models have the same name; give them names: NAME=FOLDER. Got {' '.join(args.models)}.")
    if not args.original:
        raise InputError("--original is missing: the checkpoint that was unlearned (there is no run.yaml that names it).")
    if not args.corruptions:
        raise InputError(f"--corruptions is missing, such as center:8. {CORRUPTION_HELP}.")
    for option in args.figures:
        if option not in ABLATIONS:
            raise InputError(f"'{option}' is no option to draw against; choose from {', '.join(ABLATIONS)}.")


def load_models(args, paths: dict[str, str], runs: dict[str, dict], device) -> tuple[I2IModel, dict[str, I2IModel]]:
    """The original, with the patches that belong to it merged, and the unlearned models, all on the device.

    Raises:
        InputError: nothing there, or models of different kinds.
    """
    options = family_options(first_run(runs), args.generation_steps)
    original = load_model(args.original, args.original_patches or (), **options)
    if args.original_patches:
        merge(original)
    original, models = original.to(device).eval(), {}
    for name, path in paths.items():
        options = family_options(runs[name] or first_run(runs), args.generation_steps)
        options.pop("subfolder", None)  # that of the original
        models[name] = load_model(path, **options).to(device).eval()
        if type(models[name]) is not type(original) or models[name].grid != original.grid:
            raise InputError(f"'{path}' and the original '{args.original}' are models of different kinds or sizes.")
    return original, models


def draw(args, models, reader, rows, plan, networks, found, runs) -> list[str]:
    """Completion grids, t-SNE, metrics against crop ratio and against options of runs; the names of the files."""
    folder = args.output_dir
    made = draw_completions(folder, plan, models, reader, to_show(rows, args.pictures, args.show_forgotten), args.seed)
    if args.tsne and networks:
        corruption = next(iter(plan.values()))[0]
        made += draw_maps(folder, corruption, models, reader, rows, networks[0], args.regions, args.tsne, args.seed)
    made += draw_crops(folder, found, plan, models["original"].grid)
    for option in args.figures:
        made += Ablations(runs, ABLATIONS).draw(found, option, folder)
    return made


def write(args, found: dict, splits: Splits, runs: dict) -> str:
    """Write results.json, results.csv and table.md; returns the tables as Markdown."""
    d, ablations = splits.description, Ablations(runs, ABLATIONS)
    tables = result_tables(found) + [ablations.table(found, option) for option in args.figures]
    text = f"Dataset {d['dataset']}, {d['evaluation']}; forget: {d['forget']}.\n\n{markdown(tables, level=2)}"
    page = f"{text}\n\n```bash\n{command_line('recipes/evaluate.py', private(args))}\n```"
    write_results(args.output_dir, found, page, description=d, runs=ablations.described(), tables=tables)
    return text


def write_card_section(args, folder: str, found: dict, splits: Splits, run: dict) -> None:
    """Keep the figures in the folder of the run that was measured, and show them in its card, if there is one."""
    kept = RunFolder(folder)
    if not kept.card.is_file():
        return
    if other_forget_set(args, run):
        print("Its card was left as it is: these are other pictures than those that the run was to forget.")
        return
    trained = on_training(args)
    section, where = (TRAINING_METRICS, ", training pictures") if trained else (METRICS, "")
    which = "pictures of the evaluation split"
    if trained:
        which = "training pictures: the forget set here is of those that were to be forgotten"
    text = f"Measured by `recipes/evaluate.py` after training, on {which}. A blank hole is the floor."
    results = card_results(found, splits.description["dataset"], where)
    command = command_line("recipes/evaluate.py", private(args))
    earlier = kept.write_evaluation(section, card_tables(found), text, command, results, card_summary(found))
    write_section(folder, section, earlier)
    print(f"The card of {folder} has them as well.")


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


def private(args) -> tuple[str, ...]:
    """Options that are kept out of what is written."""
    return () if args.card_names else ("forget_values", "forget_rows")
