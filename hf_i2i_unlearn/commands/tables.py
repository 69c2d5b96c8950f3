"""The paper's tables for one original model: every method with the same tuning effort, over seeds, at a matched retain cost.

    hf-i2i-unlearn tables --config recipes/configs/tables_photos.yaml --model model_cards/photos-mae --dataset photos-32 \
        --tables main alpha retain_per_class noise ratio cross_validation lora bound --output_dir tables-photos-mae

Each method is tuned with the first seed over --learning_rates x --alphas x --measure_at: of the points whose retain cost stays
within --tolerance of the original's, the one that forgets most, judged on one half of the evaluation pictures. That setting is
repeated with the other seeds, and everything is reported on the other half. The ablations vary one thing in the setting chosen
for "ours".

main: Tables 1 and 2, the frontier, the control, and beside ours "ours, proxy retain" where there are --proxy_classes or a
--proxy_dataset.
alpha: Table 3. retain_per_class: Fig. D.6. noise: Fig. E.20 and a low-rank Sigma. ratio: Fig. E.18, E.19. cross_validation:
Table E.4. lora: adapters against all encoder weights. bound: the frontier of runs with a retain bound.

The output folder gets results.md, points.csv, figures, and the weights of "ours" under models/. Whatever a run has shown is
kept in runs/ and never made again: give the command once more after a break, or with more tables, seeds or settings. Families
are told by the checkpoint. One process. Without options it makes two tables of the embedded digits, in a minute or two.
"""

from dataclasses import dataclass, field, fields

from ..data.augmentation import AUGMENTATIONS
from ..data.options import SplitArguments
from ..errors import InputError
from ..evaluation.words import FEATURES_HELP
from ..experiments.effort import TABLES, Effort
from ..methods.method import METHODS
from ..training.config import UnlearningConfig
from .cli import JsonDict, command_line, parse
from .options import ObjectiveArguments
from .words import CORRUPTION_HELP, find_distance, find_method, noise_maker, parse_corruption


@dataclass
class Arguments(Effort, ObjectiveArguments, SplitArguments):
    """What to tabulate."""

    model: str = field(default="mnist-demo", metadata={"help": "The original of any family: folder, Hub id or a demo."})
    generation: JsonDict = field(
        default_factory=JsonDict,
        metadata={"help": 'Options of its generation, as JSON or in YAML, such as {"margin": 0} (MAGE).'},
    )
    generation_steps: int | None = field(default=None, metadata={"help": "Steps of generation (diffusion, MAGE)."})
    methods: list[str] = field(default_factory=lambda: list(METHODS), metadata={"help": f"Of {', '.join(METHODS)}."})
    corruption: str = field(default="center:8", metadata={"help": f"T(x) in training: {CORRUPTION_HELP}."})
    eval_corruptions: list[str] | None = field(
        default=None,
        metadata={"help": "T(x) in evaluation, a table each; points are chosen by the first one. As in training if not given."},
    )
    features: list[str] = field(
        default_factory=lambda: ["inception", "clip"],
        metadata={"help": f"Networks, several of: {FEATURES_HELP}; none measures errors alone."},
    )
    select_by: str = field(
        default="fid hole",
        metadata={
            "choices": ["fid hole", "fid whole", "mse"],
            "help": "What retain cost and forgetting are matched by: the Frechet distance of the first network, or the error.",
        },
    )
    noise_rank: int = field(default=64, metadata={"help": "Directions of the noise low_rank."})
    batch_size: int = field(default=64, metadata={"help": "Pictures per pass in evaluation."})
    augment: str = field(
        default="none",
        metadata={"choices": list(AUGMENTATIONS), "help": "Augmentation in training, of every method's pictures."},
    )
    on_corrupt: str = field(
        default="refuse", metadata={"choices": ["refuse", "skip"], "help": "What an unreadable picture does."}
    )


# Options that add runs and leave the others as they are.
FREE = {"methods", "eval_corruptions", "select_by", "batch_size", "show_forgotten"}
FREE |= {f.name for f in fields(Effort)} - {"measure_at"}


def check(args: Arguments) -> None:
    """Raise InputError for options that make no sense, before anything is loaded."""
    for kind, given, known in (("table", args.tables, TABLES), ("method", args.methods, METHODS)):
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


def main() -> None:
    args, training = parse((Arguments, UnlearningConfig), __doc__, demo="tables_mnist_mae")
    check(args)

    from transformers.utils.logging import disable_progress_bar

    from ..experiments.page import write_page
    from ..experiments.paper_tables import MAKERS

    disable_progress_bar()
    made, description = prepare(args, training)
    parts, command = {}, command_line("recipes/tables.py", private(args))
    for name in [n for n in MAKERS if n in args.tables]:
        parts[name] = MAKERS[name][1](made)
        write_page(made, parts, args.model, description, args.augment, command)
        print(f"\n## {name}\n\n{parts[name]}\n", flush=True)
    print(f"In {training.output_dir}: results.md, points.csv, figures, runs/ and models/.")


def prepare(args: Arguments, training: UnlearningConfig):
    """(`PaperTables`, description of the pictures): words turned into objects, and the folder claimed.

    Raises:
        InputError: words or options that do not go together, or a folder that holds runs of others.
    """
    from pathlib import Path

    from ..data.reading import ImageReader, load_processor
    from ..evaluation.evaluator import Evaluator
    from ..evaluation.feature_loaders import load_features
    from ..experiments.paper_tables import PaperTables
    from ..experiments.runs import Comparison, NamedPictures
    from ..experiments.tables import halves
    from ..experiments.tuning import Tuning
    from ..models.auto import DEMOS
    from ..originals.quality import load_original
    from ..reporting.run_folder import RunFolder

    folder, path = Path(training.output_dir), DEMOS.get(args.model, args.model)
    networks = [] if args.features == ["none"] else [n.to(training.device) for n in load_features(args.features)]
    described = [network.describe() for network in networks]

    def load():
        return load_original(path, args.generation, args.generation_steps)

    original = load().requires_grad_(False).to(training.device)
    corruptions = {str(c): c for c in map(parse_corruption, args.eval_corruptions or [args.corruption])}
    for corruption in corruptions.values():
        corruption.check(original.grid)
    pictures, processor = NamedPictures(args), load_processor(path)
    reader = ImageReader(processor, original.channels, None, args.on_corrupt, args.background)
    runs = Comparison(
        folder, load, original, processor, pictures, training, parse_corruption(args.corruption), max(args.measure_at), None,
        noise_maker(pictures.forget, reader, args.noise_rank, training.seed), find_distance(args.distance), args.on_corrupt,
        AUGMENTATIONS[args.augment], args.background,
    )  # fmt: skip
    evaluator = Evaluator(
        original, halves(pictures.rows), reader, next(iter(corruptions.values())), args.batch_size, training.seed,
        keep_original=True, features=networks,
    )  # fmt: skip
    # A constant rate has no memory of how long the run was to be.
    constant = str(getattr(training.lr_scheduler_type, "value", training.lr_scheduler_type)) == "constant"
    free = FREE | ({"measure_at"} if constant else set())
    RunFolder(folder).claim(args, training, what="runs", free=free, leave_out=private(args), networks=described)
    key = "mse" if args.select_by == "mse" or not networks else f"{args.select_by} 0"
    tuning = Tuning(
        runs, evaluator, corruptions, args, key, find_method("ours", args.variant),
        lambda save, setting, step: write_saved_run(save, args, next(iter(corruptions)), setting, step),
    )  # fmt: skip
    methods = [find_method(word, args.variant) for word in args.methods]
    return PaperTables(
        tuning, methods, described, bool(args.proxy_classes or args.proxy_dataset)
    ), pictures.splits().description


def private(args: Arguments) -> tuple[str, ...]:
    """Options that are kept out of what is written."""
    return () if args.card_names else ("forget_values", "forget_rows")


def write_saved_run(save, args: Arguments, eval_corruption: str, setting, step: int) -> None:
    """run.yaml beside saved weights, as `evaluate` and `audit` read it."""
    import yaml

    from ..reporting.run_folder import OPTIONS
    from ..storage import write_text

    left_out = (*private(args), "proxy_classes", "proxy_dataset")
    options = {f.name: getattr(args, f.name) for f in fields(SplitArguments) if f.name not in left_out}
    options |= {name: getattr(args, name) for name in ("model", "corruption", "on_corrupt", "augment", "noise_rank")}
    options |= {"eval_corruption": eval_corruption, "max_steps": step}
    generation = dict(args.generation) | ({} if args.generation_steps is None else {"steps": args.generation_steps})
    options |= {"generation_steps" if k == "steps" else k: v for k, v in generation.items()}
    own = {f.name: getattr(setting, f.name) for f in fields(setting) if f.name not in ("proxy", "lora", "retain_per_class")}
    text = yaml.safe_dump(options | own | {"method": setting.method.name}, sort_keys=False)
    write_text(save / OPTIONS, text)
