"""One chart and one table of several studies: what each method makes of pictures that models of several families know by heart.

    hf-i2i-unlearn evidence --studies study-mae study-mage study-unet --families MAE MAGE U-Net

`erasure-study` with `--never_trained` makes a study. The output folder gets forgotten.png and summary.md.
"""

from dataclasses import dataclass, field

from ..errors import InputError
from .cli import parse


@dataclass
class Arguments:
    """The studies, and what they are called."""

    studies: list[str] = field(default_factory=list, metadata={"help": "Folders that `erasure-study` wrote."})
    families: list[str] = field(default_factory=list, metadata={"help": "A name for each."})
    output_dir: str = field(default="evidence", metadata={"help": "Folder for forgotten.png and summary.md."})

    def __post_init__(self):
        if not self.studies or len(self.studies) != len(self.families):
            raise InputError(
                f"Give one --studies or more, and a name for each; got {len(self.studies)} --studies and {len(self.families)} "
                "--families."
            )


def main() -> None:
    (args,) = parse((Arguments,), __doc__)

    from pathlib import Path

    from ..experiments.study_page import forgotten_of, read_rows, summary_table
    from ..reporting.plots import forgotten_plot
    from ..storage import write_text

    found = {name: read_rows(folder) for name, folder in zip(args.families, args.studies)}
    text = summary_table(found)
    forgotten_plot({name: forgotten_of(studies) for name, studies in found.items()}, Path(args.output_dir, "forgotten.png"))
    write_text(Path(args.output_dir, "summary.md"), text + "\n")
    print(f"\n{text}\n\nIn {args.output_dir}: forgotten.png and summary.md.")
