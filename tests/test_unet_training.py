"""Diffusion under the trainer, all three layouts.

Every method and corruption, EMA, checkpointing, and what a checkpoint holds.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_dataset
from diffusers import DiffusionPipeline, UNet2DModel
from helpers.close import assert_close
from helpers.words import objects
from latent_pipeline import make_latent, save_pipeline
from safetensors.torch import load_file
from test_unet import make_unet
from test_unet_plain import make_plain
from torch.utils import checkpoint
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_i2i_unlearn import (
    DISTANCES,
    METHODS,
    CenterCrop,
    ForgetRetainPairs,
    I2IUNet,
    InputError,
    RandomMask,
    StandardNormal,
    UnlearningConfig,
    UnlearningTrainer,
    undecoded,
)
from hf_i2i_unlearn.commands.words import parse_corruption
from hf_i2i_unlearn.methods.method import REFERENCE_METHODS
from hf_i2i_unlearn.models.base import TrainingLoss, join
from hf_i2i_unlearn.training.objective import Objective

ROOT = Path(__file__).parents[1]
DATA = undecoded(make_dataset())
FORGET, RETAIN = DATA.select(range(8)), DATA.select(range(8, 24))
LAYOUTS = {"palette": make_unet, "plain": make_plain, "latent": make_latent}
ENCODER = ("model.conv_in", "model.down_", "model.mid_")


def make_trainer(folder, model, corruption=CenterCrop(4), **options):
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    options = {"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "logging_steps": 1} | options
    options = {"eval_steps": 3, "save_steps": 3} | options
    how = objects(options)
    args = UnlearningConfig(str(folder), use_cpu=True, disable_tqdm=True, **options)
    return UnlearningTrainer(
        model,
        args,
        ForgetRetainPairs(FORGET, RETAIN, 0),
        processor,
        corruption,
        eval_dataset={"forget": list(FORGET)[:2], "retain": list(RETAIN)[:2]},
        **how,
    )


VARIANTS = [*((method, "paper") for method in METHODS), ("random_encoder", "reference"), ("retain_label", "reference")]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method, variant", VARIANTS)
def test_every_method_trains_what_it_should(tmp_path, layout, method, variant):
    model = LAYOUTS[layout](steps=2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trainer = make_trainer(tmp_path, model, method=method, variant=variant, max_steps=1, eval_strategy="no", save_steps=1)
    first = trainer.evaluate()
    trainer.train()
    last = trainer.evaluate()
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    if METHODS[method].space == "encoder":
        # Student and teacher saw the same time and noise: squares of rounding errors.
        assert first["eval_retain_distance"] < 1e-8 * first["eval_forget_distance"]
        assert moved == {k for k in before if k.startswith(ENCODER)}
    else:
        assert any(k.startswith("model.up_") for k in moved) and not any(k.startswith("vae.") for k in moved)
    assert first["eval_retain_drift"] <= 1e-3 * last["eval_retain_drift"] > 0
    again = model.kind.from_pretrained(tmp_path / "checkpoint-1")
    assert all(torch.equal(v, model.model.state_dict()[k]) for k, v in again.state_dict().items())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("corruption", ["center:4", "outpaint:4", "left:2", "up:3", "random:0.5", "block:3"])
def test_every_corruption_runs(tmp_path, layout, corruption):
    model = LAYOUTS[layout](steps=2)
    trainer = make_trainer(tmp_path, model, parse_corruption(corruption), max_steps=1, save_strategy="no", eval_strategy="no")
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 1 and torch.tensor(losses).isfinite().all() and losses[0] > 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_average_of_the_weights_becomes_the_result(tmp_path, layout):
    """After two steps of SGD the EMA of decay d is, by diffusers' warm-up, a known mix of the weights on the way."""
    model, seen = LAYOUTS[layout](steps=2), []
    trainer = make_trainer(tmp_path, model, max_steps=3, ema_decay=0.5, optim="sgd", eval_strategy="no", save_strategy="no")
    weight = model.model.conv_in.weight
    start = weight.detach().clone()
    step = trainer.ema.step
    trainer.ema.step = lambda parameters: (seen.append(weight.detach().clone()), step(parameters))[1]
    trainer.train()
    average = start
    for k, now in enumerate(seen, 1):
        decay = min(0.5, (1 + (k - 1)) / (10 + (k - 1))) if k > 1 else 0.0
        average = decay * average + (1 - decay) * now
    assert_close(weight.detach(), average)
    assert not torch.equal(weight, seen[-1])
    up = model.model.up_blocks.state_dict()
    assert all(torch.equal(v, up[k]) for k, v in LAYOUTS[layout]().model.up_blocks.state_dict().items())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", ["ours", "max_loss"])
def test_gradient_checkpointing_changes_no_gradient(tmp_path, layout, method, monkeypatch):
    """The Trainer's option, and plain SGD: what it subtracts are the gradients."""
    calls, gradients = [], []
    keep = checkpoint._checkpoint_without_reentrant_generator
    monkeypatch.setattr(
        checkpoint, "_checkpoint_without_reentrant_generator", lambda *a, **k: (calls.append(1), keep(*a, **k))[1]
    )
    for on in (False, True):
        model = LAYOUTS[layout](steps=2)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        options = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 1e9, "max_steps": 1, "lr_scheduler_type": "constant"}
        trainer = make_trainer(
            tmp_path, model, method=method, gradient_checkpointing=on, eval_strategy="no", save_strategy="no", **options
        )
        trainer.train()
        gradients.append({n: before[n] - p.detach() for n, p in model.named_parameters()})
        assert bool(calls) == on
    assert sum(bool(g.any()) for g in gradients[0].values()) > 10
    assert_close(gradients[1], gradients[0])


def test_gradient_checkpointing_of_masked_autoencoders(tmp_path, mae):
    batch = torch.rand(2, 3, 16, 16)
    mask, gradients = CenterCrop(2)((4, 4), range(2)), []
    for on in (False, True):
        mae.zero_grad()
        if on:
            TrainingLoss(mae).activation_checkpointing_enable()
            assert mae.model.is_gradient_checkpointing
        mae.train()(batch, mask).square().mean().backward()
        gradients.append({n: p.grad.clone() for n, p in mae.model.vit.named_parameters() if p.grad is not None})
    assert_close(gradients[1], gradients[0])


def test_checkpointing_that_cannot_be():
    with pytest.raises(InputError, match="checkpoints the activations of every block; leave out every_n_layers"):
        make_unet().activation_checkpointing_enable(every_n_layers=2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_references_random_encoder_has_the_moments_of_each_level(layout):
    student, teacher = LAYOUTS[layout](1), LAYOUTS[layout](2).frozen_copy()
    seeds = torch.arange(12).view(4, 3).numpy()
    x_r, x_f = (torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    objective = Objective(REFERENCE_METHODS["random_encoder"], teacher, DISTANCES["mse"], StandardNormal())
    retain, forget, _ = objective(student, student, CenterCrop(4), x_r, x_f, seeds)
    draws = [teacher.draw(x, CenterCrop(4)(teacher.grid, seeds[:, k]), seeds[:, k]) for k, x in enumerate((x_r, x_f))]
    levels = [[a.flatten(1), b.flatten(1)] for a, b in zip(teacher.features(x_r, draws[0]), teacher.features(x_f, draws[1]))]
    width = sum(a.shape[1] for a, _ in levels)
    n = torch.stack([torch.randn(width, generator=torch.Generator().manual_seed(int(s))) for s in seeds[:, 2]])
    parts = n.split([a.shape[1] for a, _ in levels], 1)
    target = torch.cat([p * torch.cat(both).std() + torch.cat(both).mean() for p, both in zip(parts, levels)], 1)
    assert_close(forget, (student(x_f, draws[1]) - target).square().mean(1), 1e-4)
    stds = torch.tensor([torch.cat(both).std() for both in levels])
    assert stds.max() > 1.2 * stds.min()  # one deviation for all would be another target


@pytest.mark.parametrize("corruption", [CenterCrop(8), RandomMask(0.5)])
def test_ours_is_equation_c25(corruption):
    student, teacher = (make_unet(seed, teacher_condition="picture") for seed in (1, 2))
    student, teacher = student.train(), teacher.frozen_copy()
    seeds = torch.arange(12).view(4, 3).numpy()
    generator = torch.Generator().manual_seed(0)
    x_r, x_f = (torch.rand(4, 3, 16, 16, generator=generator) for _ in range(2))
    objective = Objective(METHODS["ours"], teacher, DISTANCES["mse"], StandardNormal())
    retain, forget, _ = objective(student, student, corruption, x_r, x_f, seeds)

    draw_r, draw_f = (teacher.draw(x, corruption((16, 16), seeds[:, k]), seeds[:, k]) for k, x in enumerate((x_r, x_f)))
    square = lambda a, b: (a - b).square().mean(1)
    assert_close(retain, square(student(x_r, draw_r), teacher(x_r, draw_r)), 1e-4)
    # The teacher's input, taken from the library's first layer: same condition and visible part, n in the hole.
    n = torch.stack([torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(int(s))) for s in seeds[:, 2]])
    hole, seen = teacher.hole(draw_f.mask), []
    hook = teacher.model.conv_in.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    target = teacher(*teacher.noised(x_f, draw_f, n))
    hook.remove()
    condition = torch.where(hole, draw_f.condition, x_f)
    assert torch.equal(seen[0], torch.cat([condition, torch.where(hole, n, x_f)], 1))
    assert_close(forget, square(student(x_f, draw_f), target), 1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_draws_are_joined_field_by_field(layout):
    model, pixels = LAYOUTS[layout](), torch.rand(3, 3, 16, 16)
    mask = CenterCrop(4)(model.grid, range(3))
    whole = model.draw(pixels, mask, [1, 2, 3])
    parts = join(model.draw(pixels[:1], mask[:1], [1]), model.draw(pixels[1:], mask[1:], [2, 3]))
    assert type(parts) is type(whole)
    for a, b in zip(whole, parts):  # among the latent layout's are latents, whose last bits go with the size of the batch
        assert_close(b, a)


def test_the_mean_target_is_refused(tmp_path):
    with pytest.raises(InputError, match="family 'diffusion' depends on the visible part"):
        make_trainer(tmp_path, make_unet(steps=3), noise_target="mean")


def test_latents_out_of_range_stop_a_run_before_it_starts(tmp_path):
    model = make_latent()
    model.vae.encoder.conv_in.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="latents that are not finite"):
        make_trainer(tmp_path, model)


# The recipe


def launch(*argv, cwd, check=True):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "unlearn_diffusion.py"), *map(str, argv)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=check,
    )


def options(model, folder):
    make_dataset(24).to_parquet(folder / "data" / "train.parquet")
    make_dataset(16).to_parquet(folder / "data" / "validation.parquet")
    return [
        "--model", model, "--dataset", folder / "data", "--forget_classes", "cat", "dog", "--corruption", "center:4",
        "--patch_size", 2, "--denoising_steps", 2, "--max_steps", 2, "--save_steps", 1, "--learning_rate", 1e-3,
        "--output_dir", folder / "out", "--use_cpu", "--disable_tqdm", "true",
    ]  # fmt: skip


def test_a_pipeline_in_a_pipeline_out(tmp_path):
    """And resumed from a checkpoint, which holds the U-Net alone, it ends with the weights of the straight run."""
    source = save_pipeline(tmp_path / "pipeline")
    argv = options(source, tmp_path)
    launch(*argv, "--prompt", "a b", cwd=tmp_path)
    out = tmp_path / "out"
    pipeline = DiffusionPipeline.from_pretrained(out)
    before, after = (load_file(f / "unet" / "diffusion_pytorch_model.safetensors") for f in (source, out))
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved == {k for k in before if f"model.{k}".startswith(ENCODER)}
    assert torch.equal(pipeline.unet.conv_in.weight, after["conv_in.weight"])
    for part in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "model_index.json"):
        assert (out / part).read_bytes() == (source / part).read_bytes()
    assert json.loads((out / "unet" / "i2i_model.json").read_text())["prompt"] == "a b"
    loaded = I2IUNet.from_pretrained(str(out))
    assert (loaded.patch_size, loaded.steps, loaded.prompt) == (2, 2, "a b")
    assert {f.name for f in (out / "checkpoint-1").iterdir()} >= {"unet", "scheduler", "trainer_state.json"}
    assert not (out / "checkpoint-1" / "vae").exists()

    (out / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    launch(*argv, "--prompt", "a b", "--resume_from_checkpoint", out / "checkpoint-1", cwd=tmp_path)
    again = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(again[k], after[k]) for k in after)


def test_a_bare_unet_in_a_bare_unet_out(tmp_path):
    make_plain().save_pretrained(tmp_path / "model")
    launch(*options(tmp_path / "model", tmp_path), cwd=tmp_path)
    assert {f.name for f in (tmp_path / "out").iterdir() if f.is_file()} == {
        "config.json", "diffusion_pytorch_model.safetensors", "i2i_model.json", "preprocessor_config.json", "README.md",
        "before_after.png", "figures.json", "run.json", "request.json", "run.yaml", "log.jsonl",
        "training_args.json",
    }  # fmt: skip
    UNet2DModel.from_pretrained(tmp_path / "out")
