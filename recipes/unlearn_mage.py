"""Make a MAGE model forget pictures; without options the embedded demo, in about two minutes.

    accelerate launch recipes/unlearn_mage.py --model mage/ --dataset photos/ --forget_list request.txt

The same as `hf-i2i-unlearn unlearn` with a model of this family. `--help` explains the options.
"""

from hf_i2i_unlearn.commands.cli import run
from hf_i2i_unlearn.commands.unlearn import main

if __name__ == "__main__":
    run(lambda: main("mage"))
