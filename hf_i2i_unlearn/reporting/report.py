"""One page on an unlearned checkpoint that needs nothing else: no network, no script, no font, no other file."""

import base64
import io
import math
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from PIL import Image

from ..errors import InputError
from ..places import without_absolute
from ..storage import read_json, write_text
from . import request
from .curve import relearning_svg
from .facts import MEANINGS, asked, before_after, done, versions
from .plain import called, hidden, test_of
from .run_folder import FIGURES, METRICS, OPTIONS, RESULTS, TRAINING_METRICS, RunFolder
from .sections import summary

TEMPLATES = Path(__file__).parent / "templates"


LARGEST_PICTURE = 400_000  # bytes; larger ones are stored as JPEG
MOST_ROWS = 100  # of the table of pictures; request.json has them all

STATUS_CLASSES = {
    "trace found": "bad", "weakened": "middling", "inconclusive": "middling", "no trace found": "good", "holds": "good",
}  # fmt: skip

TITLES = {METRICS: "Pictures that were not trained on", TRAINING_METRICS: "The training pictures"}  # by section of the card


def write_report(
    folder,
    pictures: bool = True,
    evaluation: str | None = None,
    audit=None,
    output_dir=None,
    show_forgotten: bool = False,
) -> Path:
    """Write `report.html` from the data in the folder of a run.

    Args:
        folder: the output folder of an unlearning run. pictures: show the before/after pictures of the run.
        evaluation: an output folder of `evaluate`, whose tables to show; those that the folder has itself if None.
        audit: an output folder of `audit`; the folder itself if None. output_dir: where the page goes; the folder if None.
        show_forgotten: show the pictures of a run of before the option --show_forgotten too, though the forget set is among
            them.

    Raises:
        InputError: no run.yaml, no figures.json, or no figures where --evaluation says.
    """
    run = RunFolder(folder)
    for name in (OPTIONS, FIGURES):
        if not folder or not (run.path / name).is_file():
            raise InputError(f"'{folder}' has no {name}; give --model the output folder of an unlearning run.")
    target = RunFolder(output_dir or folder)
    write_text(target.report, without_absolute(_report(run, pictures, evaluation, audit, show_forgotten), target.path))
    return target.report


def _report(run: RunFolder, pictures, evaluation, audit, show_forgotten) -> str:
    record, figures = run.record, run.figures
    found = RunFolder(audit).audit if audit else run.audit
    shown = pictures and run.picture.is_file() and ("show_forgotten" in record or show_forgotten)
    return _page(
        "report.html",
        name=run.name,
        original=called(record["base_model"]) if record else None,
        date=_now(),
        asked=asked(record, run.request) if record or run.request else {},
        done=done(record, figures.get("retain_bound")) if record else {},
        **_request(run.request),
        corruption=hidden(record["eval_corruption"]) if record else None,
        before_after=before_after(figures, "hole error", record.get("metrics"), plain=True),
        meanings={key: MEANINGS[key] for key in ("mse", "drift")},
        evaluations=_evaluations(run, evaluation),
        pictures=[data_uri(run.picture)] if shown else [],
        forgotten_shown=record.get("show_forgotten", True),
        audit=found if "verdicts" in found else None,
        status_classes=STATUS_CLASSES | request.STATUS_CLASSES,
        test_of=test_of,
        curve=relearning_svg(found) if found else None,
        masks=_masks(found),
        trained_with=versions(record) if record else None,
        made_with={p: version(p) for p in ("torch", "transformers", "diffusers", "datasets")},
        hashes=run.weight_files(),
    )


def verification_page(found: dict) -> str:
    """The page of a verification: `found` as `reporting.request` describes it, with "model", "certified_on" and "checks"."""
    page = _page(
        "verified.html",
        date=found["date"],
        model=called(found["model"]),
        asked=asked({}, found),
        status_classes=request.STATUS_CLASSES,
        **_request(found),
    )
    return without_absolute(page, ".")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


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
        "request_pictures": request.worst(found, MOST_ROWS),
        "request_masks": [hidden(word) for word, mask in found["masks"].items() if mask["trained"]],
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
            word, _, trained = line["title"].removeprefix("Mask ").partition(" (")
            cells = [f"{f['before']:.3g}", f"{f['after']:.3g}", times, f"{f['blank']:.3g}", left]
            found.append(line | {"hidden": hidden(word) + (f" ({trained}" if trained else ""), "cells": cells})
    return found


def _evaluations(run: RunFolder, folder: str | None) -> list[dict]:
    """{"title", "head", "rows"} of what was measured after the run, ten lines a section at most.

    Args:
        folder: an output folder of `evaluate`, all of whose tables are shown. None: the run's own say, else any rows in a
            results.json there.
    """
    if folder is None and run.evaluation:
        return [
            table | {"title": TITLES.get(section, section)}
            for section, content in run.evaluation.items()
            for table, _ in titled([summary(content)] if content["tables"] else [])
        ]
    file = Path(folder or run.path) / RESULTS
    if folder and not file.is_file():
        raise InputError(f"'{folder}' has no {RESULTS}; give --evaluation the output folder of `hf-i2i-unlearn evaluate`.")
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
