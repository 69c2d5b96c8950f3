"""The snippets of CONTRIBUTING.md run as they stand, in their order; CHANGELOG.md says where names are."""

import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def test_the_snippets_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 8
    names = {"__name__": "snippets"}
    for block in blocks:
        exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    assert names["figures"]["forget"]["count"] == 25
    assert "fid" in str(names["figures"]["forget"]["features"])


def test_names_are_where_the_changes_say():
    rows = re.findall(r"^  \| (`[a-z_.]+`(?:, `[a-z_.]+`)*) \| (`.+) \|$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert len(rows) > 15
    for places, names in rows:
        modules, groups = re.findall(r"`(.+?)`", places), names.split(";")
        assert len(modules) == len(groups), places
        for module, group in zip(modules, groups):
            for name in re.findall(r"`(.+?)`", group):
                assert hasattr(importlib.import_module(f"hf_i2i_unlearn.{module}"), name), f"{module}.{name}"
