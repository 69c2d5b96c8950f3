"""Completions by a rule: some have learnt nothing, which an original model must beat; one is the most that MAGE can reach."""

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from ..models.base import I2IModel


class Completion(nn.Module):
    """Completes pictures by a rule. `Evaluator` and `completions` take it in the place of a model.

    Args:
        original: the model whose holes it fills.
    """

    def __init__(self, original: I2IModel):
        super().__init__()
        self.hole = original.hole

    def generate(self, pixel_values: torch.Tensor, mask: torch.Tensor, seeds=None) -> torch.Tensor:
        """As `I2IModel.generate`: (B, C, H, W) and (B, rows, cols) boolean -> (B, C, H, W)."""
        hole = self.hole(mask).to(pixel_values.device)
        return torch.where(hole, self.fill(pixel_values, hole), pixel_values)


class MeanColour(Completion):
    """The mean of each picture's visible part, per channel."""

    def fill(self, pixels, hole):
        """(B, C, 1, 1)."""
        seen = (~hole).to(pixels)
        return (pixels * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True)


class Biharmonic(Completion):
    """The smoothest continuation of the visible part: biharmonic inpainting (Damelin & Hoang, 2018) of scikit-image.

    Raises:
        InputError: scikit-image is not installed.
    """

    def __init__(self, original):
        super().__init__(original)
        try:
            from skimage.restoration import inpaint_biharmonic
        except ImportError:
            raise InputError(
                "Biharmonic inpainting needs scikit-image; install it (pip install 'hf_i2i_unlearn[metrics]'), or leave "
                "biharmonic out of --trivial."
            ) from None
        self.inpaint = inpaint_biharmonic

    def fill(self, pixels, hole):
        """(B, C, H, W). Pictures with the same hole are solved at once, as channels of one picture."""
        result = pixels.cpu().double().numpy()
        holes = hole[:, 0].cpu().numpy()  # (B, H, W)
        kinds, which = np.unique(holes, axis=0, return_inverse=True)
        for number, mask in enumerate(kinds):
            here = np.flatnonzero(which.reshape(-1) == number)
            stack = result[here].reshape(-1, *mask.shape)  # (B' C, H, W)
            result[here] = self.inpaint(stack, mask, channel_axis=0).reshape(len(here), *result.shape[1:])
        return torch.from_numpy(result).to(pixels)


class TrueTokens(Completion):
    """The true picture as MAGE's tokenizer gives it back: what a transformer without any error would draw."""

    def __init__(self, original):
        super().__init__(original)
        self.original = original

    def fill(self, pixels, hole):
        """(B, C, H, W)."""
        model = self.original.model
        return model.decode_tokens(model.tokenize(pixels)).to(pixels)


TRIVIAL = {"mean colour": MeanColour, "biharmonic": Biharmonic}
