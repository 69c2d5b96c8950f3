"""The commands that a user types."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from conftest import make_dataset
from diffusers import UNet2DModel
from helpers.close import assert_close
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from test_unet import make_unet

from hf_i2i_unlearn import demo

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def launch(*argv, cwd, check=True, recipe="unlearn_mae"):
    return subprocess.run(
        [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), *map(str, argv)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=check,
    )


@pytest.fixture
def photographs(tmp_path):
    """Train and validation parquet files of tiny pictures."""
    make_dataset(32).to_parquet(tmp_path / "data" / "train.parquet")
    make_dataset(16).to_parquet(tmp_path / "data" / "validation.parquet")
    return tmp_path / "data"


def options(checkpoint, photographs, folder):
    return [
        "--model", checkpoint, "--dataset", photographs, "--forget_classes", "cat", "dog", "--corruption", "center:2",
        "--per_device_train_batch_size", 4, "--output_dir", folder, "--use_cpu", "--disable_tqdm", "true",
    ]  # fmt: skip


def assert_whole(folder, original, without=()):
    """What the README promises of an output folder."""
    names = {f.name for f in folder.iterdir() if not f.name.startswith("checkpoint-")}
    assert names == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "README.md",
        "before_after.png",
        "figures.json",
        "run.json",
        "request.json",
        "run.yaml",
        "log.jsonl",
        "training_args.json",
    } - set(without)
    before, after = load_file(Path(original) / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        if name.startswith("decoder."):
            assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["vit.layernorm.weight"], after["vit.layernorm.weight"])
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == ("mnist-demo" if original == demo.MAE else None)  # a folder of this machine is no Hub id
    results = card.data.eval_results
    assert {(r.dataset_config, r.metric_type) for r in results} == {
        (s, m) for s in ("forget", "retain") for m in ("mse", "psnr")
    }
    figures = json.loads((folder / "figures.json").read_text())
    after = [
        r
        for r in results
        if (r.dataset_config, r.metric_type) == ("forget", "mse") and r.metric_name.endswith("after unlearning")
    ]
    assert after[0].metric_value == pytest.approx(figures["forget"]["mse"], abs=1e-4)
    script = (
        "import sys; sys.modules['hf_i2i_unlearn'] = None\n"
        "from transformers import ViTMAEForPreTraining, AutoImageProcessor\n"
        f"model, info = ViTMAEForPreTraining.from_pretrained({str(folder)!r}, output_loading_info=True)\n"
        f"assert not any(info.values()), info; AutoImageProcessor.from_pretrained({str(folder)!r}, backend='pil')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=ENVIRONMENT)


def test_the_demo(tmp_path):
    done = launch("--max_steps", 4, "--eval_samples", 20, "--disable_tqdm", "true", cwd=tmp_path)
    folder = tmp_path / "unlearned-mnist-mae"
    assert_whole(folder, demo.MAE)
    assert "| forget | 20 |" in done.stdout and "| retain | 20 |" in done.stdout


@pytest.mark.parametrize("streaming", [False, True])
def test_own_model_and_own_pictures(checkpoint, photographs, tmp_path, streaming):
    more = ["--streaming", "true", "--max_steps", 3, "--pictures", 0] if streaming else ["--num_train_epochs", 1]
    launch(*options(checkpoint, photographs, tmp_path / "out"), *more, cwd=tmp_path)
    assert_whole(tmp_path / "out", checkpoint, ["before_after.png"] if streaming else [])
    assert ("before_after.png" in (tmp_path / "out" / "README.md").read_text()) != streaming
    again = launch("--config", tmp_path / "out" / "run.yaml", "--output_dir", tmp_path / "again", cwd=tmp_path)
    assert again.returncode == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_a_patch_and_another_on_top_of_it(checkpoint, photographs, tmp_path):
    """--lora, then --model with the patch's folder, merged."""
    done = launch(*options(checkpoint, photographs, tmp_path / "one"), "--lora", "--max_steps", 2, cwd=tmp_path)
    assert "LoRA of rank 8 on 12 layers of the encoder (vit.layers.0.attention.q_proj" in done.stdout
    names = {f.name for f in (tmp_path / "one").iterdir() if f.is_file()}
    assert names == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "preprocessor_config.json",
        "README.md",
        "before_after.png",
        "figures.json",
        "run.json",
        "request.json",
        "run.yaml",
        "log.jsonl",
        "training_args.json",
    }
    card = (tmp_path / "one" / "README.md").read_text()
    assert (
        f'original = ViTMAEForPreTraining.from_pretrained("../{Path(checkpoint).name}")' in card
        and 'from_pretrained(original, "one")' in card
    )
    more = ["--forget_classes", "ant", "--max_steps", 2, "--merge"]
    argv = [tmp_path / "one" if word == checkpoint else word for word in options(checkpoint, photographs, tmp_path / "two")]
    launch(*argv, *more, "--lora", "--lora_targets", "q_proj", "v_proj", cwd=tmp_path)
    merged = load_file(tmp_path / "two" / "model.safetensors")
    original = load_file(Path(checkpoint) / "model.safetensors")
    assert merged.keys() == original.keys() and not (tmp_path / "two" / "adapter_config.json").exists()
    changed = {name for name in merged if not torch.equal(merged[name], original[name])}
    # By the first patch all linear layers of the encoder.
    assert changed and all(
        re.fullmatch(r"vit\.layers\.\d\.(attention\.[qkvo]_proj|mlp\.fc[12])\.weight", name) for name in changed
    )
    assert yaml.safe_load((tmp_path / "two" / "run.yaml").read_text())["patches"] == ["../one"]
    bad = launch(*options(checkpoint, photographs, tmp_path / "three"), "--merge", cwd=tmp_path, check=False)
    assert bad.returncode == 2 and "error: --merge merges the adapters of --lora" in bad.stderr


def test_killed_and_resumed_equals_straight(checkpoint, photographs, tmp_path):
    def run_options(name):
        return [*options(checkpoint, photographs, tmp_path / name), "--max_steps", 60, "--save_steps", 5, "--eval_steps", 1000,
                "--eval_strategy", "no", "--corruption", "random:0.5"]  # fmt: skip

    launch(*run_options("straight"), cwd=tmp_path)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "recipes" / "unlearn_mae.py"), *map(str, run_options("killed"))],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.time() + 120
    while not list((tmp_path / "killed").glob("checkpoint-*/trainer_state.json")):
        assert time.time() < deadline and process.poll() is None, "no checkpoint was written"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    launch(*run_options("killed"), "--resume_from_checkpoint", "true", cwd=tmp_path)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "killed"))
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize(
    "change, message",
    [
        (["--forget_classes", "cats"], "error: The dataset has no class 'cats' in its 4. Nearest: 'cat'"),
        (["--streaming", "true"], "error: A stream has no length, so the run needs max_steps"),
        (["--alpha", "0"], "error: alpha must be larger than 0"),
        (["--corruption", "center:4"], "error: The corruption 'center:4' hides everything"),
    ],
)
def test_bad_input_leaves_nothing_behind(checkpoint, photographs, tmp_path, change, message):
    done = launch(*options(checkpoint, photographs, tmp_path / "out"), *change, cwd=tmp_path, check=False)
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith(message)
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("lora", [False, True])
def test_two_processes_end_with_the_weights_of_one(checkpoint, photographs, tmp_path, lora):
    """8 pairs a step as 1 process x 8 and as 2 processes x 4, with plain SGD, which a wrong gradient scale cannot escape."""
    weights = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        argv = [
            *options(checkpoint, photographs, folder),
            "--per_device_train_batch_size",
            8 // processes,
            "--optim",
            "sgd",
            "--learning_rate",
            0.05,
            "--num_train_epochs",
            2,
            "--corruption",
            "random:0.5",
            *(["--lora"] if lora else []),
        ]
        subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes),
             str(ROOT / "recipes" / "unlearn_mae.py"), *map(str, argv)],
            cwd=tmp_path, env=ENVIRONMENT, check=True, capture_output=True,
        )  # fmt: skip
        weights.append(load_file(folder / ("adapter_model.safetensors" if lora else "model.safetensors")))
        figures = json.loads((folder / "figures.json").read_text())
        assert (figures["forget"]["count"], figures["retain"]["count"]) == (8, 8)
    assert_close(weights[1], weights[0])


def test_pretraining_makes_a_loadable_model_and_resumes(tmp_path):
    pictures = tmp_path / "pictures"
    for row in make_dataset(12).cast_column("image", datasets.Image(decode=False)):
        file = pictures / "train" / row["image"]["path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(row["image"]["bytes"])
    model = {
        "image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 8,
    }  # fmt: skip

    def pretrain(folder, *more):
        argv = [
            "--model",
            json.dumps(model),
            "--dataset",
            pictures,
            "--eval_split",
            "train",
            "--output_dir",
            tmp_path / folder,
            "--max_steps",
            6,
            "--save_steps",
            2,
            "--save_total_limit",
            5,
            "--use_cpu",
            "--disable_tqdm",
            "true",
            *more,
        ]
        done = launch(*argv, cwd=tmp_path, recipe="pretrain")
        assert "random:0.75: hole error" in done.stdout
        return load_file(tmp_path / folder / "model.safetensors")

    straight = pretrain("straight")
    (tmp_path / "cut").mkdir()
    (tmp_path / "straight" / "checkpoint-4").rename(tmp_path / "cut" / "checkpoint-4")
    resumed = pretrain("cut", "--resume_from_checkpoint", "true")
    assert straight.keys() == resumed.keys() and all(torch.equal(straight[k], resumed[k]) for k in straight)


def test_comparison(checkpoint, photographs, tmp_path):
    argv = ["--model", checkpoint, "--dataset", photographs, "--forget_classes", "cat", "--corruption", "center:2",
            "--learning_rates", "1e-3", "1e-2", "--alphas", 0.25, 0.5, "--measure_at", 2, 4, "--per_device_train_batch_size", 4,
            "--tolerance", 10, "--output_dir", tmp_path / "out", "--use_cpu", "--disable_tqdm", "true"]  # fmt: skip

    def compare():
        return launch(*argv, cwd=tmp_path, recipe="compare").stdout

    out = compare()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    counts = {m: sum(p["method"] == m for p in results["points"]) for m in results["best"]}
    # two learning rates, two alphas, two measurements; alpha has no meaning for the control
    assert counts == {"ours": 8, "random_encoder": 8, "max_loss": 8, "noisy_label": 8, "retain_label": 8, "control": 4}
    for method, best in results["best"].items():
        mine = [p["forget_mse"] for p in results["points"] if p["method"] == method]
        assert best["forget_mse"] == max(mine) and f"| {method} | " in out
    names = {f.name for f in (tmp_path / "out").iterdir()}
    assert names == {"runs", "run.yaml", "results.csv", "results.json", "table.md", "frontier.png", "before_after.png"}
    # A broken-off comparison goes on: what is there is not run again.
    (tmp_path / "out" / "runs" / "ours-lr0.01-alpha0.5.json").unlink()
    again = compare()
    assert [line for line in again.splitlines() if line.startswith("[")] == ["[4/22] ours-lr0.01-alpha0.5"]
    mixed = launch(*argv, "--corruption", "center:1", cwd=tmp_path, check=False, recipe="compare")
    assert mixed.returncode == 2 and "holds runs made with other options (corruption)" in mixed.stderr
    repeated = json.loads((tmp_path / "out" / "results.json").read_text())
    for one, two in zip(results["points"], repeated["points"]):
        assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in two.items() if k != "seconds"}


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_diffusion(photographs, processor, tmp_path, sampler):
    processor.image_std = [0.5] * 3
    original = make_unet()
    original.save_pretrained(tmp_path / "unet")
    processor.save_pretrained(tmp_path / "unet")
    argv = ["--model", tmp_path / "unet", "--dataset", photographs, "--forget_classes", "cat", "--corruption", "center:8",
            "--denoising_steps", 3, "--sampler", sampler, "--max_steps", 2, "--eval_samples", 4, "--pictures", 2,
            "--learning_rate", 1e-3, "--output_dir", tmp_path / "out", "--use_cpu", "--disable_tqdm", "true"]  # fmt: skip
    done = launch(*argv, cwd=tmp_path, recipe="unlearn_diffusion")
    assert "| forget | 4 |" in done.stdout
    unlearned = UNet2DModel.from_pretrained(tmp_path / "out")
    moved = {n for n, p in unlearned.named_parameters() if not torch.equal(p, original.model.get_parameter(n))}
    assert moved and all(n.startswith(("conv_in.", "down_blocks.", "mid_block.")) for n in moved)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "diffusers" and "UNet2DModel.from_pretrained" in card.text
