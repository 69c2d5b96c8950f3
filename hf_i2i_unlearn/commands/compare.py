"""Compare unlearning methods from one original model, under the same budget, pictures and seeds.

    hf-i2i-unlearn compare --model mnist-demo-mage --config compare_mnist_mae

Each method is run at several learning rates and alphas and measured at several steps on the way, so that what it forgets can be
read at a matched cost on the retain set (the frontier) and not at one lucky point. The control, ordinary training on the
retain set alone, stands beside them. Without --model it compares all methods on the embedded demo, in a few minutes.

The output folder gets results.csv, results.json, table.md (the best point of each method within the tolerated rise of the
retain error), frontier.png and before_after.png. A broken-off comparison goes on where it was when the command is given again.
"""

from dataclasses import dataclass, field

from ..data.options import SplitArguments
from ..methods.method import METHODS
from ..training.config import UnlearningConfig
from .cli import JsonDict, command_line, parse
from .options import ObjectiveArguments
from .words import CORRUPTION_HELP, NOISE_HELP, find_distance, find_method, noise_maker, parse_corruption


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
    generation_steps: int | None = field(default=None, metadata={"help": "Steps of generation (diffusion, MAGE)."})
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


FREE = (
    "methods",
    "learning_rates",
    "alphas",
    "tolerance",
    "pictures",
    "show_forgotten",
)  # what may differ within one comparison


def main() -> None:
    args, training = parse((Arguments, UnlearningConfig), __doc__, demo="compare_mnist_mae")

    from pathlib import Path

    from transformers.utils.logging import disable_progress_bar

    from ..data.reading import ImageReader, load_processor
    from ..experiments.comparison import gather, plan_of
    from ..experiments.frontier import Frontier
    from ..experiments.runs import Comparison, NamedPictures
    from ..models.auto import DEMOS
    from ..originals.quality import load_original
    from ..reporting.run_folder import RunFolder

    methods = [find_method(word, args.variant) for word in args.methods]
    folder, path = Path(training.output_dir), DEMOS.get(args.model, args.model)
    disable_progress_bar()

    def load():
        return load_original(path, args.generation, args.generation_steps)

    original = load().requires_grad_(False).to(training.device)
    corruption, eval_corruption = (
        parse_corruption(word) for word in (args.corruption, args.eval_corruption or args.corruption)
    )
    eval_corruption.check(original.grid)
    pictures, processor = NamedPictures(args), load_processor(path)
    reader = ImageReader(processor, original.channels, background=args.background)
    frontier = Frontier(
        folder, original, pictures.rows, reader, eval_corruption, training.seed, args.pictures, args.show_forgotten
    )
    runs = Comparison(
        folder, load, original, processor, pictures, training, corruption,
        max(args.measure_at), frontier.measure, noise_maker(pictures.forget, reader, args.noise_rank, training.seed),
        find_distance(args.distance), background=args.background,
    )  # fmt: skip
    RunFolder(folder).claim(args, training, what="runs", free=FREE)
    limits = {
        "noise": args.noise,
        "retain_per_class": args.retain_per_class,
        "proxy": bool(args.proxy_classes or args.proxy_dataset),
    }
    points = gather(runs, plan_of(methods, args.learning_rates, args.alphas, **limits), args.measure_at)
    text = frontier.write(points, args.methods, args.tolerance, command_line("recipes/compare.py"))
    print(f"\n{text}\n\nIn {folder}: results.csv, results.json, table.md, frontier.png, before_after.png.")
