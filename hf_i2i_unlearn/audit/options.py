"""How hard an audit tries. It imports no model, for every `--help` reads it."""

from dataclasses import dataclass, field

from ..errors import InputError

PARTS = ("relearning", "memory", "membership", "probe", "leakage")
WEIGHTS = ("all", "encoder", "lora")  # what an attacker trains: as the family does; the encoder; adapters of rank 8 on it
# Options under which a finished part stays valid: they choose parts, or say how fast, and not what a figure means;
# or the parts that depend on them say so themselves.
FREE = {"parts", "relearn_scrambled", "batch_size", "memory_steps", "memory_learning_rates", "memory_weights"}


@dataclass
class AuditOptions:
    """What to test, and how hard."""

    parts: list[str] = field(default_factory=lambda: list(PARTS), metadata={"help": f"What to run, of {', '.join(PARTS)}."})
    samples: int = field(default=300, metadata={"help": "Pictures per set and purpose, evenly spread; 0 = all."})
    membership_samples: int = field(
        default=1000, metadata={"help": "The same for membership inference, whose interval is wide with few; 0 = all."}
    )
    relearn_pictures: int = field(default=50, metadata={"help": "k: forget pictures that the relearning attacker has."})
    relearn_samples: int = field(default=100, metadata={"help": "Held-out forget pictures that relearning is measured on."})
    relearn_steps: int = field(default=200, metadata={"help": "Steps of relearning at most."})
    relearn_learning_rates: list[float] = field(
        default_factory=lambda: [1e-5, 1e-4, 1e-3], metadata={"help": "Learning rates tried; the attacker's best one counts."}
    )
    relearn_batch_size: int = field(default=32, metadata={"help": "Pictures per step of relearning."})
    memory_steps: int = field(
        default=48, metadata={"help": "Steps of the attackers that have half of the forgotten pictures and want the others."}
    )
    memory_learning_rates: list[float] = field(
        default_factory=lambda: [3e-4, 1e-3], metadata={"help": "Their learning rates; the best attacker counts."}
    )
    memory_weights: list[str] = field(
        default_factory=lambda: ["all", "encoder", "lora"],
        metadata={"help": "What they train: all weights (with and without retain pictures), the encoder's, LoRA adapters."},
    )
    tolerance: float = field(
        default=0.25, metadata={"help": "Within this share of the original's hole error a picture counts as completed again."}
    )
    relearn_scrambled: bool = field(
        default=True, metadata={"help": "Compare with the original whose encoder weights are shuffled: one that knows nothing."}
    )
    probe_features: int = field(
        default=2048, metadata={"help": "Longest representation a probe reads; longer ones are projected."}
    )
    batch_size: int = field(default=64, metadata={"help": "Pictures per pass when nothing is trained."})
    seed: int = field(default=0, metadata={"help": "Fixes every draw."})

    def check(self) -> None:
        """Raise InputError for a value that makes no sense."""
        for part in self.parts:
            if part not in PARTS:
                raise InputError(f"'{part}' is no part of an audit; choose from {', '.join(PARTS)}.")
        for name, least in {
            "relearn_pictures": 1,
            "relearn_samples": 1,
            "relearn_steps": 1,
            "relearn_batch_size": 1,
            "memory_steps": 1,
            "probe_features": 1,
            "batch_size": 1,
            "samples": 0,
            "membership_samples": 0,
        }.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} must be {least} or more, got {getattr(self, name)}.")
        if not self.tolerance > 0:
            raise InputError(f"tolerance is a share larger than 0, such as 0.25; got {self.tolerance}.")
        for name in ("relearn_learning_rates", "memory_learning_rates"):
            rates = getattr(self, name)
            if not rates or min(rates) <= 0:
                raise InputError(f"{name} must be one or more numbers above 0, got {rates}.")
        if not self.memory_weights or set(self.memory_weights) - set(WEIGHTS):
            raise InputError(f"memory_weights are one or more of {', '.join(WEIGHTS)}; got {self.memory_weights}.")
