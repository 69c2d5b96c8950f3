"""The race between ours and the released code's pattern: who takes part, what is counted, and who is given up."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.close import assert_close

sys.path.append(str(Path(__file__).parents[1] / "recipes" / "benchmarks"))

import time_to_verdict

BEFORE = {"retain": 1.0, "forget": 1.0}


class Runner:
    """An arm whose errors follow a script: (retain, forget) after each turn of so many seconds."""

    def __init__(self, word, seconds, *errors):
        self.word, self.kind, self.pace, self.script = word, word.partition("@")[0], seconds, errors
        self.seconds, self.steps, self.through = 0.0, 0, False

    def advance(self):
        self.steps, self.seconds = self.steps + 1, self.seconds + self.pace

    def measure(self):
        return dict(zip(("retain", "forget"), self.script[min(self.steps, len(self.script)) - 1]))


def test_the_first_that_forgets_at_a_tolerated_cost_wins_and_slower_ones_are_given_up(capsys):
    arms = [
        Runner("released@1", 4, (1.2, 3.0), (1.04, 3.0)),  # forgets at once, but its cost is tolerated after two turns alone
        Runner("released@2", 9, (1.0, 1.0)),  # more than 8 seconds after one turn
        Runner("ours@1", 2, (1.0, 1.9), (1.0, 2.0)),
        Runner("ours@2", 1, (1.0, 1.5), (1.0, 2.5)),
        Runner("lora@1", 1, (1.0, 1.0)),
        Runner("lora@2", 1, (float("nan"), float("nan"))),
    ]
    args = SimpleNamespace(factor=2.0, tolerance=0.05, max_steps=5)
    best = time_to_verdict.race(arms, BEFORE, args)
    assert {kind: (arm.word, arm.seconds) for kind, arm in best.items()} == {
        "released": ("released@1", 8),
        "ours": ("ours@2", 2),
    }
    ends = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in capsys.readouterr().out.splitlines()}
    assert ends["released@2"] == "slower than another" and ends["lora@1"] == "not forgotten"
    assert arms[4].steps == 5 and arms[5].steps == 1


def test_all_arms_see_the_same_pictures_and_ours_has_the_released_codes_targets():
    pytest.importorskip("mlxtend")
    args = time_to_verdict.Arguments(pairs=3, eval_samples=4, copies="skip", mean_draws=8)
    original = time_to_verdict.load_model(args.model).eval().requires_grad_(False)
    corruption = time_to_verdict.parse_corruption("center:3")
    sets = time_to_verdict.Sets(args, original)
    arm = time_to_verdict.Arm("ours@1e-3", args, sets, original, corruption)
    (batch, rows, seeds), (again, *_) = sets.batch(2), sets.batch(2)
    assert torch.equal(batch["retain"], again["retain"]) and not torch.equal(batch["retain"], sets.batch(3)[0]["retain"])
    assert seeds.shape == (3, 3) and len(rows) == 3
    wanted = original(batch["retain"], corruption(original.grid, range(3)))
    assert_close(arm._targets(batch["retain"], rows), wanted)
    assert set(arm.known) == set(rows)
    assert_close(arm._targets(torch.zeros_like(batch["retain"]), rows), wanted)  # known already: the pictures are not looked at


def test_it_runs_as_a_command(monkeypatch, capsys):
    pytest.importorskip("mlxtend")
    argv = (
        "--pairs 2 --every 1 --max_steps 2 --eval_samples 4 --mean_draws 8 --copies skip --factor 0 --tolerance 9 --check true"
    )
    arms = ["--arms", "released@1e-4", "ours@1e-4", "lora@1e-4"]
    monkeypatch.setattr(sys, "argv", ["time_to_verdict.py", *argv.split(), "--wanted", "1e-6", *arms])
    with pytest.raises(SystemExit, match="at most 1e-06 of the released code's time"):
        time_to_verdict.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[-3:]] == ["released", "ours", "lora"]
    assert lines[-3].split("|")[5].strip() == "1.00"


def test_an_unknown_arm_is_named():
    with pytest.raises(SystemExit, match="'thine@1' is no arm"):
        time_to_verdict.Arm("thine@1", SimpleNamespace(), None, None, None)
