"""Erase what a finished run has only suppressed.

    accelerate launch recipes/erase.py --model unlearned-mnist-mae --output_dir erased-mnist-mae

The same as `hf-i2i-unlearn erase`. `--help` explains the options.
"""

from hf_i2i_unlearn.commands.cli import run
from hf_i2i_unlearn.commands.erase import main

if __name__ == "__main__":
    run(main)
