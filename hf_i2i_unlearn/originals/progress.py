"""What a training run shows of itself: completed pictures at every checkpoint, and the curve of its loss."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import TrainerCallback

from ..data.reading import ImageReader
from ..evaluation.completions import completions
from ..methods.corruptions import Corruption


class SampleCallback(TrainerCallback):
    """Writes `samples/step-N.png` to the output folder at every checkpoint: picture, T(x) and completion, a row each.

    The holes and whatever a family samples are the same each time, and no global random number is drawn.

    Args:
        trainer: an `I2ITrainer`. rows: undecoded rows. reader: without augmentation. corruption: T.
    """

    def __init__(self, trainer, rows: Sequence[dict], reader: ImageReader, corruption: Corruption):
        self.trainer, self.rows, self.reader, self.corruption = trainer, rows, reader, corruption

    def on_save(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        model = self.trainer.i2i
        training = model.training
        model.eval()
        with self.trainer.averaged():
            columns = completions({"completion": model}, self.reader, self.corruption, self.rows)
        model.train(training)
        tile(list(columns.values()), Path(args.output_dir) / "samples" / f"step-{state.global_step}.png")


def tile(columns: list[torch.Tensor], path) -> None:
    """Write pictures (N, C, H, W) in [0, 1], a column each, side by side as one PNG, enlarged to 64 pixels a side at least."""
    pixels = torch.stack([c.float().cpu() for c in columns], 1)  # (N, columns, C, H, W)
    rows, cols, channels, height, width = pixels.shape
    pixels = torch.nn.functional.pad(pixels, (1, 1, 1, 1), value=0.5)  # a grey frame
    pixels = pixels.permute(0, 3, 1, 4, 2).reshape(rows * (height + 2), cols * (width + 2), channels)
    array = pixels.mul(255).round().to(torch.uint8).squeeze(-1).numpy()
    picture, scale = Image.fromarray(array), -(-64 // height)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(path)
