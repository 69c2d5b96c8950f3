"""What a run says on the screen while it trains: one bar, and a line per evaluation in words."""

import json
from pathlib import Path

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from ...storage import write_text

LOG = "log.jsonl"  # every number that was logged, a JSON object a line


class Bar(ProgressCallback):
    """The Trainer's bar, without the numbers that it logs."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        pass


class Lines(TrainerCallback):
    """A line per evaluation."""

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        line = in_words(metrics or {}, state.global_step, state.max_steps)
        if line and state.is_world_process_zero:
            tqdm.write(line)


def in_words(metrics: dict, step: int, last: int) -> str:
    """What `UnlearningTrainer.evaluate` returned, as a sentence; nothing where it lacks the errors."""
    errors = []
    for name in ("forget", "retain"):
        before, now = (metrics.get(f"eval_{name}_{key}") for key in ("original_mse", "mse"))
        if before is not None and now is not None:
            errors.append(f"{name} {before:.3f} before, {now:.3f} now")
    return f"Step {step} of {last}: hole error {'; '.join(errors)}." if errors else ""


def speak(trainer, verbose: bool) -> None:
    """Have a trainer say what this module says. verbose: every number that it logs too, as a dictionary."""
    if not verbose:
        trainer.remove_callback(PrinterCallback if trainer.args.disable_tqdm else ProgressCallback)
        if not trainer.args.disable_tqdm:
            trainer.add_callback(Bar())
    trainer.add_callback(Lines())


def write_log(folder, history: list[dict]) -> None:
    """Keep what a run has logged in its folder."""
    write_text(Path(folder) / LOG, "".join(json.dumps(entry) + "\n" for entry in history))
