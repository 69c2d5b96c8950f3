"""Training an original model from nothing: the family's own loss, on the same Trainer, corruptions and data."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from .config import check_decay
from .corruptions import Corruption
from .data import ImageCollator, ImageReader, SingleImages
from .models.base import I2IModel, TrainingLoss
from .trainer import I2ITrainer


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
    output_dir: str | None = field(default="pretrained", metadata={"help": "Folder for checkpoints and the result."})
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

    def __post_init__(self):
        check_decay(self.ema_decay)
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False


class PretrainingTrainer(I2ITrainer):
    """Trains a whole model with its family's loss.

    Args:
        corruptions: {T: share}; each step draws one T with these shares (all pictures of a step hide equally many patches).
        train_dataset: `SingleImages`.
    """

    def __init__(
        self,
        model: I2IModel,
        args: PretrainingConfig,
        train_dataset: SingleImages,
        processing_class,
        corruptions: dict[Corruption, float],
        augment=None,
        on_corrupt: str = "refuse",
        **kwargs,
    ):
        for corruption in corruptions:
            corruption.check(model.grid)
        self.corruptions, self.shares = list(corruptions), torch.tensor(list(corruptions.values()), dtype=torch.float)
        collator = ImageCollator(ImageReader(processing_class, model.channels, augment, on_corrupt))
        super().__init__(
            model=TrainingLoss(model),
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            processing_class=processing_class,
            **kwargs,
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        seeds = inputs["seeds"]
        # The first picture's third seed picks the T of the step: the same again when the run is resumed.
        pick = torch.multinomial(self.shares, 1, generator=torch.Generator().manual_seed(int(seeds[0, 2])))
        mask = self.corruptions[int(pick)](self.i2i.grid, seeds[:, 1])
        pixels = inputs["pixel_values"]
        loss = model(pixels, self.i2i.draw(pixels, mask, seeds[:, 1])).mean()
        return (loss, None) if return_outputs else loss

    def create_optimizer(self, model=None):
        if self.optimizer is None and self.args.muon_learning_rate > 0:
            trainable = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
            matrices = [p for n, p in trainable if p.ndim == 2 and "layers." in n]
            taken = {id(p) for p in matrices}
            plain = [p for _, p in trainable if id(p) not in taken and p.ndim < 2]
            other = [p for _, p in trainable if id(p) not in taken and p.ndim >= 2]
            decay = self.args.weight_decay
            self.optimizer = OptimizerPair(
                torch.optim.Muon(matrices, lr=self.args.muon_learning_rate, weight_decay=decay),
                torch.optim.AdamW(
                    [{"params": other, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}],
                    lr=self.args.learning_rate,
                    betas=(self.args.adam_beta1, self.args.adam_beta2),
                    fused=True,
                ),
            )
        return super().create_optimizer(model)


class OptimizerPair(torch.optim.Optimizer):
    """Two optimisers over disjoint weights that step, save and load as one (Muon takes matrices only)."""

    def __init__(self, *optimizers: torch.optim.Optimizer):
        self.optimizers = optimizers
        self.defaults = {}

    @property
    def param_groups(self):
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self):
        return {p: s for optimizer in self.optimizers for p, s in optimizer.state.items()}

    def step(self, closure=None):
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none=True):
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self):
        return {str(i): optimizer.state_dict() for i, optimizer in enumerate(self.optimizers)}

    def load_state_dict(self, state_dict):
        for i, optimizer in enumerate(self.optimizers):
            optimizer.load_state_dict(state_dict[str(i)])
