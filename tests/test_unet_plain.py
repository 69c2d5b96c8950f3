"""Unconditional U-Nets over pixels: what they see, and how they complete pictures."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UNet2DModel,
)
from helpers.close import assert_close, is_close
from test_conversion_palette import randomised
from test_unet import make_unet

from hf_i2i_unlearn import CenterCrop, I2IUNet, InputError, RandomMask
from hf_i2i_unlearn.models.diffusion.pixels import I2IPlainUNet

MASK = CenterCrop(8)((16, 16), range(3))
SEEDS = [11, 12, 13]


def plain_config(channels=3, **changes):
    """As google/ddpm-cifar10-32 has it, but tiny."""
    return {
        "sample_size": 16, "in_channels": channels, "out_channels": channels, "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4, "norm_eps": 1e-6, "attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False,
        "freq_shift": 1,
    } | changes  # fmt: skip


def make_plain(seed=0, channels=3, scheduler=None, **options) -> I2IPlainUNet:
    model = randomised(UNet2DModel(**plain_config(channels)), seed)
    return I2IPlainUNet(model, scheduler or DDPMScheduler(1000), **{"steps": 4} | options).eval()


@pytest.fixture
def pixels():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_config_chooses_the_layout(tmp_path):
    make_plain().save_pretrained(tmp_path / "plain")
    make_unet().save_pretrained(tmp_path / "palette")
    assert type(I2IUNet.from_pretrained(str(tmp_path / "plain"))) is I2IPlainUNet
    assert type(I2IUNet.from_pretrained(str(tmp_path / "palette"))) is type(make_unet())
    with pytest.raises(InputError, match="of the layout of I2IPaletteUNet, not of I2IPlainUNet"):
        I2IPlainUNet.from_pretrained(str(tmp_path / "palette"))
    assert type(I2IUNet.from_config(plain_config(), scheduler=DDPMScheduler(100))) is I2IPlainUNet


def test_levels_are_what_the_librarys_up_blocks_read(pixels):
    unet, seen = make_plain(), {"residuals": []}
    draw = unet.draw(pixels, MASK, SEEDS)

    def before_up(module, args):
        seen["residuals"] = [*args[1], *seen["residuals"]]
        seen.setdefault("middle", args[0])

    hooks = [block.register_forward_pre_hook(before_up) for block in unet.model.up_blocks]
    gamma, hole = draw.gamma.view(-1, 1, 1, 1), unet.hole(MASK)
    with torch.no_grad():
        unet.model(gamma.sqrt() * pixels + (1 - gamma).sqrt() * draw.noise, draw.time)  # steps as integers, as diffusers does
        for hook in hooks:
            hook.remove()
        encoded = unet(pixels, draw)
    expected = [*seen["residuals"], seen["middle"]]
    assert_close(encoded, torch.cat([level.flatten(1) for level in expected], 1))
    parts = unet.levels(encoded)
    assert [p.shape[1] for p in parts] == [e[0].numel() for e in expected] and hole.any()


def test_the_time_is_uniform_over_the_steps_and_its_gamma_the_schedulers():
    unet = make_plain(scheduler=DDPMScheduler(40))
    draw = unet.draw(torch.zeros(8000, 3, 16, 16), MASK[:1].expand(8000, 16, 16), range(8000))
    counts = torch.bincount(draw.time, minlength=40)
    assert draw.time.dtype == torch.int64 and len(counts) == 40
    assert ((counts - 200).square() / 200).sum() < 39 + 5 * (2 * 39) ** 0.5  # chi-squared
    assert torch.equal(draw.gamma, unet.scheduler.alphas_cumprod[draw.time])


def test_the_original_encoder_sees_noise_in_the_hole_and_the_same_visible_part(pixels):
    unet = make_plain(teacher_condition="picture")
    draw, n, hole = unet.draw(pixels, MASK, SEEDS), torch.randn(3, 3, 16, 16), unet.hole(MASK).expand_as(pixels)
    mine = unet._inputs(pixels, draw, pixels)
    shown, theirs = unet.noised(pixels, draw, n)
    yours = unet._inputs(shown, theirs, shown)
    assert torch.equal(yours[hole], n[hole]) and torch.equal(yours[~hole], mine[~hole])
    for i, gamma in enumerate(draw.gamma):
        assert_close(mine[i], gamma**0.5 * pixels[i] + (1 - gamma) ** 0.5 * draw.noise[i])
    assert torch.equal(theirs.time, draw.time)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_training_loss_by_hand(pixels, kind):
    unet = make_plain(scheduler=DDPMScheduler(1000, prediction_type=kind))
    mask, target = RandomMask(0.3)((16, 16), range(3)), torch.randn_like(pixels)
    draw, hole = unet.draw(pixels, mask, SEEDS), unet.hole(mask).expand_as(pixels)
    for picture in (None, target):
        clean = pixels if picture is None else torch.where(hole, target, pixels)
        expected = []
        for i, gamma in enumerate(draw.gamma):
            eta = draw.noise[i]
            predicted = unet.model((gamma**0.5 * clean[i] + (1 - gamma) ** 0.5 * eta)[None], draw.time[i]).sample[0]
            velocity = gamma**0.5 * eta - (1 - gamma) ** 0.5 * clean[i]
            wanted = {"epsilon": eta, "v_prediction": velocity, "sample": clean[i]}[kind]
            expected.append(((predicted - wanted)[hole[i]] ** 2).mean())
        assert_close(unet.training_loss(pixels, draw, picture), torch.stack(expected), 1e-4)


class Oracle(torch.nn.Module):
    """Knows the truth and the schedule, and predicts what leads there from the noisy picture and the step."""

    def __init__(self, inner, truth, scheduler):
        super().__init__()
        self.config, self.dtype, self.truth = inner.config, torch.float32, truth
        self.gammas, self.kind = scheduler.alphas_cumprod, scheduler.config.prediction_type

    def forward(self, noisy, t):
        assert t.shape == (len(noisy),)
        gamma = self.gammas[t.round().long()].view(-1, 1, 1, 1)
        eta = (noisy - gamma.sqrt() * self.truth) / (1 - gamma).sqrt()
        velocity = gamma.sqrt() * eta - (1 - gamma).sqrt() * self.truth
        return SimpleNamespace(sample={"epsilon": eta, "v_prediction": velocity, "sample": self.truth}[self.kind])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("sampler", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_a_perfect_network_completes_the_truth(pixels, sampler, kind):
    unet = make_plain(scheduler=DDPMScheduler(1000, prediction_type=kind), steps=7)
    unet.sample_with(sampler)
    truth = torch.rand_like(pixels) * 2 - 1
    unet.model = Oracle(unet.model, truth, unet.scheduler)
    hole = unet.hole(MASK).expand_as(pixels)
    completed = unet.generate(pixels, MASK)
    assert_close(completed[hole], truth[hole], 0.05)
    assert torch.equal(completed[~hole], pixels[~hole])


def test_the_visible_part_is_pasted_back_noised_to_the_level_of_each_step(pixels):
    unet, seen = make_plain(), []
    unet.model.register_forward_pre_hook(lambda module, args: seen.append(args))
    completed, hole = unet.generate(pixels, MASK), unet.hole(MASK).expand_as(pixels)
    assert torch.equal(completed[~hole], pixels[~hole]) and len(seen) == 4
    noise = seen[0][0]  # at step 999 nearly pure
    gammas = unet.scheduler.alphas_cumprod
    noise = (noise - gammas[999] ** 0.5 * pixels) / (1 - gammas[999]) ** 0.5
    for (x, t), step in zip(seen, (999, 749, 499, 249)):
        assert t.tolist() == [step] * 3
        expected = gammas[step] ** 0.5 * pixels + (1 - gammas[step]) ** 0.5 * noise
        assert_close(x[~hole], expected[~hole], 1e-4)


def test_completion_depends_on_picture_and_seed_alone_and_not_on_what_is_hidden(pixels):
    unet = make_plain()
    unet.sample_with(DDPMScheduler)
    whole = unet.generate(pixels, MASK, SEEDS)
    parts = [unet.generate(pixels[s], MASK[s], SEEDS[s]) for s in (slice(0, 1), slice(1, 3))]
    assert_close(torch.cat(parts), whole, 1e-4)
    assert not is_close(whole, unet.generate(pixels, MASK, [21, 22, 23]), 1e-2)
    other = torch.where(unet.hole(MASK), torch.rand_like(pixels), pixels)
    assert torch.equal(unet.generate(other, MASK, SEEDS), whole)


@pytest.mark.parametrize("make", [make_plain, make_unet])
def test_training_and_sampling_draw_from_different_streams(pixels, make):
    unet, started = make(), []
    draw = unet.draw(pixels, MASK, SEEDS)
    unet.denoise, keep = lambda noise, *rest: started.append(noise) or keep(noise, *rest), unet.denoise
    unet.generate(pixels, MASK, SEEDS)
    hole = unet.hole(MASK).expand_as(pixels)
    for noise in (draw.noise, getattr(draw, "condition", draw.noise)):
        assert abs(torch.corrcoef(torch.stack([noise[hole], started[0][hole]]))[0, 1]) < 0.15  # of 576 values
    assert torch.equal(unet.draw(pixels[1:2], MASK[1:2], [12]).noise[0], draw.noise[1])


def test_pipelines_old_and_new_come_back_as_whole_pipelines(pixels, tmp_path):
    """New folders keep the U-Net in unet/; the old repositories (google/ddpm-*) everything beside model_index.json."""
    unet = make_plain()
    DDPMPipeline(unet.model, unet.scheduler).save_pretrained(tmp_path / "new")
    DDPMPipeline(unet.model, unet.scheduler).save_pretrained(tmp_path / "old")
    for name in ("unet", "scheduler"):
        for file in (tmp_path / "old" / name).iterdir():
            file.rename(tmp_path / "old" / file.name)
        (tmp_path / "old" / name).rmdir()
    for name in ("new", "old"):
        loaded = I2IUNet.from_pretrained(str(tmp_path / name), steps=4, patch_size=2)
        assert type(loaded) is I2IPlainUNet and loaded.scheduler.config.num_train_timesteps == 1000
        loaded.model.conv_in.weight.data.mul_(1.1)
        loaded.save_pretrained(tmp_path / "out" / name)
        pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out" / name)
        assert isinstance(pipeline, DDPMPipeline)
        assert torch.equal(pipeline.unet.conv_in.weight, unet.model.conv_in.weight * 1.1)
        again = I2IUNet.from_pretrained(str(tmp_path / "out" / name))
        assert again.patch_size == 2 and again.steps == 4


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: I2IPlainUNet(UNet2DModel(**plain_config()), None), "has no noise schedule .* pass scheduler"),
        (lambda: make_plain(sampler=DDIMScheduler(500)), "another noise schedule than the network was trained on"),
        (lambda: make_plain(sampler=DDIMScheduler(1000, beta_schedule="scaled_linear")), "another noise schedule"),
        (lambda: make_plain(scheduler=DDPMScheduler(prediction_type="flow")), "prediction type is 'flow', expected one of"),
        (lambda: make_plain(image_size=15), "15x15 is not divisible by the U-Net's downsampling factor 2"),
        (lambda: make_plain(patch_size=3), "16x16 is not divisible by the U-Net's patch size 3"),
        (lambda: I2IPlainUNet(make_unet().model, DDPMScheduler()), "takes 6 channels and gives 3; the Palette layout is"),
        (lambda: I2IUNet.from_config(plain_config() | {"in_channels": 5}), "takes 5 channels and gives 3"),
    ],
)
def test_errors(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_prompt_is_refused(tmp_path):
    make_plain().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="prompt .* for latent inpainting; this U-Net works on pixels"):
        I2IUNet.from_pretrained(str(tmp_path), prompt="a cat")


def test_only_safetensors_are_read(tmp_path):
    make_plain().model.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(InputError, match="must be safetensors"):
        I2IUNet.from_pretrained(str(tmp_path), scheduler=DDPMScheduler())
