"""One page on an unlearned checkpoint that needs nothing else: no network, no script, no font, no other file."""

import base64
import io
import math
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from PIL import Image

from ..errors import InputError
from ..storage import read_json, write_text
from . import request
from .curve import relearning_svg
from .facts import ASKED, MEANINGS, before_after, facts, versions
from .run_folder import FIGURES, METRICS, OPTIONS, RESULTS, TRAINING_METRICS, RunFolder

TEMPLATES = Path(__file__).parent / "templates"


LARGEST_PICTURE = 400_000  # bytes; larger ones are stored as JPEG


STATUS_CLASSES = {
    "trace found": "bad", "weakened": "middling", "inconclusive": "middling", "no trace found": "good", "holds": "good",
}  # fmt: skip

TITLES = {METRICS: "", TRAINING_METRICS: "Training pictures, "}  # what stands before a table's title, by its section


def write_report(folder, pictures: bool = True, evaluation: str | None = None) -> Path:
    """Write `report.html` into the folder, from the data in it.

    Args:
        folder: the output folder of an unlearning run. pictures: show the before/after pictures.
        evaluation: an output folder of `evaluate`, whose tables to show; those that the folder has itself if None.

    Raises:
        InputError: no run.yaml, no figures.json, or no figures where --evaluation says.
    """
    run = RunFolder(folder)
    for name in (OPTIONS, FIGURES):
        if not folder or not (run.path / name).is_file():
            raise InputError(f"'{folder}' has no {name}; give --model the output folder of an unlearning run.")
    record, figures, audit = run.record, run.figures, run.audit
    rows = facts(record, figures.get("retain_bound")) if record else {}
    page = _page(
        "report.html",
        name=run.name,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        asked={k: v for k, v in rows.items() if k in ASKED},
        done={k: v for k, v in rows.items() if k not in ASKED},
        **_request(run.request),
        corruption=record.get("eval_corruption"),
        before_after=before_after(figures, "hole error", record.get("metrics")),
        figures=MEANINGS,
        evaluations=_evaluations(run, evaluation),
        pictures=[data_uri(run.picture)] if pictures and run.picture.is_file() else [],
        audit=audit,
        status_classes=STATUS_CLASSES | request.STATUS_CLASSES,
        curve=relearning_svg(audit) if audit else None,
        masks=_masks(audit),
        commands=[content["command"] for content in (record, audit) if content.get("command")],
        trained_with=versions(record) if record else None,
        made_with={p: version(p) for p in ("torch", "transformers", "diffusers", "datasets")},
        hashes=run.weight_files(),
    )
    write_text(run.report, page)
    return run.report


def verification_page(found: dict) -> str:
    """The page of a verification: `found` as `reporting.request` describes it, with "model", "certified_on" and "checks"."""
    return _page("verified.html", date=found["date"], status_classes=request.STATUS_CLASSES, **_request(found))


def _page(template: str, **words) -> str:
    import jinja2
    from markupsafe import Markup

    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, loader=loader
    )
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(style=style, **words)


def _request(found: dict) -> dict:
    """Whether the request was honoured, for the template."""
    if not found:
        return {"request": None}
    return {
        "request": found,
        "request_status": request.status(found),
        "request_headline": request.headline(found),
        "request_details": request.details(found),
        "request_worst": request.worst(found),
        "request_remains": request.remains(found),
    }


def _masks(audit: dict) -> list[dict]:
    """The verdicts on other masks, with their figures as cells."""
    found = []
    for line in audit.get("verdicts", []):
        if line["part"].startswith("leakage/"):
            f = audit["parts"][line["part"]]
            left = "-" if f["lead_left"] is None else f"{f['lead_left']:.0%}"
            times = f"{f['change']['ratio']:.2f} ({f['change']['low']:.2f} to {f['change']['high']:.2f})"
            found.append(line | {"cells": [f"{f['before']:.3g}", f"{f['after']:.3g}", times, f"{f['blank']:.3g}", left]})
    return found


def _evaluations(run: RunFolder, folder: str | None) -> list[dict]:
    """{"title", "head", "rows"} of what was measured after the run.

    Args:
        folder: an output folder of recipes/evaluate.py. None: the run's own says, else any rows in a results.json there.
    """
    if folder is None and run.evaluation:
        return [
            table | {"title": TITLES.get(section, f"{section}, ") + title}
            for section, content in run.evaluation.items()
            for table, title in titled(content["tables"])
        ]
    file = Path(folder or run.path) / RESULTS
    if folder and not file.is_file():
        raise InputError(f"'{folder}' has no {RESULTS}; give --evaluation the output folder of recipes/evaluate.py.")
    found = read_json(file)
    if "tables" in found:
        return [table | {"title": title} for table, title in titled(found["tables"])]
    return _tables(found)


def titled(tables: list[dict]):
    """Each table with its title and caption as one line."""
    for table in tables:
        plain = table | {
            "head": [_plain(c) for c in table["head"]],
            "rows": [[_plain(c) for c in row] for row in table["rows"]],
        }
        yield plain, ": ".join(word for word in (table.get("title"), table.get("caption")) if word) or "Results"


def _plain(cell) -> str:
    """A cell without Markdown's marks."""
    return str(cell).strip("*`")


def _tables(results) -> list[dict]:
    """Every list of rows (dicts of plain values) anywhere in a JSON, as {"title", "head", "rows"}."""
    found = []

    def walk(value, path):
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            head = list(dict.fromkeys(key for row in value for key, cell in row.items() if not isinstance(cell, (dict, list))))
            if head:
                found.append(
                    {
                        "title": " / ".join(path) or "Results",
                        "head": head,
                        "rows": [[_cell(r.get(k)) for k in head] for r in value],
                    }
                )
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, [*path, str(key)])

    walk(results, [])
    return found


def _cell(value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    return str(value)


def data_uri(file: Path) -> str:
    """A picture as a data URI: as it is, or as a JPEG where that is large."""
    content, kind = file.read_bytes(), "png"
    for side in (1600, 1200, 800, 500):
        if len(content) <= LARGEST_PICTURE:
            break
        picture, buffer = Image.open(file).convert("RGB"), io.BytesIO()
        picture.thumbnail((side, side))
        picture.save(buffer, "JPEG", quality=80)
        content, kind = buffer.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
