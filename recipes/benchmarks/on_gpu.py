"""All that waits for a GPU, in a row: throughput, rehearsals at full size, then originals of 64x64 photographs.

    python recipes/benchmarks/on_gpu.py --dataset tiny-imagenet-100 --minutes 25

Each part leaves NAME.log in the output folder, and NAME.done once it is through. The same command goes on where it was cut off:
parts that are through are left out, trainings go on from their last checkpoint. A part that fails is said at the end, and
does not keep the others from running. When the minutes are over, the part that runs is told to end (SIGTERM), and a training
saves a checkpoint. `--only` names parts; `--list true` prints them with their commands.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

RECIPES = Path(__file__).resolve().parents[1]
REHEARSED = ("mae-large", "mage-large", "palette", "stable-diffusion")
TRAININGS = {  # configuration: the training that it starts from
    "mae": None,
    "mae_adversarial": "mae",
    "unet": None,
    "mage_tokenizer": None,
    "mage": "mage_tokenizer",
    "mage_decoder": "mage",
}
GRACE = 60  # seconds for a checkpoint


@dataclass
class Arguments:
    """Where the pictures are, where results go, and how long it may take."""

    dataset: str = field(default="", metadata={"help": "Folder of photographs, as `pack.py` takes it; for the trainings."})
    output_dir: str = field(default="on-gpu", metadata={"help": "Folder for logs and models; the same one goes on."})
    minutes: float = field(default=25.0, metadata={"help": "After so many the part that runs is told to end."})
    only: list[str] | None = field(default=None, metadata={"help": "Parts to run; all if not given."})
    list: bool = field(default=False, metadata={"help": "Print the parts and their commands, and run none."})
    use_cpu: bool = field(default=False, metadata={"help": "On the CPU, where there is no GPU: to try the script."})


def parts(dataset: str, folder: Path, use_cpu: bool = False) -> dict[str, list[str]]:
    """{name: its command}, in the order in which they run. The benchmarks take what is there without being told."""
    where = ["--use_cpu", "true"] if use_cpu else []

    def recipe(name, *words):
        return [sys.executable, str(RECIPES / name), *map(str, words)]

    found = {
        "step": recipe("benchmarks/benchmark.py", "--pairs", 32),
        "options": recipe("benchmarks/benchmark.py", "--part", "options", "--only", "bf16", "torch.compile"),
        "cost": recipe("benchmarks/benchmark.py", "--part", "cost"),
    }
    for model in REHEARSED:
        found[f"rehearse-{model}"] = recipe(
            "rehearse.py", "--model", model, "--output_dir", folder / f"rehearsal-{model}", *where
        )
    found["pack"] = recipe("pack.py", "--dataset", dataset, "--size", 64, "--output_dir", folder / "photos-64")
    for name, before in TRAININGS.items():
        config, own = RECIPES / "configs" / f"pretrain_photos64_{name}.yaml", folder / f"photos64-{name.replace('_', '-')}"
        words = ["--config", config, "--dataset", folder / "photos-64", "--output_dir", own, "--save_steps", 500, *where]
        words += ["--init", folder / f"photos64-{before.replace('_', '-')}"] if before else []
        found[own.name] = recipe("pretrain.py", *words)
    return found


def run_all(commands: dict[str, list[str]], folder: Path, seconds: float) -> dict[str, str]:
    """Run what is not through yet, one after the other; {name: "done", "failed (status N)", "cut off" or "not begun"}."""
    folder.mkdir(parents=True, exist_ok=True)
    end, said = time.monotonic() + seconds, {}
    for name, command in commands.items():
        done = folder / f"{name}.done"
        if done.exists():
            said[name] = "done"
        elif time.monotonic() >= end:
            said[name] = "not begun"
        else:
            print(f"{name}: {shlex.join(command)}", flush=True)
            said[name] = run_one(resumed(command), folder / f"{name}.log", end)
            if said[name] == "done":
                done.touch()
        print(f"{name}: {said[name]}", flush=True)
    return said


def resumed(command: list[str]) -> list[str]:
    """The command, going on from a checkpoint where its output folder has one. What is no checkpoint there is begun anew."""
    own = Path(command[command.index("--output_dir") + 1]) if "--output_dir" in command else None
    if own is None or not own.exists():
        return command
    if any(own.glob("checkpoint-*")):
        return [*command, "--resume_from_checkpoint", "true"]
    shutil.rmtree(own)  # a rehearsal that was cut off would refuse its folder
    return command


def run_one(command: list[str], log: Path, end: float) -> str:
    """Run a command, with what it says in `log`, until `end` at most. None of its own processes outlives it."""
    with open(log, "a") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # not its data workers, which the last step still needs
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            return "cut off"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return "done" if status == 0 else f"failed (status {status}); see {log}"


def main():
    (args,) = HfArgumentParser(Arguments, description=__doc__).parse_args_into_dataclasses()
    folder = Path(args.output_dir)
    commands = parts(args.dataset, folder, args.use_cpu)
    unknown = sorted(set(args.only or ()) - set(commands))
    if unknown:
        sys.exit(f"No part is named {', '.join(unknown)}; there are {', '.join(commands)}.")
    commands = {name: command for name, command in commands.items() if not args.only or name in args.only}
    if args.list:
        print("\n".join(f"{name}: {shlex.join(command)}" for name, command in commands.items()))
        return
    if not args.dataset and any(name == "pack" or name.startswith("photos64") for name in commands):
        sys.exit("--dataset is missing: the photographs of the trainings. Without them: --only step options cost.")
    if not args.use_cpu:
        import torch

        if not torch.cuda.is_available():
            sys.exit("No GPU is here. --use_cpu true runs the parts all the same.")
    said = run_all(commands, folder, 60 * args.minutes)
    print("\n".join(["", *(f"{name}: {what}" for name, what in said.items())]))
    sys.exit(any(what != "done" for what in said.values()))


if __name__ == "__main__":
    main()
