"""Does it stay forgotten? Audit an unlearned checkpoint, and write a page for whoever asked.

    hf-i2i-unlearn audit --model unlearned-mnist-mae

What the run was (original, pictures, T) is read from run.yaml in the folder; options change it. Four parts: relearning by
ordinary training on a few forget pictures, membership inference, a linear probe of the encoder, and completion from other masks
than the trained one. Every part is written to audit.json in the output folder as soon as it is done, and a broken-off audit
goes on there. report.html holds run, figures and audit on one page that needs nothing else. The folder of the run and its
card stay as they are, unless --update_card true. Without options it audits what the demo left behind, in a few minutes. It
runs on one process.
"""

from dataclasses import dataclass, field

from ..audit.options import AuditOptions
from .cli import command_line, parse
from .words import CORRUPTION_HELP


@dataclass
class AuditArguments(AuditOptions):
    """What to audit, and how hard. What is not given is as in the run (run.yaml of the folder)."""

    model: str = field(default="", metadata={"help": "The output folder of an unlearning run."})
    original: str | None = field(default=None, metadata={"help": "The original checkpoint; that of the run."})
    dataset: str | None = field(default=None, metadata={"help": "Pictures; those of the run."})
    train_split: str | None = field(default=None, metadata={"help": "Split that was trained on; that of the run."})
    eval_split: str | None = field(
        default=None, metadata={"help": "Split that no model was trained on, 'none' if there is none; that of the run."}
    )
    forget_list: str | None = field(default=None, metadata={"help": "The takedown request, if it has moved since the run."})
    forget_values: list[str] | None = field(
        default=None, metadata={"help": "The values that were forgotten, where run.yaml does not name them."}
    )
    forget_rows: str | None = field(default=None, metadata={"help": "The rows that were, where run.yaml does not name them."})
    corruption: str | None = field(
        default=None, metadata={"help": f"T of training, several parted by commas, if not that of the run: {CORRUPTION_HELP}."}
    )
    never_trained: str | None = field(
        default=None,
        metadata={"help": "A checkpoint trained like the original but without the forget pictures, to compare with."},
    )
    never_seen_classes: list[str] | None = field(
        default=None, metadata={"help": "Classes of the dataset that the original never saw, to compare with."}
    )
    masks: list[str] | None = field(
        default=None, metadata={"help": "Other T to complete pictures from; a list that suits the model's grid if not given."}
    )
    generation_steps: int | None = field(
        default=None, metadata={"help": "Steps of generation (diffusion, MAGE); those of the run if not given."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Use the CPU even where there is a GPU."})


@dataclass
class Arguments(AuditArguments):
    """What to audit, and what to write."""

    output_dir: str = field(default="audited", metadata={"help": "Folder for audit.json and report.html."})
    update_card: bool = field(
        default=False,
        metadata={"help": "Put audit.json and report.html into the folder of the run too, and a section into its card."},
    )
    report: bool = field(default=True, metadata={"help": "Write report.html."})
    report_pictures: bool = field(default=True, metadata={"help": "Show the before/after pictures of the run there."})


def main() -> None:
    (args,) = parse((Arguments,), __doc__, demo="audit_mnist_mae")

    from accelerate import PartialState
    from transformers.utils.logging import disable_progress_bar

    from ..reporting.model_card import write_section
    from ..reporting.report import write_report
    from ..reporting.run_folder import AUDIT, AUDITED, CARD, RunFolder
    from ..storage import write_json
    from .jobs.audited import run_audit

    if not PartialState(cpu=args.use_cpu).is_main_process:
        return
    disable_progress_bar()
    run, own = RunFolder(args.model), RunFolder(args.output_dir)
    earlier = run.audit if "verdicts" in run.audit else None
    found = run_audit(args, command_line("recipes/audit.py", ("forget_values", "forget_rows")), args.output_dir)
    folders = {own.path: [AUDIT]}
    if args.update_card:
        if run.path.resolve() != own.path.resolve():
            write_json(run.path / AUDIT, found)
        folders.setdefault(run.path, [AUDIT])
        if run.card.is_file():
            write_section(run.path, AUDITED, earlier)
            folders[run.path].append(f"{CARD} (section {AUDITED})")
    for folder, names in folders.items() if args.report else ():
        names.append(write_report(args.model, args.report_pictures, audit=own.path, output_dir=folder).name)
    for line in found["verdicts"]:
        print(f"\n[{line['status']}] {line['title']}\n  {line['finding']}\n  {line['caveat']}".rstrip())
    print(f"\n{found['overall']} {found['suppression']}\n")
    for folder, names in folders.items():
        print(f"In {folder}: {', '.join(names)}.")
