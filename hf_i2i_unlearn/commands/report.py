"""Write report.html: run, figures, pictures and audit of an unlearned checkpoint on one page that needs nothing else.

    hf-i2i-unlearn report --model unlearned-mnist-mae

It reads the data in the folder (run.yaml, run.json, figures.json, evaluation.json, before_after.png, audit.json) and measures
nothing anew. --evaluation shows the tables of `hf-i2i-unlearn evaluate` from their own folder. `hf-i2i-unlearn audit` writes
this page too.
"""

from dataclasses import dataclass, field

from .cli import parse


@dataclass
class Arguments:
    """The folder that the page is about."""

    model: str = field(default="", metadata={"help": "The output folder of an unlearning run."})
    pictures: bool = field(
        default=True, metadata={"help": "Show the before/after pictures; false where they may not be shown."}
    )
    evaluation: str | None = field(
        default=None,
        metadata={
            "help": "An output folder of `hf-i2i-unlearn evaluate` whose tables to show; those of the card if not given."
        },
    )


def main() -> None:
    (args,) = parse((Arguments,), __doc__)

    from ..reporting.report import write_report

    print(f"Written: {write_report(args.model, args.pictures, args.evaluation)}")
