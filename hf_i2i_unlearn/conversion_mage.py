"""The old name of `commands.convert_mage`: `python -m hf_i2i_unlearn.conversion_mage` stands in cards and notes."""

import sys

from .commands.convert_mage import main

if __name__ == "__main__":
    sys.exit(main())
