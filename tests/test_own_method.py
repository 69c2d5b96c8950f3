"""The stranger's recipe, with few steps: its method, mask and metric stand in the table."""

import importlib.util
from pathlib import Path

RECIPE = Path(__file__).parents[1] / "recipes" / "own_method.py"


def test_the_strangers_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("own_method", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    recipe.main(steps=(1, 3), count=20)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines] == ["method", "---", "original", "ours", "blurred"]
    assert "retain ink" in lines[0] and "forget ink" in lines[0]
    assert recipe.Cross().draw((7, 7), None).sum() == 13
