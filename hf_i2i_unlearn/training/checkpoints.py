"""Saving that no fault can spoil: everything is written aside and then renamed, so what has its name is whole.

A folder `.saving` in the output folder holds what is being written. A killed process leaves it there, and the next run
removes it; any other fault removes it at once.
"""

import contextlib
import json
import logging
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import InputError, RunError
from ..storage import flush

logger = logging.getLogger(__name__)


ASIDE = ".saving"  # in the output folder


STATE = "trainer_state.json"  # what the Trainer writes last


def checkpoints(output_dir) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    found = [f for f in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if f.name.rsplit("-", 1)[1].isdigit()]
    return sorted(found, key=lambda f: int(f.name.rsplit("-", 1)[1]))


def last_whole_checkpoint(output_dir) -> str:
    """The newest checkpoint folder that was written to its end; half-written ones are removed.

    Raises:
        InputError: there is none.
    """
    remove_aside(output_dir)
    folders = checkpoints(output_dir)
    while folders:
        if is_whole(folders[-1]):
            return str(folders[-1])
        logger.warning("Removing %s, which an interrupted run left half-written.", folders[-1])
        shutil.rmtree(folders.pop())
    raise InputError(f"There is no checkpoint in '{output_dir}' to resume from; start without resume_from_checkpoint.")


def is_whole(checkpoint) -> bool:
    """Whether a checkpoint folder was written to its end."""
    try:
        json.loads((Path(checkpoint) / STATE).read_text())
        return True
    except (OSError, json.JSONDecodeError):
        return False


def remove_aside(output_dir) -> None:
    """Remove what a killed process was writing."""
    shutil.rmtree(Path(output_dir) / ASIDE, ignore_errors=True)


def publish_checkpoint(written: Path, checkpoint: Path, state: TrainerState) -> None:
    """Give a checkpoint that was written aside its name; it takes the place of one that has it.

    Args:
        written: the folder, in `ASIDE`. state: written again, as its `best_model_checkpoint` must name no folder in `ASIDE`.
    """
    state.save_to_json(str(written / STATE))
    flush_all(written)
    if checkpoint.exists():
        os.rename(checkpoint, written.with_name("replaced"))
    os.rename(written, checkpoint)
    flush(checkpoint.parent)
    remove_aside(checkpoint.parent)


def publish_files(written: Path, folder: Path) -> None:
    """Move all files from `written` into `folder`, weights last: a folder without them loads nowhere."""
    flush_all(written)
    files = sorted((f for f in written.rglob("*") if f.is_file()), key=lambda f: (".safetensors" in f.name, str(f)))
    for file in files:
        target = folder / file.relative_to(written)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)
    flush(folder)


def flush_all(folder: Path) -> None:
    """Have all files of a folder on the disk, see `storage.flush`."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)


@contextlib.contextmanager
def faults_of_saving(what: str, folder, output_dir):
    """Within it any fault removes what `folder` has aside, and one of the disk becomes a `RunError` that says what is left.

    Args:
        what: is being saved, for the message. folder: where to. output_dir: of the run, with its checkpoints.
    """
    try:
        yield
    except BaseException as error:
        remove_aside(folder)
        reason = disk_fault(error)
        if reason is None:
            raise
        raise RunError(
            f"Cannot save {what} to '{folder}': {reason} ({_free(folder)} free there). Nothing half-written was left; "
            f"{last_good(output_dir)}. Make room there or mend the disk, then {go_on(output_dir)}."
        ) from error


@contextlib.contextmanager
def faults_of_feeding(output_dir):
    """Within it what goes wrong in a data worker is told in one sentence: its own, or for one that died a `RunError`."""
    try:
        yield
    except (InputError, RunError) as error:
        # torch puts the traceback of the worker into the message.
        sentence = str(error).rpartition(f"{type(error).__module__}.{type(error).__name__}: ")[2].strip()
        if sentence == str(error):
            raise
        raise type(error)(sentence) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).strip().splitlines()[-1]
        raise RunError(
            f"A data worker died, as a rule for want of memory ({reason}); {last_good(output_dir)}. "
            f"Set --dataloader_num_workers lower (0: none), then {go_on(output_dir)}."
        ) from error


@contextlib.contextmanager
def faults_of_peers(output_dir):
    """Within it the end of a process that this one trains together with becomes a `RunError` that says what is left."""
    try:
        yield
    except RuntimeError as error:
        words = ("Connection closed by peer", "Connection reset by peer", "gloo/transport", "NCCL error", "ncclRemoteError")
        if isinstance(error, RunError) or not any(word in str(error) for word in words):
            raise
        raise RunError(
            f"Another process of this run has ended or cannot be reached, so it cannot go on; {last_good(output_dir)}. "
            f"Start all processes again, and {go_on(output_dir)}."
        ) from error


def disk_fault(error: BaseException) -> str | None:
    """The reason of a failed write in a few words; None for any other error."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror or os.strerror(error.errno)
    if isinstance(error, SafetensorError) and "os error" in str(error):
        return str(error).rsplit("I/O error: ", 1)[-1]
    if isinstance(error, RuntimeError) and ("inline_container" in str(error) or "PytorchStreamWriter" in str(error)):
        return "the file could not be written to its end"  # torch says no more
    return None


def last_good(output_dir) -> str:
    """Half a sentence on what a run that cannot go on has left."""
    whole = [f for f in checkpoints(output_dir) if is_whole(f)]
    return f"the last good checkpoint is '{whole[-1]}'" if whole else "there is no checkpoint yet"


def go_on(output_dir) -> str:
    """How to go on from there."""
    whole = any(is_whole(f) for f in checkpoints(output_dir))
    return "go on with --resume_from_checkpoint true" if whole else "start again"


def _free(folder) -> str:
    while not Path(folder).exists():
        folder = Path(folder).parent
    return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB"
