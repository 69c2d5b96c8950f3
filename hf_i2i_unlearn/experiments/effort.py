"""How much is tried for the paper's tables. It imports nothing, for every `--help` reads it."""

from dataclasses import dataclass, field

TABLES = ("main", "alpha", "retain_per_class", "noise", "ratio", "cross_validation", "lora", "bound")


@dataclass
class Effort:
    """What is tried, and at what it is measured."""

    tables: list[str] = field(default_factory=lambda: ["main"], metadata={"help": f"Of {', '.join(TABLES)}."})
    learning_rates: list[float] = field(
        default_factory=lambda: [1e-4, 3e-4, 1e-3], metadata={"help": "Tried for every method."}
    )
    alphas: list[float] = field(
        default_factory=lambda: [0.25, 1.0], metadata={"help": "Tried for every method but the control."}
    )
    measure_at: list[int] = field(default_factory=lambda: [100, 200, 300], metadata={"help": "Steps, of which one is chosen."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Of the main table; the first one tunes."})
    ablation_seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Of the other tables."})
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
        default_factory=lambda: ["normal", "uniform", "low_rank"], metadata={"help": "Table noise; words of --noise."}
    )
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
