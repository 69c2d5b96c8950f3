"""`rehearse`: a big job in small before it is begun, with a model of the same size, on this machine."""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError, RunError
from .cli import parse

# All that measures a time then measures that of the CPU.
CPU_TIME = "import time; time.perf_counter = time.process_time; from hf_i2i_unlearn.commands import main; main()"
NAMES = ("mae-base", "mae-large", "mage-base", "mage-large", "palette", "stable-diffusion")


@dataclass
class RehearsalArguments:
    """Rehearse a big job: the same model in size, a few steps, on this machine.

    A model of a published configuration gets random weights, which take the steps, memory, disk and time of the real ones; or
    give your own. It is unlearned for a few steps, by the command that you would run, on large JPEGs streamed from tar shards.
    The run is planned (`--plan`), started, killed (kill -9) when its first checkpoint is there, and resumed. The result is
    loaded by its plain library; a patch is merged, and loaded again. The last lines are a table row, what was foretold beside
    what it took, and the command.
    """

    model: str = field(
        default="mae-base",
        metadata={"help": f"One of {', '.join(NAMES)}, with random weights; or the folder or Hub id of your own."},
    )
    lora: bool = field(default=False, metadata={"help": "Train a patch."})
    size: str = field(
        default="full", metadata={"choices": ["full", "tiny"], "help": "tiny: the layout in miniature, for tests."}
    )
    pictures: str | None = field(default=None, metadata={"help": "A folder of JPEGs; made from noise if not given."})
    steps: int = field(default=4, metadata={"help": "Steps of training, 2 or more."})
    pairs: int = field(default=1, metadata={"help": "Pairs of pictures in a step."})
    options: str = field(
        default="", metadata={"help": "Other options of the run, in quotes: --options '--bf16 true --image_size 256'."}
    )
    foretell: bool = field(default=True, metadata={"help": "Plan the run before it, and compare."})
    plan_only: bool = field(default=False, metadata={"help": "Plan it, and do no more."})
    cpu_time: bool = field(
        default=False, metadata={"help": "Count CPU seconds, on a machine that has other work; with OMP_NUM_THREADS=1."}
    )
    output_dir: str = field(default="rehearsal", metadata={"help": "Folder for all of it; must be new or empty."})
    keep: bool = field(default=False, metadata={"help": "Leave model, shards and result there; else the figures alone."})
    use_cpu: bool = field(default=False, metadata={"help": "On the CPU, also where there is a GPU."})

    def __post_init__(self):
        if self.steps < 2 or self.pairs < 1:
            raise InputError(f"A rehearsal takes 2 steps or more of 1 pair or more; got {self.steps} of {self.pairs}.")


@dataclass
class Child:
    """What a process of the rehearsal took: seconds, and those of the CPU, GB at its peak, bytes written, what it printed."""

    seconds: float
    cpu: float
    gigabytes: float
    written: int
    said: str


def main() -> None:
    """Parse, rehearse, and print the row."""
    args, = parse((RehearsalArguments,), RehearsalArguments.__doc__ or "")  # fmt: skip
    folder = Path(args.output_dir)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"'{folder}' is not empty; choose another --output_dir.")
    print("\n".join(rehearse(args, folder)))


def rehearse(args: RehearsalArguments, folder: Path) -> list[str]:
    """All of it; the lines of the result, which are also in `rehearsal.json` in the folder.

    Raises:
        RunError: a part of it failed; the message has the end of what it said.
    """
    from .jobs.published import PUBLISHED, make

    known = PUBLISHED.get(args.model)
    original = folder / "original" if known else args.model
    folder.mkdir(parents=True, exist_ok=True)
    if known:
        say(f"making {known.title}, random weights")
        make(args.model, original, args.size == "tiny")
    side = known.side if known and args.size == "full" else 64 if known else 512
    say(f"packing pictures of about {side * 3 // 2} pixels")
    pack_shards(folder / "shards", side, args.pictures, count=8 * args.pairs)
    command = run_command(args, original, folder, known)
    found: dict = {
        "cpu_time": args.cpu_time,
        "model": args.model,
        "title": known.title if known else args.model,
        "lora": args.lora,
        "size": args.size,
    }
    if args.foretell or args.plan_only:
        say("planning")
        plan = run_child([*command, "--plan", "json"], folder)
        found |= {"plan": json.loads(plan.said.splitlines()[-1]), "planning": plan.seconds}
    if not args.plan_only:
        found |= _run(args, command, folder)
    found["command"] = own_command(args)
    (folder / "rehearsal.json").write_text(json.dumps(found, indent=1))
    if not args.keep:
        _remove(folder)
    return table(found)


def _run(args, command, folder: Path) -> dict:
    """The run itself, killed and resumed; and its result in plain libraries."""
    say("running, until its first checkpoint is there, then kill -9")
    killed = run_child(command, folder, until=lambda: list((folder / "out").glob("checkpoint-*/trainer_state.json")))
    begun = int(max((folder / "out").glob("checkpoint-*"), key=os.path.getmtime).name.rpartition("-")[2])
    say(f"resuming after step {begun}")
    resumed = run_child([*command, "--resume_from_checkpoint", "true"], folder)
    state = json.loads(max((folder / "out").glob("checkpoint-*/trainer_state.json"), key=os.path.getmtime).read_text())
    logs = [log for log in state["log_history"] if "seconds_per_step" in log]
    # The first step of a process is dearer than the others, where there are others.
    warm = [log for log in logs if log["step"] not in (1, begun + 1)] or logs
    taken = sorted(log["seconds_per_step"] for log in warm)
    say("loading the result in its plain library" + (", merging the patch" if args.lora else ""))
    check = run_child(
        [sys.executable, "-m", "hf_i2i_unlearn.commands.jobs.reloaded", str(folder / "out"), str(folder / "merged")], folder
    )
    return {
        "killed": vars(killed) | {"said": ""},
        "resumed": vars(resumed) | {"said": ""},
        "steps": state["global_step"],
        "seconds_a_step": taken[len(taken) // 2],
        # Of the whole run, had it not been killed: the resumed part, and the steps before it.
        "seconds": (resumed.cpu if args.cpu_time else resumed.seconds) + sum(g["seconds_per_step"] for g in logs[:begun]),
        "gigabytes": max(killed.gigabytes, resumed.gigabytes),
        "written": killed.written + resumed.written,
        "reloaded": check.said.strip().splitlines()[-1],
    }


def run_command(args, original, folder: Path, known) -> list[str]:
    """The command of the run: what a user would type."""
    corruption = ("center:2" if args.size == "tiny" else known.corruption) if known else "ratio:0.25"
    program = ["-c", CPU_TIME] if args.cpu_time else ["-m", "hf_i2i_unlearn"]
    return [
        sys.executable, *program, "unlearn", "--model", str(original),
        "--dataset", str(folder / "shards" / "{split}-*.tar"), "--image_column", "jpg", "--label_column", "cls",
        "--streaming", "true", "--forget_classes", "0", "--eval_split", "none", "--copies", "skip",
        "--corruption", corruption, "--max_steps", str(args.steps), "--per_device_train_batch_size", str(args.pairs),
        "--per_device_eval_batch_size", str(args.pairs), "--eval_samples", "1", "--pictures", "1", "--eval_strategy", "no",
        "--save_steps", str(args.steps // 2), "--logging_steps", "1", "--disable_tqdm", "true",
        "--output_dir", str(folder / "out"), *(["--lora", "true"] if args.lora else []),
        *(["--use_cpu", "true"] if args.use_cpu else []), *(known.options if known else ()), *shlex.split(args.options),
    ]  # fmt: skip


def own_command(args) -> str:
    """The command of this rehearsal, for the table."""
    words = ["hf-i2i-unlearn", "rehearse", "--model", args.model]
    default = RehearsalArguments()
    for name in ("lora", "size", "pictures", "steps", "pairs", "options", "plan_only", "cpu_time"):
        value = getattr(args, name)
        if value != getattr(default, name):
            words += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return shlex.join(words)


def say(what: str) -> None:
    """A line on the way."""
    print(f"- {what}", flush=True)


def pack_shards(folder: Path, side: int, pictures: str | None, count: int) -> None:
    """`count` JPEGs, half of class 0, in two tar shards of the split `train`; larger than the model's pictures."""
    folder.mkdir(parents=True)
    files = _jpegs(pictures, count, side) if pictures else [_noise(side * 3 // 2, side * 5 // 4, i) for i in range(count)]
    for number in range(2):
        with tarfile.open(folder / f"train-{number:03d}.tar", "w") as tar:
            for i, data in enumerate(files):
                if i % 2 == number:
                    for name, content in ((f"{i:06d}.jpg", data), (f"{i:06d}.cls", str(i // 2 % 2).encode())):
                        entry = tarfile.TarInfo(name)
                        entry.size = len(content)
                        tar.addfile(entry, io.BytesIO(content))


def _jpegs(folder: str, count: int, side: int) -> list[bytes]:
    files = sorted(f for f in Path(folder).rglob("*") if f.suffix.lower() in (".jpg", ".jpeg"))[:count]
    if len(files) < count:
        raise InputError(f"'{folder}' holds {len(files)} JPEGs, and {count} are needed; leave out --pictures for made ones.")
    return [_enlarged(file, side) for file in files]


def _enlarged(file: Path, side: int) -> bytes:
    """The file as it is, or enlarged where it is smaller than the model's pictures."""
    from PIL import Image

    with Image.open(file) as picture:
        if min(picture.size) >= side:
            return file.read_bytes()
        scale = 1.25 * side / min(picture.size)
        return _encoded(picture.convert("RGB").resize([round(scale * n) for n in picture.size]))


def _noise(width: int, height: int, seed: int) -> bytes:
    """Soft noise: as large as a photograph, and about as hard to decode."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(seed)
    soft = Image.fromarray(random.integers(0, 256, (height // 16, width // 16, 3), np.uint8)).resize((width, height))
    fine = random.integers(-12, 13, (height, width, 3))
    return _encoded(Image.fromarray(np.clip(np.asarray(soft) + fine, 0, 255).astype(np.uint8)))


def _encoded(picture) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def run_child(command: list[str], folder: Path, until=None) -> Child:
    """Run a command to its end, or until `until()` is true, then kill -9.

    Raises:
        RunError: it failed, or ended before it was to be killed.
    """
    start, out, err = time.perf_counter(), folder / "stdout", folder / "stderr"
    with open(out, "w") as stdout, open(err, "w") as stderr:
        child = subprocess.Popen(command, stdout=stdout, stderr=stderr)
        while until is not None and child.poll() is None and not until():
            time.sleep(0.05)
        if until is not None and child.returncode is None:
            child.send_signal(signal.SIGKILL)
        written, cpu, used = _end_of(child)
    said, wanted = out.read_text(), -signal.SIGKILL if until else 0
    if child.returncode != wanted:
        tail = " ".join(err.read_text().split())[-800:]
        raise RunError(f"A part of the rehearsal ended with status {child.returncode}, expected {wanted}: ... {tail}")
    return Child(time.perf_counter() - start, cpu, used, written, said)


def _end_of(child: subprocess.Popen) -> tuple[int, float, float]:
    """(bytes that it wrote, CPU seconds, GB at its peak), and its end."""
    written = 0
    if hasattr(os, "waitid"):
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # its counters can be read until it is waited for
        try:
            lines = Path(f"/proc/{child.pid}/io").read_text().splitlines()
            written = next(int(line.split()[1]) for line in lines if line.startswith("wchar"))
        except (OSError, StopIteration):
            pass
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return written, used.ru_utime + used.ru_stime, used.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def table(found: dict) -> list[str]:
    """Lines of Markdown: the row of this rehearsal, and the plan beside it."""
    plan, name = found.get("plan"), f"{found['title']}{', LoRA' if found['lora'] else ''}"
    lines, s = [], "CPU s" if found["cpu_time"] else "s"
    if "steps" in found:
        lines += [
            f"| model | GB at the peak | {s} a step | GB written | reloaded |", "|---|---|---|---|---|",
            f"| {name} | {found['gigabytes']:.2f} | {found['seconds_a_step']:.3g} | {found['written'] / 1e9:.2f} | "
            f"{found['reloaded']} |", "",
        ]  # fmt: skip
    if plan:
        foretold = sum(plan["seconds"].values())
        lines += [f"| foretold by --plan | GB | {s} a step | {s} in all |", "|---|---|---|---|"]
        lines += [f"| {name} | {plan['memory']:.2f} | {plan['measured']['step']:.3g} | {foretold:.0f} |"]
        if "steps" in found:
            lines += [
                f"| and then measured | {found['gigabytes']:.2f} | {found['seconds_a_step']:.3g} | {found['seconds']:.0f} |"
            ]
    return [*lines, "", f"`{found['command']}`"]


def _remove(folder: Path) -> None:
    """All but the figures."""
    import shutil

    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "rehearsal.json":
            path.unlink()
