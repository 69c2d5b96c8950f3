"""Diffusion: `diffusers.UNet2DModel` in the Palette layout, which completes pictures by denoising the hole.

The U-Net sees cat(condition, noisy picture) and gamma, the share of signal (the scheduler's `alphas_cumprod`), in place of a
step number. The encoder representation of eq. 10 is what the up blocks read: the output of `conv_in`, every residual of the
down blocks and the output of the middle block.

The up blocks also read the time embedding, so it belongs to the decoder too: it stays frozen by default, and then "same
decoder" (theorem 1) is exact. The released code trains it.
"""

import inspect
from pathlib import Path
from typing import NamedTuple

import diffusers
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from torch import nn

from ..errors import InputError
from .base import FOR_SAMPLING, FOR_TRAINING, I2IModel, seeded

PREDICTIONS = ("epsilon", "v_prediction", "sample")
COMBINE = ("concat", "mean")
HUB = ("revision", "token", "cache_dir", "local_files_only")


class DiffusionDraw(NamedTuple):
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


class I2IUNet(I2IModel):
    """A U-Net in the Palette layout as h = D o E. Pictures are in [-1, 1] (image processors with mean and deviation 0.5).

    Args:
        model: the library's model. `I2IUNet.from_pretrained(path)` and `I2IUNet.from_config(config)` make one.
        scheduler: the noise schedule of its training, any diffusers scheduler with `alphas_cumprod`; Palette's (2000 steps,
            linear from 1e-6 to 0.01) if None. Its prediction type says what the network predicts.
        sampler: the scheduler of `generate`; DDIM on the same schedule if None. `DDPMScheduler` at full steps is the reference.
            May be of another schedule, for the network is told gamma and not a step number.
        steps: denoising steps of `generate`.
        image_size: (height, width) or one number in pixels, where the U-Net's config has no `sample_size`.
        patch_size: side in pixels of the patches that corruptions hide; image_size // 16 if None, a 16x16 grid.
        combine: "concat", all levels as one vector, so that each value weighs the same (the paper); "mean", levels scaled so
            that the mean squared error is the mean of the levels' mean squared errors (the released code takes their sum).
        train_time_embedding: train it with the encoder, as the released code does; the decoder then changes too.

    Raises:
        InputError: the model is no U-Net in the Palette layout, its size does not fit, or a scheduler is of an unknown kind.
    """

    family = "diffusion"
    noise_target_is_shared = False  # E0(T(x), n, eta) depends on the visible part of each picture

    def __init__(
        self,
        model: UNet2DModel,
        scheduler=None,
        sampler=None,
        steps: int = 50,
        image_size: int | tuple[int, int] | None = None,
        patch_size: int | None = None,
        combine: str = "concat",
        train_time_embedding: bool = False,
    ):
        super().__init__()
        _check_unet(model)
        if combine not in COMBINE:
            raise InputError(f"combine is one of {', '.join(COMBINE)}, got '{combine}'.")
        size = image_size or model.config.sample_size
        if size is None:
            raise InputError("The U-Net's config has no sample_size; pass image_size, the side of the pictures in pixels.")
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.patch_size = max(1, min(self.size) // 16) if patch_size is None else patch_size
        _check_size(self.size, self.patch_size, 2 ** (len(model.config.block_out_channels) - 1))
        self.model, self.combine, self.train_time_embedding = model, combine, train_time_embedding
        self.scheduler = scheduler or DDPMScheduler(num_train_timesteps=2000, beta_start=1e-6, beta_end=0.01)
        self.prediction_type = _prediction_type(self.scheduler)
        self.sampler = sampler or ddim(self.scheduler)
        if _prediction_type(self.sampler) != self.prediction_type:
            raise InputError(
                f"The sampler takes predictions of type '{_prediction_type(self.sampler)}', but the network was trained for "
                f"'{self.prediction_type}'; make it with from_config(scheduler.config)."
            )
        longest = self.sampler.config.num_train_timesteps
        if not 1 <= steps <= longest:
            raise InputError(f"The sampler can take 1 to {longest} steps, got steps={steps}.")
        self.steps = steps

    @classmethod
    def from_pretrained(cls, path: str, scheduler=None, **kwargs) -> "I2IUNet":
        """Load a folder or Hub repository that `UNet2DModel.from_pretrained` reads, and `scheduler/` in it if there is one.

        Args:
            scheduler, and the others of `I2IUNet`: as there. revision, token, subfolder ("unet" for a pipeline), cache_dir,
            local_files_only, torch_dtype, variant: as in diffusers.

        Raises:
            InputError: a checkpoint of another kind, or with weights missing.
        """
        hub = {name: kwargs.pop(name) for name in HUB if name in kwargs}
        loading = {name: kwargs.pop(name) for name in ("torch_dtype", "variant") if name in kwargs}
        subfolder = kwargs.pop("subfolder", None) or ""
        folder = Path(path, subfolder)
        if Path(path).is_dir() and not (folder / "config.json").is_file():
            raise InputError(
                f"'{folder}' has no config.json; give the folder of a UNet2DModel (of a pipeline: its unet folder)."
            )
        config = UNet2DModel.load_config(path, subfolder=subfolder or None, **hub)
        kind = config.get("_class_name") or config.get("model_type") or "unknown"
        if kind != "UNet2DModel":
            raise InputError(f"'{path}' holds a '{kind}' model, expected 'UNet2DModel' in the Palette layout.")
        model, info = UNet2DModel.from_pretrained(path, subfolder=subfolder or None, output_loading_info=True, **hub, **loading)
        if info["missing_keys"]:
            raise InputError(
                f"'{path}' lacks {len(info['missing_keys'])} weights of its U-Net, first '{min(info['missing_keys'])}'; "
                "save it again with UNet2DModel.save_pretrained."
            )
        # Beside the weights, as `save_pretrained` puts it, or beside their folder, as in a pipeline.
        scheduler = (
            scheduler or _load_scheduler(path, subfolder, **hub) or (_load_scheduler(path, **hub) if subfolder else None)
        )
        return cls(model, scheduler, **kwargs)

    @classmethod
    def from_config(cls, config: dict, **kwargs) -> "I2IUNet":
        """A fresh model; `palette_config` makes configs. The other arguments are those of `I2IUNet`."""
        return cls(UNet2DModel.from_config(config), **kwargs)

    @property
    def image_size(self):
        return self.size

    @property
    def channels(self):
        return self.model.config.out_channels

    @property
    def grid(self):
        return (self.size[0] // self.patch_size, self.size[1] // self.patch_size)

    @property
    def decoder_untouched(self):
        return not self.train_time_embedding

    def encoder_modules(self):
        """conv_in, down blocks and middle block; the time embedding only with `train_time_embedding`."""
        shared = [self.model.time_embedding] if self.train_time_embedding else []
        return [self.model.conv_in, self.model.down_blocks, self.model.mid_block, *shared]

    def draw(self, pixel_values, mask, seeds) -> DiffusionDraw:
        """Diffusion times and noises for a batch, one integer seed per picture: a picture's draw depends on its seed alone.

        As in Palette a step t >= 1 is uniform, and gamma uniform between those of t - 1 and t.
        """
        shape, device = pixel_values.shape[1:], pixel_values.device
        gammas = self.scheduler.alphas_cumprod.to(device, torch.float32)
        steps, shares, noises = [], [], []
        for generator in seeded(seeds, FOR_TRAINING, device):
            steps.append(torch.randint(1, len(gammas), (), generator=generator, device=device))
            shares.append(torch.rand((), generator=generator, device=device))
            noises.append(torch.randn(2, *shape, generator=generator, device=device))
        noise, condition = torch.stack(noises).unbind(1)  # each (B, C, H, W)
        pure = torch.zeros(len(noises), dtype=torch.bool, device=device)
        gamma = between(gammas, torch.stack(steps), torch.stack(shares))  # (B,)
        return DiffusionDraw(mask.to(device), gamma, noise, condition, pure)

    def noised(self, pixel_values, draw: DiffusionDraw, noise=None):
        """What the original encoder is given for E0(T(x), n, eta), eq. C.25: (pixel values, draw).

        n stands in the hole of the noisy picture; the condition, the visible part and the time stay. n is `noise` (B, C, H, W),
        or the diffusion noise itself if None, as in the released code.
        """
        noise = draw.noise if noise is None else noise
        return pixel_values, draw._replace(noise=noise, pure=torch.ones_like(draw.pure))

    def forward(self, pixel_values, draw):
        """E(T(x)): (B, C, H, W) and a `DiffusionDraw` -> (B, D), D values of all levels.

        In eval mode a plain mask (B, rows, cols) stands for the draw of seed 0 for every picture: one fixed time and noise, good
        for a look at representations. In training mode it is refused with an InputError.
        """
        if not isinstance(draw, DiffusionDraw):
            if self.training:  # or the model would silently be trained at one diffusion time
                raise InputError(
                    "Training a diffusion model takes a DiffusionDraw, got a mask; make one with draw(x, mask, seeds)."
                )
            draw = self.draw(pixel_values, draw, [0] * len(pixel_values))
        levels = [level.flatten(1) for level in self.features(pixel_values, draw)]  # each (B, C_k * H_k * W_k)
        if self.combine == "mean":
            total = sum(level.shape[1] for level in levels)
            # sum_k |s_k d_k|^2 / D with s_k^2 = D / (K D_k) is the mean over k of |d_k|^2 / D_k.
            levels = [level * (total / (len(levels) * level.shape[1])) ** 0.5 for level in levels]
        return torch.cat(levels, 1)

    def features(self, pixel_values, draw: DiffusionDraw) -> list[torch.Tensor]:
        """The levels of the representation, each (B, C_k, H_k, W_k): conv_in, down residuals in order, middle block."""
        unet, sample = self.model, self._inputs(pixel_values, draw, pixel_values)
        # As in UNet2DModel.forward, up to the up blocks. gamma goes into the sinusoids in float32, whatever the weights are.
        embedding = unet.time_embedding(unet.time_proj(draw.gamma.float()).to(unet.dtype))
        sample = unet.conv_in(sample)
        levels = [sample]
        for block in unet.down_blocks:
            sample, residuals = block(hidden_states=sample, temb=embedding)
            levels += residuals
        return [*levels, unet.mid_block(sample, embedding)]

    def training_loss(self, pixel_values, draw, target=None):
        """Mean squared error of the prediction over the hidden values of each picture: (B,).

        The prediction is of eta, of the velocity sqrt(gamma) eta - sqrt(1 - gamma) x, or of x, by the scheduler's prediction
        type. `target` is the picture that the network should learn to put into the hole: it takes the place of x in the noised
        picture (and in velocity and x), while condition and visible part are those of `pixel_values`. (To keep x in the noised
        picture would need the "noise" (y_t - sqrt(gamma) target) / sqrt(1 - gamma), which explodes as gamma goes to 1.)

        A plain mask in place of a draw takes seeds from torch's global generator.
        """
        if not isinstance(draw, DiffusionDraw):
            draw = self.draw(pixel_values, draw, torch.randint(2**62, (len(pixel_values),)).tolist())
        clean = pixel_values if target is None else target
        predicted = self.model(self._inputs(pixel_values, draw, clean), draw.gamma.float()).sample.float()
        gamma = draw.gamma.view(-1, 1, 1, 1)
        wanted = {
            "epsilon": lambda: draw.noise,
            "v_prediction": lambda: gamma.sqrt() * draw.noise - (1 - gamma).sqrt() * clean,
            "sample": lambda: clean,
        }[self.prediction_type]()
        hole = self.hole(draw.mask.to(pixel_values.device)).to(predicted)  # (B, 1, H, W)
        error = ((predicted - wanted).square() * hole).flatten(1).sum(1)
        return error / (hole.flatten(1).sum(1) * self.channels)

    @torch.no_grad()
    def generate(self, pixel_values, mask, seeds=None):
        """Restores the hole in `steps` steps of `sampler`, from noise: (B, C, H, W), the visible part untouched.

        `seeds`: one integer per picture, on which alone its noise depends; 0 for all if None.
        """
        self.check_pixels(pixel_values)
        seeds = [0] * len(pixel_values) if seeds is None else seeds
        generators = seeded(seeds, FOR_SAMPLING, pixel_values.device)
        noise = torch.stack([torch.randn(pixel_values.shape[1:], generator=g, device=pixel_values.device) for g in generators])
        hole = self.hole(mask.to(pixel_values.device))
        return self.restore(pixel_values, hole, torch.where(hole, noise, pixel_values.float()), generators)

    @torch.no_grad()
    def restore(self, pixel_values, hole, condition, generators=None):
        """The denoising loop: pictures, pixel mask (B, 1, H, W) and condition (pictures with noise in the hole) -> pictures.

        It starts at the condition, as Palette does. The schedule is computed in float32 for models of any precision.
        """
        sampler, pixels = self.sampler, pixel_values.float()
        sampler.set_timesteps(self.steps)
        options = {"generator": generators} if "generator" in inspect.signature(sampler.step).parameters else {}
        sample = torch.where(hole, condition * float(sampler.init_noise_sigma), pixels)
        for t in sampler.timesteps:
            # Samplers that work with unbounded variance (Euler, Heun) scale their sample, so the visible part is pasted into
            # what the network sees; the network was trained with it clean.
            noisy = torch.where(hole, sampler.scale_model_input(sample, t), pixels)
            gamma = _gamma_at(sampler, t).to(pixels.device).expand(len(pixels))
            predicted = self.model(torch.cat([condition, noisy], 1).to(self.model.dtype), gamma).sample.float()
            sample = sampler.step(predicted, t, sample, **options).prev_sample
            sample = torch.where(hole, sample, pixels)
        return sample.to(pixel_values.dtype)

    def save_pretrained(self, folder, **kwargs):
        """Write the U-Net, readable by `UNet2DModel.from_pretrained(folder)`, and its noise schedule to `scheduler/`."""
        super().save_pretrained(folder, **kwargs)
        self.scheduler.save_pretrained(Path(folder, "scheduler"))

    def _inputs(self, pixel_values, draw, clean):
        """cat(condition, noisy picture), (B, 2C, H, W); both show `pixel_values` outside the hole."""
        self.check_pixels(pixel_values)
        hole = self.hole(draw.mask.to(pixel_values.device))
        gamma, pure = draw.gamma.view(-1, 1, 1, 1), draw.pure.view(-1, 1, 1, 1)
        noisy = torch.where(pure, draw.noise, gamma.sqrt() * clean + (1 - gamma).sqrt() * draw.noise)
        inputs = torch.where(hole, torch.stack([draw.condition.to(noisy), noisy]), pixel_values.to(noisy))  # (2, B, C, H, W)
        return torch.cat([*inputs], 1).to(self.model.dtype)


def palette_config(
    image_size: int = 256,
    channels: int = 3,
    inner: int = 64,
    multipliers: tuple[int, ...] = (1, 2, 4, 8),
    layers: int = 2,
    attention: tuple[int, ...] = (),
    head_channels: int = 32,
    norm_groups: int = 32,
    dropout: float = 0.0,
) -> dict:
    """The config of a `UNet2DModel` in the Palette layout; the defaults are the published model's.

    Args:
        inner, multipliers: channels of level i are inner * multipliers[i]. layers: res blocks per level.
        attention: levels (0 is the full resolution) with attention; the middle block always has it.
        head_channels: width of one attention head. norm_groups: groups of every norm; must divide all channel counts.
    """
    last, down, up = len(multipliers) - 1, [], []
    for level in range(last + 1):
        down.append("AttnDownBlock2D" if level in attention else "ResnetDownsampleBlock2D")
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


def ddim(scheduler) -> DDIMScheduler:
    """DDIM on the schedule of another scheduler, its first step the noisiest one, where `generate` begins."""
    # Without the list of "default" values, which holds positional arguments too: they would be replaced by DDIM's defaults.
    config = {name: value for name, value in scheduler.config.items() if name != "_use_default_values"}
    return DDIMScheduler.from_config(config, timestep_spacing="trailing")


def between(gammas, t, share):
    """gamma at `share` (0..1) of the way from step t - 1 to step t."""
    return (gammas[t] - gammas[t - 1]) * share + gammas[t - 1]


def _gamma_at(scheduler, t) -> torch.Tensor:
    """`alphas_cumprod` at a sampler's time, float32; some samplers go between the steps."""
    gammas, t = scheduler.alphas_cumprod.float().cpu(), torch.as_tensor(t).cpu()
    above = t.ceil().long() if t.is_floating_point() else t
    return gammas[above] if above == t or above == 0 else between(gammas, above, (t - (above - 1)).float())


def _check_unet(model: nn.Module) -> None:
    if not isinstance(model, UNet2DModel):
        raise InputError(f"I2IUNet wraps a UNet2DModel, got {type(model).__name__}.")
    config = model.config
    if config.out_channels not in (1, 3) or config.in_channels != 2 * config.out_channels:
        raise InputError(
            f"The U-Net takes {config.in_channels} channels and gives {config.out_channels}; the Palette layout is 6 and 3 for "
            "colour or 2 and 1 for grey pictures (condition and noisy picture in, prediction out)."
        )
    expected = {
        "time_embedding_type": "positional", "class_embed_type": None, "num_class_embeds": None, "center_input_sample": False,
        "mid_block_type": "UNetMidBlock2D",
    }  # fmt: skip
    for name, value in expected.items():
        if config[name] != value:
            raise InputError(
                f"The U-Net's config has {name}={config[name]}, expected {value}; the Palette layout has no other."
            )
    if any(hasattr(block, "skip_conv") for block in model.down_blocks):
        raise InputError("The U-Net has skip blocks, expected down blocks such as ResnetDownsampleBlock2D or DownBlock2D.")


def _check_size(size, patch_size, factor):
    for what, side in (("downsampling factor", factor), ("patch size", patch_size)):
        if side < 1 or size[0] % side or size[1] % side:
            raise InputError(
                f"The image size {size[0]}x{size[1]} is not divisible by the U-Net's {what} {side}; choose a multiple of it."
            )


def _prediction_type(scheduler) -> str:
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise InputError(
            f"{type(scheduler).__name__} has no alphas_cumprod, from which the U-Net's gamma is taken; use a scheduler that has, "
            "such as DDPMScheduler, DDIMScheduler or DPMSolverMultistepScheduler."
        )
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise InputError(f"The scheduler's prediction type is '{kind}', expected one of {', '.join(PREDICTIONS)}.")
    return kind


def _load_scheduler(path, subfolder="", **hub):
    """The scheduler in `scheduler/` of a (sub)folder or Hub repository; None if there is none."""
    name = Path(subfolder, "scheduler", "scheduler_config.json")
    file = Path(path, name)
    if Path(path).is_dir():
        if not file.is_file():
            return None
    else:
        try:
            file = Path(hf_hub_download(path, name.as_posix(), **hub))
        except RemoteEntryNotFoundError:
            return None
    kind = DDPMScheduler.load_config(file.parent).get("_class_name")
    if not hasattr(getattr(diffusers, str(kind), None), "from_pretrained"):
        raise InputError(f"'{file}' names the scheduler '{kind}', which diffusers {diffusers.__version__} does not have.")
    return getattr(diffusers, kind).from_pretrained(file.parent)
