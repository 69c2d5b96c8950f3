"""A discriminator for the hole, and both sides' losses, for training originals that fill it with texture and not with a blur.

The squared error alone makes the mean of all that could be in the hole: near the truth by its error, and far from it by what it
looks like.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

from ..errors import InputError

STRIDE = 4  # pixels between two verdicts of the discriminator


class Discriminator(nn.Module):
    """Convolutions under spectral norm (Miyato et al. 2018) that tell true from made parts of pictures.

    forward: (B, C, H, W), (B, 1, H, W) boolean (True = the part in question) -> (B, H/4 * W/4) verdicts, high = true.

    Raises:
        InputError: for an image side that is not a multiple of 4.
    """

    def __init__(self, channels: int, image_size: int, width: int = 32):
        super().__init__()
        if image_size % STRIDE:
            raise InputError(f"The discriminator takes sides that are multiples of {STRIDE}, got {image_size}.")
        sizes = [(channels + 1, width, 4, 2), (width, 2 * width, 4, 2), (2 * width, 4 * width, 3, 1)]
        layers = []
        for inputs, outputs, kernel, stride in sizes:
            layers += [spectral_norm(nn.Conv2d(inputs, outputs, kernel, stride, padding=1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(4 * width, 1, 3, padding=1)))

    def forward(self, pictures, hole):
        return self.layers(torch.cat([pictures, hole.to(pictures)], 1)).flatten(1)

    def losses(self, real, made, hole) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Hinge losses (Lim and Ye 2017) of verdicts that touch the hole: the maker's (B,), this network's (B,); and the means.

        One optimiser serves both: this network's loss does not reach the maker, nor the maker's this network.
        real, made: (B, C, H, W), alike outside of the hole (B, 1, H, W).
        """
        counted = F.max_pool2d(hole.to(real), STRIDE).flatten(1)  # (B, verdicts)

        def mean(values):
            return (values * counted).sum(1) / counted.sum(1)

        frozen = {name: w.detach() for name, w in self.named_parameters()}
        fooled = -mean(functional_call(self, frozen, (made, hole)))
        on_real, on_made = self(torch.cat([real, made.detach()]), torch.cat([hole, hole])).chunk(2)
        told_apart = mean(F.relu(1 - on_real) + F.relu(1 + on_made))
        verdicts = {"verdict_on_real": mean(on_real.detach()).mean(), "verdict_on_made": mean(on_made.detach()).mean()}
        return fooled, told_apart, verdicts


def check_weight(weight: float) -> None:
    """Raise InputError unless the weight of the adversarial part is larger than 0."""
    if not weight > 0:
        raise InputError(f"The adversarial weight must be larger than 0, got {weight:g}; give a positive number.")
