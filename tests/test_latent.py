"""Latent inpainting: what the U-Net sees against Stable Diffusion's own pipeline, what is computed once, and what is saved."""

import fnmatch
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
)
from helpers.close import assert_close, is_close
from latent_pipeline import (
    make_conditional,
    make_latent,
    make_scheduler,
    make_vae,
    save_pipeline,
)

from hf_i2i_unlearn import DISTANCES, METHODS, CenterCrop, I2IUNet, InputError, RandomMask, StandardNormal
from hf_i2i_unlearn.methods.noise import BatchMatched
from hf_i2i_unlearn.models.diffusion import folders
from hf_i2i_unlearn.models.diffusion.latent import I2ILatentUNet
from hf_i2i_unlearn.training.objective import Objective

MASK = CenterCrop(4)((8, 8), range(3))
SEEDS = [11, 12, 13]


@pytest.fixture
def pixels():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def unet():
    return make_latent()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("pipeline"))


# The representation


def test_levels_are_what_the_librarys_up_blocks_read(unet, pixels):
    draw, seen = unet.draw(pixels, MASK, SEEDS), {"residuals": []}

    def before_up(module, args, options):
        seen["residuals"] = [*options["res_hidden_states_tuple"], *seen["residuals"]]
        seen.setdefault("middle", options["hidden_states"])

    hooks = [block.register_forward_pre_hook(before_up, with_kwargs=True) for block in unet.model.up_blocks]
    hole, gamma = torch.zeros(3, 1, 8, 8), draw.gamma.view(-1, 1, 1, 1)
    hole[:, :, 2:6, 2:6] = 1
    empty = pixels.clone()
    empty[:, :, 4:12, 4:12] = 0
    with torch.no_grad():
        clean, masked = (0.5 * unet.vae.encode(x).latent_dist.mean for x in (pixels, empty))
        noisy = gamma.sqrt() * clean + (1 - gamma).sqrt() * draw.noise
        unet.model(torch.cat([noisy, hole, masked], 1), draw.time, unet.text.expand(3, -1, -1))
        for hook in hooks:
            hook.remove()
        encoded = unet(pixels, draw)
    expected = [*seen["residuals"], seen["middle"]]
    assert_close(encoded, torch.cat([level.flatten(1) for level in expected], 1), 1e-4)
    assert [p.shape[1] for p in unet.levels(encoded)] == [e[0].numel() for e in expected]


def test_shift_factor(pixels):
    plain, shifted = make_latent(), make_latent(vae=make_vae(shift_factor=0.7))
    assert_close(shifted.encode(pixels), plain.encode(pixels) - 0.5 * 0.7)
    assert_close(shifted.decode(shifted.encode(pixels)), plain.decode(plain.encode(pixels)))


def test_the_original_encoder_sees_latent_noise_in_the_hole_alone(unet, pixels):
    draw, hole = unet.draw(pixels, MASK, SEEDS), unet.sample_hole(MASK).expand(3, 4, 8, 8)
    n = StandardNormal()(unet.noise_like(pixels), SEEDS)
    assert n.shape == (3, 4, 8, 8)
    mine = unet._inputs(pixels, draw, draw.latents)
    theirs = unet._inputs(*(x := unet.noised(pixels, draw, n)), x[1].latents)
    assert torch.equal(theirs[:, :4][hole], n[hole]) and torch.equal(theirs[:, :4][~hole], mine[:, :4][~hole])
    assert torch.equal(theirs[:, 4:], mine[:, 4:]) and not torch.equal(theirs, mine)


def test_ours_is_equation_c25_in_latent_space():
    student, teacher = make_latent(1).train(), make_latent(2).frozen_copy()
    seeds = torch.arange(6).view(2, 3).numpy()
    x_r, x_f = (torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    T = RandomMask(0.3)
    retain, forget, _ = Objective(METHODS["ours"], teacher, DISTANCES["mse"], StandardNormal())(
        student, student, T, x_r, x_f, seeds
    )
    draws = [teacher.draw(x, T((8, 8), seeds[:, k]), seeds[:, k]) for k, x in enumerate((x_r, x_f))]
    n = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(int(s))) for s in seeds[:, 2]])
    seen = []
    hook = teacher.model.conv_in.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    target = teacher(*teacher.noised(x_f, draws[1], n))
    hook.remove()
    gamma, hole = draws[1].gamma.view(-1, 1, 1, 1), teacher.sample_hole(draws[1].mask)
    noisy = gamma.sqrt() * teacher.encode(x_f) + (1 - gamma).sqrt() * draws[1].noise
    masked = teacher.encode(torch.where(teacher.hole(draws[1].mask), 0.0, x_f))
    assert_close(seen[0], torch.cat([torch.where(hole, n, noisy), hole.float(), masked], 1))
    square = lambda a, b: (a - b).square().mean(1)
    assert_close(retain, square(student(x_r, draws[0]), teacher(x_r, draws[0])), 1e-4)
    assert_close(forget, square(student(x_f, draws[1]), target), 1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_training_loss_by_hand(pixels, kind):
    unet = make_latent(scheduler=make_scheduler(prediction_type=kind))
    draw, target = unet.draw(pixels, MASK, SEEDS), torch.rand_like(pixels) * 2 - 1
    hole = unet.sample_hole(MASK).expand(3, 4, 8, 8)
    for picture in (None, target):
        clean = unet.encode(pixels)
        clean = clean if picture is None else torch.where(hole, unet.encode(target), clean)
        expected = []
        for i, gamma in enumerate(draw.gamma):
            eta = draw.noise[i]
            inputs = torch.cat([gamma**0.5 * clean[i] + (1 - gamma) ** 0.5 * eta, hole[i, :1], draw.masked[i]])
            predicted = unet.model(inputs[None], draw.time[i], unet.text).sample[0]
            velocity = gamma**0.5 * eta - (1 - gamma) ** 0.5 * clean[i]
            wanted = {"epsilon": eta, "v_prediction": velocity, "sample": clean[i]}[kind]
            expected.append(((predicted - wanted)[hole[i]] ** 2).mean())
        assert_close(unet.training_loss(pixels, draw, picture), torch.stack(expected), 1e-4)


def test_a_draw_depends_on_its_own_seed_alone(unet, pixels):
    whole = unet.draw(pixels, MASK, SEEDS)
    part = make_latent().draw(pixels[1:2], MASK[1:2], SEEDS[1:2])
    for a, b in zip(whole, part):  # among the fields are latents, whose last bits go with the size of the batch
        assert_close(b, a[1:2])


# Generation


@pytest.mark.parametrize("sampler", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_generation_is_that_of_stable_diffusions_pipeline(pipeline, pixels, sampler, monkeypatch):
    ours = I2IUNet.from_pretrained(str(pipeline), prompt="a b", steps=5, patch_size=2)
    ours.sample_with(sampler)
    theirs = DiffusionPipeline.from_pretrained(pipeline)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = sampler.from_config(ours.sampler.config)
    monkeypatch.setattr(  # the pipeline draws latents of the masked picture, we take their mean
        "diffusers.models.autoencoders.vae.DiagonalGaussianDistribution.sample", lambda self, generator=None: self.mean
    )
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    hole = ours.hole(MASK).float()
    expected = theirs(
        ["a b"] * 3, (pixels + 1) / 2, hole, height=16, width=16, num_inference_steps=5, guidance_scale=1.0, latents=noise,
        output_type="latent",
    ).images  # fmt: skip
    restored = ours._restore(pixels, MASK, noise, None)
    assert_close(restored, ours.decode(expected), 1e-3)
    completed = ours.generate(pixels, MASK, SEEDS)
    assert torch.equal(completed[~hole.bool().expand_as(pixels)], pixels[~hole.bool().expand_as(pixels)])


class Oracle(torch.nn.Module):
    """Knows the latents of the truth."""

    def __init__(self, inner, truth, gammas):
        super().__init__()
        self.config, self.dtype, self.truth, self.gammas = inner.config, torch.float32, truth, gammas

    def forward(self, x, t, encoder_hidden_states):
        assert x.shape[1] == 9 and encoder_hidden_states.shape == (len(x), 6, 8)
        gamma = self.gammas[t.round().long()].view(-1, 1, 1, 1)
        return SimpleNamespace(sample=(x[:, :4] - gamma.sqrt() * self.truth) / (1 - gamma).sqrt())


@pytest.mark.parametrize("sampler", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_a_perfect_network_restores_the_truth_unclipped(pixels, sampler):
    unet = make_latent(steps=7)
    unet.sample_with(sampler)  # DDPM would clip to [-1, 1] by default
    assert not unet.sampler.config.get("clip_sample")
    truth = 3 * torch.randn(3, 4, 8, 8)
    unet.model = Oracle(unet.model, truth, unet.scheduler.alphas_cumprod)
    noise = torch.randn(3, 4, 8, 8)
    assert_close(unet._restore(pixels, MASK, noise, None), unet.decode(truth), 0.05)


def test_completion_depends_on_picture_and_seed_alone_and_not_on_what_is_hidden(unet, pixels):
    unet.sample_with(DDPMScheduler)
    whole = unet.generate(pixels, MASK, SEEDS)
    parts = [unet.generate(pixels[s], MASK[s], SEEDS[s]) for s in (slice(0, 1), slice(1, 3))]
    assert_close(torch.cat(parts), whole, 1e-4)
    assert not is_close(whole, unet.generate(pixels, MASK, [21, 22, 23]), 1e-2)
    hole = unet.hole(MASK).expand_as(pixels)
    completed = unet.generate(torch.where(hole, torch.rand_like(pixels), pixels), MASK, SEEDS)
    assert_close(completed, whole)


def test_training_and_sampling_draw_from_different_streams(unet, pixels):
    started = []
    unet.denoise, keep = lambda noise, *rest: started.append(noise) or keep(noise, *rest), unet.denoise
    unet.generate(pixels, MASK, SEEDS)
    pair = torch.stack([unet.draw(pixels, MASK, SEEDS).noise.flatten(), started[0].flatten()])
    assert abs(torch.corrcoef(pair)[0, 1]) < 0.15  # of 768 values


# What is computed once


@pytest.fixture
def encoded(unet):
    """Counts the pictures that the VAE encodes."""
    counted = []
    unet.vae.encoder.register_forward_pre_hook(lambda module, args: counted.append(len(args[0])))
    return counted


def test_each_picture_is_encoded_once_for_student_teacher_and_every_later_step(unet, pixels, encoded):
    teacher = unet.frozen_copy()
    assert teacher.vae is unet.vae and teacher.model is not unet.model
    objective = Objective(METHODS["ours"], teacher, DISTANCES["mse"], StandardNormal())
    seeds = torch.arange(9).view(3, 3).numpy()
    forget = -pixels
    objective(unet, unet, CenterCrop(4), pixels, forget, seeds)
    assert sum(encoded) == 12  # 6 pictures, whole and with a hole
    objective(unet, unet, CenterCrop(4), pixels.flip(0), forget, seeds + 9)
    teacher.generate(pixels, MASK)
    assert sum(encoded) == 12
    objective(unet, unet, CenterCrop(2), pixels, forget, seeds)
    assert sum(encoded) == 18  # another hole: masked pictures alone


def test_targets_that_are_noise_do_not_fill_the_cache(unet, pixels, encoded):
    draw = unet.draw(pixels, MASK, SEEDS)
    unet.training_loss(pixels, draw, pixels.flip(0))
    assert sum(encoded) == 6
    unet.training_loss(pixels, draw, torch.randn_like(pixels))
    assert sum(encoded) == 9 and len(unet.known.known) == 3


def test_the_cache_is_bounded_and_can_be_off(pixels):
    for size in (0, 2):
        unet = make_latent(cache=size)
        whole = unet.encode(pixels)
        assert len(unet.known.known) == size
        assert_close(unet.encode(pixels), whole)  # the last bits go with the size of the batch: of 3, or of the one not kept
        assert_close(whole, make_latent().encode(pixels))


def test_the_frozen_parts_stay_frozen(unet):
    teacher = unet.frozen_copy()
    unet.train()
    assert unet.model.training and not unet.vae.training
    assert not any(p.requires_grad for p in unet.vae.parameters())
    unet.train_encoder_only()
    trained = {n for n, p in unet.named_parameters() if p.requires_grad}
    parts = ("model.conv_in.", "model.down_blocks.", "model.mid_block.")
    assert trained == {n for n, _ in unet.named_parameters() if n.startswith(parts)}
    assert torch.equal(teacher.text, unet.text) and "text" not in unet.state_dict()


# Files


def test_a_saved_pipeline_is_whole_and_loads_without_this_package(pipeline, pixels, tmp_path):
    unet = I2IUNet.from_pretrained(str(pipeline), prompt="c d", steps=3, patch_size=4, combine="mean")
    unet.model.conv_in.weight.data.mul_(1.1)
    (pipeline / "vae" / "evil.py").write_text("raise SystemExit('executed')")
    (pipeline / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    unet.save_pretrained(tmp_path / "out")
    found = {f.relative_to(tmp_path / "out").as_posix() for f in (tmp_path / "out").rglob("*") if f.is_file()}
    (pipeline / "vae" / "evil.py").unlink(), (pipeline / "vae" / "diffusion_pytorch_model.bin").unlink()
    source = {f.relative_to(pipeline).as_posix() for f in pipeline.rglob("*") if f.is_file()}
    assert found == source | {"unet/i2i_model.json"}
    script = f"""
import sys; sys.modules["hf_i2i_unlearn"] = None
import torch, logging
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained({str(tmp_path / "out")!r})
torch.save(pipeline.unet.conv_in.weight.detach(), {str(tmp_path / "weight.pt")!r})
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert "i2i" not in done.stderr and "not expected" not in done.stderr
    assert torch.equal(torch.load(tmp_path / "weight.pt"), unet.model.conv_in.weight)

    again = I2IUNet.from_pretrained(str(tmp_path / "out"))
    assert (again.prompt, again.steps, again.patch_size, again.combine) == ("c d", 3, 4, "mean")
    assert torch.equal(again.text, unet.text) and torch.equal(
        again.generate(pixels, mask := MASK[:, ::2, ::2]), unet.generate(pixels, mask)
    )
    other = I2IUNet.from_pretrained(str(tmp_path / "out"), prompt="", patch_size=2)
    assert other.patch_size == 2 and not torch.equal(other.text, unet.text)


def test_a_checkpoint_of_a_run_holds_only_what_changes(pipeline, tmp_path):
    unet = I2IUNet.from_pretrained(str(pipeline), patch_size=2)
    unet.save_pretrained(tmp_path / "checkpoint-10")
    assert {f.name for f in (tmp_path / "checkpoint-10").iterdir()} == {"unet", "scheduler"}
    other = make_latent(seed=4)
    other.pipeline = unet.pipeline
    other.load_weights(tmp_path / "checkpoint-10")
    assert all(torch.equal(a, b) for a, b in zip(other.model.parameters(), unet.model.parameters()))


def test_the_text_is_that_of_the_pipeline(pipeline):
    theirs = DiffusionPipeline.from_pretrained(pipeline)
    for prompt in ("", "a h"):
        expected = theirs.encode_prompt(prompt, "cpu", 1, False)[0]
        assert_close(I2IUNet.from_pretrained(str(pipeline), prompt=prompt, patch_size=2).text, expected)


def test_a_pipeline_on_the_hub_is_fetched_without_pickles_and_code(pipeline, tmp_path, monkeypatch):
    asked = {}

    def snapshot(path, allow_patterns, **hub):
        asked.update(path=path, patterns=allow_patterns, **hub)
        return str(pipeline)

    monkeypatch.setattr(folders, "hf_hub_download", lambda path, name, **hub: str(pipeline / name))
    monkeypatch.setattr(folders, "snapshot_download", snapshot)
    unet = I2IUNet.from_pretrained("someone/inpainting", revision="v1", patch_size=2)
    assert asked["path"] == "someone/inpainting" and asked["revision"] == "v1"
    wanted = lambda name: any(fnmatch.fnmatch(name, p) for p in asked["patterns"])
    yes = [
        "model_index.json",
        "unet/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "tokenizer/merges.txt",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "text_encoder/model.safetensors",
    ]
    no = ["v1-5.ckpt", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors", "vae/x.py",
          "text_encoder/pytorch_model.bin", "v1-5-pruned.safetensors",
          "unet/diffusion_pytorch_model.non_ema.safetensors"]  # fmt: skip
    assert all(map(wanted, yes)) and not any(map(wanted, no))
    unet.save_pretrained(tmp_path / "out")
    assert isinstance(DiffusionPipeline.from_pretrained(tmp_path / "out"), StableDiffusionInpaintPipeline)


def test_a_variant_becomes_the_plain_weights(pipeline, tmp_path):
    whole = DiffusionPipeline.from_pretrained(pipeline)
    whole.save_pretrained(tmp_path / "half", variant="fp16")
    unet = I2IUNet.from_pretrained(str(tmp_path / "half"), variant="fp16", patch_size=2)
    unet.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors").is_file()
    DiffusionPipeline.from_pretrained(tmp_path / "out")


# Errors


def test_half_precision(pixels):
    large = make_latent(vae=make_vae(scaling_factor=1e6))
    large.check_pixels(pixels)  # fits float32
    large.model = make_conditional(torch_dtype=torch.float16)
    with pytest.raises(
        InputError, match="VAE in float32 gives latents that are not finite or too large for the U-Net in float16"
    ):
        large.check_pixels(pixels)
    overflowing = make_vae()
    overflowing.encoder.conv_in.weight.data.mul_(1e6)
    with pytest.raises(InputError, match="VAE in float16 gives latents .* use the VAE in float32 or bfloat16"):
        make_latent(vae=overflowing.to(torch.float16)).check_pixels(pixels)
    small = make_latent()
    small.model = make_conditional(torch_dtype=torch.bfloat16)
    assert small(pixels, MASK).dtype == torch.bfloat16 and small.generate(pixels, MASK).isfinite().all()


def test_autocast_does_not_reach_the_vae(unet, pixels):
    plain = unet.encode(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(make_latent().encode(pixels), plain)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: make_latent(patch_size=1), "patch size 1 is no multiple of the VAE's factor 2"),
        (lambda: make_latent(image_size=18), "18x18 is not divisible by the downsampling factor of VAE and U-Net together 4"),
        (lambda: make_latent(patch_size=6), "16x16 is not divisible by the U-Net's patch size 6"),
        (
            lambda: make_latent(vae=make_vae(latent_channels=3)),
            "takes 9 channels and gives 4, but its VAE has 3 latent channels",
        ),
        (lambda: make_latent(scheduler=make_scheduler(prediction_type="flow")), "prediction type is 'flow'"),
        (lambda: make_latent(sampler=DDIMScheduler()), "another noise schedule"),
        (
            lambda: I2ILatentUNet(
                make_conditional(in_channels=4), make_scheduler(), make_vae(), torch.zeros(1, 6, 8), patch_size=2
            ),
            "takes 4 channels and gives 4, .* latent inpainting takes 9",
        ),
        (
            lambda: I2ILatentUNet(make_conditional(), make_scheduler(), make_vae(), torch.zeros(1, 6, 16), patch_size=2),
            "text has 16 channels, the U-Net reads 8",
        ),
        (
            lambda: I2ILatentUNet(make_conditional(num_class_embeds=4), make_scheduler(), make_vae(), torch.zeros(1, 6, 8)),
            "num_class_embeds=4, expected None",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_noise_made_for_pixels_is_refused_where_n_is_latent(unet):
    noise = BatchMatched(torch.tensor([-1.0]), torch.tensor([1.0]))
    with pytest.raises(
        InputError, match="made for pixels, but n of the family 'diffusion' lives in latent space here; use normal"
    ):
        Objective(METHODS["ours"], unet, DISTANCES["mse"], noise)
    Objective(METHODS["noisy_label"], unet, DISTANCES["mse"], noise)  # whose n is a picture


def test_broken_pipelines(pipeline, tmp_path):
    for name, change, message in (
        (
            "kind",
            lambda d: edit(d / "model_index.json", vae=["diffusers", "AutoencoderTiny"]),
            "has AutoencoderTiny for its vae",
        ),
        ("code", lambda d: edit(d / "model_index.json", text_encoder=["mine", "Mine"]), "has Mine for its text_encoder"),
        ("none", lambda d: edit(d / "model_index.json", tokenizer=[None, None]), "has nothing for its tokenizer"),
        (
            "pickle",
            lambda d: (d / "vae" / "diffusion_pytorch_model.safetensors").rename(d / "vae" / "x.bin"),
            "only safetensors",
        ),
    ):
        shutil.copytree(pipeline, tmp_path / name)
        change(tmp_path / name)
        with pytest.raises(InputError, match=message):
            I2IUNet.from_pretrained(str(tmp_path / name), patch_size=2)


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_bare_latent_unet_has_no_vae(pipeline):
    with pytest.raises(InputError, match="needs the VAE and the text encoder of its pipeline"):
        I2IUNet.from_pretrained(str(pipeline), subfolder="unet")
