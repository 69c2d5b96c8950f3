import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.schedulers import scheduling_ddpm
from helpers.close import assert_close, is_close
from huggingface_hub.errors import RemoteEntryNotFoundError
from test_conversion_palette import original, randomised, weights  # noqa: F401  # `original` is a fixture

from hf_i2i_unlearn import CenterCrop, InputError, RandomMask
from hf_i2i_unlearn.models.diffusion import folders
from hf_i2i_unlearn.models.diffusion.conversion import palette_scheduler, palette_to_unet
from hf_i2i_unlearn.models.diffusion.folders import load_scheduler
from hf_i2i_unlearn.models.diffusion.layout import palette_config, with_encoder_attention
from hf_i2i_unlearn.models.diffusion.modeling import I2IUNet
from hf_i2i_unlearn.models.diffusion.pixels import I2IPaletteUNet, PaletteDraw

SMALL = {"image_size": 16, "inner": 8, "multipliers": (1, 2), "layers": 1, "attention": (1,), "head_channels": 4}
MASK = CenterCrop(8)((16, 16), range(3))
SEEDS = [11, 12, 13]


def make_unet(seed=0, channels=3, **options) -> I2IPaletteUNet:
    """A U-Net for 16x16 pictures with all weights random."""
    config = palette_config(**SMALL, norm_groups=4, channels=channels)
    return I2IPaletteUNet(randomised(UNet2DModel(**config), seed), **{"steps": 4} | options).eval()


@pytest.fixture
def unet():
    return make_unet()


@pytest.fixture
def pixels():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def square(a, b):
    return (a - b).square().flatten(1).mean(1)


# The representation


def test_levels_are_what_the_up_blocks_read(unet, pixels):
    """Against the library's own full pass: every residual that it hands to the up blocks, and the middle block's output."""
    draw, seen = unet.draw(pixels, MASK, SEEDS), {"residuals": []}

    def before_up(module, args):
        seen["residuals"] = [*args[1], *seen["residuals"]]  # the deepest come first
        seen.setdefault("middle", args[0])

    hooks = [block.register_forward_pre_hook(before_up) for block in unet.model.up_blocks]
    inputs = unet._inputs(pixels, draw, pixels)
    with torch.no_grad():
        unet.model(inputs, draw.gamma)
        for hook in hooks:
            hook.remove()
        levels = unet.features(pixels, draw)
        encoded = unet(pixels, draw)
    expected = [*seen["residuals"], seen["middle"]]
    assert [tuple(level.shape[1:]) for level in levels] == [(8, 16, 16)] * 2 + [(8, 8, 8)] + [(16, 8, 8)] * 2
    assert len(expected) == len(levels) and all(torch.equal(a, b) for a, b in zip(levels, expected))
    assert torch.equal(encoded, torch.cat([level.flatten(1) for level in expected], 1))


def test_encoding_runs_no_decoder(unet, pixels):
    def refuse(module, args):
        raise AssertionError("the decoder ran")

    for module in (*unet.model.up_blocks, unet.model.conv_norm_out, unet.model.conv_out):
        module.register_forward_pre_hook(refuse)
    unet(pixels, unet.draw(pixels, MASK, SEEDS))
    with pytest.raises(AssertionError):
        unet.generate(pixels, MASK)


def test_combine_mean_weighs_each_level_the_same(pixels):
    one, two = make_unet(combine="mean"), make_unet(seed=1, combine="mean")
    draw = one.draw(pixels, MASK, SEEDS)
    levels = [square(a, b) for a, b in zip(one.features(pixels, draw), two.features(pixels, draw))]
    assert_close(square(one(pixels, draw), two(pixels, draw)), torch.stack(levels).mean(0))


def test_the_network_sees_condition_and_noisy_hole(unet, pixels):
    draw, hole = unet.draw(pixels, MASK, SEEDS), unet.hole(MASK).expand_as(pixels)
    condition, noisy = unet._inputs(pixels, draw, pixels).chunk(2, 1)
    assert torch.equal(condition[~hole], pixels[~hole]) and torch.equal(noisy[~hole], pixels[~hole])
    assert torch.equal(condition[hole], draw.condition[hole])
    for i, gamma in enumerate(draw.gamma):
        expected = gamma**0.5 * pixels[i] + (1 - gamma) ** 0.5 * draw.noise[i]
        assert_close(noisy[i][hole[i]], expected[hole[i]])


def test_the_original_encoder_sees_noise_in_the_hole_alone(pixels):
    """Eq. C.25: E0(T(x), n, eta); condition, visible part and time are the student's."""
    unet = make_unet(teacher_condition="picture")
    draw, hole = unet.draw(pixels, MASK, SEEDS), unet.hole(MASK).expand_as(pixels)
    n = torch.randn_like(pixels)
    for noise, expected in ((n, n), (None, draw.noise)):
        shown, theirs = unet.noised(pixels, draw, noise)
        condition, noisy = unet._inputs(shown, theirs, shown).chunk(2, 1)
        assert torch.equal(condition, unet._inputs(pixels, draw, pixels).chunk(2, 1)[0])
        assert torch.equal(noisy[hole], expected[hole]) and torch.equal(noisy[~hole], pixels[~hole])
        assert torch.equal(theirs.gamma, draw.gamma)


def test_with_noise_for_condition_the_original_encoder_sees_nothing_of_the_picture(pixels):
    """Eq. 10 as it stands, and the default: E0(T(n), n, eta)."""
    unet = make_unet()
    draw, hole = unet.draw(pixels, MASK, SEEDS), unet.hole(MASK).expand_as(pixels)
    n = torch.randn_like(pixels)
    for noise, expected in ((n, n), (None, draw.noise)):
        shown, theirs = unet.noised(pixels, draw, noise)
        condition, noisy = unet._inputs(shown, theirs, unet._sample(shown, theirs)).chunk(2, 1)
        assert torch.equal(noisy, expected) and torch.equal(condition[~hole], expected[~hole])
        assert torch.equal(condition[hole], draw.condition[hole]) and torch.equal(theirs.gamma, draw.gamma)


def test_the_condition_is_the_runs_and_not_the_checkpoints(tmp_path):
    """Originals that were saved when eq. C.25 was the default say "picture" in their i2i_model.json."""
    make_unet(teacher_condition="picture").save_pretrained(tmp_path)
    file = tmp_path / "i2i_model.json"
    saved = json.loads(file.read_text())
    assert "teacher_condition" not in saved
    file.write_text(json.dumps(saved | {"teacher_condition": "picture"}))
    assert I2IUNet.from_pretrained(str(tmp_path)).teacher_condition == "noise"
    assert I2IUNet.from_pretrained(str(tmp_path), teacher_condition="picture").teacher_condition == "picture"


@pytest.mark.parametrize("frozen, conv_in", [(0, False), (0, True), (1, False), (2, True)])
def test_frozen_levels_are_not_trained(pixels, frozen, conv_in):
    unet = make_unet(frozen_levels=frozen, frozen_conv_in=conv_in)
    unet.train_encoder_only()
    trained = {name for name, p in unet.model.named_parameters() if p.requires_grad}
    places = ["mid_block", *(f"down_blocks.{k}" for k in range(frozen, 2)), *([] if frozen or conv_in else ["conv_in"])]
    assert trained == {n for n, _ in unet.model.named_parameters() if n.startswith(tuple(f"{p}." for p in places))}
    unet(pixels, unet.draw(pixels, MASK, SEEDS)).square().mean().backward()
    assert {n for n, p in unet.model.named_parameters() if p.grad is not None} == trained


def test_gamma_stays_float32_in_half_precision(pixels):
    unet, seen = make_unet(), []
    unet.model.to(torch.bfloat16)
    unet.model.time_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    encoded = unet(pixels, unet.draw(pixels, MASK, SEEDS))
    completed = unet.generate(pixels, MASK)
    assert encoded.dtype == torch.bfloat16 and completed.dtype == torch.float32 and set(seen) == {torch.float32}
    assert len(seen) == 1 + 4 and completed.isfinite().all()


# Random draws


def test_a_draw_depends_on_its_own_seed_alone(unet, pixels):
    whole = unet.draw(pixels, MASK, SEEDS)
    parts = [unet.draw(pixels[s], MASK[s], SEEDS[s]) for s in (slice(0, 1), slice(1, 3))]
    for field, (a, b) in zip(whole._fields, zip(*parts)):
        assert torch.equal(getattr(whole, field), torch.cat([a, b])), field
    assert whole.gamma.unique().numel() == 3 and not torch.allclose(whole.noise[0], whole.noise[1])
    assert not torch.allclose(whole.noise, whole.condition)
    # and is not the stream from which a random mask of the same seed is drawn
    assert not torch.allclose(whole.noise[0], torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(11))[0])


def test_gamma_is_distributed_as_in_palette(unet):
    """t uniform over steps and gamma uniform between two of them: the mean of gamma is the mean of the schedule's midpoints."""
    pixels, mask = torch.zeros(4000, 3, 1, 1), torch.ones(4000, 1, 1, dtype=torch.bool)
    gamma = unet.draw(pixels, mask, range(4000)).gamma
    schedule = unet.scheduler.alphas_cumprod
    middle = (schedule[1:] + schedule[:-1]) / 2
    assert gamma.dtype == torch.float32 and schedule[-1] <= gamma.min() and gamma.max() <= schedule[0]
    assert abs(gamma.mean() - middle.mean()) < 4 * middle.std() / 4000**0.5
    assert abs(gamma.std() - middle.std()) < 0.01


def test_a_plain_mask_is_one_fixed_draw(unet, pixels):
    expected = unet(pixels, unet.draw(pixels, MASK, [0, 0, 0]))
    assert torch.equal(unet(pixels, MASK), expected)
    assert_close(unet(pixels[1:], MASK[1:]), expected[1:])
    with pytest.raises(InputError, match="takes what draw.* returns, got a mask"):
        unet.train()(pixels, MASK)
    torch.manual_seed(0)
    first, second = unet.training_loss(pixels, MASK), unet.training_loss(pixels, MASK)
    torch.manual_seed(0)
    assert torch.equal(unet.training_loss(pixels, MASK), first) and not torch.equal(first, second)


# The training loss


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_training_loss_by_hand(pixels, kind):
    unet = make_unet(scheduler=DDPMScheduler(2000, 1e-6, 0.01, prediction_type=kind))
    mask = RandomMask(0.3)((16, 16), range(3))
    draw, hole = unet.draw(pixels, mask, SEEDS), unet.hole(mask).expand_as(pixels)
    predicted = unet.model(unet._inputs(pixels, draw, pixels), draw.gamma).sample
    expected = []
    for i, gamma in enumerate(draw.gamma):
        eta = draw.noise[i]
        velocity = gamma**0.5 * eta - (1 - gamma) ** 0.5 * pixels[i]
        wanted = {"epsilon": eta, "v_prediction": velocity, "sample": pixels[i]}[kind]
        expected.append(((predicted[i] - wanted)[hole[i]] ** 2).mean())
    assert_close(unet.training_loss(pixels, draw), torch.stack(expected))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_target_is_the_picture_to_put_into_the_hole(pixels, kind):
    unet = make_unet(scheduler=DDPMScheduler(2000, 1e-6, 0.01, prediction_type=kind))
    target = 5 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))  # far from any picture
    draw = unet.draw(pixels, MASK, SEEDS)
    pasted = torch.where(unet.hole(MASK), target, pixels)
    loss = unet.training_loss(pixels, draw, target)
    assert torch.equal(loss, unet.training_loss(pasted, draw)) and not is_close(loss, unet.training_loss(pixels, draw), 1e-2)


# Restoration


class Oracle(torch.nn.Module):
    """Knows the truth, and predicts what leads there from the noisy picture and the gamma that it is given."""

    def __init__(self, inner, truth, kind):
        super().__init__()
        self.config, self.dtype, self.truth, self.kind = inner.config, torch.float32, truth, kind

    def forward(self, x, gamma):
        noisy, gamma = x.chunk(2, 1)[1], gamma.view(-1, 1, 1, 1)
        eta = (noisy - gamma.sqrt() * self.truth) / (1 - gamma).sqrt()
        velocity = gamma.sqrt() * eta - (1 - gamma).sqrt() * self.truth
        sample = {"epsilon": eta, "v_prediction": velocity, "sample": self.truth}[self.kind]
        return SimpleNamespace(sample=sample)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("sampler", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_a_perfect_network_restores_the_truth(pixels, sampler, kind):
    scheduler = DDPMScheduler(1000, prediction_type=kind)
    unet = make_unet(scheduler=scheduler, sampler=sampler.from_config(scheduler.config), steps=7)
    truth = torch.rand_like(pixels) * 2 - 1
    unet.model = Oracle(unet.model, truth, kind)
    hole = unet.hole(MASK).expand_as(pixels)
    completed = unet.generate(pixels, MASK)
    assert_close(completed[hole], truth[hole], 0.02)
    assert torch.equal(completed[~hole], pixels[~hole])


@pytest.mark.parametrize("sampler", [DDPMScheduler(1000), EulerDiscreteScheduler(1000)])
def test_visible_pixels_are_shown_clean_at_every_step(pixels, sampler):
    unet, seen = make_unet(sampler=sampler), []
    unet.model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    completed, hole = unet.generate(pixels, MASK), unet.hole(MASK).expand_as(pixels)
    assert len(seen) == 4 and torch.equal(completed[~hole], pixels[~hole]) and completed.isfinite().all()
    for x in seen:
        condition, noisy = x.chunk(2, 1)
        assert torch.equal(condition[~hole], pixels[~hole]) and torch.equal(noisy[~hole], pixels[~hole])
        assert torch.equal(condition, seen[0].chunk(2, 1)[0])


def test_what_is_hidden_does_not_help(unet, pixels):
    other = torch.where(unet.hole(MASK), torch.rand_like(pixels), pixels)
    assert torch.equal(unet.generate(pixels, MASK, SEEDS), unet.generate(other, MASK, SEEDS))


@pytest.mark.parametrize("sampler", [None, DDPMScheduler(2000, 1e-6, 0.01)])
def test_restoration_depends_on_picture_and_seed_alone(pixels, sampler):
    unet = make_unet(sampler=sampler)
    whole = unet.generate(pixels, MASK, SEEDS)
    torch.rand(5)  # no use of the global generator
    assert torch.equal(whole, unet.generate(pixels, MASK, SEEDS))
    parts = [unet.generate(pixels[s], MASK[s], SEEDS[s]) for s in (slice(0, 1), slice(1, 3))]
    assert_close(torch.cat(parts), whole, 1e-3)  # random weights amplify rounding
    assert not is_close(whole, unet.generate(pixels, MASK, [21, 22, 23]), 1e-2)
    assert torch.equal(unet.generate(pixels, MASK), unet.generate(pixels, MASK, [0, 0, 0]))


def palette_restoration(predict, y, y_cond, mask, betas, noises):
    """Palette's sampling, written out: (pictures, noise k for the k-th step) -> pictures."""
    gammas = torch.cumprod(1 - betas.double(), 0)
    before = torch.cat([gammas.new_ones(1), gammas[:-1]])
    sample = y_cond
    for k, t in enumerate(reversed(range(len(betas)))):
        g, b, beta = gammas[t], before[t], betas[t].double()
        eps = predict(torch.cat([y_cond, sample], 1), g.float().expand(len(y)))
        x0 = ((1 / g).sqrt() * sample - (1 / g - 1).sqrt() * eps).clamp(-1, 1)
        mean = beta * b.sqrt() / (1 - g) * x0 + (1 - b) * (1 - beta).sqrt() / (1 - g) * sample
        sample = mean + (t > 0) * (beta * (1 - b) / (1 - g)).sqrt() * noises[k]
        sample = (y * (1 - mask) + mask * sample).float()
    return sample


def with_noises(monkeypatch, noises):
    rows = iter(noises)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda shape, **kwargs: next(rows))


def test_ddpm_is_palettes_restoration(pixels, monkeypatch):
    unet = make_unet(sampler=DDPMScheduler(20, 1e-4, 0.09), steps=20)
    hole, noises = unet.hole(MASK), torch.randn(20, 3, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    condition = torch.where(hole, noises[0].flip(0), pixels)
    with_noises(monkeypatch, noises)
    ours = unet.restore(pixels, hole, condition)
    with torch.no_grad():
        betas = torch.linspace(1e-4, 0.09, 20, dtype=torch.float64)
        theirs = palette_restoration(lambda x, g: unet.model(x, g).sample, pixels, condition, hole.float(), betas, noises)
    assert_close(ours, theirs, 1e-4)


# The original code


@pytest.fixture
def palette(original):  # noqa: F811  # pytest takes the fixture of that name
    tensors, description = original
    theirs = weights(tensors)
    model = palette_to_unet(theirs, image_size=16, num_head_channels=description["config"]["num_head_channels"])
    return I2IPaletteUNet(model, palette_scheduler(theirs["gammas"]), combine="mean"), tensors


def test_features_of_the_original(palette):
    unet, tensors = palette
    noisy, everywhere = tensors["input.y_noisy"], torch.ones(2, 16, 16, dtype=torch.bool)
    draw = PaletteDraw(everywhere, tensors["input.gammas"].view(-1), noisy, tensors["input.y_cond"], torch.ones(2) > 0)
    with torch.no_grad():
        levels = unet.features(noisy, draw)
    assert len(levels) == 10
    for k, level in enumerate(levels):
        assert_close(level, tensors[f"output.feat.{k:02d}"], 1e-4)


def test_losses_of_the_original(palette):
    unet, tensors = palette
    t, u = tensors["input.forward_t"], tensors["input.forward_u"].view(-1)
    schedule = weights(tensors)["gammas"]
    gamma = torch.stack([(schedule[i] - schedule[i - 1]) * v + schedule[i - 1] for i, v in zip(t, u)])
    assert_close(gamma, tensors["output.forward_gammas"].view(-1), 1e-4)
    y, mask = tensors["input.y_0"], tensors["input.mask"][:, 0].bool()
    draw = PaletteDraw(mask, gamma, tensors["input.noise"], tensors["input.y_cond"], torch.zeros(2, dtype=torch.bool))
    share = mask.flatten(1).float().mean(1)  # the original averages over all pixels, we over the hidden ones
    retain = tensors["input.labels"] > 0
    unet.teacher_condition = "picture"
    student = I2IPaletteUNet(unet.model, unet.scheduler, combine="mean", teacher_condition="picture").frozen_copy()
    student.model.conv_in.weight.mul_(1.1)
    with torch.no_grad():
        assert_close((unet.training_loss(y, draw) * share).mean(), tensors["output.pretrain_loss"][0], 1e-4)
        plain = student.training_loss(y, draw) * share
        assert_close((plain * torch.where(retain, 1, -0.25)).mean(), tensors["output.loss_max_loss"][0], 1e-4)
        labelled = student.training_loss(*student.noised(y, draw)) * share
        assert_close((torch.where(retain, plain, 0.25 * labelled)).mean(), tensors["output.loss_noisy_label"][0], 1e-4)
        target = torch.where(retain[:, None], unet(y, draw), unet(*unet.noised(y, draw)))
        ours = square(student(y, draw), target) * torch.where(retain, 1, 0.25)
    assert_close(10 * ours.mean(), tensors["output.loss_ours"][0], 1e-4)  # the sum of ten levels, where we take their mean


def test_restoration_of_the_original(palette, monkeypatch):
    unet, tensors = palette
    unet.sampler, unet.steps = DDPMScheduler(20, 1e-4, 0.09), 20
    assert_close(unet.sampler.alphas_cumprod, tensors["schedule.test20.gammas"], 1e-6)
    with_noises(monkeypatch, tensors["input.restoration_noise"])
    hole = tensors["input.mask"][:1].bool()
    ours = unet.restore(tensors["input.y_0"][:1], hole, tensors["input.y_cond"][:1])
    assert_close(ours, tensors["output.restoration"], 1e-4)


# Encoder and decoder, files, errors


def test_encoder_and_decoder_are_apart(unet):
    unet.train_encoder_only()
    trained = {n for n, p in unet.named_parameters() if p.requires_grad}
    parts = ("model.conv_in.", "model.down_blocks.", "model.mid_block.")
    assert trained == {n for n, _ in unet.named_parameters() if n.startswith(parts)}
    both = make_unet(train_time_embedding=True).train_encoder_only()
    trained_too = {n for n, p in both.named_parameters() if p.requires_grad} - trained
    assert trained_too and all(n.startswith("model.time_embedding.") for n in trained_too)


def test_the_loss_reaches_the_encoder_and_nothing_else(unet, pixels):
    unet(pixels, unet.draw(pixels, MASK, SEEDS)).square().mean().backward()
    reached = {n for n, p in unet.named_parameters() if p.grad is not None}
    assert {
        n for n, _ in unet.train_encoder_only().named_parameters() if dict(unet.named_parameters())[n].requires_grad
    } < reached
    assert not any(n.startswith(("model.up_blocks.", "model.conv_out.", "model.conv_norm_out.")) for n in reached)


def test_grid_follows_the_patch_size(pixels):
    assert make_unet().grid == (16, 16) and make_unet(patch_size=4).grid == (4, 4)
    unet = make_unet(patch_size=4, image_size=(16, 32))
    assert unet.grid == (4, 8) and unet.image_size == (16, 32)
    hole = unet.hole(torch.eye(4, 8, dtype=torch.bool)[None])
    assert hole.shape == (1, 1, 16, 32) and hole[0, 0, 4:8, 4:8].all() and hole.sum() == 4 * 16
    assert unet(torch.zeros(1, 3, 16, 32), torch.eye(4, 8, dtype=torch.bool)[None]).shape[0] == 1


def test_grey_pictures(pixels):
    unet = make_unet(channels=1)
    assert unet.channels == 1 and unet.model.config.in_channels == 2
    completed = unet.generate(pixels[:, :1], MASK)
    assert completed.shape == (3, 1, 16, 16) and unet.training_loss(pixels[:, :1], MASK).shape == (3,)


def test_saved_model_loads_without_this_package(unet, pixels, tmp_path):
    unet.save_pretrained(tmp_path)
    draw = unet.draw(pixels, MASK, SEEDS)
    torch.save({"x": unet._inputs(pixels, draw, pixels), "gamma": draw.gamma}, tmp_path / "in.pt")
    script = f"""
import sys; sys.modules["hf_i2i_unlearn"] = None
import torch
from diffusers import DDPMScheduler, UNet2DModel
model, info = UNet2DModel.from_pretrained({str(tmp_path)!r}, output_loading_info=True)
assert not any(info.values()), info
assert DDPMScheduler.from_pretrained({str(tmp_path)!r}, subfolder="scheduler").config.beta_end == 0.01
data = torch.load({str(tmp_path / "in.pt")!r}, weights_only=True)
torch.save(model(data["x"], data["gamma"]).sample.detach(), {str(tmp_path / "out.pt")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    theirs = torch.load(tmp_path / "out.pt", weights_only=True)
    with torch.no_grad():
        assert_close(unet.model(unet._inputs(pixels, draw, pixels), draw.gamma).sample, theirs)


def test_comes_back_from_its_folder(pixels, tmp_path):
    unet = make_unet(scheduler=DDIMScheduler(500, prediction_type="v_prediction"), patch_size=4, frozen_conv_in=True)
    unet.save_pretrained(tmp_path)
    loaded = I2IUNet.from_pretrained(str(tmp_path), patch_size=4, steps=4)
    assert loaded.frozen_conv_in and not I2IUNet.from_pretrained(str(tmp_path), frozen_conv_in=False).frozen_conv_in
    assert isinstance(loaded.scheduler, DDIMScheduler) and loaded.prediction_type == "v_prediction"
    mask = CenterCrop(2)((4, 4), range(3))
    assert_close(loaded.generate(pixels, mask), unet.generate(pixels, mask), 1e-4)
    other = make_unet(seed=1)
    other.load_weights(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), unet.parameters()))


def test_a_folder_without_scheduler_has_palettes(unet, tmp_path):
    unet.model.save_pretrained(tmp_path)
    scheduler = I2IUNet.from_pretrained(str(tmp_path)).scheduler
    assert (scheduler.config.beta_start, scheduler.config.beta_end, len(scheduler)) == (1e-6, 0.01, 2000)


def test_the_default_sampler_is_on_the_schedule_of_training(unet):
    """Also where the scheduler was made with positional arguments, which the library's from_config loses."""
    for scheduler in (unet.scheduler, DDPMScheduler(2000, 1e-6, 0.01), DDPMScheduler(100, trained_betas=[0.01] * 100)):
        sampler = make_unet(scheduler=scheduler).sampler
        assert isinstance(sampler, DDIMScheduler) and torch.equal(sampler.alphas_cumprod, scheduler.alphas_cumprod)
        sampler.set_timesteps(4)
        assert sampler.timesteps[0] == len(scheduler) - 1 and len(sampler.timesteps) == 4


def test_pipeline_folders(unet, tmp_path):
    unet.model.save_pretrained(tmp_path / "unet")
    DDIMScheduler(num_train_timesteps=300).save_pretrained(tmp_path / "scheduler")
    assert len(I2IUNet.from_pretrained(str(tmp_path), subfolder="unet").scheduler) == 300
    make_unet(scheduler=DDPMScheduler(num_train_timesteps=400)).save_pretrained(tmp_path / "unet")
    assert len(I2IUNet.from_pretrained(str(tmp_path), subfolder="unet").scheduler) == 400


def test_hub_repositories_with_and_without_a_scheduler(tmp_path, monkeypatch):
    DDPMScheduler(num_train_timesteps=300).save_pretrained(tmp_path)
    monkeypatch.setattr(folders, "hf_hub_download", lambda path, name, revision: tmp_path / name.split("/")[-1])
    assert len(load_scheduler("someone/unet", revision="v1")) == 300

    def absent(path, name):
        raise RemoteEntryNotFoundError("404", response=SimpleNamespace(headers={}, request=None, status_code=404))

    monkeypatch.setattr(folders, "hf_hub_download", absent)
    assert load_scheduler("someone/unet") is None


def test_fresh_models_from_a_config():
    torch.manual_seed(0)
    unet = I2IUNet.from_config(palette_config(**SMALL, norm_groups=4), steps=3)
    assert unet.grid == (16, 16) and unet.model.mid_block.attentions[0].group_norm is not None
    alone = palette_config(multipliers=(1, 2, 4), attention=(2,), encoder_attention=(1,))
    assert alone["down_block_types"] == ["ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"]
    assert alone["up_block_types"] == ["AttnUpBlock2D", "ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"]


def test_attention_for_an_encoder_changes_nothing_until_it_is_trained(pixels):
    config = palette_config(**SMALL | {"attention": ()}, norm_groups=4)
    plain = randomised(UNet2DModel(**config), 0)
    plain.register_to_config(_name_or_path="a/folder/of/this/machine")
    grown = with_encoder_attention(plain, [0, 1])
    inputs = torch.cat([pixels, pixels], 1)
    assert_close(grown(inputs, 0.5).sample, plain(inputs, 0.5).sample)
    assert grown.config.down_block_types == ["AttnDownBlock2D"] * 2
    assert grown.config.up_block_types == plain.config.up_block_types and "_name_or_path" not in grown.config
    grown(inputs, 0.5).sample.square().mean().backward()
    assert all(block.attentions[0].to_out[0].weight.grad.abs().sum() > 0 for block in grown.down_blocks)  # it can be trained
    for levels, message in (([2], "has no level 2"), ([-1], "has no level -1")):
        with pytest.raises(InputError, match=message):
            with_encoder_attention(plain, levels)
    with pytest.raises(InputError, match="Level 1 of the U-Net is a AttnDownBlock2D"):
        with_encoder_attention(make_unet().model, [1])
    odd = UNet2DModel(**config | {"downsample_type": "conv"})  # resnet blocks that go down as their name says, not as this says
    with pytest.raises(InputError, match="mixes kinds of downsampling"):
        with_encoder_attention(odd, [0])


def test_refuses_other_checkpoints(unet, mae, tmp_path):
    mae.save_pretrained(tmp_path / "mae")
    with pytest.raises(InputError, match="holds a 'vit_mae' model, expected 'UNet2DModel'"):
        I2IUNet.from_pretrained(str(tmp_path / "mae"))
    conditional = UNet2DConditionModel(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
        cross_attention_dim=8,
        in_channels=9,
    )
    conditional.save_pretrained(tmp_path / "conditional")
    with pytest.raises(InputError, match="needs the VAE and the text encoder of its pipeline"):
        I2IUNet.from_pretrained(str(tmp_path / "conditional"))
    with pytest.raises(InputError, match="has no config.json"):
        I2IUNet.from_pretrained(str(tmp_path))
    with pytest.raises(InputError, match="over pixels is a UNet2DModel, got ViTMAE"):
        I2IPaletteUNet(mae.model)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"in_channels": 4}, "takes 4 channels and gives 3; the Palette layout is 6 and 3 .* unconditional U-Net has 3 and 3"),
        ({"in_channels": 9}, "takes 9 channels and gives 3"),
        ({"in_channels": 8, "out_channels": 4}, "takes 8 channels and gives 4"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type=fourier, expected positional"),
        ({"num_class_embeds": 10}, "num_class_embeds=10, expected None"),
        ({"sample_size": 15}, "15x15 is not divisible by the U-Net's downsampling factor 2"),
        ({"sample_size": None}, "has no sample_size; pass image_size"),
    ],
)
def test_refuses_other_layouts(changes, message):
    with pytest.raises(InputError, match=message):
        I2IUNet.from_config(palette_config(**SMALL, norm_groups=4) | changes)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"patch_size": 5}, "16x16 is not divisible by the U-Net's patch size 5"),
        ({"teacher_condition": "none"}, "teacher_condition is one of picture, noise, got 'none'"),
        ({"frozen_levels": 3}, "has 2 down blocks, so frozen_levels is 0 to 2; got 3"),
        ({"combine": "sum"}, "combine is one of concat, mean, got 'sum'"),
        ({"steps": 0}, "1 to 2000 steps, got steps=0"),
        ({"steps": 2001}, "1 to 2000 steps, got steps=2001"),
        ({"scheduler": DDPMScheduler(prediction_type="flow")}, "prediction type is 'flow', expected one of epsilon, v_pred"),
        ({"scheduler": FlowMatchEulerDiscreteScheduler()}, "has no alphas_cumprod"),
        ({"sampler": DDIMScheduler(prediction_type="sample")}, "predictions of type 'sample', but .* trained for 'epsilon'"),
    ],
)
def test_refuses_other_options(options, message):
    with pytest.raises(InputError, match=message):
        make_unet(**options)


def test_refuses_pictures_of_another_shape(unet):
    for call in (unet, unet.generate, unet.training_loss):
        with pytest.raises(InputError, match="takes pictures of 3 channel.* 16x16 pixels, got 1 and 28x28"):
            call(torch.zeros(2, 1, 28, 28), MASK[:2])
