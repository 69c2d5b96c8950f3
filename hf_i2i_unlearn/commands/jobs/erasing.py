"""The second stage of a run that erases: what its trainer is, and what lies before it."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import SchedulerType

from ...errors import InputError
from ...models.auto import family_options, load_model
from ...models.erasure import move_to_fresh
from ...reporting.run_folder import refuse_full_folder
from ...storage import flush
from ...training.checkpoints import checkpoints, last_whole_checkpoint
from ...training.config import UnlearningConfig
from ...training.erasure import ErasureTrainer
from .measuring import duration, seconds_of

if TYPE_CHECKING:
    from .run import Run

# Beside the folder of the run: the unlearned model that a share below 1 starts from. It still knows the pictures, so it must be
# no part of a folder that is pushed, put into a Space and certified.
SUPPRESSED = "-suppressed"


def erasing(run: "Run"):
    """Move the weights of `run.model`, after unlearning where the share asks for it.

    Returns:
        The trainer of the erasure, and the checkpoint to go on with, or None.

    Raises:
        InputError: a method that trains outputs, or a folder to start from that holds another model.
    """
    args, training = run.args, run.training
    if not run.method.trains_encoder_alone:
        raise InputError(
            f"--erase distils the encoder, and the method '{run.method}' trains on outputs; use ours or random_encoder."
        )
    trainable = [p for p in run.model.parameters() if p.requires_grad]
    resume = _last(training.output_dir) if training.resume_from_checkpoint else None
    if args.erase_from:
        _start_from(run, args.erase_from)
    elif (args.erase or 0) < 1 and resume is None:
        _suppress(run)
    for weight in trainable:  # unlearning froze the decoder
        weight.requires_grad_(True)
    moved, total = move_to_fresh(run.model, args.erase, training.seed, args.erase_decoder)
    what = "encoder and decoder" if args.erase_decoder else "the encoder"
    run.erasure = {
        "share": args.erase,
        "decoder": args.erase_decoder,
        "moved": moved,
        "weights": total,
        "steps": args.erase_steps,
    }
    run.training = erasure_options(args, training, run.model.muon_learning_rate)
    trainer = run.trainer(ErasureTrainer, distil_decoder=1.0 if args.erase_decoder else 0.0)
    if trainer.is_world_process_zero():
        options = trainer.args
        pairs = args.erase_batch_size * options.gradient_accumulation_steps * options.world_size
        seconds = seconds_of(trainer)
        longest = f", about {duration(args.erase_steps * seconds)}" if seconds else ""
        print(
            f"Erasing: {moved:,} of {total:,} weights ({what}) start {args.erase:.0%} anew, and are trained for "
            f"{args.erase_steps:,} steps of {pairs} pairs{longest}.",
            flush=True,
        )
    return trainer, resume


def erasure_options(args, training: UnlearningConfig, muon: float) -> UnlearningConfig:
    """The options of training with those of the erasure in their place. muon: the family's learning rate of Muon."""
    changed = copy.copy(training)  # not made anew: that would hide the access token
    changed.max_steps, changed.learning_rate = args.erase_steps, args.erase_learning_rate
    changed.muon_learning_rate = muon if args.erase_muon_learning_rate is None else args.erase_muon_learning_rate
    changed.per_device_train_batch_size = args.erase_batch_size
    changed.lr_scheduler_type, changed.warmup_steps = SchedulerType.COSINE, 0.03
    return changed


def _start_from(run: "Run", folder: str) -> None:
    """Give `run.model` the weights of a finished run.

    Raises:
        InputError: they are of another model.
    """
    unlearned = load_model(folder, **family_options(vars(run.args), family=type(run.model)))
    weights, mine = ({name: w.shape for name, w in model.state_dict().items()} for model in (unlearned, run.model))
    if type(unlearned) is not type(run.model) or weights != mine:
        raise InputError(
            f"--erase_from '{folder}' holds another model than --model '{run.args.model}'; give the folder of a run that "
            "unlearned this one."
        )
    run.model.load_state_dict(unlearned.state_dict())


def _suppress(run):
    """Unlearn first, in a folder of its own, which is kept; done already if it holds a result.

    Raises:
        InputError: the folder holds something, and the run does not go on.
    """
    training = copy.copy(run.training)
    training.output_dir = str(Path(training.output_dir)) + SUPPRESSED
    refuse_full_folder(training.output_dir, bool(training.resume_from_checkpoint))
    done = Path(training.output_dir, "finished")
    trainer = run.trainer(training=training)
    if done.is_file():
        run.model.load_weights(training.output_dir)
        return
    if run.takedown:
        run.takedown.start(run, trainer)
    trainer.train(resume_from_checkpoint=_last(training.output_dir) if training.resume_from_checkpoint else None)
    trainer.save_model()
    if trainer.is_world_process_zero():
        done.touch()
        flush(done)
        print(f"Suppressed so far: '{training.output_dir}'. It still knows the pictures; delete it once all is done.")
    trainer.accelerator.wait_for_everyone()


def _last(folder) -> str | None:
    return last_whole_checkpoint(folder) if Path(folder).is_dir() and checkpoints(folder) else None
