"""What the user gave cannot work."""


class InputError(ValueError):
    """Bad input: one sentence with the value, what was expected, and how to mend it. Recipes print it without a traceback."""


class NotForgotten(Exception):
    """A finished run, or one that is verified, has forgotten less than `--require_forgotten` asks for. The folder is kept."""


class RunError(RuntimeError):
    """A run that cannot go on for no fault of its options: one sentence with what happened, what is left, and what to do.

    The last checkpoint is whole. Recipes print it without a traceback.
    """
