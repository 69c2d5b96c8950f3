"""What parts of a run take: time, and memory at its peak, on a CPU and on a GPU."""

import contextlib
import ctypes
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

FEW, LONG = 8, 20.0  # pictures that are completed at once; unless that would take so many seconds


def since_start() -> float:
    """Seconds since this process started, by the clock that `time.perf_counter` is."""
    if time.perf_counter is time.process_time:
        return time.process_time()
    return time.time() - psutil.Process().create_time()


def finished(device: torch.device) -> None:
    """Wait until a GPU has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Memory:
    """GB (2**30 bytes) that a device, or on a CPU this process, holds at the most within it (`peak`) and before it (`before`).

    Where the system does not reset its counter, as other systems than Linux do not, the peak is that since the process started.
    """

    def __init__(self, device: torch.device):
        self.device, self.before, self.peak = device, 0.0, 0.0

    def __enter__(self):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # what is free, but not given back yet, would not count
            try:
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:
                pass
        self.before = self._held("VmRSS")
        return self

    def __exit__(self, *error):
        self.peak = self._held("VmHWM")

    def _held(self, word: str) -> float:
        if self.device.type == "cuda":
            peak = word == "VmHWM"
            return (torch.cuda.max_memory_reserved if peak else torch.cuda.memory_reserved)(self.device) / 2**30
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith(word)) / 2**20
        except OSError:
            unit = 2**30 if sys.platform == "darwin" else 2**20
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


@dataclass(frozen=True)
class Cost:
    """Of a function of a number of pictures: seconds a picture, GB held before, GB for one picture and for each more."""

    seconds: float
    before: float
    one: float
    more: float

    def memory(self, count: int) -> float:
        """GB at the peak with so many pictures."""
        return self.before + self.one + (count - 1) * self.more

    @classmethod
    def of(cls, function, count: int, device) -> "Cost":
        """Measured with one picture, and with `count` if that takes no time that anybody minds."""
        taken: list[tuple[int, float, float]] = []
        before = 0.0
        for pictures in (1, 1, count):
            if taken and taken[-1][1] * pictures > LONG:
                break
            with Memory(device) as memory:
                start = time.perf_counter()
                function(pictures)
                finished(device)
                seconds = time.perf_counter() - start
            before = before or memory.before
            taken.append((pictures, seconds, memory.peak - memory.before))
        (n, seconds, peak), one = taken[-1], taken[0][2]
        more = (peak - one) / (n - 1) if n > 1 else one
        return cls(seconds / n, before, one, max(0.0, more))


@contextlib.contextmanager
def few_denoising_steps(model):
    """Within it a model that denoises takes two steps.

    Gives a function (seconds with two steps, a measurement with more of them) -> seconds with all; None for other models.
    """
    steps = model.steps if model.family == "diffusion" else None
    if steps is None or steps <= 4:
        yield None
        return

    def scale(two: float, measure) -> float:
        model.steps = 4
        return two + max(0.0, measure() - two) / 2 * (steps - 2)

    model.steps = 2
    try:
        yield scale
    finally:
        model.steps = steps


def seconds_of(trainer) -> float | None:
    """What a step takes here: the second of two that change no weight. None for several processes and streams."""
    pairs, args = trainer.train_dataset, trainer.args
    if args.world_size > 1 or not hasattr(pairs, "__len__"):
        return None
    model, start = trainer.model, 0.0
    model.train()
    for _ in range(2):
        start = time.perf_counter()
        batch = trainer.data_collator([pairs[i] for i in range(min(len(pairs), args.per_device_train_batch_size))])
        trainer.loss_aside(model, trainer._prepare_inputs(batch)).backward()
        model.zero_grad()
        finished(args.device)
    return (time.perf_counter() - start) * args.gradient_accumulation_steps


def duration(seconds: float) -> str:
    """In words: 12 s, 3.4 min, 2.1 h."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
