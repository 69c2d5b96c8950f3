"""U-Nets over pixels: `diffusers.UNet2DModel` in the Palette layout, and unconditional ones."""

from typing import NamedTuple

import torch
from diffusers import DDPMScheduler, UNet2DModel

from ...errors import InputError
from ..base import FOR_TRAINING, seeded
from .layout import check_config
from .modeling import I2IUNet
from .schedules import between, gamma_at

CHANNELS = (
    "the Palette layout is 6 and 3 for colour or 2 and 1 for grey pictures (condition and noisy picture in, prediction out), "
    "an unconditional U-Net has 3 and 3, or 1 and 1"
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
    def reads(config):
        return config.get("_class_name") == "UNet2DModel" and not _is_plain(config)

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
    def reads(config):
        return config.get("_class_name") == "UNet2DModel" and _is_plain(config)

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


def _is_plain(config):
    return config.get("in_channels", 3) == config.get("out_channels", 3)


def _check_pixel_unet(model, inputs_per_output):
    if not isinstance(model, UNet2DModel):
        raise InputError(f"A U-Net over pixels is a UNet2DModel, got {type(model).__name__}.")
    config = model.config
    if config.out_channels not in (1, 3) or config.in_channels != inputs_per_output * config.out_channels:
        raise InputError(f"The U-Net takes {config.in_channels} channels and gives {config.out_channels}; {CHANNELS}.")
    expected = {
        "time_embedding_type": "positional",
        "class_embed_type": None,
        "num_class_embeds": None,
        "center_input_sample": False,
        "mid_block_type": "UNetMidBlock2D",
    }
    check_config(config, expected)
    if any(hasattr(block, "skip_conv") for block in model.down_blocks):
        raise InputError("The U-Net has skip blocks, expected down blocks such as ResnetDownsampleBlock2D or DownBlock2D.")
