"""Which levels of a U-Net's encoder does its decoder rely on? What can be unlearned is in those.

    python recipes/unet_levels.py --model model_cards/photos-unet --dataset photos-32 --corruption center:4

The same as `hf-i2i-unlearn unet-levels`.
"""

from hf_i2i_unlearn.commands.cli import run
from hf_i2i_unlearn.commands.unet_levels import main

if __name__ == "__main__":
    run(main)
