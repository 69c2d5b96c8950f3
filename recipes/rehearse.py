"""Rehearse a big job: a model of the published size with random weights, a few steps, killed, resumed, and loaded again.

    python recipes/rehearse.py --model mae-base --lora true

The same as `hf-i2i-unlearn rehearse`. `--help` explains the options.
"""

from hf_i2i_unlearn.commands.cli import run
from hf_i2i_unlearn.commands.rehearse import main

if __name__ == "__main__":
    run(main)
