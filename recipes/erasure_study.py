"""What erasing is worth, on the embedded demo: forgotten, attacked, erased, attacked again.

    python recipes/erasure_study.py

The same as `hf-i2i-unlearn erasure-study`. `--help` explains the options.
"""

from hf_i2i_unlearn.commands.cli import run
from hf_i2i_unlearn.commands.erasure_study import main

if __name__ == "__main__":
    run(main)
