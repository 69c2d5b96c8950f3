"""The page for whoever asked: complete, on its own, safe, and well-formed."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from PIL import Image

from hf_i2i_unlearn import InputError
from hf_i2i_unlearn.audit.verdicts import SUPPRESSED, overall, verdicts
from hf_i2i_unlearn.reporting.curve import relearning_svg
from hf_i2i_unlearn.reporting.report import LARGEST_PICTURE, data_uri, write_report
from hf_i2i_unlearn.reporting.run_folder import METRICS, TRAINING_METRICS, RunFolder

HOSTILE = "<script>alert('x')</script> & \"co\" {{ 7 * 7 }}"
VOID = {"meta", "img", "br", "link", "input", "hr"}
SECTIONS = [
    "What was asked",
    "What was done",
    "Before and after",
    "Does it stay forgotten?",
    "What this page does not show",
    "For engineers",
]


class Page(HTMLParser):
    """Elements with their attributes, headings and texts; refuses what is not nested properly."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.headings, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        assert len(dict(attributes)) == len(attributes), f"an attribute of <{tag}> is there twice"
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append([int(tag[1]), ""])

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.text += data
        if self.open and re.fullmatch("h[1-6]", self.open[-1]):
            self.headings[-1][1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def relearned(**changes):
    return {
        "steps": 4,
        "learning_rate": 1e-3,
        "target": 1.0,
        "original_error": 0.8,
        "pictures": 5,
        "error": 0.9,
        "curve": [[0, 3.0], [1, 2.0], [4, 0.9]],
        "tried": [{"learning_rate": 1e-3, "steps": 4, "error": 0.9}],
    } | changes


def make_audit(name=""):
    auc = {"auc": 0.5, "low": 0.47, "high": 0.53}
    audit = {
        "options": {"tolerance": 0.25, "relearn_steps": 9, "corruption": "center:2"},
        "sets": {"dataset": "d", "forget": f"classes {name}"},
        "parts": {
            "relearning/unlearned": relearned(),
            "relearning/original": relearned(curve=[[0, 0.8], [9, 0.7]]),
            "membership/forget": {"before": auc, "after": auc, "members": 9, "others": 9, "unseen": f"of {name}"},
            "leakage/center:2": {
                "before": 1.0,
                "after": 2.0,
                "blank": 3.0,
                "lead_left": 0.5,
                "count": 9,
                "change": {"ratio": 2.0, "low": 1.9, "high": 2.1},
            },
        },
        "command": f"accelerate launch recipes/audit.py --model {name}",
        "date": "2026-01-01 00:00 UTC",
        "made_with": {"torch": "1"},
        "suppression": SUPPRESSED,
    }
    audit["verdicts"] = verdicts(audit)
    return audit | {"overall": overall(audit["verdicts"])}


def make_record(name="ant"):
    return {
        "base_model": "m", "base_model_on_hub": True, "license": "mit", "library": "transformers", "relation": "finetune",
        "usage": "the code", "decoder_untouched": True, "patch": None, "below": [],
        "dataset": "pictures", "dataset_on_hub": True,
        "forget": f"classes {name}", "forget_size": "12", "retain": "everything else", "retain_size": "30",
        "retain_availability": "full", "evaluation": "here", "alpha": 0.25, "distance": "mse", "noise": "N(0, I)",
        "method": {"name": "ours", "source": "eq. 10", "summary": "E is moved", "options": "variant: paper"},
        "corruption": "center:2", "eval_corruption": "center:3", "steps": 7, "batch": 16, "learning_rate": 0.001, "seed": 0,
        "kept": "last", "skipped": 0, "show_forgotten": True,
        "command": f"accelerate launch recipes/unlearn_mae.py --model {name}",
        "versions": {"torch": "1.2.3", "datasets": "4.5.6"},
    }  # fmt: skip


def make_folder(folder, name="ant"):
    """A finished run, evaluated and audited."""
    folder.mkdir()
    (folder / "run.yaml").write_text(yaml.safe_dump({"model": "m", "forget_values": ["Jane Doe"], "forget_list": "doe.txt"}))
    figures = {"count": 3, "mse": 2.0, "psnr": 8.0, "original_mse": 1.0, "original_psnr": 12.34, "drift": 0.5}
    (folder / "figures.json").write_text(
        json.dumps(
            {"retain": figures, "forget": figures, "retain_bound": {"holds": True, "bound": 0.5, "retain_distance": 0.25}}
        )
    )
    RunFolder(folder).write_record(make_record(name))
    rows = [{"checkpoint": name, "fid": 12.3456, "of": {"x": 1}}, {"checkpoint": "b", "fid": None, name: float("nan")}]
    (folder / "results.json").write_text(json.dumps({"made": "today", "rows": rows}))
    (folder / "audit.json").write_text(json.dumps(make_audit(name)))
    (folder / "model.safetensors").write_bytes(b"weights")
    Image.new("RGB", (30, 20)).save(folder / "before_after.png")
    return folder


def render(folder, **options):
    file = write_report(str(folder), **options)
    assert file == folder / "report.html"
    return file.read_text(encoding="utf-8")


def test_the_page_is_complete_and_well_formed(tmp_path):
    text = render(make_folder(tmp_path / "unlearned"))
    page = Page(text)
    assert [words for level, words in page.headings if level == 2] == [*SECTIONS[:3], "Further measurements", *SECTIONS[3:]]
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:]))
    for shown in (
        "classes ant", "everything else (30 pictures)", "ours (eq. 10): E is moved; variant: paper", "so the bound holds",
        "a square of 3x3 patches in the middle", "hole error before", "12.35", "4 steps of ordinary training",
        "suppression, not erasure", "trace found", "no trace found", "holds", "2.00 (1.90 to 2.10)", "50%",
        "made from m", "0.5 is guessing",
        "torch 1.2.3, datasets 4.5.6", hashlib.sha256(b"weights").hexdigest(), "1 of the 3 tests found something",
    ):  # fmt: skip
        assert shown in page.text, shown
    assert page.all("html")[0]["lang"] == "en" and "width=device-width" in str(page.all("meta"))
    shown = page.text.partition("Was the request")[2]
    assert "--" not in shown and "accelerate" not in page.text and "dB" not in page.text  # no words of a command line
    tables = len(page.all("table"))
    assert tables == 5 == sum("scroll" in a.get("class", "") for a in page.all("div"))  # wide ones scroll in their boxes
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))


def test_the_page_needs_nothing_from_outside(tmp_path):
    text = render(make_folder(tmp_path / "unlearned"))
    page = Page(text)
    assert {"script", "link", "iframe", "object", "embed", "base"}.isdisjoint(tag for tag, _ in page.elements)
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "xlink:href", "data"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style and "://" not in text
    assert "default-src 'none'" in page.all("meta")[2]["content"]


def tables_of(value):
    return [
        {"title": "center:2", "caption": "", "head": ["set", "hole error"], "rows": [["retain", value]]},
        {"title": "center:2", "caption": "Whole pictures.", "head": ["model", "retain FD"], "rows": [["**original**", "7.25"]]},
    ]


def test_tables_of_an_evaluation(tmp_path):
    folder = make_folder(tmp_path / "unlearned")
    assert "12.35" in Page(render(folder)).text  # rows of a results.json, where nothing says more
    run = RunFolder(folder)
    run.write_evaluation(METRICS, tables_of("0.515"))
    page = Page(render(folder))
    titles = [words for level, words in page.headings if level == 3]
    assert titles[0] == "Pictures that were not trained on"
    assert "0.515" in page.text and "7.25" not in page.text and "12.35" not in page.text and "**" not in page.text
    run.write_evaluation(TRAINING_METRICS, tables_of("0.625"))
    page = Page(render(folder))
    titles = [words for level, words in page.headings if level == 3]
    assert titles[1] == "The training pictures" and "0.515" in page.text and "0.625" in page.text
    run.write_evaluation(METRICS, tables_of("0.75"))
    assert "0.515" not in Page(render(folder)).text
    other = tmp_path / "evaluated"
    other.mkdir()
    with pytest.raises(InputError, match="has no results.json; give --evaluation"):
        render(folder, evaluation=str(other))
    left = {"title": "left:2", "caption": "", "head": ["a", "b"], "rows": [["x", "8.125"]]}
    (other / "results.json").write_text(json.dumps({"results": {}, "tables": [left]}))
    page = Page(render(folder, evaluation=str(other)))
    assert "8.125" in page.text and "left:2" in page.text and "7.25" not in page.text


def test_pictures_have_words_and_are_left_out_on_request(tmp_path):
    folder = make_folder(tmp_path / "unlearned")
    (image,) = Page(render(folder)).all("img")
    assert len(image["alt"]) > 30
    assert Image.open(io.BytesIO(base64.b64decode(image["src"].partition("base64,")[2]))).size == (30, 20)
    page = Page(render(folder, pictures=False))
    assert not page.all("img") and "No pictures are shown" in page.text


def test_large_pictures_are_made_light(tmp_path):
    folder = make_folder(tmp_path / "unlearned")
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1800, 3), np.uint8)
    Image.fromarray(noise).save(folder / "before_after.png")
    assert (folder / "before_after.png").stat().st_size > 4_000_000
    uri = data_uri(folder / "before_after.png")
    assert uri.startswith("data:image/jpeg") and len(uri) <= 100 + LARGEST_PICTURE * 4 / 3
    assert len(render(folder)) < 1_500_000


def test_hostile_strings_are_shown_and_not_run(tmp_path):
    folder = make_folder(tmp_path / "unlearned", HOSTILE)
    text = render(folder)
    page = Page(text)
    assert "<script" not in text and not page.all("script")
    assert page.text.count(HOSTILE) >= 4  # asked, results (cell and head), audit; as they were, not evaluated


def test_people_are_not_named(tmp_path):
    text = render(make_folder(tmp_path / "unlearned"))
    assert "Jane" not in text and "doe.txt" not in text


def test_without_audit_record_and_evaluation_it_says_so(tmp_path):
    """As the folder of an older version is."""
    folder = make_folder(tmp_path / "unlearned")
    for name in ("audit.json", "run.json", "results.json", "before_after.png", "model.safetensors"):
        (folder / name).unlink()
    page = Page(render(folder))
    assert [words for level, words in page.headings if level == 2] == SECTIONS
    assert "was not tested: there is no finished audit" in page.text and "What was asked is not recorded" in page.text
    # A broken-off audit has no verdicts yet.
    (folder / "audit.json").write_text(json.dumps({"options": {}, "sets": {}, "parts": {}}))
    assert "there is no finished audit" in Page(render(folder)).text


@pytest.mark.parametrize("missing", ["run.yaml", "figures.json"])
def test_refuses_what_is_no_run(tmp_path, missing):
    folder = make_folder(tmp_path / "unlearned")
    (folder / missing).unlink()
    with pytest.raises(InputError, match=f"has no {missing}; give --model"):
        write_report(str(folder))
    with pytest.raises(InputError, match="has no run.yaml"):
        write_report("")


@pytest.mark.parametrize("name", ["run.json", "evaluation.json"])
def test_refuses_what_a_newer_version_wrote(tmp_path, name):
    folder = make_folder(tmp_path / "unlearned")
    (folder / name).write_text('{"format": 2}')
    with pytest.raises(
        InputError, match=f"{name}' has format 2, and this version of hf_i2i_unlearn reads formats up to 1; update"
    ):
        write_report(str(folder))


def test_the_curve_shows_the_numbers():
    svg = relearning_svg(make_audit())
    page = Page(str(svg))
    lines = [[[float(v) for v in p.split(",")] for p in a["points"].split()] for a in page.all("polyline")]
    assert [len(line) for line in lines] == [3, 2]
    (target,) = [float(a["y1"]) for a in page.all("line") if a.get("class") == "target"]
    mine = lines[0]
    assert mine[0][0] < mine[1][0] < mine[2][0] and mine[0][1] < mine[1][1] < target < mine[2][1]  # y grows downwards
    error = [3.0, 2.0, 0.9]
    slopes = [(mine[i + 1][1] - mine[i][1]) / (error[i] - error[i + 1]) for i in (0, 1)]
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-2) and target - mine[1][1] == pytest.approx(slopes[0] * 1.0, rel=1e-2)
    label = page.elements[0][1]["aria-label"]
    assert "the unlearned model: from 3 to 0.9 after 4 steps" in label and page.elements[0][1]["role"] == "img"
    assert relearning_svg({"parts": {"relearning/unlearned": {"skipped": "few"}}}) is None
