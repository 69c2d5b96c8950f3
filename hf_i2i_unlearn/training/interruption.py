"""A run that is told to end, as a preempted job is (SIGTERM): it saves a checkpoint first. And how long steps take."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import TrainerCallback

from ..errors import Preempted
from .checkpoints import checkpoints, is_whole, last_good


class EndOnSignal(TrainerCallback):
    """While it listens, SIGTERM ends training after the step that is under way, with a checkpoint.

    Processes that train together agree on the step: one that is told is enough. A second signal changes nothing.
    """

    def __init__(self, accelerator):
        self.accelerator, self.told, self.ended_at = accelerator, False, None

    @contextlib.contextmanager
    def listening(self, output_dir):
        """Within it SIGTERM is heard.

        Raises:
            Preempted: at its end, where the signal has ended training.
        """
        self.told, self.ended_at = False, None
        if threading.current_thread() is not threading.main_thread():  # signals reach that one alone
            yield
            return
        before = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "told", True))
        try:
            yield
        except RuntimeError as error:  # workers that had not begun when the signal came
            if not self.told or "DataLoader worker" not in str(error):
                raise
            raise Preempted(f"SIGTERM has ended this run and its data workers; {last_good(output_dir)}{GO_ON}") from error
        finally:
            signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
        if self.ended_at is not None:
            kept = next((f for f in reversed(checkpoints(output_dir)) if is_whole(f)), None)
            raise Preempted(f"SIGTERM has ended this run after step {self.ended_at}; '{kept}' is saved{GO_ON}")

    def on_step_end(self, args, state, control, **kwargs):
        told = self.told
        if self.accelerator.num_processes > 1:
            told = bool(self.accelerator.gather(torch.tensor([told], device=self.accelerator.device)).any())
        if told and state.global_step < state.max_steps:  # a run that is through ends as it would
            self.ended_at = state.global_step
            control.should_save = control.should_training_stop = True


GO_ON = ". Go on with --resume_from_checkpoint true."


@dataclass
class Deaf:
    """Starts a data worker that SIGTERM does not end.

    A scheduler may signal all processes of a job, and the step that is under way needs its pictures. first: what else it does.
    """

    first: Callable[[int], object] | None

    def __call__(self, number: int) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.first is not None:
            self.first(number)


class StepClock(TrainerCallback):
    """Seconds of the steps since the last log line: pictures are read in them, evaluation and saving are not."""

    def __init__(self):
        self._since, self._taken, self._steps = 0.0, 0.0, 0

    def _start(self, *args, **kwargs):
        self._since = time.perf_counter()

    on_train_begin = on_evaluate = on_save = _start

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        self._taken, self._steps, self._since = self._taken + now - self._since, self._steps + 1, now

    def mean(self) -> float | None:
        """Of a step, in seconds; None where there was none. It begins anew."""
        found = self._taken / self._steps if self._steps else None
        self._taken, self._steps = 0.0, 0
        return found
