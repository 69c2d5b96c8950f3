"""Options of recipes/tables.py."""

from dataclasses import dataclass, field

from hf_i2i_unlearn import METHODS
from hf_i2i_unlearn.commands.cli import JsonDict
from hf_i2i_unlearn.commands.options import ObjectiveArguments
from hf_i2i_unlearn.commands.words import CORRUPTION_HELP, NOISE_HELP
from hf_i2i_unlearn.data.augmentation import AUGMENTATIONS
from hf_i2i_unlearn.data.options import SplitArguments
from hf_i2i_unlearn.evaluation.feature_loaders import FEATURES_HELP

METRICS = {
    "mse": "hole MSE",
    "drift": "drift",
    "fid": "Frechet distance",
    "inception_score": "Inception score",
    "similarity": "similarity",
    "accuracy": "accuracy",
}


@dataclass
class Arguments(ObjectiveArguments, SplitArguments):
    """What to tabulate."""

    model: str = field(default="mnist-demo", metadata={"help": "The original of any family: folder, Hub id or a demo."})
    generation: JsonDict = field(
        default_factory=JsonDict,
        metadata={"help": 'Options of its generation, as JSON or in YAML, such as {"margin": 0} (MAGE).'},
    )
    generation_steps: int | None = field(default=None, metadata={"help": "Steps of generation (diffusion, MAGE)."})
    tables: list[str] = field(
        default_factory=lambda: ["main"],
        metadata={"help": "Of main, alpha, retain_per_class, noise, ratio, cross_validation, lora, bound."},
    )
    methods: list[str] = field(default_factory=lambda: list(METHODS), metadata={"help": f"Of {', '.join(METHODS)}."})
    learning_rates: list[float] = field(
        default_factory=lambda: [1e-4, 3e-4, 1e-3], metadata={"help": "Tried for every method."}
    )
    alphas: list[float] = field(
        default_factory=lambda: [0.25, 1.0], metadata={"help": "Tried for every method but the control."}
    )
    measure_at: list[int] = field(default_factory=lambda: [100, 200, 300], metadata={"help": "Steps, of which one is chosen."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Of the main table; the first one tunes."})
    ablation_seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Of the other tables."})
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
            "help": "What retain cost and forgetting are matched by: the Frechet distance of "
            "the first network, or the hole error.",
        },
    )
    tolerance: float = field(
        default=0.05, metadata={"help": "Rise of the retain cost at which methods are compared, as a share."}
    )
    alpha_values: list[float] = field(
        default_factory=lambda: [0.01, 0.05, 0.1, 0.25, 0.5, 1.0], metadata={"help": "Table alpha."}
    )
    retain_counts: list[int] = field(
        default_factory=lambda: [1, 5, 10, 25, 50, 100], metadata={"help": "Table retain_per_class."}
    )
    noises: list[str] = field(
        default_factory=lambda: ["normal", "uniform", "low_rank"], metadata={"help": f"Table noise. {NOISE_HELP}."}
    )
    noise_rank: int = field(default=64, metadata={"help": "Directions of the noise low_rank."})
    crop_ratios: list[float] = field(
        default_factory=lambda: [0.0625, 0.125, 0.25, 0.375, 0.5, 0.625, 0.8125],
        metadata={"help": "Table ratio: cropped shares of the picture."},
    )
    lora_rank: int = field(default=8, metadata={"help": "Table lora."})
    lora_learning_rates: list[float] | None = field(
        default=None, metadata={"help": "Table lora; three times --learning_rates if not given."}
    )
    bounds: list[float] = field(
        default_factory=lambda: [0.003, 0.01, 0.03, 0.1], metadata={"help": "Table bound: retain distances allowed."}
    )
    batch_size: int = field(default=64, metadata={"help": "Pictures per pass in evaluation."})
    augment: str = field(
        default="none",
        metadata={"choices": list(AUGMENTATIONS), "help": "Augmentation in training, of every method's pictures."},
    )
    on_corrupt: str = field(
        default="refuse", metadata={"choices": ["refuse", "skip"], "help": "What an unreadable picture does."}
    )


# Options that add runs and leave the others as they are.
FREE = {
    "tables", "methods", "learning_rates", "alphas", "seeds", "ablation_seeds", "eval_corruptions", "select_by", "tolerance",
    "alpha_values", "retain_counts", "noises", "crop_ratios", "lora_rank", "lora_learning_rates", "bounds", "batch_size",
}  # fmt: skip
