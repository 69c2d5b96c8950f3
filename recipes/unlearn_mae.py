"""Make a masked autoencoder forget pictures; without options the embedded demo, in about a minute.

    accelerate launch recipes/unlearn_mae.py --model facebook/vit-mae-base --dataset photos/ --forget_list request.txt

The same as `hf-i2i-unlearn unlearn` with a model of this family. `--help` explains the options.
"""

from hf_i2i_unlearn.commands.cli import run
from hf_i2i_unlearn.commands.unlearn import main

if __name__ == "__main__":
    run(lambda: main("mae"))
