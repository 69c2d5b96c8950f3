"""The engineer with a takedown list: a folder of JPEGs, some file names, and nothing else. See recipes/README.md."""

import json

import pytest
from helpers.console import console  # noqa: F401 (a fixture)

from hf_i2i_unlearn import load_source
from hf_i2i_unlearn.commands import report, unlearn, verify
from hf_i2i_unlearn.commands.jobs import takedown
from hf_i2i_unlearn.reporting.run_folder import RunFolder

ASKED = ["--dataset", "photos", "--forget_list", "request.txt"]
QUIET = ["--use_cpu", "true", "--disable_tqdm", "true", "--logging_steps", 1000, "--pictures", 0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """photos/ with two clients' folders and no split, real pictures that the demo knows; request.txt names three of them."""
    digits = load_source("mnist-demo", "train")
    for i in range(100):
        file = tmp_path / "photos" / f"client-{i % 2}" / f"IMG_{i:04d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        digits[i]["image"].convert("L").save(file, quality=95)
    (tmp_path / "request.txt").write_text("IMG_0007.jpg\nclient-0/IMG_0010.jpg\nIMG_0033.jpg\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(console):  # noqa: F811
    """Runs a command as the console does; its exit status and what it printed."""

    def called(main, *words):
        code, *said = console(main, *words)
        return code, "".join(said)

    return called


def test_from_a_list_to_a_report_to_verify(command, folder, monkeypatch):
    monkeypatch.setattr(takedown, "FEWEST", 40)  # steps; all else is what everybody gets
    monkeypatch.setattr(takedown, "PASSES", 40)
    code, said = command(unlearn.main, "--model", "mnist-demo", "--case_number", "TD-2026-114", *ASKED, *QUIET)
    assert code == 0, said
    lines = [line for line in said.splitlines() if line.partition(":")[0] in ("Forgotten", "Retained", "Hidden", "How long")]
    assert lines[0] == "Forgotten: 3 pictures, by a list of 3 lines."
    assert "77 pictures. Compared with 20 retain pictures, which are held out of training" in lines[1]
    assert "masks take turns" in lines[2] and "grid of 7x7" in lines[2]
    assert "at most 40 steps, about" in lines[3] and len(lines) == 4
    assert "Step 40: " in said and "of 3 can no longer be completed; retain error x" in said
    assert not any(name in said for name in ("IMG_0007", "IMG_0010", "IMG_0033"))
    made = RunFolder("unlearned")
    assert made.options["eval_split"] == "none" and made.options["hold_out"] == takedown.HOLD_OUT
    found = made.request
    assert (
        found["total"] == 3 and found["certified"] and not found["missed"] and found["unseen"].endswith("held out of training")
    )
    assert sum(not mask["trained"] for mask in found["masks"].values()) >= 3

    assert command(report.main, "--model", "unlearned")[0] == 0
    page = (folder / "unlearned" / "report.html").read_text()
    assert "Was it honoured?" in page and "IMG_0007" not in page and "TD-2026-114" in page
    code, said = command(
        verify.main, "--model", "unlearned", "--forget_list", "request.txt", "--use_cpu", "true", "--verbose", "true"
    )
    again = json.loads((folder / "verified" / "verified.json").read_text())
    assert "The pictures are those of the request" in said and "The weights are those that were certified" in said
    assert again["case"] == "TD-2026-114"
    assert [p["grade"] for p in again["pictures"]] == [p["grade"] for p in found["pictures"]]
    assert code == (0 if found["honoured"]["share"] >= 0.95 else 3)


def test_it_trains_until_the_verdicts_hold(command, folder, monkeypatch):
    """With a mask that is given; its splits and its steps are those of a takedown."""
    monkeypatch.setattr(takedown, "RETAIN", 1.5)
    words = ["--corruption", "center:3", "--require_forgotten", 1, "--output_dir", "out", "--save_strategy", "no"]
    code, said = command(unlearn.main, "--model", "mnist-demo", *ASKED, *QUIET, *words)
    found = RunFolder("out").request
    assert code == 0 and found["honoured"]["count"] == 3, said
    assert found["ended"]["steps"] < 1200 and "3 pictures of 3 could no longer be completed" in found["ended"]["why"]
    assert f"Training ended after {found['ended']['steps']} steps, because" in said
    assert RunFolder("out").options["corruption"] == "center:3"


def test_what_is_given_stays(command, folder):
    """Steps alone: several masks, and no looking. Steps and mask: the paper's run, which wants an evaluation split."""
    words = [*ASKED, *QUIET, "--max_steps", 2, "--save_strategy", "no"]
    code, said = command(unlearn.main, "--model", "mnist-demo", *words)
    made = RunFolder("unlearned").options
    assert code == 0 and made["corruption"].count(",") and made["learning_rate"] == 1e-4, said
    assert "How long: 2 steps" in said and "can no longer be completed; retain error" not in said
    code, said = command(unlearn.main, "--model", "mnist-demo", *words, "--corruption", "center:3", "--output_dir", "other")
    assert code == 2 and "has the splits ['train'], not 'validation'" in said and "Hidden:" not in said
