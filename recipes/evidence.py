"""One chart and one table of several studies: what each method makes of pictures that models of several families know by heart.

    python recipes/evidence.py --studies study-mae study-mage study-unet --families MAE MAGE U-Net

`erasure_study.py` with `--never_trained` makes a study. The output folder gets forgotten.png and summary.md.
"""

import argparse
import json
from pathlib import Path

from hf_i2i_unlearn.commands.cli import run
from hf_i2i_unlearn.errors import InputError
from hf_i2i_unlearn.experiments.study_page import forgotten_of, summary_table
from hf_i2i_unlearn.reporting.plots import forgotten_plot
from hf_i2i_unlearn.storage import write_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", required=True, help="folders that erasure_study.py wrote")
    parser.add_argument("--families", nargs="+", required=True, help="a name for each")
    parser.add_argument("--output_dir", default="evidence")
    args = parser.parse_args()
    if len(args.studies) != len(args.families):
        raise InputError(f"Give a name for each study; got {len(args.studies)} --studies and {len(args.families)} --families.")
    found = {name: read(Path(folder, "rows.json")) for name, folder in zip(args.families, args.studies)}
    forgotten_plot({name: forgotten_of(studies) for name, studies in found.items()}, Path(args.output_dir, "forgotten.png"))
    text = summary_table(found)
    write_text(Path(args.output_dir, "summary.md"), text + "\n")
    print(f"\n{text}\n\nIn {args.output_dir}: forgotten.png and summary.md.")


def read(file: Path) -> list[list[dict]]:
    """The rows of a study, one list a seed."""
    try:
        return list(json.loads(file.read_text()).values())
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read '{file}': {error}. Give folders that erasure_study.py wrote.") from error


if __name__ == "__main__":
    run(main)
