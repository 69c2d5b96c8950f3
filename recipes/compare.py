"""Compare unlearning methods from one original model, under the same budget, pictures and seeds.

    python recipes/compare.py --model mnist-demo-mage --config recipes/configs/compare_mnist_mae.yaml

The same as `hf-i2i-unlearn compare`.
"""

from hf_i2i_unlearn.commands.cli import run
from hf_i2i_unlearn.commands.compare import main

if __name__ == "__main__":
    run(main)
