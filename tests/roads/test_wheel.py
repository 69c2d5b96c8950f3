"""Who installs a wheel has no clone: what is in it, every command's help, the demo and its report from an empty folder.

hf-i2i-unlearn unlearn
hf-i2i-unlearn report --model unlearned-mnist-mae
"""

import os
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
BUILT_FROM = ("hf_i2i_unlearn", "recipes", "tests")  # the latter two must not get into it
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the unpacked wheel, and nothing else."""
    source, folder = (tmp_path_factory.mktemp(name) for name in ("source", "installed"))
    for name in BUILT_FROM:  # a copy, for an old build folder beside the clone would be packed too
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, source)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(source)], cwd=source, env=environment(source), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(source / done.stdout.splitlines()[-1]) as wheel:
        wheel.extractall(folder)
    return folder


def environment(folder):
    return os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def files(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts}


def test_the_wheel_holds_the_package_and_its_data_alone(installed):
    held, there = files(installed), files(ROOT / "hf_i2i_unlearn")
    package = {name.removeprefix("hf_i2i_unlearn/") for name in held if name.startswith("hf_i2i_unlearn/")}
    assert package == there
    others = {name.split("/")[0] for name in held} - {"hf_i2i_unlearn"}
    assert len(others) == 1 and others.pop().endswith(".dist-info")


def test_the_console_script(installed, tmp_path):
    (info,) = installed.glob("*.dist-info")
    entries = ConfigParser()
    entries.read(info / "entry_points.txt")
    module, function = entries["console_scripts"]["hf-i2i-unlearn"].split(":")
    # What pip writes to bin/.
    script = (
        f"import sys; from {module} import {function}; print(sys.modules['hf_i2i_unlearn'].__file__); sys.exit({function}())"
    )

    def launch(*argv):
        return subprocess.run(
            [sys.executable, "-c", script, *map(str, argv)],
            cwd=tmp_path,
            env=environment(installed),
            capture_output=True,
            text=True,
        )

    assert "  unlearn  " in (done := launch("--help")).stdout and done.returncode == 0
    assert str(installed) in done.stdout.splitlines()[0]
    wrong = launch("unlern")
    assert wrong.returncode == 2 and wrong.stderr == "error: 'unlern' is no command; did you mean unlearn?\n"
    done = launch("unlearn", "--max_steps", 2, "--eval_samples", 4, "--disable_tqdm", "true")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "unlearned-mnist-mae"
    assert (folder / "model.safetensors").is_file() and (folder / "before_after.png").is_file()
    assert yaml.safe_load((folder / "run.yaml").read_text())["model"] == "mnist-demo"
    assert "hf-i2i-unlearn unlearn --max_steps 2" in (folder / "README.md").read_text()
    assert {f.name for f in tmp_path.iterdir()} == {"unlearned-mnist-mae"}
    done = launch("report", "--model", folder.name)
    assert done.returncode == 0 and "What was asked" in (folder / "report.html").read_text(), done.stderr


HELPS = """
import contextlib, io, sys
from hf_i2i_unlearn.commands import COMMANDS, main
for word in COMMANDS:
    sys.argv = ["hf-i2i-unlearn", word, "--help"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            main()
        except SystemExit as stop:
            assert not stop.code, word
    demo = [one for one in ("(default: center:3)", "-mnist-mae)") if one in " ".join(said.getvalue().split())]
    print(word, "usage: hf-i2i-unlearn" in said.getvalue(), bool(demo))
"""


def test_every_command_has_a_help_of_its_own(installed, tmp_path):
    """It shows the defaults of a command of one's own, and not those of the demo."""
    done = subprocess.run(
        [sys.executable, "-c", HELPS], cwd=tmp_path, env=environment(installed), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = [line.split() for line in done.stdout.splitlines()]
    assert len(said) > 12 and all(line[1] == "True" for line in said), said
    assert [line[0] for line in said if line[2] == "True"] == [], said


def test_accelerate_launches_the_module(installed, tmp_path):
    """Another family than that of the demo, by the name of its configuration."""
    launcher = "-m accelerate.commands.accelerate_cli launch --cpu --num_processes 1 -m hf_i2i_unlearn"
    command = (
        "unlearn --config unlearn_mnist_mage --max_steps 1 --eval_samples 2 --pictures 0 --eval_strategy no --disable_tqdm true"
    )
    done = subprocess.run(
        [sys.executable, *launcher.split(), *command.split()],
        cwd=tmp_path,
        env=environment(installed),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "unlearned-mnist-mage" / "run.yaml").read_text())["margin"] == 0
