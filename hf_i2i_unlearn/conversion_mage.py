"""The old name of `convert mage`: `python -m hf_i2i_unlearn.conversion_mage` stands in cards and notes."""

import sys

from .commands.cli import run
from .commands.convert import main

if __name__ == "__main__":
    run(lambda: main(["mage", *sys.argv[1:]]))
