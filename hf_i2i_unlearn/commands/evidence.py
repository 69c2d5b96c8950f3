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
    families: list[str] = field(
        default_factory=list, metadata={"help": "A family for each; 'U-Net: 600 steps' puts a study beside others of U-Net."}
    )
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

    from ..experiments.study_page import families_of, family_points, read_rows, summary_table
    from ..reporting.plots import forgotten_plot
    from ..storage import write_text

    found = families_of(args.families, [read_rows(folder) for folder in args.studies])
    text = summary_table(found)
    forgotten_plot({name: family_points(parts) for name, parts in found.items()}, Path(args.output_dir, "forgotten.png"))
    write_text(Path(args.output_dir, "summary.md"), text + "\n")
    print(f"\n{text}\n\nIn {args.output_dir}: forgotten.png and summary.md.")
