"""The old name of `convert`: `python -m hf_i2i_unlearn.conversion` stands in cards and notes."""

from .commands.cli import run
from .commands.convert import main

if __name__ == "__main__":
    run(main)
