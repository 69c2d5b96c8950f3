"""The paper's tables for one original model: every method with the same tuning effort, over seeds, at a matched retain cost.

    python recipes/tables.py --config recipes/configs/tables_photos.yaml --model model_cards/photos-mae --dataset photos-32

The same as `hf-i2i-unlearn tables`.
"""

from hf_i2i_unlearn.commands.cli import run
from hf_i2i_unlearn.commands.tables import main

if __name__ == "__main__":
    run(main)
