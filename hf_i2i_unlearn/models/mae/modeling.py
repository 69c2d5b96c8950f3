"""Masked autoencoders: `transformers.ViTMAEForPreTraining`.

The encoder representation of eq. 10 is the last hidden state of `vit` over the visible tokens (class token included,
after the final layer norm). Nothing is shared between encoder and decoder, so "same decoder" (theorem 1) is exact.
"""

import contextlib
import copy

import torch
from torch import nn
from transformers import AutoConfig, ViTMAEConfig, ViTMAEForPreTraining

from ...errors import InputError
from ..base import I2IModel
from ..positions import sincos_positions


class I2IMAE(I2IModel):
    """A ViTMAE model as h = D o E.

    Args:
        model: the library's model. `I2IMAE.from_pretrained(path)` and `I2IMAE.from_config(config)` make one.

    Raises:
        InputError: the model is not a ViTMAE, or its pictures are not square.
    """

    family = "mae"
    run_options = {"subfolder": "subfolder"}

    def __init__(self, model: ViTMAEForPreTraining):
        super().__init__()
        if not isinstance(model, ViTMAEForPreTraining):
            raise InputError(f"I2IMAE wraps a ViTMAEForPreTraining, got {type(model).__name__}.")
        size = model.config.image_size
        if not isinstance(size, int):
            raise InputError(f"ViTMAE decodes square pictures only; its config has image_size={size}, expected one number.")
        self.model = model

    @classmethod
    def from_pretrained(cls, path: str, **kwargs) -> "I2IMAE":
        """Load a ViTMAE checkpoint (Hub id or folder), in float32 unless `dtype` is given: training wants it, even where the
        checkpoint is in half precision. Raises InputError for a checkpoint of another kind."""
        kwargs.setdefault("dtype", torch.float32)
        try:
            config = AutoConfig.from_pretrained(path, **_only(kwargs, "revision", "token", "subfolder"))
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"Cannot load a model from '{path}': {reason} Give a folder with a config.json, or a Hub id."
            ) from error
        if config.model_type != "vit_mae":
            raise InputError(
                f"'{path}' holds a '{config.model_type}' model, expected 'vit_mae' (a masked autoencoder with its decoder, "
                "such as facebook/vit-mae-base)."
            )
        model, info = ViTMAEForPreTraining.from_pretrained(path, output_loading_info=True, **kwargs)
        if info["missing_keys"]:
            raise InputError(
                f"'{path}' lacks {len(info['missing_keys'])} weights of a masked autoencoder, first "
                f"'{sorted(info['missing_keys'])[0]}'; unlearning needs encoder and decoder, as ViTMAEForPreTraining saves."
            )
        return cls(model)

    @classmethod
    def from_config(cls, config: ViTMAEConfig) -> "I2IMAE":
        """A fresh model, initialised as the MAE paper does: Xavier linears, sine-cosine positions.

        transformers 5.23 leaves the position embeddings of encoder and decoder and the mask token at zero, which makes a
        model that cannot tell places apart.
        """
        model = ViTMAEForPreTraining(config)
        with torch.no_grad():
            embeddings, decoder = model.vit.embeddings, model.decoder
            rows = config.image_size // config.patch_size
            embeddings.position_embeddings.copy_(sincos_positions(rows, config.hidden_size))
            decoder.decoder_pos_embed.copy_(sincos_positions(rows, config.decoder_hidden_size))
            nn.init.normal_(embeddings.cls_token, std=0.02)
            nn.init.normal_(decoder.mask_token, std=0.02)
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
            projection = embeddings.patch_embeddings.projection
            nn.init.xavier_uniform_(projection.weight.view(projection.weight.shape[0], -1))
        return cls(model)

    def fresh(self):
        return type(self).from_config(copy.deepcopy(self.model.config))

    @property
    def image_size(self):
        return (self.model.config.image_size, self.model.config.image_size)

    @property
    def channels(self):
        return self.model.config.num_channels

    @property
    def grid(self):
        rows = self.model.config.image_size // self.model.config.patch_size
        return (rows, rows)

    def encoder_modules(self):
        return [self.model.vit]

    def forward(self, pixel_values, mask):
        """E(T(x)): (B, C, H, W), (B, rows, cols) -> (B, 1 + visible, D), tokens in raster order."""
        return self._encode(pixel_values, mask).last_hidden_state

    @torch.no_grad()
    def generate(self, pixel_values, mask, seeds=None):
        patches = self._decode(self._encode(pixel_values, mask))  # (B, N, p*p*C)
        if self.model.config.norm_pix_loss:
            # Such a checkpoint predicts each patch normalised by its own true mean and variance; as in the MAE authors'
            # demo they are taken from the true picture, which leaks every hidden patch's brightness and contrast.
            target = self.model.patchify(pixel_values)
            patches = patches * (target.var(-1, keepdim=True) + 1e-6).sqrt() + target.mean(-1, keepdim=True)
        return torch.where(self.hole(mask.to(pixel_values.device)), self.model.unpatchify(patches), pixel_values)

    def training_loss(self, pixel_values, mask, target=None):
        """Mean squared error over the hidden patches of each picture, in the normalised space: (B,)."""
        target = self.model.patchify(pixel_values if target is None else target)  # (B, N, p*p*C)
        if self.model.config.norm_pix_loss:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        error = (self._decode(self._encode(pixel_values, mask)) - target).square().mean(-1)  # (B, N)
        hidden = mask.flatten(1).to(error)  # (B, N)
        return (error * hidden).sum(1) / hidden.sum(1)

    def save_pretrained(self, folder, **kwargs):
        # save_original_format=False: the key names of the library's current version, not those of its past.
        super().save_pretrained(folder, save_original_format=False, **kwargs)

    def _encode(self, pixel_values, mask):
        """The output of `vit` with exactly the patches of `mask` hidden."""
        self.check_pixels(pixel_values)
        hidden = mask.flatten(1).sum(1)  # (B,)
        count, total = int(hidden[0]), mask[0].numel()
        if not bool((hidden == count).all()):
            raise InputError(f"All masks of a batch must hide the same number of patches, got {sorted(set(hidden.tolist()))}.")
        # The library keeps the patches with the smallest noise, in the order of their noise: visible ones in raster order.
        order = torch.arange(total, device=pixel_values.device) / total
        noise = 2.0 * mask.flatten(1).to(pixel_values.device) + order  # (B, N)
        with self._mask_ratio((count - 0.5) / total):
            return self.model.vit(pixel_values, noise=noise)

    def _decode(self, encoded):
        return self.model.decoder(encoded.last_hidden_state, encoded.ids_restore).logits  # (B, N, p*p*C)

    @contextlib.contextmanager
    def _mask_ratio(self, ratio):
        """The ratio is a config value in the library, not an argument; it must not leak into a saved config.

        int(N * (1 - (k - 0.5) / N)) is N - k for every k, which int(N * (1 - k / N)) is not.
        """
        config = self.model.config
        before, config.mask_ratio = config.mask_ratio, ratio
        try:
            yield
        finally:
            config.mask_ratio = before


def _only(kwargs, *names):
    return {name: kwargs[name] for name in names if name in kwargs}
