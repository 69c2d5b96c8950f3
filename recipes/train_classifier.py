"""Train a small classifier of your own pictures, whose features then measure completions offline.

    python recipes/train_classifier.py --config classifier_mnist

The same as `hf-i2i-unlearn train-classifier`. `--help` explains the options.
"""

from hf_i2i_unlearn.commands.cli import run
from hf_i2i_unlearn.commands.train_classifier import main

if __name__ == "__main__":
    run(main)
