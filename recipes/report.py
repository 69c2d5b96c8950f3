"""Write report.html: run, figures, pictures and audit of an unlearned checkpoint on one page that needs nothing else.

    python recipes/report.py --model unlearned-mnist-mae

The same as `hf-i2i-unlearn report`.
"""

from hf_i2i_unlearn.commands.cli import run
from hf_i2i_unlearn.commands.report import main

if __name__ == "__main__":
    run(main)
