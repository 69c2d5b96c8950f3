"""The script that waits for a GPU: it goes on where it was cut off. What it starts is said by its commands' own tests."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "recipes" / "benchmarks"))

import on_gpu


def python(code, *words):
    return [sys.executable, "-c", code, *map(str, words)]


def test_it_goes_on_where_it_was_cut_off(tmp_path):
    """What is through is not done again, what failed keeps nothing else from running, what is cut off goes on."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "half").touch()  # of a run that was cut off without a checkpoint
    at_once = {"first": python("print('once')"), "bad": python("raise SystemExit(3)")}
    said = on_gpu.run_all(at_once, tmp_path / "out", 600.0)
    assert said["first"] == "done" and said["bad"].startswith("failed (status 3)")
    commands = at_once | {"slow": python("import time; time.sleep(600)", "--output_dir", own), "last": python("print('last')")}
    del commands["bad"]
    said = on_gpu.run_all(commands, tmp_path / "out", 1.0)
    assert said == {"first": "done", "slow": "cut off", "last": "not begun"} and not own.exists()
    (own / "checkpoint-5").mkdir(parents=True)
    commands["slow"] = python("import sys; print(sys.argv[1:])", "--output_dir", own)
    commands["bad"] = python("print('mended')")
    assert set(on_gpu.run_all(commands, tmp_path / "out", 60.0).values()) == {"done"}
    logs = {name: (tmp_path / "out" / f"{name}.log").read_text() for name in commands}
    assert logs["first"].count("once") == 1 and "mended" in logs["bad"] and "last" in logs["last"]
    assert logs["slow"].splitlines()[-1] == str(["--output_dir", str(own), "--resume_from_checkpoint", "true"])


def test_its_parts_are_commands_of_this_repository(tmp_path):
    """Each script and configuration is there, each training starts from one that was made before it, each word is an option."""
    commands, made, options = on_gpu.parts("photos", tmp_path), [], {}
    for command in commands.values():
        words = dict(zip(command[2::2], command[3::2]))
        if command[1] not in options:
            options[command[1]] = subprocess.run([*command[:2], "--help"], capture_output=True, text=True).stdout
        assert all(word in options[command[1]] for word in command if word.startswith("--"))
        if "--config" in words:
            assert (
                Path(words["--config"]).is_file()
                and words["--dataset"] == commands["pack"][-1]
                and words.get("--init", "") in ["", *made]
            )
            made.append(words["--output_dir"])
    assert len(made) == 6


@pytest.mark.parametrize(
    "words, said", [((), "--dataset is missing"), (("--only", "none"), "No part is named none"), (("--list", "true"), "")]
)
def test_words(words, said):
    run = subprocess.run([sys.executable, on_gpu.__file__, *words], capture_output=True, text=True)
    assert said in run.stderr and (run.returncode == 0) == (not said) and ("rehearse-palette: " in run.stdout) == (not said)
