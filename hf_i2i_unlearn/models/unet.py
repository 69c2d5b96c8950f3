"""U-Nets over pixels: `diffusers.UNet2DModel` in the Palette layout, and unconditional ones."""

from typing import NamedTuple

import torch
from diffusers import DDPMScheduler, UNet2DModel

from ..errors import InputError
from .base import FOR_TRAINING, seeded
from .diffusion import I2IUNet, check_config
from .schedules import between, gamma_at

CHANNELS = (
    "the Palette layout is 6 and 3 for colour or 2 and 1 for grey pictures (condition and noisy picture in, prediction out), an "
    "unconditional U-Net has 3 and 3, or 1 and 1"
)


class PaletteDraw(NamedTuple):
    """One draw of everything random in an encoder pass; student and teacher get the same.

    mask: (B, rows, cols) boolean, True = hidden. gamma: (B,) float32 in (0, 1), the diffusion time. noise: (B, C, H, W), eta,
    the diffusion noise. condition: (B, C, H, W), the noise that fills the hole of the condition. pure: (B,) boolean, True where
    `noise` itself stands in the hole instead of the noised picture (n of eq. C.25).
    """

    mask: torch.Tensor
    gamma: torch.Tensor
    noise: torch.Tensor
    condition: torch.Tensor
    pure: torch.Tensor

    @property
    def time(self):
        return self.gamma


class I2IPaletteUNet(I2IUNet):
    """A U-Net that sees cat(condition, noisy picture) and gamma, the share of signal, in place of a step number.

    Arguments and errors are those of `I2IUNet`; the scheduler is Palette's (2000 steps, linear from 1e-6 to 0.01) if None, and
    the sampler may be of another schedule.
    """

    time_is_gamma = True

    def __init__(self, model: UNet2DModel, scheduler=None, *args, **options):
        super().__init__(
            model, scheduler or DDPMScheduler(num_train_timesteps=2000, beta_start=1e-6, beta_end=0.01), *args, **options
        )

    @staticmethod
    def check_unet(model):
        _check_pixel_unet(model, inputs_per_output=2)

    def draw(self, pixel_values, mask, seeds) -> PaletteDraw:
        """As in `I2IUNet`; but as in Palette a step t >= 1 is uniform, and gamma uniform between those of t - 1 and t."""
        device = pixel_values.device
        gammas = self.scheduler.alphas_cumprod.to(device, torch.float32)
        steps, shares, noises = [], [], []
        for generator in seeded(seeds, FOR_TRAINING, device):
            steps.append(torch.randint(1, len(gammas), (), generator=generator, device=device))
            shares.append(torch.rand((), generator=generator, device=device))
            noises.append(torch.randn(2, *pixel_values.shape[1:], generator=generator, device=device))
        noise, condition = torch.stack(noises).unbind(1)  # each (B, C, H, W)
        pure = torch.zeros(len(noises), dtype=torch.bool, device=device)
        gamma = between(gammas, torch.stack(steps), torch.stack(shares))  # (B,)
        return PaletteDraw(mask.to(device), gamma, noise, condition, pure)

    def restore(self, pixel_values, hole, condition, generators=None):
        """The denoising loop: pictures, pixel mask (B, 1, H, W) and condition (pictures with noise in the hole) -> pictures.

        It starts at the condition, as Palette does.
        """

        def show(sample, t):  # the visible part clean, as in training
            return torch.cat([condition, torch.where(hole, sample, pixel_values)], 1)

        return torch.where(hole, self.denoise(condition, show, generators), pixel_values)

    def _restore(self, pixels, mask, noise, generators):
        hole = self.hole(mask)
        return self.restore(pixels, hole, torch.where(hole, noise, pixels), generators)

    def _inputs(self, pixel_values, draw, clean):
        """cat(condition, noisy picture), (B, 2C, H, W); both show `pixel_values` outside the hole."""
        self.check_pixels(pixel_values)
        hole, noisy = self.hole(draw.mask.to(pixel_values.device)), self._noisy(draw, clean)
        inputs = torch.where(hole, torch.stack([draw.condition.to(noisy), noisy]), pixel_values.to(noisy))  # (2, B, C, H, W)
        return torch.cat([*inputs], 1).to(self.model.dtype)


class I2IPlainUNet(I2IUNet):
    """An unconditional U-Net (google/ddpm-*), which sees the noised whole picture and the scheduler's step.

    It completes pictures by their visible part, noised to the current level, being pasted back at every step; the noise of that
    part is one picture per seed, as in diffusers. For E0(T(n)) n stands in the hole, while the visible part is noised as the
    student's. Arguments and errors are those of `I2IUNet`.
    """

    @staticmethod
    def check_unet(model):
        _check_pixel_unet(model, inputs_per_output=1)

    def _restore(self, pixels, mask, noise, generators):
        hole = self.hole(mask)

        def show(sample, t):
            gamma = gamma_at(self.sampler, t).to(pixels.device)
            return torch.where(hole, sample, gamma.sqrt() * pixels + (1 - gamma).sqrt() * noise)

        return self.denoise(noise, show, generators)

    def _inputs(self, pixel_values, draw, clean):
        """The noised picture, (B, C, H, W)."""
        self.check_pixels(pixel_values)
        return self._noisy(draw, clean).to(self.model.dtype)


def palette_config(
    image_size: int = 256,
    channels: int = 3,
    inner: int = 64,
    multipliers: tuple[int, ...] = (1, 2, 4, 8),
    layers: int = 2,
    attention: tuple[int, ...] = (),
    encoder_attention: tuple[int, ...] = (),
    head_channels: int = 32,
    norm_groups: int = 32,
    dropout: float = 0.0,
) -> dict:
    """The config of a `UNet2DModel` in the Palette layout; the defaults are the published model's.

    Args:
        inner, multipliers: channels of level i are inner * multipliers[i]. layers: res blocks per level.
        attention: levels (0 is the full resolution) with attention; the middle block always has it. encoder_attention: levels
            with attention in their down block alone.
        head_channels: width of one attention head. norm_groups: groups of every norm; must divide all channel counts.
    """
    last, down, up = len(multipliers) - 1, [], []
    for level in range(last + 1):
        down.append("AttnDownBlock2D" if level in (*attention, *encoder_attention) else "ResnetDownsampleBlock2D")
        up.append("AttnUpBlock2D" if last - level in attention else "ResnetUpsampleBlock2D")
    return {
        "sample_size": image_size, "in_channels": 2 * channels, "out_channels": channels,
        "block_out_channels": [inner * m for m in multipliers], "layers_per_block": layers,
        "down_block_types": down, "up_block_types": up, "downsample_type": "resnet", "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift", "flip_sin_to_cos": True, "freq_shift": 0, "act_fn": "silu",
        "norm_num_groups": norm_groups, "norm_eps": 1e-5, "attention_head_dim": head_channels, "dropout": dropout,
        # With scale-shift norms and None here, the library leaves the middle block's attention without its norm.
        "attn_norm_num_groups": norm_groups,
    }  # fmt: skip


def with_encoder_attention(model: UNet2DModel, levels: list[int]) -> UNet2DModel:
    """A copy of a U-Net whose down blocks of these levels (0 is the full resolution) have attention after each res block.

    The new layers give nothing at first, so the copy computes what the model does until it is trained on. Convolutions see
    few pixels; with attention the encoder can tell pictures apart in the levels that the decoder relies on.

    Raises:
        InputError: a level that is not there, or has attention, or is no ResnetDownsampleBlock2D or DownBlock2D.
    """
    config = {name: value for name, value in model.config.items() if not name.startswith("_")}  # "_name_or_path" is a folder here
    kinds = list(config["down_block_types"])
    for level in levels:
        if not 0 <= level < len(kinds):
            raise InputError(f"The U-Net has no level {level} to give attention to; its levels are 0 to {len(kinds) - 1}.")
        if kinds[level] not in ("ResnetDownsampleBlock2D", "DownBlock2D"):
            raise InputError(f"Level {level} of the U-Net is a {kinds[level]}, which cannot be given attention; leave it out.")
        kinds[level] = "AttnDownBlock2D"
    grown = UNet2DModel.from_config(config | {"down_block_types": kinds})
    missing = grown.load_state_dict(model.state_dict(), strict=False).missing_keys
    state = grown.state_dict()
    for name in missing:
        if ".attentions." not in name:
            raise InputError(f"The U-Net mixes kinds of downsampling, of which attention would change '{name}'.")
        if ".to_out." in name:
            state[name].zero_()
    return grown


def _check_pixel_unet(model, inputs_per_output):
    if not isinstance(model, UNet2DModel):
        raise InputError(f"A U-Net over pixels is a UNet2DModel, got {type(model).__name__}.")
    config = model.config
    if config.out_channels not in (1, 3) or config.in_channels != inputs_per_output * config.out_channels:
        raise InputError(f"The U-Net takes {config.in_channels} channels and gives {config.out_channels}; {CHANNELS}.")
    expected = {
        "time_embedding_type": "positional", "class_embed_type": None, "num_class_embeds": None, "center_input_sample": False,
        "mid_block_type": "UNetMidBlock2D",
    }  # fmt: skip
    check_config(config, expected)
    if any(hasattr(block, "skip_conv") for block in model.down_blocks):
        raise InputError("The U-Net has skip blocks, expected down blocks such as ResnetDownsampleBlock2D or DownBlock2D.")
