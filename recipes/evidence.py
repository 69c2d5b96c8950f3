"""One chart and one table of several studies of what was known by heart.

    python recipes/evidence.py --studies study-mae study-mage study-unet --families MAE MAGE U-Net

The same as `hf-i2i-unlearn evidence`. `--help` explains the options.
"""

from hf_i2i_unlearn.commands.cli import run
from hf_i2i_unlearn.commands.evidence import main

if __name__ == "__main__":
    run(main)
