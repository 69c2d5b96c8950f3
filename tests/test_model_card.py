import hashlib
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from conftest import make_dataset, make_mae
from helpers.close import assert_close
from huggingface_hub import EvalResult, ModelCard
from test_lora import outputs, randomise

from hf_i2i_unlearn import DISTANCES, METHODS, InputError, UnlearningConfig, add_patch, load_model, merge
from hf_i2i_unlearn.commands.cli import command_line
from hf_i2i_unlearn.commands.jobs.record import model_facts, picture_facts, training_facts
from hf_i2i_unlearn.data.options import SplitArguments
from hf_i2i_unlearn.data.splits import build_splits
from hf_i2i_unlearn.reporting.model_card import inherited_license, update_card, write_card, write_section
from hf_i2i_unlearn.reporting.report import write_report
from hf_i2i_unlearn.reporting.run_folder import RunFolder, write_run

ROOT = Path(__file__).parents[1]
CARD = """---
license: mit
model-index:
- name: x
  results: []
---

# x

## Before and after

| a |

## Limits

- some
"""


def result(value, name="FID after"):
    return EvalResult("image-to-image", "d", "d", "fid", value, dataset_config="forget", metric_name=name)


def test_update_card_replaces_its_section_and_its_results(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    update_card(tmp_path, "Audit", "first", [result(1.0), result(7.0, "FID before")])
    update_card(tmp_path, "Audit", "second", [result(2.0)])
    text = (tmp_path / "README.md").read_text()
    assert text.count("## Audit") == 1 and "first" not in text
    assert text.index("| a |") < text.index("second") < text.index("## Limits") < text.index("- some")
    card = ModelCard.load(tmp_path / "README.md")
    assert sorted(r.metric_value for r in card.data.eval_results) == [2.0, 7.0]
    assert card.data.license == "mit"


def test_update_card_needs_a_card(tmp_path):
    with pytest.raises(InputError, match="no card"):
        update_card(tmp_path, "Audit", "text")


FIGURES = {"count": 2, "mse": 1.0, "psnr": 2.0, "original_mse": 0.5, "original_psnr": 3.0, "drift": 0.1}
DESCRIPTION = {
    "dataset": "some/data",
    "forget": "classes cat",
    "forget_size": "2",
    "retain": "everything else",
    "retain_size": "3",
    "retain_availability": "full",
    "evaluation": "split 'validation'",
}


def make_card(folder, model, patch=None, below=None, base_model="some/original", description=DESCRIPTION, args=None, **changes):
    args = args or UnlearningConfig(str(folder), use_cpu=True)
    facts = {
        "license": "mit", "corruption": "center:2", "eval_corruption": "center:3", "noise": "N(0, I)", "steps": 7, "skipped": 0,
        "command": "the command",
    }  # fmt: skip
    name = args.hub_model_id if args.push_to_hub else folder.name
    run = RunFolder(folder)
    run.write_figures({"forget": FIGURES, "retain": FIGURES})
    run.write_record(
        model_facts(model, base_model, name, patch, below)
        | picture_facts(description)
        | training_facts(args, METHODS["ours"], DISTANCES["mse"])
        | facts
        | changes
    )
    return write_card(folder)


def code(card):
    return card.text.split("```python\n")[1].split("```")[0]


def test_the_code_in_a_card_loads_the_whole_stack(tmp_path, monkeypatch):
    """What the card says is run: original, first patch, and the second on top; or the merged whole."""
    monkeypatch.chdir(tmp_path)
    make_mae().save_pretrained("base")
    for name, start, below in (("one", "base", None), ("two", "one", ["one"])):
        model = load_model(start)
        line = add_patch(model, "base")
        randomise(model)
        model.patch.save_pretrained(name)
        card = make_card(tmp_path / name, model, line, below, base_model="base")
        names, wanted = {}, outputs(model.eval(), "mae")[0]
        exec(code(card), names)
        other = make_mae()
        other.model = names["model"].base_model.model
        assert_close(outputs(other.eval(), "mae")[0], wanted)
    names["model"].base_model.set_adapter(["patch0"])
    assert_close(outputs(other, "mae")[0], outputs(load_model("one").eval(), "mae")[0])
    assert 'The run started from the original with `one` on: "before" means that.' in card.text
    assert card.data.library_name == "peft" and card.data.base_model_relation == "adapter"

    merge(model)
    model.save_pretrained("merged")
    card = make_card(tmp_path / "merged", model, line, ["one"])
    exec(code(card), names)
    other.model = names["model"]
    assert_close(outputs(other.eval(), "mae")[0], wanted)
    assert "All adapters are merged into the weights." in card.text and card.data.library_name == "transformers"


def test_the_code_in_the_card_of_a_demo_patch(tmp_path):
    model = load_model("mnist-demo")
    line = add_patch(model, "mnist-demo")
    model.patch.save_pretrained(tmp_path / "patch")
    names = {}
    exec(
        code(make_card(tmp_path / "patch", model, line, base_model="mnist-demo")).replace(
            '"patch"', repr(str(tmp_path / "patch"))
        ),
        names,
    )
    assert names["model"].peft_config["default"].base_model_name_or_path == "mnist-demo"


def test_metadata(tmp_path, mae):
    card = make_card(tmp_path / "hub", mae)
    data = ModelCard.load(tmp_path / "hub" / "README.md").data
    assert (data.base_model, data.base_model_relation, data.license) == ("some/original", "finetune", "mit")
    assert data.datasets == ["some/data"] and data.to_yaml() == card.data.to_yaml()
    found = {(r.dataset_config, r.metric_type, "before" in r.metric_name): r.metric_value for r in data.eval_results}
    assert found == {
        (s, m, before): FIGURES[("original_" if before else "") + m]
        for s in ("forget", "retain")
        for m in ("mse", "psnr")
        for before in (True, False)
    }
    assert all("(center:3)" in r.metric_name for r in data.eval_results)
    local = make_card(tmp_path / "local", mae, base_model=str(tmp_path), description=DESCRIPTION | {"dataset": str(tmp_path)})
    assert local.data.base_model is None and local.data.datasets is None
    assert str(tmp_path) not in local.data.to_yaml()
    pushed = UnlearningConfig(str(tmp_path / "hub"), use_cpu=True, push_to_hub=True, hub_model_id="me/it")
    assert 'from_pretrained("me/it")' in code(make_card(tmp_path / "hub", mae, args=pushed))
    for part in (
        "alpha = 0.25",
        "N(0, I)",
        "7 of 16 pairs",
        "the command",
        "## Audit",
        "hf-i2i-unlearn audit",
        "## Limits",
        "@inproc",
    ):
        assert part in card.text, part


def test_the_license_is_inherited(tmp_path):
    assert inherited_license(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    assert inherited_license(str(tmp_path)) == "cc-by-nc-4.0"


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize(
    "way, said, hashed",
    [
        ({"forget_classes": ["cat"]}, "classes cat", None),
        ({"forget_column": "owner", "forget_values": ["person1", "person2"]}, "2 value(s) of the column 'owner', not", None),
        ({"forget_rows": "3,10-11"}, "a list of 3 row numbers, not named here", b"10\n11\n3\n"),
        ({"forget_list": "request"}, "a list of 2 lines, not named here", b"cat/002.png\ndog/007.png\n"),
    ],
)
def test_nobody_is_named_unless_asked_for(tmp_path, monkeypatch, names, way, said, hashed):
    make_dataset(16).to_parquet(tmp_path / "train.parquet")
    (tmp_path / "request").write_text("# from the court\ndog/007.png\ncat/002.png\n")
    monkeypatch.chdir(tmp_path)
    description = build_splits(SplitArguments(dataset="train.parquet", eval_split=None, card_names=names, **way)).description
    plain = {"classes cat", "owner in person1, person2", "rows 3,10-11", "the list cat/002.png, dog/007.png"}
    assert (description["forget"] in plain) == (names or said == "classes cat")
    if not names:
        assert description["forget"].startswith(said)
        assert (hashlib.sha256(hashed).hexdigest() if hashed else "") in description["forget"]
        assert not any(word in str(description) for word in ("person1", "002.png", "10-11"))


@pytest.mark.parametrize("given", [["--forget_values", "Jane Doe", "John"], ["--forget-values=Jane Doe"]])
def test_command_and_options_leave_values_out(tmp_path, monkeypatch, given):
    monkeypatch.setattr(sys, "argv", ["x", *given, "--forget_column", "owner", "--alpha", "1"])
    command = command_line("recipes/x.py", ("forget_values",))
    assert "J" not in command and command.endswith("... --forget_column owner --alpha 1") and "values" in command
    args = SplitArguments(forget_column="owner", forget_values=["Jane Doe"])
    write_run(tmp_path / "run.yaml", args, leave_out=("forget_values",))
    options = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert "forget_values" not in options and options["forget_column"] == "owner"


COMMITTED = sorted(f.name for kind in ("unlearned", "takedown") for f in (ROOT / "model_cards").glob(f"{kind}-*"))


@pytest.mark.parametrize("name", COMMITTED)
def test_the_cards_here_are_what_their_data_say(tmp_path, name):
    """Own words, such as an audit's whose data were not kept, stay."""
    folder = tmp_path / name
    folder.mkdir()
    for file in (ROOT / "model_cards" / name).iterdir():
        if file.suffix in (".md", ".json", ".yaml", ".png"):
            shutil.copy(file, folder)
    before = (folder / "README.md").read_text()
    write_card(folder)
    assert (folder / "README.md").read_text() == before
    page = write_report(str(folder), pictures=False).read_text()
    record = RunFolder(folder).record
    assert record["forget"] in page and record["command"].replace('"', "&#34;") not in page  # for whoever asked
    measured = [content["summary"]["rows"] for content in RunFolder(folder).evaluation.values()]
    assert all(len(rows) <= 10 for rows in measured) and all(row[0] in before for rows in measured for row in rows)
    assert ("Further measurements" in page) == ("## Metrics" in before)


def test_own_words_survive(tmp_path, mae):
    folder = tmp_path / "x"
    make_card(folder, mae, note="**Mine.**")
    text = (folder / "README.md").read_text()
    assert text.index("```python") < text.index("**Mine.**") < text.index("## Before and after")
    own = "## My section\n\n```bash\n## no heading\n```\n\n## Limits"
    (folder / "README.md").write_text(text.replace("## Limits", own).replace("license: mit", "license: mit\nlanguage: en"))
    run = RunFolder(folder)
    table = {"title": "center:3", "caption": "", "head": ["a", "b"], "rows": [["x", "8.125"]]}
    run.write_evaluation("Metrics", [table], "The text.", "the other command", [result(3.0)])
    for write in (lambda: write_section(folder, "Metrics"), lambda: write_card(folder), lambda: make_card(folder, mae)):
        write()
        text = (folder / "README.md").read_text()
        assert text.count("## My section\n\n```bash\n## no heading\n```\n\n") == 1 and "language: en" in text
        assert text.index("## Audit") < text.index("## My section") < text.index("## Metrics") < text.index("## Limits")
        assert "The text.\n\n### center:3\n\n| a | b |\n|---|---|\n| x | 8.125 |\n\n```bash\nthe other command\n```\n" in text
        data = ModelCard.load(folder / "README.md").data
        assert 3.0 in [r.metric_value for r in data.eval_results] and data.tags == ["machine-unlearning", "image-to-image"]
    (folder / "README.md").write_text(
        "---\nlicense: mit\n---\n\n# Model Card for Model ID\n\n## Uses\n\nnone\n"
    )  # of a library
    assert "## Uses" not in write_card(folder).text


def test_a_section_measured_again_leaves_no_old_result(tmp_path, mae):
    """What the newer measurement does not repeat leaves the metadata; what others measured stays."""
    folder = tmp_path / "x"
    make_card(folder, mae)
    run, own = RunFolder(folder), {r.metric_name for r in ModelCard.load(folder / "README.md").data.eval_results}
    table = {"title": "center:3", "caption": "", "head": ["a", "b"], "rows": [["x", "8.125"]]}
    older = [result(3.0), result(5.0, "FID of few pictures")]
    for results in (older, [result(4.0)]):
        write_section(folder, "Metrics", run.write_evaluation("Metrics", [table], results=results))
    card = ModelCard.load(folder / "README.md")
    found = {r.metric_name: r.metric_value for r in card.data.eval_results}
    assert found["FID after"] == 4.0 and own and set(found) == own | {"FID after"}


@pytest.mark.parametrize("missing", ["run.json", "figures.json"])
def test_a_card_needs_data(tmp_path, mae, missing):
    make_card(tmp_path / "x", mae)
    (tmp_path / "x" / missing).unlink()
    with pytest.raises(InputError, match=f"has no {missing}, from which its card is written; give the output folder"):
        write_card(tmp_path / "x")


def test_a_metric_of_somebody_else_has_its_columns(tmp_path, mae):
    folder = tmp_path / "x"
    make_card(folder, mae, metrics={"edges": "error of edges"})
    run = RunFolder(folder)
    run.write_figures({name: FIGURES | {"edges": 0.125, "original_edges": 0.0625} for name in ("retain", "forget")})
    text = write_card(folder).text
    assert "| PSNR before | after | error of edges before | after | drift |" in text and "| 0.0625 | 0.125 | 0.100 |" in text
