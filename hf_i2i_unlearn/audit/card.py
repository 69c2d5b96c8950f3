"""The audit as the section of a card."""

from pathlib import Path

from huggingface_hub import EvalResult

from ..reporting.model_card import update_card


def audit_section(folder, audit: dict) -> None:
    """Write verdicts and figures of `audit` into the section "Audit" of the card in `folder`.

    Raises:
        InputError: the folder has no card.
    """
    lines = [audit["overall"], "", audit["suppression"], "", "| test | verdict | what was measured |", "|---|---|---|"]
    lines += [f"| {_cell(v['title'])} | **{v['status']}** | {_cell(v['finding'])} |" for v in audit["verdicts"]]
    caveats = {}  # the same caveat once, with all the tests that it holds for
    for v in audit["verdicts"]:
        if v["caveat"]:
            caveats.setdefault(v["caveat"], []).append(v["title"])
    lines += ["", "Caveats:", ""] + [f"- {', '.join(titles)}: {caveat}" for caveat, titles in caveats.items()]
    lines += ["", "```bash", audit["command"], "```", "", "All figures and curves are in `audit.json`."]
    update_card(folder, "Audit", "\n".join(lines), results(audit))


def results(audit: dict) -> list[EvalResult]:
    """The figures that the Hub's model-index can hold."""
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


def _cell(text):
    return text.replace("|", "\\|")
