"""Diffusion: the U-Nets of `diffusers`, which complete pictures by denoising the hole. What the three layouts share.

The encoder representation of eq. 10 is what the up blocks read: the output of `conv_in`, every residual of the down blocks and
the output of the middle block. The up blocks also read the time embedding, so it belongs to the decoder too: it stays frozen by
default, and then "same decoder" (theorem 1) is exact. The released code trains it.
"""

import abc
from typing import NamedTuple

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...errors import InputError
from ..base import FOR_SAMPLING, FOR_TRAINING, I2IModel, seeded
from .encoder import encoder_levels, level_sizes
from .files import UNetFiles
from .folders import Pipeline
from .layout import check_divisible
from .schedules import check_sampler, denoise, gamma_at, on_schedule, plain_config, prediction_type

COMBINE = ("concat", "mean")


TEACHER_CONDITIONS = ("picture", "noise")


class TimestepDraw(NamedTuple):
    """One draw of everything random in an encoder pass; student and teacher get the same.

    mask: (B, rows, cols) boolean, True = hidden. time: (B,) integer, the scheduler's step. gamma: (B,) float32 in (0, 1), its
    share of signal (`alphas_cumprod`). noise: (B, C, h, w), eta, the diffusion noise. pure: (B,) boolean, True where `noise`
    itself stands in the hole instead of the noised picture (n of eq. C.25).
    """

    mask: torch.Tensor
    time: torch.Tensor
    gamma: torch.Tensor
    noise: torch.Tensor
    pure: torch.Tensor


class I2IUNet(UNetFiles):
    """A U-Net of diffusers as h = D o E. Pictures are in [-1, 1] (image processors with mean and deviation 0.5).

    `I2IUNet.from_pretrained(path)` and `I2IUNet.from_config(config)` choose the layout by the U-Net's config:

    - `I2IPaletteUNet`: condition and noisy picture in; the time input is gamma.
    - `I2IPlainUNet`: an unconditional U-Net (google/ddpm-*), whose visible part is noised and pasted back at every step.
    - `I2ILatentUNet`: latent inpainting in the layout of Stable Diffusion.

    Args:
        model: the library's model.
        scheduler: the noise schedule of its training, any diffusers scheduler with `alphas_cumprod`. Its prediction type says
            what the network predicts.
        sampler: the scheduler of `generate`; DDIM on the same schedule if None. `DDPMScheduler` at full steps is the reference.
        steps: denoising steps of `generate`.
        image_size: (height, width) or one number in pixels, where the U-Net's config has no `sample_size`.
        patch_size: side in pixels of the patches that corruptions hide; image_size // 16 if None, a 16x16 grid.
        combine: "concat", all levels as one vector, so that each value weighs the same (the paper); "mean", levels scaled so
            that the mean squared error is the mean of the levels' mean squared errors (the released code takes their sum).
        teacher_condition: what the original's condition is for E0(T(n)). "noise", T(n) as eq. 10 has it: n takes the place of
            the visible part too. "picture", the visible part of the forget picture, as eq. C.25 and the released code have it:
            early in the generation, where all is noise, nothing is then asked for. None is noise, in latent space picture.
        frozen_levels: conv_in and this many of the first down blocks are not trained. Their convolutions see few pixels: where
            those cannot tell what is to be forgotten, such levels can only move forget and retain pictures alike. 0 trains all
            (the paper).
        frozen_conv_in: conv_in is not trained. It sees 3x3 pixels, even where the first down block has attention.
        train_time_embedding: train it with the encoder, as the released code does; the decoder then changes too.
        pipeline: the pipeline that the U-Net came from; `save_pretrained` then writes a whole one.

    Raises:
        InputError: the model is no U-Net of the layout, its size does not fit, or a scheduler is of an unknown kind.
    """

    family = "diffusion"
    muon_learning_rate = 0.0  # most weights are convolutions
    distils = "predictions"
    run_options = {"denoising_steps": "steps", "generation_steps": "steps"} | {
        name: name for name in ("subfolder", "image_size", "patch_size", "combine", "train_time_embedding")
    }
    adapted_layers = (nn.Linear, nn.Conv2d)
    noise_target_is_shared = False  # E0(T(x), n, eta) depends on the visible part of each picture
    draws_beside_t = True  # time and noise
    kind = UNet2DModel  # of the inner model
    time_is_gamma = False
    is_bounded = True  # what is denoised lies in [-1, 1], so samplers may clip it
    # In i2i_model.json, beside the weights.
    stored: tuple[str, ...] = (
        "image_size", "patch_size", "steps", "combine", "frozen_levels", "frozen_conv_in", "train_time_embedding",
    )  # fmt: skip
    forgetting_condition = "noise"  # the teacher_condition that forgets; recipes/README.md has figures of both

    def __init__(
        self,
        model: nn.Module,
        scheduler,
        sampler=None,
        steps: int = 50,
        image_size: int | tuple[int, int] | None = None,
        patch_size: int | None = None,
        combine: str = "concat",
        teacher_condition: str | None = None,
        frozen_levels: int = 0,
        frozen_conv_in: bool = False,
        train_time_embedding: bool = False,
        pipeline: Pipeline | None = None,
    ):
        super().__init__()
        self.check_unet(model)
        if combine not in COMBINE:
            raise InputError(f"combine is one of {', '.join(COMBINE)}, got '{combine}'.")
        teacher_condition = teacher_condition or self.forgetting_condition
        if teacher_condition not in TEACHER_CONDITIONS:
            raise InputError(f"teacher_condition is one of {', '.join(TEACHER_CONDITIONS)}, got '{teacher_condition}'.")
        self.model, self.combine, self.train_time_embedding, self.pipeline = model, combine, train_time_embedding, pipeline
        self.teacher_condition, self.frozen_levels, self.frozen_conv_in = teacher_condition, frozen_levels, frozen_conv_in
        if not 0 <= frozen_levels <= (levels := len(model.down_blocks)):
            raise InputError(f"The U-Net has {levels} down blocks, so frozen_levels is 0 to {levels}; got {frozen_levels}.")
        size = image_size or self._default_size()
        if size is None:
            raise InputError("The U-Net's config has no sample_size; pass image_size, the side of the pictures in pixels.")
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.patch_size = max(1, min(self.size) // 16) if patch_size is None else patch_size
        self._check_size()
        if scheduler is None:
            raise InputError("The U-Net has no noise schedule (scheduler/scheduler_config.json beside it); pass scheduler.")
        self.scheduler = scheduler
        self.prediction_type = prediction_type(self.scheduler)
        self.sampler = sampler or on_schedule(DDIMScheduler, self.scheduler)
        self.steps = steps

    @property
    def sampler(self):
        """The scheduler of `generate`, which never clips latents. Setting one that does not fit raises InputError."""
        return self._sampler

    @sampler.setter
    def sampler(self, sampler):
        check_sampler(sampler, self.scheduler, any_schedule=self.time_is_gamma)
        if sampler.config.get("clip_sample") and not self.is_bounded:
            sampler = type(sampler).from_config(plain_config(sampler.config), clip_sample=False)
        self._sampler = sampler

    def sample_with(self, kind) -> None:
        """Generate with a scheduler class of diffusers, on the schedule of training."""
        self.sampler = on_schedule(kind, self.scheduler)

    @property
    def steps(self):
        """Denoising steps of `generate`."""
        return self._steps

    @steps.setter
    def steps(self, steps):
        longest = self.sampler.config.num_train_timesteps
        if not 1 <= steps <= longest:
            raise InputError(f"The sampler can take 1 to {longest} steps, got steps={steps}.")
        self._steps = steps

    # Sizes

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
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of what is noised: a picture, or its latents."""
        return (self.channels, *self.size)

    def sample_hole(self, mask: torch.Tensor) -> torch.Tensor:
        """(B, rows, cols) patch mask -> (B, 1, h, w) boolean over what is noised, True = hidden."""
        return self.hole(mask)

    def _default_size(self):
        return self.model.config.sample_size

    def _check_size(self):
        check_divisible(self.size, "the U-Net's downsampling factor", 2 ** (len(self.model.config.block_out_channels) - 1))
        check_divisible(self.size, "the U-Net's patch size", self.patch_size)

    @staticmethod
    @abc.abstractmethod
    def check_unet(model: nn.Module) -> None:
        """Raise InputError unless the model is a U-Net of this layout."""

    # Encoder and decoder

    @property
    def decoder_untouched(self):
        return not self.train_time_embedding

    def encoder_modules(self):
        """conv_in, down blocks (but the frozen ones) and middle block; the time embedding only with `train_time_embedding`."""
        shared = [self.model.time_embedding] if self.train_time_embedding else []
        first = [] if self.frozen_levels or self.frozen_conv_in else [self.model.conv_in]
        return [*first, *self.model.down_blocks[self.frozen_levels :], self.model.mid_block, *shared]

    def activation_checkpointing_enable(  # type: ignore[override]  # no other options are known
        self, activation_checkpointing_kwargs=None, every_n_layers=1, offload=False
    ):
        if every_n_layers != 1 or offload:
            raise InputError("A U-Net checkpoints the activations of every block; leave out every_n_layers and offload.")
        options = {"use_reentrant": False} | (activation_checkpointing_kwargs or {})
        self.model.enable_gradient_checkpointing(lambda module, *args: checkpoint(module.__call__, *args, **options))

    def draw(self, pixel_values, mask, seeds):
        """Diffusion times and noises for a batch, one integer seed per picture: a picture's draw depends on its seed alone.

        The time is uniform over the scheduler's steps.
        """
        device, steps, noises = pixel_values.device, [], []
        gammas = self.scheduler.alphas_cumprod.to(device, torch.float32)
        for generator in seeded(seeds, FOR_TRAINING, device):
            steps.append(torch.randint(len(gammas), (), generator=generator, device=device))
            noises.append(torch.randn(self.sample_shape, generator=generator, device=device))
        time = torch.stack(steps)  # (B,)
        pure = torch.zeros(len(steps), dtype=torch.bool, device=device)
        return TimestepDraw(mask.to(device), time, gammas[time], torch.stack(noises), pure)

    def noised(self, pixel_values, draw, noise=None):
        """What the original encoder is given for E0(T(x), n, eta), eq. C.25, or E0(T(n), n, eta): (pixel values, draw).

        n stands in the hole of what is noised; the time stays, and so do visible part and condition, unless `teacher_condition`
        is "noise". n is `noise` (B, C, h, w), or the diffusion noise itself if None, as in the released code.
        """
        if self.teacher_condition == "noise":
            pixel_values = (draw.noise if noise is None else noise).to(pixel_values)
        noise = draw.noise if noise is None else torch.where(self.sample_hole(draw.mask), noise.to(draw.noise), draw.noise)
        return pixel_values, draw._replace(noise=noise, pure=torch.ones_like(draw.pure))

    def forward(self, pixel_values, draw):
        """E(T(x)): (B, C, H, W) and what `draw` returned -> (B, D), D values of all levels.

        In eval mode a plain mask (B, rows, cols) stands for the draw of seed 0 for every picture: one fixed time and noise,
        good for a look at representations. In training mode it is refused with an InputError.
        """
        if isinstance(draw, torch.Tensor):
            if self.training:  # or the model would silently be trained at one diffusion time
                raise InputError("Training a diffusion model takes what draw(x, mask, seeds) returns, got a mask.")
            draw = self.draw(pixel_values, draw, [0] * len(pixel_values))
        levels = [level.flatten(1) for level in self.features(pixel_values, draw)]  # each (B, C_k * H_k * W_k)
        if self.combine == "mean":
            total = sum(level.shape[1] for level in levels)
            # sum_k |s_k d_k|^2 / D with s_k^2 = D / (K D_k) is the mean over k of |d_k|^2 / D_k.
            levels = [level * (total / (len(levels) * level.shape[1])) ** 0.5 for level in levels]
        return torch.cat(levels, 1)

    def features(self, pixel_values, draw) -> list[torch.Tensor]:
        """The levels of the representation, each (B, C_k, H_k, W_k): conv_in, down residuals in order, middle block."""
        sample = self._inputs(pixel_values, draw, self._sample(pixel_values, draw))
        return encoder_levels(self.model, sample, draw.time, self._context)

    def levels(self, encoded):
        """The parts of a representation (B, D), each (B, D_k)."""
        return encoded.split(level_sizes(self.model, *self.sample_shape[1:]), 1)

    def training_loss(self, pixel_values, draw, target=None):
        """Mean squared error of the prediction over the hidden values of each picture (or of its latents): (B,).

        The prediction is of eta, of the velocity sqrt(gamma) eta - sqrt(1 - gamma) x, or of x, by the scheduler's prediction
        type. `target` is the picture that the network should learn to put into the hole: it takes the place of x in the noised
        picture (and in velocity and x), while condition and visible part are those of `pixel_values`. (To keep x in the noised
        picture would need the "noise" (y_t - sqrt(gamma) target) / sqrt(1 - gamma), which explodes as gamma goes to 1.)

        A plain mask in place of a draw takes seeds from torch's global generator.
        """
        if isinstance(draw, torch.Tensor):
            draw = self.draw(pixel_values, draw, torch.randint(2**62, (len(pixel_values),)).tolist())
        hole, clean = self.sample_hole(draw.mask.to(pixel_values.device)), self._sample(pixel_values, draw)
        if target is not None:
            clean = torch.where(hole, self._target(target).to(clean), clean)
        predicted = self._predict(self._inputs(pixel_values, draw, clean), draw.time)
        gamma = draw.gamma.view(-1, 1, 1, 1)
        wanted = {
            "epsilon": lambda: draw.noise,
            "v_prediction": lambda: gamma.sqrt() * draw.noise - (1 - gamma).sqrt() * clean,
            "sample": lambda: clean,
        }[self.prediction_type]()
        return _hole_error(predicted, wanted, hole)

    @torch.no_grad()
    def distillation_target(self, pixel_values, draw, mask, seeds):
        """The prediction for the noised pictures, (B, C, h, w): one pass, where a completion takes `steps` of them."""
        return self._predict_noised(pixel_values, draw)

    def distillation_loss(self, pixel_values, draw, wanted):
        """Mean squared difference of the predictions over the hidden values: (B,)."""
        predicted = self._predict_noised(pixel_values, draw)
        return _hole_error(predicted, wanted, self.sample_hole(draw.mask.to(pixel_values.device)))

    # Generation

    @torch.no_grad()
    def generate(self, pixel_values, mask, seeds=None):
        """Restores the hole in `steps` steps of `sampler`, from noise: (B, C, H, W), the visible part untouched.

        `seeds`: one integer per picture, on which alone its noise depends; 0 for all if None. The schedule is computed in
        float32 for models of any precision. There is no classifier-free guidance.
        """
        I2IModel.check_pixels(self, pixel_values)
        seeds = [0] * len(pixel_values) if seeds is None else seeds
        generators = seeded(seeds, FOR_SAMPLING, pixel_values.device)
        noise = torch.stack([torch.randn(self.sample_shape, generator=g, device=pixel_values.device) for g in generators])
        mask = mask.to(pixel_values.device)
        restored = self._restore(pixel_values.float(), mask, noise, generators)
        return torch.where(self.hole(mask), restored.to(pixel_values.dtype), pixel_values)

    @torch.no_grad()
    def denoise(self, noise, show, generators=None):
        """The loop of the sampler: `noise` (B, C, h, w) at its first step -> what is restored.

        Args:
            show: (sample (B, C, h, w) of unit variance or less, time t) -> network input. Samplers act on each value alone, so
                what the visible part of the sample holds does not matter; `show` pastes what the network was trained to see
                there.
        """

        def predict(inputs, t):
            time = gamma_at(self.sampler, t) if self.time_is_gamma else t
            return self._predict(inputs, time.to(inputs.device).expand(len(inputs)))

        return denoise(self.sampler, self.steps, noise, show, predict, generators)

    @abc.abstractmethod
    def _restore(self, pixels, mask, noise, generators):
        """Pictures with a restored hole, (B, C, H, W); what stands outside of it is not looked at."""

    @abc.abstractmethod
    def _inputs(self, pixel_values, draw, clean):
        """What the network sees, in its dtype; `clean` (B, C, h, w) is what is noised."""

    def _sample(self, pixel_values, draw):
        """What is noised, clean: (B, C, h, w)."""
        return pixel_values.float()

    def _target(self, pictures):
        """Pictures as what is noised."""
        return pictures

    def _context(self, block, count) -> dict:
        """What a block reads besides its input and the time."""
        return {}

    def _noisy(self, draw, clean):
        """The noised sample, float32, and n in its hole where the draw is pure."""
        gamma, pure = draw.gamma.view(-1, 1, 1, 1), draw.pure.view(-1, 1, 1, 1)
        noisy = gamma.sqrt() * clean + (1 - gamma).sqrt() * draw.noise
        return torch.where(pure & self.sample_hole(draw.mask.to(clean.device)), draw.noise, noisy)

    def _predict_noised(self, pixel_values, draw):
        return self._predict(self._inputs(pixel_values, draw, self._sample(pixel_values, draw)), draw.time)

    def _predict(self, inputs, time):
        return self.model(inputs.to(self.model.dtype), time, **self._context(None, len(inputs))).sample.float()


def _hole_error(predicted, wanted, hole):
    """Mean squared error over the hidden values of each picture: (B,)."""
    error = ((predicted - wanted).square() * hole).flatten(1).sum(1)
    return error / (hole.flatten(1).sum(1) * wanted.shape[1])
