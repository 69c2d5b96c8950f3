"""Training an original model from nothing: the family's own loss, on the same Trainer, corruptions and data."""

import itertools
from collections.abc import Sequence

import torch

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


def _first_readable(dataset, reader: ImageReader, limit: int = 100) -> dict:
    rows = iter(dataset) if isinstance(dataset, SingleImageStream) else (dataset[t] for t in range(len(dataset)))
    for row in itertools.islice(rows, limit):
        if row is not None and reader.decode(row["image"]) is not None:
            return row
    raise InputError(f"None of the first {limit} pictures can be read; check the image column and the files.")
