"""Write report.html: run, figures, pictures and audit of an unlearned checkpoint on one page that needs nothing else.

    hf-i2i-unlearn report --model unlearned-mnist-mae

It reads the data in the folder (run.yaml, run.json, figures.json, evaluation.json, before_after.png, audit.json) and measures
nothing anew. --evaluation and --audit show what `hf-i2i-unlearn evaluate` and `hf-i2i-unlearn audit` have in folders of their
own. `hf-i2i-unlearn audit` writes this page too.
"""

from dataclasses import dataclass, field

from .cli import parse


@dataclass
class Arguments:
    """The folder that the page is about."""

    model: str = field(default="", metadata={"help": "The output folder of an unlearning run."})
    pictures: bool = field(default=True, metadata={"help": "Show the before/after pictures of the run."})
    show_forgotten: bool = field(
        default=False,
        metadata={
            "help": "Show them too where the run is older than the option of this name of unlearn, so that pictures of the "
            "forget set are among them. Otherwise what the run was told holds."
        },
    )
    audit: str | None = field(
        default=None,
        metadata={"help": "An output folder of `hf-i2i-unlearn audit`; the audit in the run's folder if not given."},
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder for report.html; that of the run if not given."})
    evaluation: str | None = field(
        default=None,
        metadata={
            "help": "An output folder of `hf-i2i-unlearn evaluate` whose tables to show; those of the card if not given."
        },
    )


def main() -> None:
    (args,) = parse((Arguments,), __doc__)

    from ..reporting.report import write_report

    page = write_report(
        args.model, args.pictures, args.evaluation, args.audit, args.output_dir, show_forgotten=args.show_forgotten
    )
    print(f"Written: {page}")
