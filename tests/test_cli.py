import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml

from hf_i2i_unlearn import InputError, UnlearningConfig
from hf_i2i_unlearn.commands import COMMANDS
from hf_i2i_unlearn.commands.cli import command_line, find_config, parse, run
from hf_i2i_unlearn.commands.options import RunArguments
from hf_i2i_unlearn.commands.unlearn import asked_family
from hf_i2i_unlearn.data.options import SplitArguments
from hf_i2i_unlearn.reporting.run_folder import refuse_full_folder, write_run

ROOT = Path(__file__).parents[1]


@dataclass
class Arguments(SplitArguments):
    model: str = field(default="mnist-demo", metadata={"help": "The model."})


def parsed(*argv, **kwargs):
    return parse((Arguments, UnlearningConfig), "A recipe.", ["--use_cpu", *argv], **kwargs)


def test_yaml_gives_defaults_and_the_command_line_overrides(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("alpha: 0.5\nforget_classes: [cat, dog]\nlearning_rate: 1.0e-3\nstreaming: true\n")
    args, training = parsed("--config", str(file), "--learning_rate", "2e-3")
    assert (training.alpha, training.learning_rate, args.streaming, args.forget_classes) == (0.5, 2e-3, True, ["cat", "dog"])
    assert parsed()[1].alpha == 0.25


def test_the_demo_is_what_runs_without_a_model(tmp_path):
    file = tmp_path / "demo.yaml"
    file.write_text("alpha: 0.5\n")
    assert parsed(demo=file)[1].alpha == 0.5
    assert parsed("--model", "mine", demo=file)[1].alpha == 0.25


@pytest.mark.parametrize(
    "text, message",
    [
        ("alhpa: 1", "unknown option 'alhpa'; did you mean alpha"),
        ("a: [", "not valid YAML"),
        (None, "Cannot read the configuration"),
    ],
)
def test_bad_configuration_files(tmp_path, text, message):
    file = tmp_path / "run.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=message):
        parsed("--config", str(file))


def test_a_written_run_is_read_back(tmp_path):
    given = parsed(
        "--alpha",
        "0.7",
        "--forget_rows",
        "1,2",
        "--max_steps",
        "9",
        "--hub_token",
        "hf_secret",
        "--lr_scheduler_type",
        "cosine",
    )
    write_run(tmp_path / "run.yaml", *given)
    assert "hf_secret" not in (tmp_path / "run.yaml").read_text()
    again = parse((Arguments, UnlearningConfig), "", ["--config", str(tmp_path / "run.yaml")])
    assert again[0] == given[0]
    one, two = (a.to_dict() for a in (again[1], given[1]))
    assert {k for k in one if one[k] != two[k]} <= {"hub_token"}
    assert yaml.safe_load((tmp_path / "run.yaml").read_text())["lr_scheduler_type"] == "cosine"


@pytest.mark.parametrize("given", [["--hub_token", "hf_secret"], ["--hub_token=hf_secret"]])
def test_the_command_of_a_card_holds_no_token(monkeypatch, given):
    monkeypatch.setattr(sys, "argv", ["x", *given, "--forget_classes", "a b", "c"])
    command = command_line("recipes/x.py")
    assert "hf_secret" not in command and command.startswith("accelerate launch recipes/x.py --hub_token")
    assert command.endswith("--forget_classes 'a b' c")


def test_help_shows_ours_and_hides_the_trainers(capsys):
    with pytest.raises(SystemExit):
        parsed("--help")
    short = capsys.readouterr().out
    assert all(option in short for option in ("--forget_list", "--alpha", "--noise_target", "--retain_bound"))
    assert "--torch_compile" not in short
    with pytest.raises(SystemExit):
        parsed("--help_all")
    assert "--torch_compile" in capsys.readouterr().out


def test_a_full_output_folder_is_refused(tmp_path):
    refuse_full_folder(tmp_path / "new", False)
    refuse_full_folder(tmp_path, False)
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(InputError, match="is not empty; .*--resume_from_checkpoint true"):
        refuse_full_folder(tmp_path, False)
    refuse_full_folder(tmp_path, True)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        refuse_full_folder(tmp_path / "file", False)


def test_bad_input_ends_in_one_sentence(capsys):
    def main():
        raise InputError("No.")

    with pytest.raises(SystemExit) as exit:
        run(main)
    assert exit.value.code == 2 and capsys.readouterr().err == "error: No.\n"


def test_a_finished_recipe_leaves_no_process_group(tmp_path):
    """gloo's threads abort a process that ends with them: exit status -6 after all work is done."""
    store = f"file://{tmp_path / 'store'}"
    run(lambda: torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1))
    assert not torch.distributed.is_initialized()


def test_the_recipes_page_names_every_recipe_and_configuration():
    page, root = (ROOT / "recipes" / "README.md").read_text(), ROOT / "hf_i2i_unlearn"
    recipes = [file.name for file in (ROOT / "recipes").glob("*.py")]
    configs = [file.stem for folder in (ROOT / "recipes", root / "demo") for file in folder.glob("configs/*.yaml")]
    assert recipes and configs
    assert [name for name in [*recipes, *configs, *COMMANDS] if f"`{name}`" not in page] == []


def test_a_packaged_configuration_is_known_by_its_name_and_by_its_old_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = ROOT / "hf_i2i_unlearn" / "demo" / "configs" / "unlearn_mnist_mae.yaml"
    for word in ("unlearn_mnist_mae", "unlearn_mnist_mae.yaml", "recipes/configs/unlearn_mnist_mae.yaml"):
        assert find_config(word) == packaged
        _, training = parse((RunArguments, UnlearningConfig), "", ["--use_cpu", "--config", word])
        assert training.max_steps == 400
    elsewhere = "mine/unlearn_mnist_mae.yaml"
    assert find_config(elsewhere) == Path(elsewhere)
    Path("unlearn_mnist_mae.yaml").write_text("max_steps: 3\n")  # one's own comes first
    assert parsed("--config", "unlearn_mnist_mae.yaml")[1].max_steps == 3


@pytest.mark.parametrize(
    ("argv", "family"),
    [
        ([], "mae"),
        (["--model", "mnist-demo-unet"], "diffusion"),
        (["--config", "unlearn_mnist_mage"], "mage"),
        (["--config", "unlearn_mnist_mage", "--model", "mnist-demo"], "mae"),
        (["--config", "nowhere.yaml"], "mae"),  # `parse` refuses it
    ],
)
def test_the_family_is_that_of_the_model(monkeypatch, argv, family):
    monkeypatch.setattr(sys, "argv", ["x", *argv])
    assert asked_family() == family


def test_cards_name_the_console_script_where_it_was_used(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hf-i2i-unlearn unlearn", "--alpha", "1"])
    assert command_line("recipes/x.py") == "hf-i2i-unlearn unlearn --alpha 1"


@pytest.mark.parametrize("old", ["conversion palette", "conversion_mage"])
def test_old_names_of_conversion(old):
    module, *words = old.split()
    command = [sys.executable, "-m", f"hf_i2i_unlearn.{module}", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.startswith("usage: hf-i2i-unlearn convert ")
