"""Pack pictures small: resized to squares, encoded anew, in one parquet file a split.

    python recipes/pack.py --dataset photos/ --size 32 --output_dir photos-32

The same as `hf-i2i-unlearn pack`.
"""

from hf_i2i_unlearn.commands.cli import run
from hf_i2i_unlearn.commands.pack import main

if __name__ == "__main__":
    run(main)
