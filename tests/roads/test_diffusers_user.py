"""The diffusers user's road: an inpainting pipeline, a class forgotten by LoRA, and the patch loaded in each of the usual ways.

From an empty folder: a tiny pipeline and a folder of pictures are made, and then only commands, diffusers and peft are used.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import png
from diffusers import StableDiffusionInpaintPipeline, UNet2DConditionModel
from helpers.close import assert_close, is_close
from helpers.console import call
from helpers.sources import write_source
from latent_pipeline import save_pipeline
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_i2i_unlearn.commands import audit, compare, evaluate, unlearn, verify
from hf_i2i_unlearn.models.auto import load_model

CLASSES = ["ant", "bee", "cat", "dog"]


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """A folder with `pipeline`, `photos`, the patch that forgets the cats, and the same merged into a whole pipeline."""
    folder = tmp_path_factory.mktemp("road")
    save_pipeline(folder / "pipeline")
    photos = [(f"{CLASSES[i % 4]}/{i:03d}.png", png(i, i % 4)) for i in range(40)]
    write_source("imagefolder", folder / "photos", photos[:16], "train")
    write_source("imagefolder", folder / "photos", photos[16:], "validation")
    options = [
        "--model", folder / "pipeline", "--dataset", folder / "photos", "--forget_classes", "cat", "--lora", "true",
        "--corruption", "center:2", "--patch_size", 4, "--generation_steps", 2, "--max_steps", 6, "--learning_rate", "5e-2",
        "--alpha", 4, "--use_cpu", "true", "--disable_tqdm", "true", "--pictures", 0, "--eval_strategy", "no",
        "--save_strategy", "no",
    ]  # fmt: skip
    assert call(unlearn.main, *options, "--output_dir", folder / "patch") == 0
    assert call(unlearn.main, *options, "--output_dir", folder / "whole", "--merge", "true") == 0
    return folder


def answers(unet) -> torch.Tensor:
    """What a U-Net says to fixed inputs."""
    generator = torch.Generator().manual_seed(0)
    sample, text = torch.randn(2, 9, 8, 8, generator=generator), torch.randn(2, 6, 8, generator=generator)
    with torch.no_grad():
        return unet.eval()(sample, torch.tensor([500, 20]), encoder_hidden_states=text).sample


def pipeline(folder):
    return StableDiffusionInpaintPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)


def complete(pipe):
    """A completed picture, (H, W, C) bytes."""
    pipe.set_progress_bar_config(disable=True)
    picture, mask = Image.new("RGB", (16, 16), (200, 40, 90)), Image.new("L", (16, 16))
    mask.paste(255, (4, 4, 12, 12))
    generator = torch.Generator().manual_seed(0)
    out = pipe("a", picture, mask, height=16, width=16, num_inference_steps=2, generator=generator, output_type="pt")
    return out.images


def test_load_lora_weights_peft_and_the_whole_pipeline_agree(road):
    original = answers(pipeline(road / "pipeline").unet)
    wanted = answers(load_model(str(road / "patch"), patch_size=4).model)
    assert not is_close(wanted, original, 1e-2)
    pipe = pipeline(road / "pipeline")
    pipe.load_lora_weights(road / "patch")
    assert_close(answers(pipe.unet), wanted, 1e-4)
    unet = UNet2DConditionModel.from_pretrained(road / "pipeline", subfolder="unet")
    assert_close(answers(PeftModel.from_pretrained(unet, road / "patch")), wanted, 1e-4)
    whole = pipeline(road / "whole")
    assert_close(answers(whole.unet), wanted, 1e-4)
    assert_close(complete(whole), complete(pipe), 1e-2)
    assert not is_close(complete(whole), complete(pipeline(road / "pipeline")), 1e-3)
    # As with any adapter of diffusers: switched off, and taken out again.
    pipe.disable_lora()
    assert_close(answers(pipe.unet), original, 1e-4)
    pipe.unload_lora_weights()
    assert_close(answers(pipe.unet), original, 1e-4)


def test_a_file_alone_has_its_scale_with_it(road):
    """Without the metadata of the file diffusers would take a scale of 1 in the place of alpha / rank = 4."""
    pipe = pipeline(road / "pipeline")
    pipe.load_lora_weights(road / "patch" / "pytorch_lora_weights.safetensors")
    assert_close(answers(pipe.unet), answers(load_model(str(road / "patch"), patch_size=4).model), 1e-4)
    keys = load_file(road / "patch" / "pytorch_lora_weights.safetensors")
    assert all(key.startswith("unet.") and ".lora_" in key for key in keys)


def test_a_patch_of_another_pipeline_fails_loudly(road, tmp_path):
    weights = load_file(road / "patch" / "pytorch_lora_weights.safetensors")
    wide = {key: torch.cat([w, w], -1) if key.endswith("lora_A.weight") and w.ndim == 2 else w for key, w in weights.items()}
    save_file(wide, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises((RuntimeError, ValueError)):
        pipeline(road / "pipeline").load_lora_weights(tmp_path)


def test_verify_reads_the_patch_and_the_pipeline(road, tmp_path):
    for model in ("patch", "whole"):
        status = call(
            verify.main, "--model", road / model, "--use_cpu", "true", "--generation_steps", 2, "--require_forgotten", 0.25,
            "--output_dir", tmp_path / model,
        )  # fmt: skip
        assert status in (0, 3) and (tmp_path / model / "verified.json").is_file()


@pytest.mark.parametrize(
    "main, words, meant",
    [
        (unlearn.main, ["--forget_clases", "cat"], "--forget_classes"),
        (unlearn.main, ["--num_inference_step", "5"], "--generation_steps"),
        (unlearn.main, ["--generation-step=5"], "--generation_steps"),
        (evaluate.main, ["--models", "patch", "--original", "x", "--corruption", "center:2"], "--corruptions"),
        (verify.main, ["--require_forgoten", "1"], "--require_forgotten"),
        (audit.main, ["--generation_stepz", "5"], "--generation_steps"),
        (compare.main, ["--learning_rate_s", "1"], "--learning_rates"),
    ],
)
def test_a_misspelt_option_is_one_sentence_with_the_nearest(main, words, meant, road, capsys, monkeypatch):
    monkeypatch.chdir(road)
    if main in (unlearn.main, verify.main, audit.main):
        words = ["--model", "patch" if main is not unlearn.main else "pipeline", *words]
    assert call(main, *words) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1 and said.startswith("error: '--") and f"{meant}" in said, said


def test_a_value_that_is_none_is_one_sentence(road, capsys):
    assert call(unlearn.main, "--model", road / "pipeline", "--max_steps", "many") == 2
    said = capsys.readouterr().err.strip()
    assert said == "error: Argument --max_steps/--max-steps: invalid int value: 'many'; --help explains the options."


def test_also_under_accelerate_launch(road):
    """`-q` keeps accelerate from printing a traceback of its own about the exit status."""
    words = ["-m", "accelerate.commands.accelerate_cli", "launch", "-q", "--cpu", "-m", "hf_i2i_unlearn", "unlearn"]
    done = subprocess.run(
        [sys.executable, *words, "--model", str(road / "pipeline"), "--forget_clases", "cat"],
        capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "'--forget_clases' is no option; did you mean --forget_classes" in done.stderr


def test_steps_of_generation_have_one_name(road):
    """In every command that generates; the names of before, and that of diffusers, are understood."""
    for main in (unlearn, evaluate, audit, compare, verify):
        arguments = getattr(main, "VerifyArguments", None) or getattr(main, "Arguments", None)
        if main is unlearn:
            from hf_i2i_unlearn.commands.families import DiffusionArguments, MageArguments

            assert hasattr(MageArguments(), "generation_steps") and hasattr(DiffusionArguments(), "generation_steps")
        else:
            assert hasattr(arguments(), "generation_steps")
    from hf_i2i_unlearn.commands.cli import parse
    from hf_i2i_unlearn.commands.families import DiffusionArguments

    for word in ("--generation_steps", "--denoising_steps", "--num_inference_steps", "--num-inference-steps"):
        (args,) = parse((DiffusionArguments,), "", ["--model", "x", word, "7"])
        assert args.generation_steps == 7
    (args,) = parse((DiffusionArguments,), "", ["--model", "x", "--denoising_steps=9"])
    assert args.generation_steps == 9
    assert load_model(str(road / "whole")).steps == 2
