"""The snippets of CONTRIBUTING.md run as they stand, in their order."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


def test_the_snippets_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 8
    names = {"__name__": "snippets"}
    for block in blocks:
        exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    assert names["figures"]["forget"]["count"] == 25
    assert "fid" in str(names["figures"]["forget"]["features"])
