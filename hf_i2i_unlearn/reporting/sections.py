"""Sections of a card from data: what was measured after the run, and the audit."""

from pathlib import Path

from huggingface_hub import EvalResult

from ..markdown import cell, table, tables
from .run_folder import AUDIT, EVALUATION_PAGE


def evaluation_section(content: dict) -> tuple[str, list[EvalResult]]:
    """Text and metadata of a section of evaluation.json, see `RunFolder.write_evaluation`."""
    parts = [content["text"]] if content["text"] else []
    if content["tables"]:
        shown = summary(content)
        parts += [tables([shown])]
        if content["tables"] != [shown]:
            parts.append(f"All tables are in [{EVALUATION_PAGE}]({EVALUATION_PAGE}).")
    parts += [f"```bash\n{content['command']}\n```"] if content["command"] else []
    return "\n\n".join(parts), [EvalResult(**result) for result in content["results"]]


def summary(content: dict) -> dict:
    """The table of a section of evaluation.json that card and report show: ten lines at most."""
    table = content.get("summary") or content["tables"][0]
    return table | {"rows": table["rows"][:10]}


def audit_section(audit: dict) -> tuple[str, list[EvalResult]]:
    """Text and metadata of a finished audit, as audit.json holds it."""
    rows = [[cell(v["title"]), f"**{v['status']}**", cell(v["finding"])] for v in audit["verdicts"]]
    caveats = {}  # the same caveat once, with all the tests that it holds for
    for v in audit["verdicts"]:
        if v["caveat"]:
            caveats.setdefault(v["caveat"], []).append(v["title"])
    parts = [
        audit["overall"],
        audit["suppression"],
        table(["test", "verdict", "what was measured"], rows),
        "Caveats:",
        "\n".join(f"- {', '.join(titles)}: {caveat}" for caveat, titles in caveats.items()),
        f"```bash\n{audit['command']}\n```",
        f"All figures and curves are in `{AUDIT}`.",
    ]
    return "\n\n".join(parts), _audit_results(audit)


def _audit_results(audit):
    parts, dataset, found = audit["parts"], audit["sets"]["dataset"], []
    dataset = Path(dataset).name if Path(dataset).exists() else dataset

    def add(split, kind, name, value):
        found.append(
            EvalResult("image-to-image", dataset, dataset, kind, round(value, 4), dataset_config=split, metric_name=name)
        )

    for split in ("forget", "retain"):
        part = parts.get(f"membership/{split}", {})
        for when in ("before", "after"):
            if when in part:
                add(split, "membership_auc", f"AUC of membership inference, {when} unlearning", part[when]["auc"])
    mine = parts.get("relearning/unlearned", {})
    if mine.get("steps") is not None:
        add("forget", "relearning_steps", f"steps of training on {mine['pictures']} forget pictures to relearn", mine["steps"])
    return found


def split_sections(text: str) -> list[tuple[str, str]]:
    """[(title, Markdown with its heading)] of the parts that begin with `## `, after what stands above them, titled ""."""
    sections, fence = [("", "")], ""
    for line in text.splitlines(keepends=True):
        mark = line.lstrip()[:3]
        if mark in ("```", "~~~") and fence in ("", mark):  # what looks like a heading in code is none
            fence = "" if fence else mark
        if line.startswith("## ") and not fence:
            sections.append((line[3:].strip(), ""))
        title, above = sections[-1]
        sections[-1] = title, above + line
    return sections


def place_section(sections: list[tuple[str, str]], title: str, text: str) -> None:
    """Put a section in the place of that of its title, else before "Limits", else last."""
    titles = [name for name, _ in sections]
    if title in titles:
        sections[titles.index(title)] = (title, text)
    else:
        sections.insert(titles.index("Limits") if "Limits" in titles else len(sections), (title, text))
