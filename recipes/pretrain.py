"""Train an original model from nothing, so that there is something to unlearn.

    python recipes/pretrain.py --config pretrain_mnist_mae

The same as `hf-i2i-unlearn pretrain`. `--help` explains the options.
"""

from hf_i2i_unlearn.commands.cli import run
from hf_i2i_unlearn.commands.pretrain import main

if __name__ == "__main__":
    run(main)
