"""MAGE: a masked encoder and decoder over the tokens of a frozen VQ-GAN, which completes pictures by iterative decoding.

The encoder representation of eq. 10 is the encoder latent of the tokens that T keeps, class token first. The head reads the
word embeddings, which the encoder reads too: they stay frozen by default, and then "same decoder" (theorem 1) is exact. The
released code trains them.
"""

import math
from typing import NamedTuple

import torch
from transformers import PreTrainedConfig

from ...errors import InputError
from ..base import FOR_SAMPLING, FOR_TRAINING, HUB, I2IModel, seeded
from .hf.decoding_mage import fill_hole, truncated_normal
from .hf.modeling_mage import MageModel

MASK_RATES = (None, "mage")


class MageDraw(NamedTuple):
    """What an encoder pass hides; student and teacher get the same. Both (B, rows, cols) boolean over the token grid.

    mask: T, dropped from the encoder's sequence. hidden: to be predicted; T, and with `mask_rate` more tokens, which the
    encoder sees as mask tokens.
    """

    mask: torch.Tensor
    hidden: torch.Tensor


class I2IMage(I2IModel):
    """A MAGE model as h = D o E. Pictures are in [0, 1], NOT normalised (image processors with do_normalize=False).

    The tokenizer looks beyond a token's own pixels (its group norms at the whole picture), so tokens that T keeps would tell
    of pixels that T hides. In the paper T comes before E and the tokenizer is the first part of E, so by default the hole is
    filled with `config.fill_color` before tokenization, in training as in generation, and no hidden pixel has an influence on
    the representation. The released code does so in generation alone; it trains on tokens of the whole picture.

    T as random masks of half of the tokens (`RandomMask(0.5)`) with mask_rate="mage" and blank_hole=False is its training.

    Args:
        model: the model. `I2IMage.from_pretrained(path)` makes one. Its tokenizer is frozen here and never trained.
        steps, temperature, code_temperature, toward_mean: of the iterative decoding in `generate`, see
            `MageModel.complete_tokens`; the defaults are the released code's for inpainting.
        margin: tokens around the hole that `generate` predicts too, for the tokenizer has seen the fill colour in them.
        blank_hole: False tokenizes the whole picture and drops tokens after that, as the released code trains.
        mask_rate: None hides what T hides; "mage" hides more, as MAGE trains: a share from the truncated normal of the config,
            uniformly random tokens beside those of T. Drawn for each picture (MAGE: one share for a batch), so that a
            picture's draw does not depend on its batch.
        train_word_embeddings: train them with the encoder, as the released code does; the head then changes too.
        feather: paste the completion softly, as the released code does: pixels beside the hole change too.

    Raises:
        InputError: the model is no MAGE, or an option is out of range.
    """

    family = "mage"
    run_options = {"decoding_steps": "steps", "generation_steps": "steps"} | {
        name: name for name in (
            "subfolder", "temperature", "code_temperature", "toward_mean", "margin", "mask_rate", "blank_hole",
            "train_word_embeddings", "feather",
        )
    }  # fmt: skip

    def __init__(
        self,
        model: MageModel,
        steps: int = 20,
        temperature: float = 6.0,
        margin: int = 1,
        blank_hole: bool = True,
        mask_rate: str | None = None,
        train_word_embeddings: bool = False,
        feather: bool = False,
        code_temperature: float = 1.0,
        toward_mean: float = 0.0,
    ):
        super().__init__()
        if not isinstance(model, MageModel):
            raise InputError(f"I2IMage wraps a MageModel, got {type(model).__name__}; load it with I2IMage.from_pretrained.")
        if steps < 1 or temperature < 0 or margin < 0 or code_temperature < 0 or not 0 <= toward_mean <= 1:
            raise InputError(
                "Decoding takes at least 1 step, temperatures and a margin of 0 or more, and toward_mean from 0 to 1; got "
                f"steps={steps}, temperature={temperature}, margin={margin}, code_temperature={code_temperature}, "
                f"toward_mean={toward_mean}."
            )
        if mask_rate not in MASK_RATES:
            raise InputError(f"mask_rate is None or 'mage', got {mask_rate!r}.")
        model.vqgan.requires_grad_(False)
        self.model, self.steps, self.temperature, self.margin = model, steps, temperature, margin
        self.blank_hole, self.mask_rate, self.train_word_embeddings = blank_hole, mask_rate, train_word_embeddings
        self.feather, self.code_temperature, self.toward_mean = feather, code_temperature, toward_mean

    @classmethod
    def from_pretrained(cls, path: str, **kwargs) -> "I2IMage":
        """Load a folder or Hub repository with a `MageModel`.

        Args:
            The options of `I2IMage`, and revision, token, subfolder, cache_dir, local_files_only, dtype,
            attn_implementation as in transformers, but dtype is float32 if not given: training wants it, even where the
            weights were saved in half precision.

        Raises:
            InputError: nothing there, a checkpoint of another kind, sizes that do not fit, or weights missing.
        """
        hub = {name: kwargs.pop(name) for name in (*HUB, "subfolder") if name in kwargs}
        loading = {"dtype": kwargs.pop("dtype", torch.float32)}
        if "attn_implementation" in kwargs:
            loading["attn_implementation"] = kwargs.pop("attn_implementation")
        try:
            kind = PreTrainedConfig.get_config_dict(path, **hub)[0].get("model_type", "unknown")
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"Cannot load a model from '{path}': {reason} Give a folder with a config.json, or a Hub id."
            ) from error
        if kind != "mage":
            raise InputError(
                f"'{path}' holds a '{kind}' model, expected 'mage'; a published checkpoint is converted first, by "
                "hf_i2i_unlearn.conversion_mage."
            )
        try:
            # Sizes that differ are let through to be named in one sentence.
            model, info = MageModel.from_pretrained(
                path, output_loading_info=True, ignore_mismatched_sizes=True, **hub, **loading
            )
        except ValueError as error:
            raise InputError(f"Cannot load '{path}': {error}") from error
        for name in sorted(info["mismatched_keys"]):
            raise InputError(f"The weights in '{path}' do not fit its config.json: '{name[0]}' is {name[1]}, not {name[2]}.")
        if info["missing_keys"]:
            raise InputError(
                f"'{path}' lacks {len(info['missing_keys'])} weights of a MAGE model, first '{min(info['missing_keys'])}'; "
                "save it again with MageModel.save_pretrained."
            )
        return cls(model, **kwargs)

    @property
    def noise_target_is_shared(self):
        return self.mask_rate is None  # else each picture has hidden tokens of its own

    @property
    def draws_beside_t(self):
        return self.mask_rate is not None

    @property
    def image_size(self):
        return (self.model.config.image_size, self.model.config.image_size)

    @property
    def channels(self):
        return self.model.config.num_channels

    @property
    def grid(self):
        return self.model.config.grid

    @property
    def decoder_untouched(self):
        return not self.train_word_embeddings

    def encoder_modules(self):
        """Positions and norm of the embedding, blocks, norm; the word embeddings only with `train_word_embeddings`."""
        embedding = self.model.token_emb
        words = [embedding.word_embeddings] if self.train_word_embeddings else []
        return [embedding.position_embeddings, embedding.LayerNorm, self.model.blocks, self.model.norm, *words]

    def fresh(self):
        made = super().fresh()
        made.model.vqgan.requires_grad_(False)  # it is no part of what is trained here
        return made

    def check_pixels(self, pixel_values):
        """As in `I2IModel`, and refuses pictures whose values are not in [0, 1]."""
        super().check_pixels(pixel_values)
        low, high = pixel_values.min().item(), pixel_values.max().item()
        if low < -1e-3 or high > 1 + 1e-3:
            raise InputError(
                f"MAGE takes pixel values in [0, 1], not normalised, got {low:.2f} to {high:.2f}; use an image processor with "
                "do_rescale=True and do_normalize=False."
            )

    def draw(self, pixel_values, mask, seeds) -> MageDraw:
        mask = mask.to(pixel_values.device)
        if self.mask_rate is None:
            return MageDraw(mask, mask)
        config, hidden = self.model.config, []
        moments = config.mask_ratio_mean, config.mask_ratio_std, config.mask_ratio_min, config.mask_ratio_max
        for dropped, generator in zip(mask.flatten(1).cpu(), seeded(seeds, FOR_TRAINING)):  # (N,)
            rate = truncated_normal(torch.rand((), generator=generator).item(), *moments)
            count = max(math.ceil(config.num_tokens * rate), int(dropped.sum()))
            # What T drops comes first, so it is always among the hidden.
            noise = torch.rand(config.num_tokens, generator=generator).masked_fill(dropped, -1)
            hidden.append(noise.argsort().argsort() < count)
        return MageDraw(mask, torch.stack(hidden).view_as(mask).to(mask.device))

    def forward(self, pixel_values, draw):
        """E(T(x)): (B, C, H, W) and a `MageDraw` -> (B, 1 + kept, D), tokens in raster order.

        A plain mask (B, rows, cols) is a draw that hides nothing beside it.
        """
        dropped, hidden = self._masks(draw)
        return self.model.encode(self._tokens(pixel_values, draw), dropped, hidden)

    def training_loss(self, pixel_values, draw, target=None):
        """Label-smoothed cross-entropy over the hidden tokens of each picture, (B,).

        The truth is the tokens of the whole `target`, or picture. The paper's loss for VQ-GANs (App. C) has a discriminator
        too; none was released, and MAGE's transformer is trained without, so there is none here.
        """
        dropped, hidden = self._masks(draw)
        latent = self.model.encode(self._tokens(pixel_values, draw), dropped, hidden)
        truth = self.model.tokenize(pixel_values if target is None else target)  # (B, N)
        loss = self.model.token_loss(self.model.decode(latent, dropped, hidden), truth)  # (B, N)
        return (loss * hidden).sum(1) / hidden.sum(1)

    @torch.no_grad()
    def generate(self, pixel_values, mask, seeds=None):
        """Iterative decoding of the hole and `margin` tokens around it, pasted into the hole (or feathered): (B, C, H, W).

        The hole is blanked before tokenization. `seeds`: one integer per picture, on which alone what is sampled depends; 0
        for all if None.
        """
        self.check_pixels(pixel_values)
        generators = seeded([0] * len(pixel_values) if seeds is None else seeds, FOR_SAMPLING)
        return self.model.complete(
            pixel_values, mask, self.steps, self.temperature, generators, self.margin, self.feather, self.code_temperature,
            self.toward_mean,
        )  # fmt: skip

    @staticmethod
    def check_processor(processor) -> None:
        """Raise InputError if an image processor normalises: MAGE takes pixel values in [0, 1]."""
        mean, std = processor.image_mean or [0.0], processor.image_std or [1.0]
        if processor.do_normalize and (any(m != 0 for m in mean) or any(s != 1 for s in std)):
            raise InputError(
                f"The image processor normalises with mean {list(mean)} and deviation {list(std)}, but MAGE takes pixel values "
                "in [0, 1]; save it with do_normalize=False."
            )

    def _masks(self, draw):
        """What is dropped and what is hidden, each (B, N) on the model's device."""
        mask, hidden = draw if isinstance(draw, MageDraw) else (draw, draw)
        counts = set(mask.flatten(1).sum(1).tolist())
        if len(counts) > 1:
            raise InputError(f"All masks of a batch must hide the same number of tokens, got {sorted(counts)}.")
        return tuple(m.flatten(1).to(self.model.device) for m in (mask, hidden))

    def _tokens(self, pixel_values, draw):
        """The tokens that the encoder is given, (B, N). Noise n has values beyond [0, 1], so they are not checked here."""
        super().check_pixels(pixel_values)
        if self.blank_hole:
            mask = draw.mask if isinstance(draw, MageDraw) else draw
            pixel_values = fill_hole(pixel_values, self.hole(mask.to(pixel_values.device)), self.model.config.fill_color)
        return self.model.tokenize(pixel_values)
