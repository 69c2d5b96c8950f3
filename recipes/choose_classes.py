"""Classes to forget and to retain, far from each other or near.

    python recipes/choose_classes.py --dataset photos-32 --features efficientnet_lite0 --count 10

The same as `hf-i2i-unlearn choose-classes`. `--help` explains the options.
"""

from hf_i2i_unlearn.commands.choose_classes import main
from hf_i2i_unlearn.commands.cli import run

if __name__ == "__main__":
    run(main)
