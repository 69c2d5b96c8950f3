"""The folder of a run: its files, their format, and who may write over what.

    run.yaml         the options, as `--config` reads them
    run.json         the facts that card and report show
    request.json     what was asked, and whether it was honoured, picture by picture
    figures.json     what `Evaluator` measured: {set: {name: number}}
    evaluation.json  what was measured later: tables by section of the card; evaluation.md shows them all
    audit.json       parts and verdicts of an audit
    README.md        the card

Nobody else spells these names. run.json and evaluation.json say which format they have.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import MISSING, asdict, fields
from enum import Enum
from pathlib import Path

import yaml
from huggingface_hub import EvalResult

from ..errors import InputError
from ..markdown import tables as markdown
from ..places import portable, portable_options, resolved_options, without_absolute
from ..storage import (
    differences,
    kept,  # noqa: F401 (its callers of before)
    read_json,
    write_json,
    write_text,
)

OPTIONS, RECORD, FIGURES, EVALUATION, AUDIT = "run.yaml", "run.json", "figures.json", "evaluation.json", "audit.json"
REQUEST, EVALUATION_PAGE = "request.json", "evaluation.md"
CARD, REPORT, PICTURE = "README.md", "report.html", "before_after.png"
NETWORKS, RESULTS = "networks.json", "results.json"  # of a folder of measurements

ADAPTER, BASE, PATCHES = "adapter_config.json", "base_model_name_or_path", "patches.json"  # of a patch

FORMAT = 1  # of RECORD and EVALUATION; a reader refuses a newer one

METRICS, TRAINING_METRICS, AUDITED = "Metrics", "Metrics on training pictures", "Audit"  # sections of the card that come later


class RunFolder:
    """What a run has left behind, as data. What is not there reads as {}.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path):
        self.path = Path(path)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def card(self) -> Path:
        """The file of the card."""
        return self.path / CARD

    @property
    def picture(self) -> Path:
        """The file of the before/after grid."""
        return self.path / PICTURE

    @property
    def report(self) -> Path:
        """The file of the report."""
        return self.path / REPORT

    @property
    def options(self) -> dict:
        """The options of the run: those of its recipe, and what the Trainer's differ in from their defaults.

        Places that were written as seen from the folder are as seen from here; see `places`.
        """
        return resolved_options(self._written_options(), self.path)

    def _written_options(self) -> dict:
        file = self.path / OPTIONS
        return (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.is_file() else {}

    def write_options(self, *instances, leave_out=()) -> None:
        """Write option dataclasses; see `write_run`."""
        write_run(self.path / OPTIONS, *instances, leave_out=leave_out)

    @property
    def figures(self) -> dict:
        """What `Evaluator` returned, {"retain": {...}, "forget": {...}}, and "retain_bound" where the run had one."""
        return read_json(self.path / FIGURES)

    def write_figures(self, figures: dict, bound: dict | None = None) -> None:
        """Keep figures; `bound` is what `UnlearningTrainer.bound_report` returned."""
        self._write(FIGURES, figures | ({"retain_bound": bound} if bound else {}))

    @property
    def record(self) -> dict:
        """The facts of the run, see `write_record`.

        Raises:
            InputError: a newer version wrote them.
        """
        return self._versioned(RECORD)

    def write_record(self, facts: dict) -> None:
        """Keep what card and report say of the run: `reporting.facts` lists the names. Nothing secret may be among them."""
        self._write(RECORD, {"format": FORMAT} | facts)

    @property
    def request(self) -> dict:
        """What was asked, and whether it was honoured, see `reporting.request`.

        Raises:
            InputError: a newer version wrote it.
        """
        return self._versioned(REQUEST)

    def write_request(self, record: dict) -> None:
        """Keep it. It names no picture but by its hash, unless names were wanted."""
        self._write(REQUEST, {"format": FORMAT} | record)

    def weight_files(self) -> dict[str, str]:
        """{file of weights, by its path in the folder: its sha256}; checkpoints aside."""
        found = {}
        for file in sorted(self.path.rglob("*.safetensors")):
            name = file.relative_to(self.path)
            if not name.parts[0].startswith(("checkpoint-", ".")):
                with open(file, "rb") as opened:
                    found[name.as_posix()] = hashlib.file_digest(opened, "sha256").hexdigest()
        return found

    @property
    def evaluation(self) -> dict[str, dict]:
        """{section of the card: {"text", "tables", "command", "results"}}, see `write_evaluation`.

        Raises:
            InputError: a newer version wrote it.
        """
        return self._versioned(EVALUATION).get("sections", {})

    def write_evaluation(
        self,
        section: str,
        tables: list[dict],
        text: str = "",
        command: str = "",
        results: Iterable[EvalResult] = (),
        summary: dict | None = None,
    ) -> dict | None:
        """Keep what was measured after the run, in place of an older measurement of the same section, which it returns.

        Args:
            section: its title in the card: `METRICS` or `TRAINING_METRICS`, or another.
            tables: as `markdown` describes them. text: a paragraph before them. command: that measured.
            results: for the card's metadata. summary: the table for the card, of ten lines; the first of `tables` if None.
        """
        values = [{k: v for k, v in asdict(r).items() if v is not None} for r in results]
        new = {"text": text, "tables": tables, "command": command, "results": values}
        earlier = self.evaluation.get(section)
        sections = self.evaluation | {section: new | ({"summary": summary} if summary else {})}
        self._write(EVALUATION, {"format": FORMAT, "sections": sections})
        parts = [f"## {title}\n\n{one['text']}\n\n{markdown(one['tables'])}\n" for title, one in sections.items()]
        page = "\n".join(["# What was measured after the run\n", *parts])
        write_text(self.path / EVALUATION_PAGE, without_absolute(page, self.path))
        return earlier

    @property
    def audit(self) -> dict:
        """Options, parts and, once it is finished, verdicts of an audit."""
        return read_json(self.path / AUDIT)

    def claim(self, *instances, what: str = "figures", free=(), leave_out=(), networks: list[dict] | None = None) -> None:
        """Write options and networks to a folder of results, which may hold some of the same options already.

        Args:
            instances: the options. what: the folder holds, for the message. free: options that may differ from time to time.
            leave_out: options that are not written. networks: how feature networks describe themselves.

        Raises:
            InputError: the folder holds results of other options or networks.
        """
        options = portable_options(plain_options(*instances, leave_out=leave_out), self.path)
        text = yaml.safe_dump(options, sort_keys=False)
        wanted = yaml.safe_load(text)
        if (self.path / OPTIONS).is_file():
            written = portable_options(self.options, self.path)  # of an older version as seen from here
            changed = differences(*({k: v for k, v in o.items() if k not in free} for o in (written, wanted)))
            if networks is not None and read_json(self.path / NETWORKS) != networks:
                changed = sorted([*changed, "networks"])
            if changed:
                raise InputError(
                    f"'{self.path}' holds {what} made with other options ({', '.join(changed)}); "
                    "choose another --output_dir, or empty it."
                )
        if networks is not None:
            write_json(self.path / NETWORKS, networks)
        write_text(self.path / OPTIONS, text)

    def make_portable(self) -> None:
        """Take absolute paths out of the files that libraries wrote; what a patch lies on is given as seen from here."""
        for file in sorted([*self.path.glob("*.json"), *self.path.glob("*/*.json")]):
            if not file.relative_to(self.path).parts[0].startswith(("checkpoint-", ".")):
                content = read_json(file)
                new = without_absolute(content, self.path)
                if file.name == PATCHES:
                    new = [portable(place, self.path) for place in content]
                elif file.name == ADAPTER and content.get(BASE):
                    new[BASE] = portable(content[BASE], self.path)
                if new != content:
                    write_json(file, new)

    def _write(self, name, content) -> None:
        write_json(self.path / name, without_absolute(content, self.path))

    def _versioned(self, name) -> dict:
        content = read_json(self.path / name)
        if content.get("format", FORMAT) > FORMAT:
            raise InputError(
                f"'{self.path / name}' has format {content['format']}, and this version of hf_i2i_unlearn reads formats "
                f"up to {FORMAT}; update the package."
            )
        return content


def claim_folder(folder, *instances, **options) -> None:
    """`RunFolder(folder).claim(...)`."""
    RunFolder(folder).claim(*instances, **options)


def refuse_full_folder(output_dir: str, resuming: bool) -> None:
    """Raise InputError if results would be written over something and the run does not resume it."""
    folder = Path(output_dir)
    if folder.is_file():
        raise InputError(f"The output folder '{output_dir}' is a file; choose another --output_dir.")
    if folder.is_dir() and any(folder.iterdir()) and not resuming:
        hint = " or go on with it: --resume_from_checkpoint true" if any(folder.glob("checkpoint-*")) else ""
        raise InputError(f"The output folder '{output_dir}' is not empty; choose another --output_dir, empty it{hint}.")


def write_run(path, *instances, leave_out=()) -> None:
    """Write the options of a run as YAML that `--config` reads: see `plain_options`."""
    options = portable_options(plain_options(*instances, leave_out=leave_out), Path(path).parent)
    write_text(path, yaml.safe_dump(options, sort_keys=False))


def plain_options(*instances, leave_out=()) -> dict:
    """Option dataclasses as what YAML can hold: ours in full, the Trainer's where they are not the default.

    Access tokens are left out, and the options named in `leave_out`.
    """
    from transformers import TrainingArguments  # which brings peft; the names of the files are for every --help

    options = {}
    for instance in instances:
        for option in fields(instance):
            value = getattr(instance, option.name)
            default = (
                option.default_factory()
                if option.default is MISSING and option.default_factory is not MISSING
                else option.default
            )
            ours = not isinstance(instance, TrainingArguments) or option.name in vars(type(instance))["__annotations__"]
            secret = "token" in option.name or option.name in leave_out
            if not secret and option.init and (ours or value != default):
                options[option.name] = _plain(value)
    return options


def _plain(value):
    """Enums and dataclasses of the Trainer as what YAML can hold."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
