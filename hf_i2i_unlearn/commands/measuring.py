"""Time since the start, and memory at its peak, on a CPU and on a GPU."""

import ctypes
import resource
import sys
import time
from pathlib import Path

import psutil
import torch


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
