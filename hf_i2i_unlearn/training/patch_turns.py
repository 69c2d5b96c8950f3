"""Training a patch that stands with and without those below it."""

from transformers import TrainerCallback


class PatchTurns(TrainerCallback):
    """Switches the patches below the one that is trained on and off, a draw each step; between steps all act.

    So each step has another of the models that the patch may be on: any of the others may be withdrawn later. The original, by
    whose representations the patch is trained, has the same ones on (`AdaptersOff`).

    Args:
        patch: `I2IModel.patch`.
    """

    def __init__(self, patch):
        self.patch = patch

    def on_step_begin(self, args, state, control, **kwargs):
        self.patch.take_turns(args.seed, state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self.patch.all_on()
