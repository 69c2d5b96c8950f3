"""The published configurations with random weights: such a model takes the steps, memory, disk and time of the real one.

Each entry of `PUBLISHED` writes a folder as its own library would. `tiny` makes the same layout in miniature, for tests.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Published:
    """A published model: what it is, pixels a side of its pictures, T for it, options of its run, `make(folder, tiny)`."""

    title: str
    side: int
    corruption: str
    make: Callable[[Path, bool], None]
    options: tuple[str, ...] = ()


def _mae(large: bool):
    def make(folder: Path, tiny: bool) -> None:
        from transformers import ViTMAEConfig

        from ...models.mae.conversion import image_processor
        from ...models.mae.modeling import I2IMAE

        config: dict = {"norm_pix_loss": True}
        if large:
            config |= {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
        if tiny:
            config |= {
                "image_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                "intermediate_size": 64, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1,
                "decoder_num_attention_heads": 2, "decoder_intermediate_size": 64,
            }  # fmt: skip
        model = I2IMAE.from_config(ViTMAEConfig(**config))
        model.save_pretrained(folder)
        image_processor(model.model).save_pretrained(folder)

    return make


def _mage(large: bool):
    def make(folder: Path, tiny: bool) -> None:
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

        from ...models.mage.hf.configuration_mage import MageConfig
        from ...models.mage.hf.modeling_mage import MageModel
        from ...models.mage.modeling import I2IMage

        config: dict = {}
        if large:
            config |= {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "decoder_hidden_size": 1024}
        if tiny:
            config |= {
                "image_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
                "codebook_size": 16, "codebook_dim": 8, "tokenizer_channels": 8, "tokenizer_norm_groups": 4,
            }  # fmt: skip
        model = I2IMage(MageModel(MageConfig(**config)))
        model.save_pretrained(folder)
        side = model.image_size[0]
        ViTImageProcessorPil(size={"height": side, "width": side}, do_normalize=False, resample=3).save_pretrained(folder)

    return make


def _palette(folder: Path, tiny: bool) -> None:
    from ...models.diffusion.layout import palette_config
    from ...models.diffusion.modeling import I2IUNet

    small: dict = {"image_size": 64, "inner": 8, "multipliers": (1, 2), "layers": 1, "head_channels": 4, "norm_groups": 4}
    I2IUNet.from_config(palette_config(**small if tiny else {})).save_pretrained(folder)


def _stable_diffusion(folder: Path, tiny: bool) -> None:
    """The inpainting pipeline of Stable Diffusion 1.5; its tokenizer knows the letters alone."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    width = 8 if tiny else 768
    unet: dict = {
        "sample_size": 64, "in_channels": 9, "out_channels": 4, "cross_attention_dim": width, "attention_head_dim": 8,
    }  # fmt: skip
    vae: dict = {
        "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 512,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    }  # fmt: skip
    text: dict = {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "projection_dim": 768, "vocab_size": 49408,
    }  # fmt: skip
    if tiny:
        unet |= {
            "sample_size": 16, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "attention_head_dim": 4,
        }  # fmt: skip
        vae |= {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 128}
        text |= {
            "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 8,
        }  # fmt: skip
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    StableDiffusionInpaintPipeline(
        vae=AutoencoderKL(**vae),
        text_encoder=CLIPTextModel(CLIPTextConfig(**text | ids)),
        tokenizer=CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=77),
        unet=UNet2DConditionModel(**unet),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


FEW_STEPS = ("--generation_steps", "2")  # of generation, in the place of 50: the rest takes as long each
PUBLISHED = {
    "mae-base": Published("MAE, ViT-B", 224, "center:8", _mae(False)),
    "mae-large": Published("MAE, ViT-L", 224, "center:8", _mae(True)),
    "mage-base": Published("MAGE, ViT-B and VQ-GAN", 256, "center:8", _mage(False)),
    "mage-large": Published("MAGE, ViT-L and VQ-GAN", 256, "center:8", _mage(True)),
    "palette": Published("Palette's U-Net, 62M", 256, "center:8", _palette, FEW_STEPS),
    "stable-diffusion": Published(
        "Stable Diffusion inpainting, U-Net of 860M and VAE", 512, "center:8", _stable_diffusion, FEW_STEPS
    ),
}


def make(name: str, folder, tiny: bool = False, seed: int = 0) -> None:
    """Write the model of this name with random weights to a folder."""
    torch.manual_seed(seed)
    PUBLISHED[name].make(Path(folder), tiny)
