"""One page on an unlearned checkpoint that needs nothing else: no network, no script, no font, no other file."""

import base64
import hashlib
import io
import json
import math
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import jinja2
from markupsafe import Markup
from PIL import Image

from ..errors import InputError
from ..evaluation.tables import FIGURES
from .curve import relearning_svg

FILE = "report.html"


PICTURES = ("before_after.png",)


LARGEST_PICTURE = 400_000  # bytes; larger ones are stored as JPEG


STATUS_CLASSES = {
    "trace found": "bad",
    "weakened": "middling",
    "inconclusive": "middling",
    "no trace found": "good",
    "holds": "good",
}


@dataclass
class ReportArguments:
    """The folder that the page is about."""

    model: str = field(default="", metadata={"help": "The output folder of an unlearning run."})
    pictures: bool = field(
        default=True, metadata={"help": "Show the before/after pictures; false where they may not be shown."}
    )
    evaluation: str | None = field(
        default=None,
        metadata={"help": "An output folder of recipes/evaluate.py whose tables to show; those of the card if not given."},
    )


def write_report(args: ReportArguments) -> Path:
    """Write `report.html` into the folder, from what is there.

    Raises:
        InputError: no run.yaml, no figures.json, or no tables where --evaluation says.
    """
    folder = Path(args.model)
    for name in ("run.yaml", "figures.json"):
        if not args.model or not (folder / name).is_file():
            raise InputError(f"'{args.model}' has no {name}; give --model the output folder of an unlearning run.")
    audit = _json(folder / "audit.json")
    card = (folder / "README.md").read_text() if (folder / "README.md").is_file() else ""
    facts = dict(_facts(card))
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(TEMPLATE).render(
        name=folder.resolve().name,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        asked={k: v for k, v in facts.items() if k in ASKED},
        done={k: v for k, v in facts.items() if k not in ASKED},
        corruption=next(iter(re.findall(r"Corruption T\(x\): `(.+?)`", card)), None),
        before_after=_before_after(_json(folder / "figures.json")),
        figures=FIGURES,
        evaluations=_evaluations(Path(args.evaluation or folder), _metrics(card), bool(args.evaluation)),
        pictures=[data_uri(folder / p) for p in PICTURES if args.pictures and (folder / p).is_file()],
        audit=audit,
        status_classes=STATUS_CLASSES,
        curve=relearning_svg(audit) if audit else None,
        masks=_masks(audit or {}),
        commands=[c for c in (_command(card), (audit or {}).get("command")) if c],
        trained_with=next(iter(re.findall(r"Versions: (.+?)\.\n", card + "\n")), None),
        made_with={p: version(p) for p in ("torch", "transformers", "diffusers", "datasets")},
        hashes=file_hashes(folder),
        style=Markup(STYLE),
    )
    (folder / FILE).write_text(page, encoding="utf-8")
    return folder / FILE


ASKED = ("dataset", "forget set", "retain set")


def _json(file: Path):
    return json.loads(file.read_text()) if file.is_file() else None


def _section(card: str, title: str) -> str:
    return card.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def _metrics(card: str) -> str:
    """What recipes/evaluate.py put into the card, of the evaluation split and of training pictures."""
    training = _section(card, "Metrics on training pictures")
    return _section(card, "Metrics") + (re.sub("(?m)^### ", "### Training pictures, ", training) if training else "")


def _facts(card: str):
    """The rows of the table under "What was forgotten, and how" of a card: what was asked for is said there without names."""
    section = _section(card, "What was forgotten, and how")
    for key, value in re.findall(r"(?m)^\| (.+?) \| (.*) \|$", section):
        yield key, value.replace("`", "")


def _command(card: str) -> str | None:
    section = _section(card, "What was forgotten, and how")
    found = re.search(r"```bash\n(.+?)\n```", section, re.DOTALL)
    return found[1] if found else None


def _before_after(figures: dict) -> dict:
    """{"head", "rows"} of what `Evaluator` measured."""
    rows = [
        [
            name,
            f["count"],
            f"{f['original_mse']:.3f}",
            f"{f['mse']:.3f}",
            f"{f['original_psnr']:.1f} dB",
            f"{f['psnr']:.1f} dB",
            f"{f['drift']:.3f}",
        ]
        for name, f in figures.items()
        if name in ("forget", "retain")
    ]
    head = ["set", "pictures", "hole error before", "after", "PSNR before", "after", "drift"]
    return {"head": head, "rows": rows}


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


def _evaluations(folder: Path, metrics: str, required: bool) -> list[dict]:
    """Tables of recipes/evaluate.py: of its folder, else those it put into the card, else the rows in any results.json."""
    if (folder / "table.md").is_file():
        return _markdown_tables((folder / "table.md").read_text())
    if required:
        raise InputError(f"'{folder}' has no table.md; give --evaluation the output folder of recipes/evaluate.py.")
    return _markdown_tables(metrics) or _tables(_json(folder / "results.json"))


def _markdown_tables(text: str) -> list[dict]:
    """The tables of a Markdown text as {"title", "head", "rows"}, each titled by its headings and the paragraph above it."""
    found, headings, above = [], {}, ""
    for block in re.split(r"\n\s*\n", text):
        lines = block.strip().splitlines()
        if not lines:
            continue
        if lines[0].startswith("#"):
            level = len(lines[0]) - len(lines[0].lstrip("#"))
            headings = {k: v for k, v in headings.items() if k < level} | {level: lines[0].lstrip("# ")}
            above = ""
        elif lines[0].startswith("|") and len(lines) > 1:
            rows = [[cell.strip().strip("*`") for cell in line.strip().strip("|").split("|")] for line in lines]
            title = ": ".join([*headings.values(), *([above] if above else [])])
            found.append({"title": title or "Results", "head": rows[0], "rows": rows[2:]})
        else:
            above = " ".join(lines)
    return found


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


def file_hashes(folder: Path) -> dict[str, str]:
    """{file name: SHA-256} of the weights in a folder."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as opened:
            found[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return found


STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --paper: #fff; --line: #d0d7de; --box: #f4f6f8;
  --bad: #9a2a00; --middling: #6b5200; --good: #0a5c36; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #a9b1ba; --paper: #15181c; --line: #3a4149; --box: #1f242a;
  --bad: #ff9a6b; --middling: #e8c65a; --good: #6fd3a0; } }
* { box-sizing: border-box; }
body { margin: 0; font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); overflow-wrap: break-word; }
main { max-width: 58rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
p, ul, dl { margin: .5rem 0; }
.soft, figcaption { color: var(--soft); font-size: .92rem; }
.verdict { border-left: 6px solid var(--middling); background: var(--box); padding: .8rem 1rem; margin: 1rem 0; }
.verdict p:first-child { font-weight: 600; font-size: 1.08rem; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .93rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .7rem; border-bottom: 1px solid var(--line); }
.numbers th, .numbers td { white-space: nowrap; }
.facts th { min-width: 7rem; max-width: 14rem; font-weight: 600; }
.facts td { overflow-wrap: anywhere; }
.tests { list-style: none; padding: 0; }
.tests > li { border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem; margin: .7rem 0; break-inside: avoid; }
.tests h3 { margin: 0 0 .3rem; }
.status { display: inline-block; border: 2px solid currentColor; border-radius: 4px; padding: 0 .45rem; font-size: .85rem; font-weight: 700; }
.bad { color: var(--bad); } .middling { color: var(--middling); } .good { color: var(--good); }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; background: #fff; }
.curve { width: 100%; max-width: 40rem; height: auto; display: block; }
.curve text { font: 13px system-ui, sans-serif; fill: var(--ink); }
.grid { stroke: var(--line); } .target { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 3 3; }
.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .9rem; }
pre { background: var(--box); padding: .7rem .9rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
code { overflow-wrap: anywhere; font-size: .88em; }
dt { font-weight: 600; margin-top: .6rem; } dd { margin: 0 0 0 1rem; }
@media print { body { font-size: 11pt; } main { max-width: none; padding: 0; } h2 { break-after: avoid; } .scroll { overflow: visible; } }
"""


TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Unlearning report: {{ name }}</title>
<style>{{ style }}</style>
</head>
{% macro table(head, rows, caption) %}
<div class="scroll" tabindex="0" role="region" aria-label="{{ caption }}">
<table class="numbers">
<thead><tr>{% for cell in head %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr>{% for cell in row %}{% if loop.first %}<th scope="row">{{ cell }}</th>{% else %}<td>{{ cell }}</td>{% endif %}{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endmacro %}
{% macro facts(rows) %}
<div class="scroll" tabindex="0" role="region" aria-label="Facts">
<table class="facts"><tbody>
{% for key, value in rows.items() %}
<tr><th scope="row">{{ key }}</th><td>{{ value }}</td></tr>
{% endfor %}
</tbody></table>
</div>
{% endmacro %}
{% macro status(word) %}<span class="status {{ status_classes.get(word, "soft") }}">{{ word }}</span>{% endmacro %}
<body>
<main>
<h1>Unlearning report: {{ name }}</h1>
<p class="soft">Made on {{ date }}</p>
<div class="verdict">
{% if audit and audit.verdicts is defined %}
<p>{{ audit.overall }}</p>
<p>{{ audit.suppression }}</p>
{% else %}
<p>Whether it stays forgotten was not tested: there is no finished audit.</p>
<p>The method suppresses and does not erase: it keeps the model from using what it knows.</p>
{% endif %}
</div>

<h2>What was asked</h2>
{% if asked %}
<p>A model that completes pictures was to lose this ability for some of them (the forget set) and to keep it for the others (the
retain set).</p>
{{ facts(asked) }}
{% else %}
<p>The folder has no card, so what was asked is not recorded here.</p>
{% endif %}

<h2>What was done</h2>
{% if done %}
<p>The model was trained further on both sets at once. The technical facts:</p>
{{ facts(done) }}
{% else %}
<p>The folder has no card; the options of the run are in its run.yaml.</p>
{% endif %}

<h2>Before and after</h2>
<p>Parts of pictures were hidden{% if corruption %} ({{ corruption }}){% endif %} and completed by the model, before and after. A
larger error on the forget set is what was wanted; on the retain set there should be no change.</p>
{{ table(before_after.head, before_after.rows, "Errors before and after") }}
<ul class="soft">
{% for key, words in figures.items() %}
<li>{{ {"mse": "hole error", "psnr": "PSNR"}.get(key, key) }}: {{ words }}</li>
{% endfor %}
</ul>
{% for picture in pictures %}
<figure>
<img src="{{ picture }}" alt="Pictures of the retain and the forget set, each whole, with its hidden part, and as completed by the model before and after unlearning">
<figcaption>Examples of both sets: the picture, what the model is shown of it, and its completions before and after.</figcaption>
</figure>
{% else %}
<p class="soft">No pictures are shown.</p>
{% endfor %}
{% if evaluations %}

<h2>Further measurements</h2>
{% for t in evaluations %}
<h3>{{ t.title }}</h3>
{{ table(t.head, t.rows, t.title) }}
{% endfor %}
{% endif %}

<h2>Audit: does it stay forgotten?</h2>
{% if audit and audit.verdicts is defined %}
<p>Each test plays an attacker. A trace that was found is a fact; a test that found none proves nothing about other attacks.</p>
<ul class="tests">
{% for v in audit.verdicts if not v.part.startswith("leakage/") %}
<li>
<h3>{{ v.title }}</h3>
<p>{{ status(v.status) }}</p>
<p>{{ v.finding }}</p>
{% if v.caveat %}
<p class="soft">{{ v.caveat }}</p>
{% endif %}
</li>
{% endfor %}
</ul>
{% if curve %}
<figure>
{{ curve }}
<figcaption>Relearning: the error on held-out forget pictures while models are trained in the ordinary way on a few others. A line
ends where the model completes them again, or where the test ended.</figcaption>
</figure>
{% endif %}
{% if masks %}
<h3>Other masks than the trained one</h3>
<p>Forget pictures, hidden in other ways: the error before and after, how many times as large it is (with its 95% interval), that of a
blank fill (the mean colour of what is visible), and how much of the original's lead over the blank fill is left. A trace is found
where the error may be within {{ "%.0f"|format(100 * audit.options.tolerance) }}% of the original's, weakened means
less than half of the rise under the trained mask, or more than half of that lead.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Errors under other masks">
<table class="numbers">
<thead><tr>{% for cell in ["mask", "verdict", "before", "after", "times", "blank fill", "lead left"] %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for m in masks %}
<tr><th scope="row">{{ m.title.removeprefix("Mask ") }}</th><td>{{ status(m.status) }}</td>{% for cell in m.cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
{% else %}
<p>Not done. <code>recipes/audit.py --model FOLDER</code> does it and writes this page again.</p>
{% endif %}

<h2>What this page does not show</h2>
<ul>
<li>That anything was erased. What a model knows is in its weights, and only training without the pictures keeps it out of them.</li>
<li>That stronger attacks than these would fail, or that other copies of the original model are not in use.</li>
<li>That a high error means noise: it says that the truth is not reproduced.</li>
</ul>

<h2>Words</h2>
<dl>
<dt>Forget set, retain set</dt><dd>The pictures that the model should no longer be able to complete, and those that it should complete as before.</dd>
<dt>Hole, mask</dt><dd>The hidden part of a picture, which the model has to fill in, and the rule by which it is hidden.</dd>
<dt>Relearning</dt><dd>Training the model again on a few forget pictures. If that restores the rest of them at once, they were still known.</dd>
<dt>Membership inference, AUC</dt><dd>Guessing whether a picture was trained on. AUC is the share of pairs in which the guess is right: 0.5 is chance, 1 is certainty.</dd>
<dt>Linear probe</dt><dd>The simplest classifier on the model's inner representation of a picture. What it reads there is there.</dd>
</dl>

<h2>To check or repeat this</h2>
{% for command in commands %}
<pre>{{ command }}</pre>
{% endfor %}
<p>The options of the run are in <code>run.yaml</code> beside the model{% if audit %}, all figures of the audit in <code>audit.json</code>{% endif %}.</p>
{% if hashes %}
<h3>SHA-256 of the weights</h3>
<ul>
{% for file, digest in hashes.items() %}
<li>{{ file }}: <code>{{ digest }}</code></li>
{% endfor %}
</ul>
{% endif %}
<h3>Versions</h3>
<ul>
{% if trained_with %}
<li>Unlearning: {{ trained_with }}</li>
{% endif %}
{% if audit and audit.made_with is defined %}
<li>Audit ({{ audit.date }}): {% for package, number in audit.made_with.items() %}{{ package }} {{ number }}{{ ", " if not loop.last }}{% endfor %}</li>
{% endif %}
<li>This page: {% for package, number in made_with.items() %}{{ package }} {{ number }}{{ ", " if not loop.last }}{% endfor %}</li>
</ul>
</main>
</body>
</html>
"""
