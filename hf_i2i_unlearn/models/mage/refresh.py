"""Put this package's code of MAGE beside the weights in folders that an older version saved.

    python -m hf_i2i_unlearn.models.mage.refresh model_cards/photos-mage ...

`save_pretrained` does the same for what it saves. Weights and configuration stay as they are.
"""

import shutil
import sys
from pathlib import Path

CODE = sorted((Path(__file__).parent / "hf").glob("*_mage.py"))  # what travels with the weights


def refresh(folder) -> None:
    """Copy the files of `CODE` into a folder, and remove those that are no longer among them.

    Raises:
        FileNotFoundError: there is no configuration_mage.py, so the folder holds no MAGE with its code.
    """
    if not Path(folder, "configuration_mage.py").is_file():
        raise FileNotFoundError(f"'{folder}' has no configuration_mage.py; give a folder with MAGE's code beside its weights.")
    for old in Path(folder).glob("*_mage.py"):
        old.unlink()
    for file in CODE:
        shutil.copyfile(file, Path(folder, file.name))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        refresh(name)
