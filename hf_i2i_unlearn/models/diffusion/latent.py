"""Latent inpainting: `diffusers.UNet2DConditionModel` with 9 input channels, as Stable Diffusion's inpainting models are."""

import copy
import hashlib
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from ...errors import InputError
from ..base import I2IModel
from .folders import Pipeline
from .layout import check_config, check_divisible
from .modeling import I2IUNet


class LatentDraw(NamedTuple):
    """A `TimestepDraw` with the latents of the batch, so that no picture is encoded for student and teacher anew.

    latents, masked: (B, C, h, w) of the pictures and of the pictures with an empty hole.
    """

    mask: torch.Tensor
    time: torch.Tensor
    gamma: torch.Tensor
    noise: torch.Tensor
    pure: torch.Tensor
    latents: torch.Tensor
    masked: torch.Tensor


class Latents:
    """Latents of pictures already encoded, by their content. Holds up to `size`, on the CPU; once full it takes no more.

    Nothing is dropped for new ones: passes over a set that is larger would find nothing if the oldest were.
    """

    def __init__(self, size: int):
        self.size, self.known = size, {}

    def __call__(self, picture: torch.Tensor, encode, remember: bool = True) -> torch.Tensor:
        """`encode(picture)`, or what it was the last time: (C, H, W) -> (c, h, w)."""
        if self.size == 0:
            return encode(picture)
        key = hashlib.blake2b(picture.contiguous().cpu().view(torch.uint8).numpy(), digest_size=16).digest()
        if key in self.known:
            return self.known[key].to(picture.device)
        latents = encode(picture)
        if remember and len(self.known) < self.size:
            self.known[key] = latents.cpu()
        return latents


class I2ILatentUNet(I2IUNet):
    """A U-Net that sees cat(noisy latents, mask, latents of the picture with an empty hole), the step and a text.

    VAE and text are frozen. Latents are the mean of the VAE's distribution. Each picture is encoded alone, so that its
    latents do not depend on its batch, and in the VAE's own precision. n of E0(T(n)) lives in latent space, in the hole of
    the noisy latents.

    Args:
        vae: shared with the frozen copy. text: (1, L, D), the text encoder's last hidden state of the prompt.
        prompt: what that text is, for the record. cache: pictures whose latents are kept (and as many with a hole), about 64 KB
            each at 512x512 pixels; they are found again by their content, so it is of no use with augmentation.
        patch_size: a multiple of the VAE's factor, so that holes are exact on the latent grid.
        The others: as in `I2IUNet`; image_size is the config's sample_size times the VAE's factor if None.

    Raises:
        InputError: as `I2IUNet`, or VAE and text that do not fit the U-Net.
    """

    kind = UNet2DConditionModel
    noise_is_a_picture = False
    is_bounded = False
    forgetting_condition = "picture"  # n lives in latent space, and a condition is a picture
    stored = (*I2IUNet.stored, "prompt")

    def __init__(
        self,
        model: UNet2DConditionModel,
        scheduler,
        vae: AutoencoderKL,
        text: torch.Tensor,
        prompt: str = "",
        cache: int = 4096,
        **options,
    ):
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.factor, self.latent_channels, self.picture_channels = factor, vae.config.latent_channels, vae.config.in_channels
        super().__init__(model, scheduler, **options)
        if self.teacher_condition == "noise":
            raise InputError(
                "teacher_condition 'noise' is for U-Nets over pixels: n of latent inpainting lives in latent space, and its "
                "condition is a picture; leave it at 'picture'."
            )
        expected = (2 * self.latent_channels + 1, self.latent_channels)
        if (model.config.in_channels, model.config.out_channels) != expected:
            raise InputError(
                f"The U-Net takes {model.config.in_channels} channels and gives {model.config.out_channels}, but its VAE has "
                f"{self.latent_channels} latent channels; latent inpainting takes {expected[0]} (noisy latents, mask, masked "
                f"latents) and gives {expected[1]}."
            )
        if text.shape[-1] != model.config.cross_attention_dim:
            raise InputError(
                f"The text has {text.shape[-1]} channels, the U-Net reads {model.config.cross_attention_dim}; take the text "
                "encoder of the same pipeline."
            )
        self.vae, self.prompt = vae.eval().requires_grad_(False), prompt
        self.register_buffer("text", text.detach(), persistent=False)
        self.known, self.known_masked = Latents(cache), Latents(cache)

    @classmethod
    def assemble(cls, model, scheduler, pipeline: Pipeline | None, prompt: str = "", vae_dtype=torch.float32, **options):
        """With VAE and text encoder of the pipeline; the text encoder runs once, here, and is not kept."""
        if pipeline is None:
            raise InputError(
                "A latent inpainting U-Net needs the VAE and the text encoder of its pipeline; give the pipeline's folder or "
                "Hub id (the one with model_index.json), not that of the U-Net alone."
            )
        folder, loading = str(pipeline.folder), {"use_safetensors": True, "variant": pipeline.variant}
        places = {n: pipeline.check(n, k) or None for n, k in (("vae", "AutoencoderKL"), ("text_encoder", "CLIPTextModel"))}
        vae = AutoencoderKL.from_pretrained(folder, subfolder=places["vae"], torch_dtype=vae_dtype, **loading)
        text_encoder = CLIPTextModel.from_pretrained(folder, subfolder=places["text_encoder"] or "", **loading)
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder=pipeline.check("tokenizer", "CLIPTokenizer"))
        text = encode_text(prompt, tokenizer, text_encoder)
        return cls(model, scheduler, vae, text, prompt=prompt, pipeline=pipeline, **options)

    @staticmethod
    def reads(config):
        return config.get("_class_name") == "UNet2DConditionModel"

    @staticmethod
    def check_unet(model):
        if not isinstance(model, UNet2DConditionModel):
            raise InputError(f"A latent inpainting U-Net is a UNet2DConditionModel, got {type(model).__name__}.")
        none = (
            "class_embed_type",
            "num_class_embeds",
            "addition_embed_type",
            "encoder_hid_dim_type",
            "encoder_hid_dim",
            "time_cond_proj_dim",
            "time_embedding_act_fn",
        )
        expected = {"time_embedding_type": "positional", "center_input_sample": False, "attention_type": "default"}
        check_config(model.config, expected | dict.fromkeys(none))

    # Sizes

    @property
    def channels(self):
        return self.picture_channels

    @property
    def sample_shape(self):
        return (self.latent_channels, self.size[0] // self.factor, self.size[1] // self.factor)

    def sample_hole(self, mask):
        side = self.patch_size // self.factor
        return mask.repeat_interleave(side, 1).repeat_interleave(side, 2).unsqueeze(1)

    def _default_size(self):
        size = self.model.config.sample_size
        if size is None or isinstance(size, int):
            return size and size * self.factor
        return tuple(side * self.factor for side in size)

    def _check_size(self):
        levels = 2 ** (len(self.model.config.block_out_channels) - 1)
        check_divisible(self.size, "the downsampling factor of VAE and U-Net together", self.factor * levels)
        check_divisible(self.size, "the U-Net's patch size", self.patch_size)
        if self.patch_size % self.factor:
            raise InputError(
                f"The patch size {self.patch_size} is no multiple of the VAE's factor {self.factor}, so a hole would cut "
                f"through latents; set patch_size to {self.factor} or a multiple of it."
            )

    # The frozen parts

    def frozen_copy(self):
        """As for any model, but VAE, text and known latents are shared with the copy."""
        shared = (self.vae, self.text, self.known, self.known_masked)
        return copy.deepcopy(self, {id(part): part for part in shared}).eval().requires_grad_(False)

    def train(self, mode: bool = True):
        super().train(mode)
        self.vae.eval()
        return self

    def requires_grad_(self, requires_grad: bool = True):
        super().requires_grad_(requires_grad)
        self.vae.requires_grad_(False)
        return self

    def check_pixels(self, pixel_values):
        """Raise InputError for pictures of another size, or whose latents are out of range."""
        super().check_pixels(pixel_values)
        self.encode(pixel_values)

    @torch.no_grad()
    def encode(self, pictures: torch.Tensor, known: Latents | None = None, remember: bool = True) -> torch.Tensor:
        """(B, C, H, W) in [-1, 1] -> latents (B, c, h, w), float32, scaled as the U-Net wants them.

        Raises:
            InputError: they are not finite, or too large for the U-Net's precision.
        """
        known = self.known if known is None else known
        latents = torch.stack([known(picture, self._encode_one, remember) for picture in pictures])
        if not latents.to(self.model.dtype).isfinite().all():
            raise InputError(
                f"The VAE in {_name(self.vae.dtype)} gives latents that are not finite or too large for the U-Net in "
                f"{_name(self.model.dtype)}; use the VAE in float32 or bfloat16 (vae_dtype), or a U-Net in one of them."
            )
        return latents

    def encode_masked(self, pictures, hole):
        """Latents of the pictures with an empty (grey) hole, as in Stable Diffusion's pipeline."""
        return self.encode(torch.where(hole, 0.0, pictures), self.known_masked)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, c, h, w) -> pictures (B, C, H, W), float32."""
        latents = (latents / self.vae.config.scaling_factor + self._shift()).to(self.vae.dtype)
        with torch.autocast(latents.device.type, enabled=False):
            return torch.cat([self.vae.decode(one.unsqueeze(0)).sample for one in latents]).float()

    def _encode_one(self, picture):
        with torch.autocast(picture.device.type, enabled=False):  # in which a VAE may overflow
            mean = self.vae.encode(picture.unsqueeze(0).to(self.vae.dtype)).latent_dist.mode()[0]
        return (mean.float() - self._shift()) * self.vae.config.scaling_factor

    def _shift(self):
        return self.vae.config.get("shift_factor") or 0.0

    # Encoder and generation

    def noise_like(self, pixel_values):
        """Noise is drawn in latent space: (B, c, h, w)."""
        return pixel_values.new_empty(len(pixel_values), *self.sample_shape)

    def draw(self, pixel_values, mask, seeds) -> LatentDraw:
        I2IModel.check_pixels(self, pixel_values)
        drawn = super().draw(pixel_values, mask, seeds)
        latents, masked = self.encode(pixel_values), self.encode_masked(pixel_values, self.hole(drawn.mask))
        return LatentDraw(**drawn._asdict(), latents=latents, masked=masked)

    def _sample(self, pixel_values, draw):
        return draw.latents

    def _target(self, pictures):
        return self.encode(pictures, remember=False)  # the batch's own are known; noise pictures never come back

    def _inputs(self, pixel_values, draw, clean):
        """cat(noisy latents, mask, masked latents), (B, 2c + 1, h, w); the noisy latents are noised in the visible part too."""
        I2IModel.check_pixels(self, pixel_values)
        noisy = self._noisy(draw, clean)
        return torch.cat([noisy, self.sample_hole(draw.mask).to(noisy), draw.masked], 1).to(self.model.dtype)

    def _restore(self, pixels, mask, noise, generators):
        condition = torch.cat([self.sample_hole(mask).float(), self.encode_masked(pixels, self.hole(mask))], 1)
        return self.decode(self.denoise(noise, lambda sample, t: torch.cat([sample, condition], 1), generators))

    def _context(self, block, count):
        if block is None or getattr(block, "has_cross_attention", False):
            return {"encoder_hidden_states": self.text.to(self.model.dtype).expand(count, -1, -1)}
        return {}


@torch.no_grad()
def encode_text(prompt: str, tokenizer, text_encoder) -> torch.Tensor:
    """The last hidden state of the prompt, padded to the tokenizer's length, as in Stable Diffusion's pipeline: (1, L, D)."""
    tokens = tokenizer(
        prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    attention = tokens.attention_mask if getattr(text_encoder.config, "use_attention_mask", False) else None
    return text_encoder(tokens.input_ids, attention_mask=attention).last_hidden_state.float()


def _name(dtype) -> str:
    return str(dtype).removeprefix("torch.")
