"""Measure unlearned checkpoints: error, drift, FID, Inception score, similarity and a classifier of the hole, before and after.

    accelerate launch recipes/evaluate.py --models unlearned-mnist-mae

The same as `hf-i2i-unlearn evaluate`.
"""

from hf_i2i_unlearn.commands.cli import run
from hf_i2i_unlearn.commands.evaluate import main

if __name__ == "__main__":
    run(main)
