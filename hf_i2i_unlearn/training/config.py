"""The options of training in an unlearning run: ours, and the `TrainingArguments` whose defaults the paper changes."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from ..errors import InputError, in_one_sentence
from ..methods.distances import Distance
from ..methods.method import Method
from .objective import check_noise_target


@dataclass
class UnlearningConfig(TrainingArguments):
    """`TrainingArguments` with the paper's values (App. C.3 for MAE and VQ-GAN) and the options of eq. 10.

    Method and distance are objects that `UnlearningTrainer` takes; `check_options` says whether the options go with them.

    Raises:
        InputError: alpha or a bound <= 0, an unknown word, or options that exclude each other.
    """

    # The objective
    alpha: float = field(
        default=0.25,
        metadata={"help": "Weight of the forget term in eq. 10 (App. C.3). Larger forgets more and costs more on retain."},
    )
    noise_target: str = field(
        default="fresh",
        metadata={
            "choices": ["fresh", "mean", "auto"],
            "help": "fresh: new noise n for each forget picture (the paper). mean: E[E0(T(n))], equal in expectation for mse, "
            "with less variance and, for a fixed T, without a teacher pass. auto: mean where it is equal and T is fixed.",
        },
    )
    mean_draws: int = field(default=1024, metadata={"help": "Draws of n behind that mean, for a fixed T."})

    noise_bank: int = field(
        default=0,
        metadata={
            "help": "For a fixed T, take n from so many draws whose E0(T(n)) are computed once and held in memory, without a "
            "teacher pass for forget pictures; 0 draws it anew for each."
        },
    )

    # Cost
    cache_targets: bool = field(
        default=False,
        metadata={
            "help": "Compute the targets of retain pictures, E0(T(x_r)), once and keep them on disk for this and later runs "
            "(and the forget target, if it is fixed). Needs a fixed T, no augmentation, no stream, and MAE or MAGE. At "
            "ViT-Base and center:8 a picture takes 0.4 MB."
        },
    )
    targets_dir: str | None = field(
        default=None,
        metadata={
            "help": "Where they are kept; by default the Hugging Face cache (assets/hf_i2i_unlearn). It may be deleted at any "
            "time between runs."
        },
    )
    channels_last: bool = field(
        default=False, metadata={"help": "Hold weights of convolutions channels last, which can make U-Nets faster."}
    )

    # Control
    retain_bound: float | None = field(
        default=None,
        metadata={
            "help": "The largest retain distance allowed (it is 0 for the original model): forget as much as possible within "
            "it. A multiplier then takes the place of alpha, starting at 1 / alpha."
        },
    )
    ema_decay: float = field(
        default=0.0,
        metadata={"help": "Keep an exponential moving average of the trained weights, which becomes the result; 0 = none."},
    )
    patience: int = field(
        default=0, metadata={"help": "Stop after so many evaluations without a better objective; 0 = never (the paper)."}
    )
    patience_threshold: float = field(default=0.0, metadata={"help": "By how much an objective must fall to be better."})
    stop_at_forget_distance: float | None = field(
        default=None, metadata={"help": "Stop at the evaluation that reaches this forget distance."}
    )

    # Changed defaults
    output_dir: str = field(default="unlearned", metadata={"help": "Folder for the result; must be new or empty."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Learning rate (App. C.3)."})
    lr_scheduler_type: str = field(
        default="constant", metadata={"help": "Schedule of the learning rate (algorithm 1 has a constant zeta)."}
    )
    muon_learning_rate: float = field(
        default=0.0,
        metadata={"help": "Learning rate of Muon, which takes the weight matrices of the blocks; 0 gives all to AdamW."},
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW beta2 (App. C.3)."})
    num_train_epochs: float = field(default=5, metadata={"help": "Passes over the forget set (App. C.3)."})
    per_device_train_batch_size: int = field(
        default=16, metadata={"help": "PAIRS of one forget and one retain picture per device and step (App. C.3)."}
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Pictures per device in evaluation."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate during training."})
    eval_steps: float | None = field(default=0.2, metadata={"help": "Steps between evaluations; below 1 a share of the run."})
    save_strategy: str = field(default="steps", metadata={"help": "When to write checkpoints."})
    save_steps: float = field(default=0.2, metadata={"help": "Steps between checkpoints; below 1 a share of the run."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    load_best_model_at_end: bool = field(
        default=False,
        metadata={
            "help": "Keep the checkpoint with the lowest objective (eq. 10 on the evaluation pictures, fixed draws) "
            "instead of the last one. The paper keeps the last."
        },
    )
    metric_for_best_model: str | None = field(default="loss", metadata={"help": "What 'best' means; lower is better."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between log lines."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide NaN losses from the log."})
    report_to: None | str | list[str] = field(default="none", metadata={"help": "Trackers, e.g. tensorboard, wandb."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: the collator needs the columns."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "All encoder weights are used."})
    accelerator_config: dict | str | None = field(
        default_factory=lambda: {"dispatch_batches": False},
        metadata={"help": "Options for accelerate; each process reads its own share of a stream."},
    )

    def __post_init__(self):
        if not self.alpha > 0:
            raise InputError(f"alpha must be larger than 0 (0.25 in the paper), got {self.alpha}.")
        if self.noise_target not in ("fresh", "mean", "auto"):
            raise InputError(f"noise_target is one of fresh, mean, auto, got '{self.noise_target}'.")
        if self.noise_bank < 0:
            raise InputError(f"noise_bank is a number of draws of n, or 0 for no bank; got {self.noise_bank}.")
        check_decay(self.ema_decay)
        if self.retain_bound is not None and not self.retain_bound > 0:
            raise InputError(f"retain_bound must be larger than 0, got {self.retain_bound}.")
        with in_one_sentence("The options of the Trainer do not go together"):
            super().__post_init__()
        # Never "greater is better", which the parent infers from the metric's name.
        self.greater_is_better = False
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False


def check_options(args: UnlearningConfig, method: Method, distance: Distance) -> None:
    """Raise InputError unless the options go with the method and the distance."""
    if not isinstance(method, Method):
        raise InputError(f"method is a Method object, such as METHODS['ours'], got {method!r}.")
    if not isinstance(distance, Distance):
        raise InputError(f"distance is a Distance object, such as DISTANCES['mse'], got {distance!r}.")
    check_noise_target(method, distance, args.noise_target, args.noise_bank)
    if args.cache_targets and not method.trains_encoder_alone:
        raise InputError(f"cache_targets keeps E0(T(x_r)), which method '{method}' does not train on; leave it out.")
    if args.retain_bound is not None and not method.trains_encoder_alone:
        raise InputError(
            f"retain_bound bounds the distance to the original encoder; '{method}' trains on outputs. Use a method in the "
            "encoder space, such as ours or random_encoder."
        )


def check_decay(decay: float) -> None:
    """Raise InputError unless `decay` is that of a moving average, or 0 for none."""
    if not 0 <= decay < 1:
        raise InputError(f"ema_decay must lie between 0 (none) and 1 (excluded), such as 0.9999; got {decay}.")
