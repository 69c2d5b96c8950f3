"""The re-check, a week later: from another machine (everything has moved) and from another folder.

    hf-i2i-unlearn verify --model unlearned

says yes or no in one line, and in its exit status; nothing that was published is written anew unless that is asked for.
"""

import json
import shutil

from helpers.console import console, files_with  # noqa: F401 (a fixture)
from helpers.site import site  # noqa: F401 (a fixture)

from hf_i2i_unlearn.commands import audit, evaluate, verify


def test_the_road(site, tmp_path, monkeypatch, console):  # noqa: F811
    assert files_with(site / "unlearned", tmp_path) == set()  # no absolute path, in no file
    (tmp_path / "other" / "desk").mkdir(parents=True)
    moved = shutil.move(site, tmp_path / "other" / "machine") / "unlearned"
    monkeypatch.chdir(tmp_path / "other" / "desk")
    before = {file: file.read_bytes() for file in moved.rglob("*") if file.is_file()}

    code, out, err = console(verify.main, "--model", moved, "--require_forgotten", 0.3)
    (line,) = out.splitlines()
    found = json.loads((tmp_path / "other" / "desk" / "verified" / "verified.json").read_text())
    done = found["honoured"]["count"]
    assert found["certified"] and f"{done} of 3 pictures can no longer be completed" in line
    assert line.startswith("Yes: " if done >= 1 else "No: ") and code == (0 if done >= 1 else 3) and "error" not in err
    code, out, _ = console(verify.main, "--model", moved, "--require_forgotten", 0.3, "--verbose", "true")
    assert len(out.splitlines()) > 4 and "The weights are those that were certified." in out

    small = ["--samples", 4, "--membership_samples", 4, "--parts", "membership"]
    assert console(audit.main, "--model", moved, "--use_cpu", "true", *small)[0] == 0
    measure = ["--models", moved, "--use_cpu", "true", "--features", "none", "--pictures", 0]
    assert console(evaluate.main, *measure)[0] == 0
    assert {file: file.read_bytes() for file in moved.rglob("*") if file.is_file()} == before  # nothing was written anew
    assert files_with(tmp_path / "other" / "desk", tmp_path) == set()

    code, out, _ = console(evaluate.main, *measure, "--update_card", "true")
    assert code == 0 and "## Metrics" in (moved / "README.md").read_text() and (moved / "evaluation.md").is_file()
    assert files_with(moved, tmp_path) == set()


def test_the_run_alone_has_moved(site, tmp_path, console, monkeypatch):  # noqa: F811
    """What lies where it did not lie is asked for by its option, one after the other; then all is as before."""
    alone = shutil.move(site / "unlearned", tmp_path / "elsewhere" / "deep" / "unlearned")
    monkeypatch.chdir(tmp_path)
    code, _, err = console(verify.main, "--model", alone)
    assert code == 2 and "nothing is there now; say where it is: --" in err and len(err.splitlines()) == 1
    given = ["--dataset", site / "photos", "--forget_list", site / "request.txt"]
    code, _, err = console(verify.main, "--model", alone, *given)
    assert code == 2 and "The original of the run in" in err and err.strip().endswith("say where it is: --original.")
    code, out, _ = console(verify.main, "--model", alone, *given, "--original", site / "original", "--require_forgotten", 0.3)
    assert code in (0, 3) and out.startswith(("Yes: ", "No: "))


def test_other_pictures_are_told_in_the_line(site, console):  # noqa: F811
    (site / "other.txt").write_text("ant/000.png\ndog/003.png\n")
    code, out, err = console(verify.main, "--model", site / "unlearned", "--forget_list", site / "other.txt")
    assert code == 3 and out == "No: the pictures are not those of the request.\n" and "error" not in err
