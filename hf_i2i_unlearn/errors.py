"""What the user gave cannot work."""

import contextlib


class InputError(ValueError):
    """Bad input: one sentence with the value, what was expected, and how to mend it. Recipes print it without a traceback."""


class NotForgotten(Exception):
    """A finished run, or one that is verified, has forgotten less than `--require_forgotten` asks for. The folder is kept."""


class RunError(RuntimeError):
    """A run that cannot go on for no fault of its options: one sentence with what happened, what is left, and what to do.

    The last checkpoint is whole. Recipes print it without a traceback.
    """


class Preempted(RunError):
    """A run that was told to end (SIGTERM) before it was through, and can be gone on with; its exit status is 75."""


@contextlib.contextmanager
def in_one_sentence(what: str):
    """Within it a ValueError of a library becomes an `InputError`: `what`, and what the library says, in one line."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{what}: {' '.join(str(error).split())[:300]}") from error
