"""Write report.html: run, figures, pictures and audit of an unlearned checkpoint on one page that needs nothing else.

    python recipes/report.py --model unlearned-mnist-mae

It reads what is in the folder (run.yaml, figures.json, the card and its tables, before_after.png, audit.json) and measures nothing
anew; --evaluation shows the tables of recipes/evaluate.py from their own folder. recipes/audit.py writes this page too.
"""

from hf_i2i_unlearn.commands.cli import parse, run
from hf_i2i_unlearn.reporting.report import ReportArguments, write_report


def main():
    (args,) = parse((ReportArguments,), __doc__)
    print(f"Written: {write_report(args)}")


if __name__ == "__main__":
    run(main)
