import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import DDPMScheduler, UNet2DModel
from helpers.close import assert_close
from torch.nn.functional import (
    avg_pool2d,
    conv1d,
    conv2d,
    group_norm,
    interpolate,
    linear,
    silu,
)

from hf_i2i_unlearn import InputError
from hf_i2i_unlearn.commands.convert import main
from hf_i2i_unlearn.models.diffusion.conversion import (
    BUFFERS,
    palette_scheduler,
    palette_to_unet,
    unet_to_palette,
)
from hf_i2i_unlearn.models.diffusion.layout import palette_config

FOLDER = Path(__file__).parents[2] / "shared" / "fixtures"
SMALL = {"image_size": 16, "inner": 8, "multipliers": (1, 2, 2), "layers": 2, "head_channels": 4, "norm_groups": 4}
OPTIONS = {"image_size": 16, "num_head_channels": 4, "norm_groups": 4}


@pytest.fixture(scope="session")
def original():
    """Weights, inputs and outputs of the original code: (tensors by name, the JSON beside them)."""
    if not FOLDER.is_dir():
        pytest.skip(f"no outputs of the original code in {FOLDER}")
    tensors = safetensors.torch.load_file(FOLDER / "palette_a.safetensors")
    return tensors, json.loads((FOLDER / "palette_a.json").read_text())


def weights(tensors):
    return {name.removeprefix("state_dict."): t for name, t in tensors.items() if name.startswith("state_dict.")}


def randomised(model, seed=0):
    """Norms and biases too, so that a swapped one shows."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, float(parameter.ndim == 1) / 2, 0.15, generator)
    return model.eval()


def small_unet(**changes):
    return randomised(UNet2DModel(**palette_config(**SMALL | {"attention": (1,)} | changes)))


def palette_forward(state, x, gamma, heads, res_blocks, groups):
    """Palette's U-Net, written out over the names of its state dict."""

    def p(name):
        return state["denoise_fn." + name + ".weight"], state["denoise_fn." + name + ".bias"]

    def norm(x, name):
        return group_norm(x, groups, *p(name))

    def res(x, name, resample=lambda x: x):
        h = conv2d(resample(silu(norm(x, f"{name}.in_layers.0"))), *p(f"{name}.in_layers.2"), padding=1)
        scale, shift = linear(silu(emb), *p(f"{name}.emb_layers.1"))[..., None, None].chunk(2, 1)
        h = norm(h, f"{name}.out_layers.0") * (1 + scale) + shift
        h = conv2d(silu(h), *p(f"{name}.out_layers.3"), padding=1)
        skip = f"denoise_fn.{name}.skip_connection.weight" in state
        return h + (conv2d(x, *p(f"{name}.skip_connection")) if skip else resample(x))

    def attend(x, name):
        b, c = x.shape[:2]
        qkv = conv1d(norm(x, f"{name}.norm").flatten(2), *p(f"{name}.qkv"))  # (B, 3C, N)
        q, k, v = qkv.view(b, heads(c), 3, c // heads(c), -1).unbind(2)  # (B, heads, C / heads, N)
        weight = torch.softmax(q.transpose(2, 3) @ k / (c // heads(c)) ** 0.5, -1)  # (B, heads, N, N)
        h = (v @ weight.transpose(2, 3)).reshape(b, c, -1)
        return x + conv1d(h, *p(f"{name}.proj_out")).view(x.shape)

    half = state["denoise_fn.cond_embed.0.weight"].shape[1] // 2
    angle = gamma[:, None] * torch.exp(-torch.arange(half) * torch.log(torch.tensor(10000.0)) / half)
    emb = linear(torch.cat([angle.cos(), angle.sin()], 1), *p("cond_embed.0"))
    emb = linear(silu(emb), *p("cond_embed.2"))
    h = conv2d(x, *p("input_blocks.0.0"), padding=1)
    skips, features = [h], [h]
    count = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("denoise_fn.input_blocks"))
    for n in range(1, count):
        down = n % (res_blocks + 1) == 0
        h = res(h, f"input_blocks.{n}.0", (lambda x: avg_pool2d(x, 2)) if down else lambda x: x)
        if f"denoise_fn.input_blocks.{n}.1.qkv.weight" in state:
            h = attend(h, f"input_blocks.{n}.1")
        skips.append(h)
        features.append(h)
    h = res(attend(res(h, "middle_block.0"), "middle_block.1"), "middle_block.2")
    features.append(h)
    for n in range(count):
        h = res(torch.cat([h, skips.pop()], 1), f"output_blocks.{n}.0")
        for k in (1, 2):
            if f"denoise_fn.output_blocks.{n}.{k}.qkv.weight" in state:
                h = attend(h, f"output_blocks.{n}.{k}")
            elif f"denoise_fn.output_blocks.{n}.{k}.in_layers.0.weight" in state:
                h = res(h, f"output_blocks.{n}.{k}", lambda x: interpolate(x, scale_factor=2, mode="nearest"))
    return conv2d(silu(norm(h, "out.0")), *p("out.2"), padding=1), features


@pytest.mark.parametrize("attention, layers", [((), 2), ((1,), 2), ((0, 2), 1)])
def test_the_names_mean_what_palette_means_by_them(attention, layers):
    unet = small_unet(attention=attention, layers=layers)
    x = torch.randn(2, 6, 16, 16, generator=torch.Generator().manual_seed(1))
    gamma = torch.tensor([0.9, 0.02])
    with torch.no_grad():
        theirs, _ = palette_forward(unet_to_palette(unet), x, gamma, lambda c: c // 4, layers, 4)
        assert_close(unet(x, gamma).sample, theirs)


@pytest.mark.parametrize("attention, layers", [((), 2), ((1,), 2), ((0, 2), 1)])
def test_there_and_back_small(attention, layers):
    unet = small_unet(attention=attention, layers=layers)
    theirs = unet_to_palette(unet)
    again = palette_to_unet(theirs, **OPTIONS)
    assert {k: again.config[k] for k in palette_config()} == {k: unet.config[k] for k in palette_config()}
    for name, tensor in unet.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    back = unet_to_palette(again)
    assert list(back) == list(theirs) and all(torch.equal(back[k], theirs[k]) for k in theirs)


def test_the_published_model():
    with torch.device("meta"):
        theirs = unet_to_palette(UNet2DModel(**palette_config()))
    assert sum(t.numel() for t in theirs.values()) == 62_641_347
    shapes = {
        "input_blocks.0.0.weight": (64, 6, 3, 3),
        "input_blocks.3.0.in_layers.2.weight": (64, 64, 3, 3),  # the first down block
        "input_blocks.10.0.skip_connection.weight": (512, 256, 1, 1),
        "middle_block.1.qkv.weight": (1536, 512, 1),
        "middle_block.1.proj_out.weight": (512, 512, 1),
        "output_blocks.2.1.in_layers.2.weight": (512, 512, 3, 3),  # the first up block
        "output_blocks.11.0.in_layers.0.weight": (128,),
        "out.2.weight": (3, 64, 3, 3),
        "cond_embed.0.weight": (256, 64),
    }
    assert {name: tuple(theirs["denoise_fn." + name].shape) for name in shapes} == shapes


def test_outputs_of_the_original(original):
    tensors, description = original
    unet = palette_to_unet(weights(tensors), image_size=16, num_head_channels=description["config"]["num_head_channels"])
    x = torch.cat([tensors["input.y_cond"], tensors["input.y_noisy"]], 1)
    gamma = tensors["input.gammas"].view(-1)
    seen = {}
    unet.time_embedding.register_forward_hook(lambda module, args, output: seen.update(embedding=output))
    unet.time_proj.register_forward_hook(lambda module, args, output: seen.update(sinusoids=output))
    with torch.no_grad():
        assert_close(unet(x, gamma).sample, tensors["output.unet"], 1e-4)
        assert_close(seen["embedding"], tensors["output.cond_embed"], 1e-4)
        assert_close(seen["sinusoids"], tensors["output.gamma_embedding"], 1e-4)
        # and the re-implementation of the tests above is the original too
        theirs, features = palette_forward(weights(tensors), x, gamma, lambda c: c // 16, 2, 32)
    assert_close(theirs, tensors["output.unet"], 1e-4)
    for k, feature in enumerate(features):
        assert_close(feature, tensors[f"output.feat.{k:02d}"], 1e-4)


def test_the_original_there_and_back(original):
    theirs = weights(original[0])
    unet = palette_to_unet(theirs, image_size=16, num_head_channels=16)
    scheduler = palette_scheduler(theirs["gammas"])
    assert (scheduler.config.beta_start, scheduler.config.beta_end, len(scheduler.betas)) == (1e-6, 0.01, 2000)
    assert_close(scheduler.alphas_cumprod, theirs["gammas"], 1e-6)
    back = unet_to_palette(unet, scheduler)
    assert set(back) == set(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype, name


@pytest.mark.parametrize("steps, start, end", [(2000, 1e-6, 0.01), (1000, 1e-4, 0.09), (500, 2.5e-5, 0.0375)])
def test_schedules_are_read_off_their_gammas(steps, start, end):
    gammas = torch.cumprod(1 - torch.linspace(start, end, steps, dtype=torch.float64), 0).float()
    config = palette_scheduler(gammas).config
    assert (config.num_train_timesteps, config.beta_start, config.beta_end) == (steps, start, end)
    assert config.trained_betas is None and config.prediction_type == "epsilon" and config.clip_sample


def test_other_schedules_are_kept_step_by_step():
    gammas = torch.cos(torch.linspace(0.01, 1.5, 100, dtype=torch.float64)).square().float()
    scheduler = palette_scheduler(gammas)
    assert_close(scheduler.alphas_cumprod, gammas, 1e-6)
    back = unet_to_palette(small_unet(), scheduler)
    assert_close(back["gammas"], gammas)
    assert_close(back["sqrt_recip_gammas"], gammas.rsqrt())


def test_an_unlearned_checkpoint_loses_its_teacher():
    theirs = unet_to_palette(small_unet(), DDPMScheduler(2000, 1e-6, 0.01))
    assert set(BUFFERS) < set(theirs)
    teacher = {name.replace("denoise_fn.", "teacher_denoise_fn."): t + 1 for name, t in theirs.items() if "denoise" in name}
    bare = {name.removeprefix("denoise_fn."): t for name, t in theirs.items()}
    for state in (theirs | teacher, bare | teacher):
        back = unet_to_palette(palette_to_unet(state, **OPTIONS))
        assert all(torch.equal(t, theirs[name]) for name, t in back.items())


def test_refuses_what_it_does_not_know():
    theirs = unet_to_palette(small_unet())
    changed = {name.replace("middle_block.1.norm", "middle_block.1.layernorm"): t for name, t in theirs.items()}
    with pytest.raises(
        InputError, match=r"'denoise_fn.middle_block.1.norm.weight' is missing and .*layernorm.weight' is unexp"
    ):
        palette_to_unet(changed, **OPTIONS)
    with pytest.raises(InputError, match="Palette checkpoint: 'denoise_fn.extra' is unexpected"):
        palette_to_unet(theirs | {"denoise_fn.extra": torch.zeros(1)}, **OPTIONS)
    with pytest.raises(InputError, match="'denoise_fn.out.2.bias' is missing .the first"):
        palette_to_unet({name: t for name, t in theirs.items() if name != "denoise_fn.out.2.bias"}, **OPTIONS)
    with pytest.raises(InputError, match="'denoise_fn.input_blocks.0.0.weight' is missing and 'cls_token' is unexp"):
        palette_to_unet({"cls_token": torch.zeros(1)})
    with pytest.raises(InputError, match=r"'denoise_fn.out.0.weight' gives shape \(9,\), expected \(8,\)"):
        palette_to_unet(theirs | {"denoise_fn.out.0.weight": torch.zeros(9)}, **OPTIONS)
    with pytest.raises(InputError, match="8 channels cannot be divided into 32 norm groups"):
        palette_to_unet(theirs)


def test_refuses_to_write_other_unets_as_palette():
    plain = UNet2DModel(
        block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, norm_num_groups=4
    )
    with pytest.raises(
        InputError, match="not a U-Net in the Palette layout: 'down_blocks.0.downsamplers.0.norm1.weight' is mis"
    ):
        unet_to_palette(plain)


def test_command_line(tmp_path):
    unet = small_unet()
    torch.save(unet_to_palette(unet, DDPMScheduler(2000, 1e-6, 0.01)), tmp_path / "16_Network.pth")
    command = [sys.executable, "-m", "hf_i2i_unlearn.conversion", "palette", "16_Network.pth", "out", "--image_size", "16"]
    command += ["--num_head_channels", "4", "--norm_groups", "4"]
    package = str(Path(__file__).parents[1])
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": package}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = UNet2DModel.from_pretrained(tmp_path / "out")
    assert all(torch.equal(t, unet.state_dict()[name]) for name, t in loaded.state_dict().items())
    scheduler = DDPMScheduler.from_pretrained(tmp_path / "out", subfolder="scheduler")
    assert (scheduler.config.beta_start, scheduler.config.beta_end, len(scheduler)) == (1e-6, 0.01, 2000)
    with pytest.raises(InputError, match="out' exists and is no empty folder"):
        main(["palette", str(tmp_path / "16_Network.pth"), str(tmp_path / "out")])
