"""The options of training an original: `TrainingArguments` with other defaults, and two of our own."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from ..errors import in_one_sentence
from ..training.config import check_decay


@dataclass
class PretrainingConfig(TrainingArguments):
    """`TrainingArguments` with defaults that trained our small models well."""

    muon_learning_rate: float = field(
        default=2e-2,
        metadata={"help": "Learning rate of Muon, which takes the weight matrices of the blocks; 0 gives all to AdamW."},
    )
    ema_decay: float = field(
        default=0.0, metadata={"help": "Keep an exponential moving average of the weights, which becomes the result; 0 = none."}
    )
    output_dir: str = field(default="pretrained", metadata={"help": "Folder for checkpoints and the result."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Learning rate of AdamW."})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW beta2."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of both optimisers."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rates."})
    warmup_steps: float = field(default=0.03, metadata={"help": "Warm-up steps; below 1 a share of the run."})
    save_steps: float = field(default=0.05, metadata={"help": "Steps between checkpoints; below 1 a share of the run."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints kept."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between log lines."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off."})
    report_to: None | str | list[str] = field(default="none", metadata={"help": "Trackers."})
    accelerator_config: dict | str | None = field(
        default_factory=lambda: {"dispatch_batches": False},
        metadata={"help": "Options for accelerate; each process reads its own share of a stream."},
    )

    def __post_init__(self):
        check_decay(self.ema_decay)
        with in_one_sentence("The options of the Trainer do not go together"):
            super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False
