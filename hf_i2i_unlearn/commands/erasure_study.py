"""What erasing is worth: a model that knows pictures by heart is made to forget, attacked, erased, and attacked again.

    hf-i2i-unlearn erasure-study

The attacker has half of the pictures, and what counts is the error on the other half. Without options it takes the embedded
twin of the demo, which knows 100 canaries by heart: pictures whose hidden part is of another one, so that nobody can complete
them but from memory. The output folder gets results.md, rows.json with every figure, came_back.png (what an attack brings
back, against the cost), forgotten.png (the pictures' error, against the drift) and study.png. A broken-off study goes on
there.
"""

from dataclasses import dataclass, field

from ..data.augmentation import AUGMENTATIONS
from ..data.options import SourceArguments
from ..errors import InputError
from ..evaluation.words import FEATURES_HELP
from ..methods.method import METHODS
from .cli import JsonDict, parse
from .words import CORRUPTION_HELP, UNFITTED_NOISE, parse_corruption


@dataclass
class Arguments(SourceArguments):
    """The models, the pictures, and what is tried. Retain pictures are those of --dataset; --eval_split measures the cost."""

    model: str = field(default="mnist-demo-memorised", metadata={"help": "A model that knows pictures by heart (`memorise`)."})
    known: str = field(
        default="mnist-demo-canaries", metadata={"help": "Those pictures: the folder `known` that `memorise` wrote."}
    )
    never_trained: str | None = field(
        default=None, metadata={"help": "A model trained like it, but without those pictures, to compare with."}
    )
    options: JsonDict = field(default_factory=JsonDict, metadata={"help": "Of `from_pretrained` of all of them, as JSON."})
    eval_samples: int = field(
        default=300, metadata={"help": "Pictures of --eval_split, evenly spread; what is known of it is left out."}
    )
    corruption: str = field(default="center:8", metadata={"help": f"T(x): {CORRUPTION_HELP}."})
    augment: str = field(default="none", metadata={"choices": list(AUGMENTATIONS), "help": "Augmentation of retain pictures."})
    methods: list[str] = field(
        default_factory=lambda: ["ours"], metadata={"help": f"What unlearns, of {', '.join(METHODS)}; ours first."}
    )
    proxy_retain: bool = field(
        default=False,
        metadata={"help": "Also ours with other retain pictures than those of training: what --eval_split has left."},
    )
    unlearn_steps: int = field(default=300, metadata={"help": "Steps of unlearning alone, of 16 pairs."})
    unlearn_learning_rates: list[float] = field(
        default_factory=lambda: [1e-3],
        metadata={
            "help": "Of several, each method takes the one that forgets most at 0.03 of retain error, by the first seed."
        },
    )
    unlearn_lr_scheduler_type: str = field(
        default="constant", metadata={"choices": ["constant", "cosine"], "help": "Schedule of their learning rate."}
    )
    unlearn_alpha: float = field(default=0.25, metadata={"help": "Weight of the forget term, of erasures too."})
    unlearn_noise: str = field(
        default="normal",
        metadata={"choices": list(UNFITTED_NOISE), "help": "n, of those that need no pictures; of erasures too."},
    )
    shares: list[float] = field(default_factory=lambda: [1.0], metadata={"help": "Shares to erase."})
    decoder: list[str] = field(
        default_factory=lambda: ["false"],
        metadata={"help": "Erase the decoder too: false, true, or both, one after the other; none: erase nothing."},
    )
    erase_steps: int = field(default=600, metadata={"help": "Steps of each erasure."})
    erase_learning_rate: float = field(default=2e-3, metadata={"help": "Its learning rate, a cosine."})
    erase_muon_learning_rate: float | None = field(
        default=None, metadata={"help": "That of Muon; 0: AdamW alone [0.02, 0 for U-Nets]."}
    )
    erase_batch_size: int = field(default=32, metadata={"help": "Its pairs per step."})
    attack_weights: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={"help": "What attackers train: all, encoder, lora; the first also with retain pictures."},
    )
    attack_learning_rates: list[float] = field(default_factory=lambda: [3e-4, 1e-3], metadata={"help": "Their rates."})
    attack_steps: int = field(default=48, metadata={"help": "Their steps."})
    features: list[str] = field(
        default_factory=lambda: ["none"], metadata={"help": f"Completions are measured by them besides. {FEATURES_HELP}."}
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "The whole is done for each."})
    pictures: int = field(default=6, metadata={"help": "Pictures to show; 0 = none. They are of the attacked half."})
    output_dir: str = field(default="erasure-study", metadata={"help": "Folder for results.md, figures and study.png."})

    def __post_init__(self):
        self.check_whole_splits()
        self.decoder = [] if self.decoder == ["none"] else self.decoder
        if set(self.decoder) - {"false", "true"} or any(not 0 < share <= 1 for share in self.shares):
            raise InputError(
                "--decoder is of false and true, or none, and --shares lie above 0 and are at most 1; got "
                f"{self.decoder} and {self.shares}."
            )
        if "ours" not in self.methods and any(share < 1 for share in self.shares):
            raise InputError("--shares below 1 start from the model that ours has unlearned; add ours to --methods.")
        if not self.methods or set(self.methods) - METHODS.keys():
            raise InputError(f"--methods are of {', '.join(METHODS)}; got {' '.join(self.methods)}.")


def stages_of(args: Arguments, muon: float) -> list:
    """The stages that the options ask for. muon: the learning rate of Muon that suits the family."""
    from ..experiments.erasure_study import Stage

    muon = muon if args.erase_muon_learning_rate is None else args.erase_muon_learning_rate
    effort: dict = {"steps": args.unlearn_steps, "learning_rates": tuple(args.unlearn_learning_rates)}
    effort |= {"scheduler": args.unlearn_lr_scheduler_type, "noise": UNFITTED_NOISE[args.unlearn_noise]()}
    effort |= {"alpha": args.unlearn_alpha}
    stages = [Stage("unlearned" if word == "ours" else word, method=METHODS[word], **effort) for word in args.methods]
    if args.proxy_retain:
        stages.append(Stage("ours, proxy retain", proxy=True, **effort))
    for decoder in args.decoder:
        for share in args.shares:
            name = f"erased {share:.0%}" + (", decoder too" if decoder == "true" else "")
            after = None if share == 1 else "unlearned"
            stages.append(
                Stage(
                    name,
                    args.erase_steps,
                    (args.erase_learning_rate,),
                    muon_learning_rate=muon,
                    batch_size=args.erase_batch_size,
                    share=share,
                    decoder=decoder == "true",
                    after=after,
                    alpha=args.unlearn_alpha,
                    noise=effort["noise"],
                )
            )
    return stages


def main() -> None:
    (args,) = parse((Arguments,), __doc__, demo="erasure_study_mnist_mae")

    from dataclasses import replace
    from pathlib import Path

    from transformers.utils.logging import disable_progress_bar

    from ..data.reading import ImageReader, load_processor
    from ..experiments.erasure_study import Study
    from ..experiments.study_page import study_table
    from ..models.auto import load_model
    from ..reporting.plots import completion_grid

    disable_progress_bar()
    corruption, networks = parse_corruption(args.corruption), load_networks(args)
    known, train, unseen, proxies = load_pictures(args)
    original = load_model(args.model, **args.options).eval()
    twin = load_model(args.never_trained, **args.options).eval() if args.never_trained else None
    augment = AUGMENTATIONS[args.augment]
    reader = ImageReader(load_processor(args.model), original.channels, augment, background=args.background)
    stages, text, studies = stages_of(args, original.muon_learning_rate), [], []
    for seed in args.seeds:
        study = Study(
            original, twin, reader, known, train, unseen, corruption, seed,
            tuple(args.attack_weights), tuple(args.attack_learning_rates), args.attack_steps,
            folder=Path(args.output_dir, f"seed-{seed}"), proxies=proxies, features=networks, options=args.options,
        )  # fmt: skip
        rows = study.run(stages)
        studies.append(rows)
        text.append(f"Seed {seed}:\n\n{study_table(rows)}")
        print(f"\n{text[-1]}\n", flush=True)
        shown = [name for name in ("unlearned", stages[-1].name) if name in study.models]
        if args.pictures and seed == args.seeds[0] and len(shown) == 2:
            columns = study.pictures(rows, shown, args.pictures)
            completion_grid({"forget": columns}, Path(args.output_dir, "study.png"))
        if seed == args.seeds[0]:  # the learning rates are chosen once
            rates = {row["name"]: (row["learning_rate"],) for row in rows}
            stages = [replace(stage, learning_rates=rates[stage.name]) for stage in stages]
    write_study(args, original.family, studies, text)
    shown = ["results.md", "rows.json", "came_back.png", "forgotten.png", *(["study.png"] if args.pictures else [])]
    print(f"In {args.output_dir}: {', '.join(shown)}.")


def load_networks(args: Arguments) -> tuple:
    """The feature networks of the options."""
    from ..evaluation.feature_loaders import load_features

    return () if args.features == ["none"] else tuple(load_features(args.features))


def load_pictures(args: Arguments) -> tuple:
    """(known, to train on, unseen, proxies), undecoded.

    Raises:
        InputError: nothing is left for proxies.
    """
    from ..data.sources import first_rows, load_source, undecoded
    from ..experiments.erasure_study import never_seen

    known = first_rows(undecoded(load_source(args.known, "train")), 0)
    train, held = (
        undecoded(load_source(args.dataset, split, args.dataset_config), args.image_column)
        for split in (args.train_split, args.eval_split)
    )
    held = never_seen(held, known)
    unseen = first_rows(held, args.eval_samples)
    proxies = never_seen(held, unseen) if args.proxy_retain else ()
    if args.proxy_retain and not len(proxies):
        raise InputError(
            f"--proxy_retain takes pictures of --eval_split '{args.eval_split}' that nothing else needs, and --eval_samples "
            f"{args.eval_samples} takes all {len(held)}; take fewer."
        )
    return known, train, unseen, proxies


def write_study(args: Arguments, family: str, studies: list, text: list[str]) -> None:
    """results.md, rows.json and both plots. text: the table of every seed."""
    from pathlib import Path

    from ..experiments.study_page import ROWS, forgotten_of, mean_table, points_of, scores_tables
    from ..reporting.plots import came_back_plot, forgotten_plot
    from ..storage import write_json, write_text
    from .cli import command_line

    folder, command = Path(args.output_dir), command_line("recipes/erasure_study.py")
    means = [f"Mean of {len(studies)} seeds:\n\n{mean_table(studies)}"] if len(studies) > 1 else []
    scores = [f"By {network}, retain and known pictures:\n\n{made}" for network, made in scores_tables(studies).items()]
    write_text(folder / "results.md", "\n\n".join([*means, *text, *scores, f"```bash\n{command}\n```"]) + "\n")
    write_json(folder / ROWS, {str(seed): rows for seed, rows in zip(args.seeds, studies)})
    came_back_plot(points_of(studies), folder / "came_back.png")
    forgotten_plot({family: forgotten_of(studies)}, folder / "forgotten.png")
