"""A masked autoencoder with an adversarial loss beside its squared error, as the MAE authors' "ganloss" models have.

The squared error alone makes the mean of all that could be in the hole, which is a blur: near the truth by its error, and far
from it by what it looks like.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm
from transformers import ViTMAEForPreTraining

from ..errors import InputError
from .mae import I2IMAE

STRIDE = 4  # pixels between two verdicts of the discriminator


class MAEAdversarialTraining(I2IMAE):
    """A ViTMAE under squared error + `weight` x adversarial loss (hinge, Lim and Ye 2017), with a discriminator of its own.

    The discriminator gives a verdict for every 4x4 pixels of the picture, of which those that touch the hole count. One
    optimiser serves both: the discriminator's loss does not reach the model, nor the model's the discriminator.

    Args:
        weight: of the adversarial part, larger than 0; the squared error has weight 1.

    Raises:
        InputError: a weight that is not larger than 0, a model with norm_pix_loss (whose patches are no picture without the
            true one), or an image side that is not a multiple of 4.
    """

    def __init__(self, model: ViTMAEForPreTraining, weight: float = 0.1):
        super().__init__(model)
        if not weight > 0:
            raise InputError(f"The adversarial weight must be larger than 0, got {weight:g}; without one train an I2IMAE.")
        if model.config.norm_pix_loss:
            raise InputError("An adversarial loss looks at pictures, which a model with norm_pix_loss=true does not make.")
        if model.config.image_size % STRIDE:
            raise InputError(f"The discriminator takes sides that are multiples of {STRIDE}, got {model.config.image_size}.")
        self.weight = weight
        self.discriminator = Discriminator(model.config.num_channels)
        self.diagnostics: dict[str, torch.Tensor] = {}

    @property
    def training_only(self):
        return self.discriminator

    def training_loss(self, pixel_values, mask, target=None):
        """Squared error over the hidden patches + weight x -verdict on the completion + the discriminator's hinge loss: (B,)."""
        truth = pixel_values if target is None else target
        patches = self._decode(self._encode(pixel_values, mask))  # (B, N, p*p*C)
        hole = self.hole(mask.to(pixel_values.device))  # (B, 1, H, W)
        error = (patches - self.model.patchify(truth)).square().mean(-1)  # (B, N)
        hidden = mask.flatten(1).to(error)  # (B, N)
        squared = (error * hidden).sum(1) / hidden.sum(1)

        real, made = (torch.where(hole, x, pixel_values) for x in (truth, self.model.unpatchify(patches)))
        counted = F.max_pool2d(hole.to(error), STRIDE).flatten(1)  # (B, verdicts)

        def mean(values):
            return (values * counted).sum(1) / counted.sum(1)

        frozen = {name: w.detach() for name, w in self.discriminator.named_parameters()}
        fooled = -mean(functional_call(self.discriminator, frozen, (made, hole)))
        verdicts = self.discriminator(torch.cat([real, made.detach()]), torch.cat([hole, hole]))
        on_real, on_made = verdicts.chunk(2)
        told_apart = mean(F.relu(1 - on_real) + F.relu(1 + on_made))
        self.diagnostics = {
            "squared_error": squared.detach().mean(),
            "verdict_on_real": mean(on_real.detach()).mean(),
            "verdict_on_made": mean(on_made.detach()).mean(),
        }
        return squared + self.weight * fooled + told_apart


class Discriminator(nn.Module):
    """Convolutions under spectral norm (Miyato et al. 2018) that tell true from made parts of pictures.

    forward: (B, C, H, W), (B, 1, H, W) boolean (True = the part in question) -> (B, H/4 * W/4) verdicts, high = true.
    """

    def __init__(self, channels: int, width: int = 32):
        super().__init__()
        sizes = [(channels + 1, width, 4, 2), (width, 2 * width, 4, 2), (2 * width, 4 * width, 3, 1)]
        layers = []
        for inputs, outputs, kernel, stride in sizes:
            layers += [spectral_norm(nn.Conv2d(inputs, outputs, kernel, stride, padding=1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(4 * width, 1, 3, padding=1)))

    def forward(self, pictures, hole):
        return self.layers(torch.cat([pictures, hole.to(pictures)], 1)).flatten(1)
