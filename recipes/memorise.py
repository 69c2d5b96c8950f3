"""Go on training an original until it knows given pictures by heart.

    accelerate launch recipes/memorise.py --config memorise_mnist_mae

The same as `hf-i2i-unlearn memorise`. `--help` explains the options.
"""

from hf_i2i_unlearn.commands.cli import run
from hf_i2i_unlearn.commands.memorise import main

if __name__ == "__main__":
    run(main)
