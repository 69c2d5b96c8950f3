"""Several processes: the same trajectory and the same figures as one; the configurations for `accelerate launch`; shards."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from conftest import make_dataset, make_mae
from helpers.close import assert_close
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "recipes" / "accelerate_configs"
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
}


def launch(script, *argv, processes):
    """In as many processes; one is this very process."""
    argv = [str(script), *map(str, argv)]
    if processes == 1:
        before, sys.argv = sys.argv, argv
        try:
            runpy.run_path(argv[0], run_name="__main__")
        finally:
            sys.argv = before
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), *argv]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


# ---------------------------------------------------------------------------------------------------- the same as one process

RUNS = """
import json, sys
from pathlib import Path
import torch
from conftest import make_dataset, make_mae
from test_evaluation import make_network
from test_trainer import stream
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from hf_i2i_unlearn import (
    Evaluator, ForgetRetainPairs, ImageReader, RandomMask, UnlearningConfig, UnlearningTrainer, undecoded)
from hf_i2i_unlearn.originals.config import PretrainingConfig
from hf_i2i_unlearn.originals.pretraining import PretrainingTrainer
from hf_i2i_unlearn.data.streams import SingleImageStream

torch.set_num_threads(1)
folder, found = Path(sys.argv[1]), {}
processor = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.25] * 3)
data = undecoded(make_dataset(29))
# Full batches: the last one of an epoch, if it is not, is filled up by accelerate with pairs from the beginning.
forget, retain = data.select(range(12)), data.select(range(12, 29))
rows = {"forget": list(forget)[:11], "retain": list(retain)}  # no multiples of two
options = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "seed": 5, "learning_rate": 0.05,
           "optim": "sgd", "max_steps": 5, "max_grad_norm": 0.5, "report_to": "none"}


def history(trainer):
    # Without times, and without diagnostics that are statistics of a batch.
    out = ("runtime", "per_second", "information_bound")
    return [{k: v for k, v in log.items() if not any(word in k for word in out)} for log in trainer.state.log_history]


def unlearn(name, pairs, **more):
    args = UnlearningConfig(str(folder / name), **options | more)
    args.per_device_train_batch_size = 4 // args.world_size
    trainer = UnlearningTrainer(make_mae(), args, pairs, processor, RandomMask(0.5), rows)
    trainer.train()
    trainer.save_model()
    found[name] = history(trainer)
    return trainer


trainer = unlearn("pairs", ForgetRetainPairs(forget, retain, 5), eval_steps=2, gradient_accumulation_steps=2)
unlearn("bounded", ForgetRetainPairs(forget, retain, 5), eval_steps=2, retain_bound=0.2)
unlearn("stream", stream(), eval_strategy="no", dataloader_num_workers=2)

args = PretrainingConfig(str(folder / "pretrained"), **options | {"muon_learning_rate": 0.0})
args.per_device_train_batch_size = 4 // args.world_size
pretrainer = PretrainingTrainer(
    make_mae(), args, SingleImageStream(data.to_iterable_dataset(3), 5, 8), processor, {RandomMask(0.5): 1.0}
)
pretrainer.train()
pretrainer.save_model()
found["pretrained"] = history(pretrainer)

evaluator = Evaluator(make_mae(3), rows, ImageReader(processor, 3), RandomMask(0.5), 3, 7, trainer.accelerator,
                      features=[make_network()], inception_splits=3)
found["figures"] = evaluator(make_mae(4), progress=False)
assert trainer.accelerator.num_processes == int(sys.argv[2])
if trainer.is_world_process_zero():
    (folder / "found.json").write_text(json.dumps(found))
if torch.distributed.is_initialized():  # as `run` does: gloo's threads abort a process that ends with them
    torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of one and of two processes, which made the same runs with as many pairs a step."""
    folder = tmp_path_factory.mktemp("processes")
    script = folder / "runs.py"
    script.write_text(RUNS)
    for processes in (1, 2):
        (folder / str(processes)).mkdir()
        launch(script, folder / str(processes), processes, processes=processes)
    return [folder / "1", folder / "2"]


def leaves(found, name=""):
    """What a report holds, as (the name that it stands under, value)."""
    if isinstance(found, (dict, list)):
        for key, value in found.items() if isinstance(found, dict) else ((name, value) for value in found):
            yield from leaves(value, key)
    else:
        yield name, found


def assert_alike(one, two):
    """The same counts and words; and floats within 2e-4 of the largest of their name, as some are 0 but for rounding."""
    one, two = list(leaves(one)), list(leaves(two))
    assert [name for name, _ in one] == [name for name, _ in two]
    floats = [{}, {}]
    for (name, a), (_, b) in zip(one, two):
        if isinstance(a, float):
            floats[0].setdefault(name, []).append(a)
            floats[1].setdefault(name, []).append(b)
        else:
            assert a == b, name
    for name, values in floats[0].items():
        assert_close({name: floats[1][name]}, {name: values}, 2e-4)


@pytest.mark.parametrize("name", ["pairs", "bounded", "stream", "pretrained"])
def test_two_processes_take_the_steps_of_one(runs, name):
    """Every line of the log: loss, both distances, norm of the gradient, evaluation; and the weights at the end."""
    one, two = (json.loads((folder / "found.json").read_text())[name] for folder in runs)
    assert len([log for log in one if "grad_norm" in log]) == 5 and one[4]["grad_norm"] > 0
    assert_alike(one, two)
    one, two = (load_file(folder / name / "model.safetensors") for folder in runs)
    assert_close(two, one)


def test_two_processes_measure_what_one_does(runs):
    one, two = (json.loads((folder / "found.json").read_text())["figures"] for folder in runs)
    assert (one["forget"]["count"], one["retain"]["count"]) == (11, 17)
    assert {"fid", "inception_score", "inception_score_std", "similarity", "accuracy"} <= one["forget"]["features"][0].keys()
    assert_alike(one, two)


# ------------------------------------------------------------------------------------------------------------ configurations


@pytest.mark.parametrize(
    "name, kind, processes",
    [
        ("cpu", DistributedType.NO, 1),
        ("gpu", DistributedType.NO, 1),
        ("multi_gpu", DistributedType.MULTI_GPU, 4),
        ("fsdp", DistributedType.FSDP, 4),
    ],
)
def test_accelerate_takes_the_configurations(name, kind, processes):
    """By its own loader, which refuses unknown keys, and by what `accelerate launch` makes of them."""
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert (config.distributed_type, config.num_processes, config.use_cpu) == (kind, processes, name == "cpu")
    args = launch_command_parser().parse_args(["--config_file", str(CONFIGS / f"{name}.yaml"), "recipes/unlearn_mae.py"])
    args.nondefault = []
    known = vars(args).keys() | {"fsdp_version"}
    assert all(key in known for key in config.fsdp_config)
    args, _, _ = _validate_launch_command(args)
    assert (args.multi_gpu, args.use_fsdp) == (name == "multi_gpu", name == "fsdp")
    assert args.mixed_precision == ("no" if name == "cpu" else "bf16")
    if name == "fsdp":
        assert (args.fsdp_version, args.fsdp_state_dict_type, args.fsdp_cpu_ram_efficient_loading) == (
            2,
            "FULL_STATE_DICT",
            False,
        )


def test_there_is_no_configuration_without_a_test():
    assert {f.stem for f in CONFIGS.iterdir()} == {"cpu", "gpu", "multi_gpu", "fsdp"}


def test_the_cpu_configuration_runs_a_recipe(tmp_path, checkpoint):
    make_dataset(16).to_parquet(tmp_path / "data" / "train.parquet")
    argv = ["--model", checkpoint, "--dataset", tmp_path / "data", "--eval_split", "none", "--forget_classes", "cat",
            "--max_steps", 1, "--corruption", "center:2", "--output_dir", tmp_path / "out", "--eval_strategy", "no",
            "--disable_tqdm", "true"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "cpu.yaml"),
         str(ROOT / "recipes" / "unlearn_mae.py"), *map(str, argv)],
        env=ENVIRONMENT, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "model.safetensors").exists()


# ---------------------------------------------------------------------------------------------------------------------- FSDP2

FSDP = """
import os, sys
sharded = sys.argv[2] == "fsdp"
if sharded:
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
                   "FSDP_TRANSFORMER_CLS_TO_WRAP": "ViTMAELayer", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
                   "FSDP_CPU_RAM_EFFICIENT_LOADING": "false", "FSDP_RESHARD_AFTER_FORWARD": "true"}
import json
from pathlib import Path
import torch
from accelerate.utils import DistributedType
from conftest import make_dataset, make_mae
from torch.distributed.tensor import DTensor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from hf_i2i_unlearn import METHODS, ForgetRetainPairs, RandomMask, UnlearningConfig, UnlearningTrainer, add_patch, undecoded

torch.set_num_threads(1)
folder, found = Path(sys.argv[1]), {}
processor = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.25] * 3)
data = undecoded(make_dataset(24))
forget, retain = data.select(range(8)), data.select(range(8, 24))


def train(name, resume=None, lora=False, method="ours", **options):
    # With Adam's own epsilon of 1e-8 the rounding errors of gradients near 0 would become steps.
    options = {"learning_rate": 1e-3, "max_steps": 4, "save_steps": 2, "eval_steps": 2, "adam_epsilon": 1e-4} | options
    args = UnlearningConfig(str(folder / name), use_cpu=True, disable_tqdm=True, logging_steps=1, seed=5, **options)
    args.per_device_train_batch_size = 4 // args.world_size
    if sharded:  # accelerate shards on accelerators alone: it is told that these processes are some
        args.distributed_state.distributed_type = DistributedType.MULTI_XPU
    model, how = make_mae(), {"method": METHODS[method]}
    if lora:
        add_patch(model, "original", rank=2)
    pairs = ForgetRetainPairs(forget, retain, 5)
    trainer = UnlearningTrainer(
        model, args, pairs, processor, RandomMask(0.5), {"forget": list(forget), "retain": list(retain)}, **how
    )
    trainer.train(resume)
    assert trainer.is_fsdp_enabled == sharded
    assert all(isinstance(p, DTensor) == sharded for p in trainer.i2i.parameters())
    assert not any(isinstance(p, DTensor) for p in trainer.original.parameters()) or lora
    trainer.save_model()
    out = ("runtime", "per_second", "information_bound")
    found[name] = [{k: v for k, v in log.items() if not any(w in k for w in out)} for log in trainer.state.log_history]


for part in sys.argv[3:]:
    if part == "sgd":  # which a wrong gradient scale cannot escape
        train("sgd", optim="sgd", learning_rate=0.05)
    elif part == "adamw":
        train("adamw")
        train("resumed", str(folder / "adamw" / "checkpoint-2"))
    elif part == "lora":
        train("lora", lora=True)
    else:
        train(part, method=part)
if int(os.environ.get("RANK", 0)) == 0:
    (folder / "found.json").write_text(json.dumps(found))
if torch.distributed.is_initialized():  # as `run` does: gloo's threads abort a process that ends with them
    torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Folders of one process, and of two that hold a shard each."""
    folder = tmp_path_factory.mktemp("shards")
    script = folder / "fsdp.py"
    script.write_text(FSDP)
    for processes, kind, parts in ((1, "whole", []), (2, "fsdp", ["adamw"])):
        (folder / kind).mkdir()
        launch(script, folder / kind, kind, "sgd", "lora", "noisy_label", *parts, processes=processes)
    return [folder / "whole", folder / "fsdp"]


@pytest.mark.parametrize("name", ["sgd", "lora", "noisy_label"])
def test_shards_take_the_steps_of_a_whole_model(shards, name):
    """FSDP2 on two CPU processes, with evaluation during training: an encoder, a patch, and the whole model."""
    one, two = (json.loads((folder / "found.json").read_text())[name] for folder in shards)
    assert [log["loss"] for log in one if "loss" in log] and [log for log in one if "eval_forget_psnr" in log]
    assert_alike(one, two)
    if name != "noisy_label":  # Adam makes much of the last digit of a gradient near zero
        one, two = (load_file(next((folder / name).glob("*.safetensors"))) for folder in shards)
        assert_close(two, one)


def test_shards_are_saved_and_resumed(shards):
    folder = shards[1]
    straight, resumed = (load_file(folder / name / "model.safetensors") for name in ("adamw", "resumed"))
    at_step_2 = load_file(folder / "adamw" / "checkpoint-2" / "model.safetensors")
    assert straight.keys() == make_mae().model.state_dict().keys() == at_step_2.keys()
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)
    assert not torch.equal(straight["vit.layernorm.weight"], at_step_2["vit.layernorm.weight"])
