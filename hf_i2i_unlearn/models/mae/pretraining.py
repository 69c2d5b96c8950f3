"""A masked autoencoder with an adversarial loss beside its squared error, as the MAE authors' "ganloss" models have."""

import torch
from transformers import ViTMAEForPreTraining

from ...errors import InputError
from ..adversarial import Discriminator, check_weight
from .modeling import I2IMAE


class MAEAdversarialTraining(I2IMAE):
    """A ViTMAE under squared error + `weight` x adversarial loss, with a `Discriminator` of its own.

    Args:
        weight: of the adversarial part, larger than 0; the squared error has weight 1.

    Raises:
        InputError: a weight that is not larger than 0, a model with norm_pix_loss (whose patches are no picture without the
            true one), or an image side that is not a multiple of 4.
    """

    def __init__(self, model: ViTMAEForPreTraining, weight: float = 0.1):
        super().__init__(model)
        check_weight(weight)
        if model.config.norm_pix_loss:
            raise InputError("An adversarial loss looks at pictures, which a model with norm_pix_loss=true does not make.")
        self.weight = weight
        self.discriminator = Discriminator(model.config.num_channels, model.config.image_size)
        self.diagnostics: dict[str, torch.Tensor] = {}

    @property
    def training_only(self):
        return self.discriminator

    def training_loss(self, pixel_values, mask, target=None):
        """Squared error over the hidden patches - weight x verdict on the completion + the discriminator's hinge loss: (B,)."""
        truth = pixel_values if target is None else target
        patches = self._decode(self._encode(pixel_values, mask))  # (B, N, p*p*C)
        hole = self.hole(mask.to(pixel_values.device))  # (B, 1, H, W)
        error = (patches - self.model.patchify(truth)).square().mean(-1)  # (B, N)
        hidden = mask.flatten(1).to(error)  # (B, N)
        squared = (error * hidden).sum(1) / hidden.sum(1)

        real, made = (torch.where(hole, x, pixel_values) for x in (truth, self.model.unpatchify(patches)))
        fooled, told_apart, verdicts = self.discriminator.losses(real, made, hole)
        self.diagnostics = {"squared_error": squared.detach().mean()} | verdicts
        return squared + self.weight * fooled + told_apart
