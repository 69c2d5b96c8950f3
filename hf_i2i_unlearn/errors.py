"""What the user gave cannot work."""


class InputError(ValueError):
    """Bad input: one sentence with the value, what was expected, and how to mend it. Recipes print it without a traceback."""
