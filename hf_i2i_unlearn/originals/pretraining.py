"""Training an original model from nothing: the family's own loss, on the same Trainer, corruptions and data."""

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from ..data.pairs import SingleImages
from ..data.reading import ImageCollator, ImageReader
from ..data.streams import SingleImageStream
from ..errors import InputError
from ..methods.corruptions import Corruption
from ..models.base import I2IModel, TrainingLoss
from ..training.base_trainer import I2ITrainer
from .config import PretrainingConfig
from .progress import SampleCallback


class PretrainingTrainer(I2ITrainer):
    """Trains a whole model with its family's loss.

    Args:
        corruptions: {T: share}; each step draws one T with these shares (all pictures of a step hide equally many patches).
        train_dataset: `SingleImages`, or `SingleImageStream` (which needs `args.max_steps`).
        sample_rows: undecoded rows to complete at every checkpoint, see `SampleCallback`; none if empty.

    Besides what `I2IModel` asks for, a model may have `before_step(pixel_values, step, total, gather)`, called at the start of
    every step, and `diagnostics`, tensors of the last loss that belong in the log.

    Raises:
        InputError: a corruption that hides nothing or all, a stream without max_steps, no picture, or pictures that the model
            does not take; all before any training starts.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: I2IModel,
        args: PretrainingConfig,
        train_dataset: SingleImages | SingleImageStream,
        processing_class,
        corruptions: dict[Corruption, float],
        augment=None,
        on_corrupt: str = "refuse",
        sample_rows: Sequence[dict] = (),
        background: str = "white",
        **kwargs,
    ):
        if isinstance(train_dataset, SingleImageStream) and args.max_steps <= 0:
            raise InputError(
                "A stream has no length, so the run needs max_steps (the number of optimisation steps), larger than 0; "
                f"got max_steps={args.max_steps}."
            )
        for corruption in corruptions:
            corruption.check(model.grid)
        self.corruptions, self.shares = list(corruptions), torch.tensor(list(corruptions.values()), dtype=torch.float)
        collator = ImageCollator(ImageReader(processing_class, model.channels, augment, on_corrupt, background))
        model.check_pixels(collator([_first_readable(train_dataset, collator.reader)])["pixel_values"])
        super().__init__(
            model=TrainingLoss(model),
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if self.is_fsdp_enabled:
            raise InputError("FSDP is for unlearning; train an original on several devices as copies (DDP).")
        self._prepared_step = None
        if sample_rows:
            reader = ImageReader(processing_class, model.channels, None, on_corrupt, background)
            self.add_callback(SampleCallback(self, sample_rows, reader, self.corruptions[0]))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        seeds = inputs["seeds"]
        # The first picture's third seed picks the T of the step: the same again when the run is resumed.
        pick = torch.multinomial(self.shares, 1, generator=torch.Generator().manual_seed(int(seeds[0, 2])))
        mask = self.corruptions[int(pick)](self.i2i.grid, seeds[:, 1])
        pixels = inputs["pixel_values"]
        if hasattr(self.i2i, "before_step") and self._prepared_step != self.state.global_step:
            self._prepared_step = self.state.global_step  # once a step, however many micro-batches it has
            self.i2i.before_step(pixels, self.state.global_step, self.state.max_steps, self.accelerator.gather)
        loss = model(pixels, self.i2i.draw(pixels, mask, seeds[:, 1])).mean()
        if diagnostics := getattr(self.i2i, "diagnostics", None):
            self.log_terms(**diagnostics)
        return (loss, None) if return_outputs else loss

    def create_optimizer(self, model=None):
        if self.optimizer is None and self.args.muon_learning_rate > 0:
            trainable = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
            matrices = block_matrices(self.model)
            if not matrices:
                raise InputError(
                    f"Muon takes the weight matrices of transformer blocks, and none of the '{self.i2i.family}' "
                    "model's is to be trained; set muon_learning_rate to 0."
                )
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


def block_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trainable weights of the linear layers within stacks of blocks (`nn.ModuleList`): not embeddings, not heads."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = {id(layer): layer for stack in stacks for layer in stack.modules() if isinstance(layer, nn.Linear)}
    return [layer.weight for layer in layers.values() if layer.weight.requires_grad]


def _first_readable(dataset, reader: ImageReader, limit: int = 100) -> dict:
    rows = iter(dataset) if isinstance(dataset, SingleImageStream) else (dataset[t] for t in range(len(dataset)))
    for row in itertools.islice(rows, limit):
        if row is not None and reader.decode(row["image"]) is not None:
            return row
    raise InputError(f"None of the first {limit} pictures can be read; check the image column and the files.")


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
