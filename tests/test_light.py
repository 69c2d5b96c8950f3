"""Neither `import hf_i2i_unlearn` nor the help of a command loads what it does not need.

transformers brings some of these libraries itself: `TrainingArguments` imports peft, and the package as a whole jinja2. What it
brings anyway counts as nothing here.
"""

import json
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from hf_i2i_unlearn.commands import COMMANDS

ROOT = Path(__file__).parents[1]
HEAVY = ("matplotlib", "peft", "diffusers", "jinja2", "datasets", "torchvision", "sklearn", "pandas")
TELL = f"import json, sys; print(json.dumps([name for name in {HEAVY} if name in sys.modules]), file=sys.stderr)"
TRAINING = ("unlearn", "erase", "compare", "tables", "pretrain", "memorise", "train-classifier")  # options of the Trainer too


@cache
def loaded_by(code: str, *argv: str) -> frozenset[str]:
    """Which of HEAVY a fresh process has loaded when `code` is through, or has left by `sys.exit`."""
    script = f"import atexit\natexit.register(exec, {TELL!r}, {{}})\n{code}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script, *argv], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return frozenset(json.loads(done.stderr.splitlines()[-1]))


def test_the_package():
    assert not loaded_by("import hf_i2i_unlearn")


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    if find_spec(f"hf_i2i_unlearn.commands.{command.replace('-', '_')}") is None:
        pytest.skip("It has no module yet.")
    options = "TrainingArguments" if command in TRAINING else "HfArgumentParser"
    brought = loaded_by(f"from transformers import {options}")
    assert "diffusers" not in brought and "matplotlib" not in brought
    assert loaded_by("from hf_i2i_unlearn.commands import main; main()", command, "--help") <= brought
