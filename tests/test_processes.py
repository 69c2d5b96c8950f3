"""Several processes: the same trajectory and the same figures as one; the configurations for `accelerate launch`; shards."""

import contextlib
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
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


@contextlib.contextmanager
def two_hosts():
    """Two virtual hosts that a cable joins, each with a network of its own: the commands that run on them, and their addresses.

    Where that is not allowed, both are this machine.
    """
    names, ends = [f"i2i{os.getpid()}{i}" for i in "ab"], [f"v{os.getpid()}{i}"[-15:] for i in "ab"]

    def ip(*words, check=True):
        subprocess.run(["ip", *words], check=check, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for i, (name, end) in enumerate(zip(names, ends), 1):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{i}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError):
        yield [([], "127.0.0.1", "lo"), ([], "127.0.0.1", "lo")]
    else:
        # No server of names can be reached from there, and nobody is to wait for one.
        there = ["sh", "-c", 'mount --bind /dev/null /etc/resolv.conf && exec "$@"', "sh"]
        yield [(["ip", "netns", "exec", n, *there], f"10.77.0.{i}", end) for i, (n, end) in enumerate(zip(names, ends), 1)]
    finally:
        if shutil.which("ip"):
            for name in names:
                ip("netns", "del", name, check=False)


def start_on(hosts, *argv, environment=ENVIRONMENT):
    """A program, one process on each host, as `torchrun` starts it on a cluster; their launchers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    return [
        subprocess.Popen(
            [*enter, *run, "--node_rank", str(rank), "--master_addr", hosts[0][1], "--master_port", str(port), *map(str, argv)],
            env=environment | {"GLOO_SOCKET_IFNAME": end}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank, (enter, _, end) in enumerate(hosts)
    ]  # fmt: skip


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
    out = ("runtime", "per_second", "seconds_per", "information_bound")
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
    assert {"fid", "kid", "inception_score", "inception_score_std", "similarity", "accuracy"} <= one["forget"]["features"][
        0
    ].keys()
    assert_alike(one, two)


# ------------------------------------------------------------------------------------------------------------ configurations


@pytest.mark.parametrize(
    "name, kind, processes",
    [
        ("cpu", DistributedType.NO, 1),
        ("gpu", DistributedType.NO, 1),
        ("multi_gpu", DistributedType.MULTI_GPU, 4),
        ("fsdp", DistributedType.FSDP, 4),
        ("multi_node", DistributedType.MULTI_GPU, 8),
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
    assert (args.multi_gpu, args.use_fsdp) == (name.startswith("multi"), name == "fsdp")
    assert args.num_machines == (2 if name == "multi_node" else 1)
    assert args.mixed_precision == ("no" if name == "cpu" else "bf16")
    if name == "fsdp":
        assert (args.fsdp_version, args.fsdp_state_dict_type, args.fsdp_cpu_ram_efficient_loading) == (
            2,
            "FULL_STATE_DICT",
            False,
        )


def test_there_is_no_configuration_without_a_test():
    assert {f.stem for f in CONFIGS.iterdir()} == {"cpu", "gpu", "multi_gpu", "fsdp", "multi_node", "unlearn"}


SRUN = """#!/bin/sh
printf '%s\\n' "$@"
"""


def test_the_job_of_slurm(tmp_path):
    """With commands in the place of Slurm's: what it would run, at first and when it is back from the queue."""
    for name, text in {"srun": SRUN, "scontrol": "#!/bin/sh\necho node7; echo node8\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2"}

    def words():
        done = subprocess.run(
            ["bash", str(CONFIGS / "unlearn.slurm"), str(tmp_path / "out"), "--max_steps", "7"],
            env=environment | {"SLURM_JOB_ID": "5"}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.splitlines()

    first = words()
    assert first[:3] == ["torchrun", "--nnodes", "2"] and "node7:29500" in first and first[-2:] == ["--max_steps", "7"]
    assert "--resume_from_checkpoint" not in first
    (tmp_path / "out" / "checkpoint-3").mkdir(parents=True)
    again = words()
    assert "--resume_from_checkpoint true --max_steps 7" in " ".join(again)


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
    out = ("runtime", "per_second", "seconds_per", "information_bound")
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
    """Folders of one process, and of two on two hosts that hold a shard each."""
    folder = tmp_path_factory.mktemp("shards")
    script = folder / "fsdp.py"
    script.write_text(FSDP)
    for kind in ("whole", "fsdp"):
        (folder / kind).mkdir()
    launch(script, folder / "whole", "whole", "sgd", "lora", "noisy_label", processes=1)
    with two_hosts() as hosts:
        launchers = start_on(hosts, script, folder / "fsdp", "fsdp", "sgd", "lora", "noisy_label", "adamw")
        said = [launcher.communicate()[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], said[0][-3000:] + said[1][-3000:]
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


# ------------------------------------------------------------------------------------------------------- copies on two hosts

# What `python -m hf_i2i_unlearn` does, after it has said which process it is.
COMMAND = """
import os, sys
from hf_i2i_unlearn.commands import main
print("process", os.environ["RANK"], os.getpid(), flush=True)
main()
"""


def test_a_process_that_dies_on_another_host_ends_the_job_and_the_job_goes_on(tmp_path, checkpoint):
    """DDP by the command that a user types: trained, killed on one host, one sentence on the other, resumed on both."""
    make_dataset(32).to_parquet(tmp_path / "data" / "train.parquet")
    script, out = tmp_path / "command.py", tmp_path / "out"
    script.write_text(COMMAND)
    argv = ["unlearn", "--model", checkpoint, "--dataset", tmp_path / "data", "--eval_split", "none", "--forget_classes", "cat",
            "--max_steps", 400, "--save_steps", 5, "--corruption", "center:2", "--output_dir", out, "--eval_strategy", "no",
            "--disable_tqdm", "true", "--use_cpu", "true", "--per_device_train_batch_size", 2, "--eval_samples", 4,
            "--copies", "skip"]  # fmt: skip
    with two_hosts() as hosts:
        launchers = start_on(hosts, script, *argv)
        number = next(int(line.split()[2]) for line in launchers[1].stdout if line.startswith("process 1"))
        while not list(out.glob("checkpoint-*/trainer_state.json")) and launchers[0].poll() is None:
            time.sleep(0.02)
        os.kill(number, signal.SIGKILL)
        said = [launcher.communicate(timeout=400)[0] for launcher in launchers]
        assert all(launcher.returncode for launcher in launchers), said
        sentence = next(line for line in said[0].splitlines() if line.startswith("error: "))
        assert "Another process of this run has ended" in sentence and "the last good checkpoint is" in sentence
        begun = max(int(folder.name[11:]) for folder in out.glob("checkpoint-*"))
        assert 5 <= begun < 400 and not (out / "model.safetensors").exists()
        argv[argv.index("--max_steps") + 1] = begun + 3
        launchers = start_on(hosts, script, *argv, "--resume_from_checkpoint", "true")
        said = [launcher.communicate(timeout=400)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], said[0][-3000:] + said[1][-3000:]
    assert json.loads((out / f"checkpoint-{begun + 3}" / "trainer_state.json").read_text())["global_step"] == begun + 3
    assert {"model.safetensors", "figures.json", "request.json", "README.md"} <= {f.name for f in out.iterdir()}
    assert said[0].count("In ") == 1 and not any("| retain" in text for text in said[1:])  # one process writes and tells
