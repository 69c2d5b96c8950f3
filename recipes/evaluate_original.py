"""Measure an original model against completions that have learnt nothing: is there anything to unlearn?

    python recipes/evaluate_original.py --model model_cards/photos-mae --dataset photos-32 --corruptions center:4 center:2

The same as `hf-i2i-unlearn evaluate-original`.
"""

from hf_i2i_unlearn.commands.cli import run
from hf_i2i_unlearn.commands.evaluate_original import main

if __name__ == "__main__":
    run(main)
