"""A tiny Stable-Diffusion-like inpainting pipeline, all weights random: 16x16 pictures, a VAE of factor 2, 8x8 latents."""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from test_conversion_palette import randomised
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from hf_i2i_unlearn.models.diffusion.latent import I2ILatentUNet

WORDS = ["<|startoftext|>", "<|endoftext|>", *"abcdefgh", *(f"{c}</w>" for c in "abcdefgh")]


def make_vae(**changes):
    config = {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "sample_size": 16,
        "scaling_factor": 0.5,
    }
    return randomised(AutoencoderKL(**config | changes), 5).eval()


def make_conditional(seed=0, torch_dtype=torch.float32, **changes):
    config = {
        "sample_size": 8, "in_channels": 9, "out_channels": 4, "block_out_channels": (8, 16), "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 8, "attention_head_dim": 4, "norm_num_groups": 4,
    }  # fmt: skip
    return randomised(UNet2DConditionModel(**config | changes), seed).eval().to(torch_dtype)


def make_scheduler(**changes):
    config = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "steps_offset": 1,
    }
    return DDIMScheduler(**config | changes)


def make_text_parts():
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer(vocab={w: i for i, w in enumerate(WORDS)}, merges=[], model_max_length=6)
    config = CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=6, bos_token_id=0, eos_token_id=1, pad_token_id=1, projection_dim=8,
    )  # fmt: skip
    return tokenizer, CLIPTextModel(config).eval()


def make_latent(seed=0, **options) -> I2ILatentUNet:
    text = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(3))
    scheduler = options.pop("scheduler", None) or make_scheduler()
    vae = options.pop("vae", None) or make_vae()
    return I2ILatentUNet(make_conditional(seed), scheduler, vae, text, **{"steps": 3, "patch_size": 2} | options).eval()


def save_pipeline(folder):
    """The folder of a whole pipeline, as diffusers saves it."""
    tokenizer, text_encoder = make_text_parts()
    StableDiffusionInpaintPipeline(
        vae=make_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=make_conditional(),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
