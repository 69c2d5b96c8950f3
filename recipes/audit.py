"""Does it stay forgotten? Audit an unlearned checkpoint, and write a page for whoever asked.

    accelerate launch recipes/audit.py --model unlearned-mnist-mae

What the run was (original, pictures, T) is read from run.yaml in the folder; options change it. Four parts: relearning by
ordinary training on a few forget pictures, membership inference, a linear probe of the encoder, and completion from other masks
than the trained one. Every part is written to audit.json as soon as it is done, and a broken-off audit goes on there. At the end
the card gets a section "Audit", and report.html holds run, figures and audit on one page that needs nothing else. Without options
it audits what the demo left behind, in a few minutes. It runs on one process.
"""

from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from transformers.utils.logging import disable_progress_bar

from hf_i2i_unlearn.audit.options import AuditArguments
from hf_i2i_unlearn.audit.run import run_audit
from hf_i2i_unlearn.commands.cli import command_line, parse, run
from hf_i2i_unlearn.reporting.model_card import write_section
from hf_i2i_unlearn.reporting.report import ReportArguments, write_report

DEMO = "audit_mnist_mae"


@dataclass
class Arguments(AuditArguments):
    """What to audit, and what to write."""

    report: bool = field(default=True, metadata={"help": "Write report.html."})
    report_pictures: bool = field(
        default=True, metadata={"help": "Show the before/after pictures there; false where they may not be shown."}
    )


def main():
    (args,) = parse((Arguments,), __doc__, demo=DEMO)
    if not PartialState(cpu=args.use_cpu).is_main_process:
        return
    disable_progress_bar()
    found = run_audit(args, command_line("recipes/audit.py", ("forget_values", "forget_rows")))
    folder, written = Path(args.model), ["audit.json"]
    if (folder / "README.md").is_file():
        write_section(folder, "Audit")
        written.append("README.md (section Audit)")
    if args.report:
        written.append(write_report(ReportArguments(args.model, pictures=args.report_pictures)).name)
    for line in found["verdicts"]:
        print(f"\n[{line['status']}] {line['title']}\n  {line['finding']}\n  {line['caveat']}".rstrip())
    print(f"\n{found['overall']} {found['suppression']}\n\nIn {folder}: {', '.join(written)}.")


if __name__ == "__main__":
    run(main)
