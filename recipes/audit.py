"""Does it stay forgotten? Audit an unlearned checkpoint, and write a page for whoever asked.

    accelerate launch recipes/audit.py --model unlearned-mnist-mae

The same as `hf-i2i-unlearn audit`.
"""

from hf_i2i_unlearn.commands.audit import main
from hf_i2i_unlearn.commands.cli import run

if __name__ == "__main__":
    run(main)
