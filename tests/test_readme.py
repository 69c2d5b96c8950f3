"""What the README tells a user to type in Python must run; its commands run in CI and in test_recipes.py."""

import re
from pathlib import Path

import datasets
import pytest
from conftest import make_dataset
from transformers import ViTMAEForPreTraining

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_example(checkpoint, tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    for row in make_dataset(8).cast_column("image", datasets.Image(decode=False)):
        file = tmp_path / "photos" / "train" / row["image"]["path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(row["image"]["bytes"])
    (tmp_path / "request.txt").write_text("bee/001.png\ncat/002.png\n")
    monkeypatch.chdir(tmp_path)
    assert "facebook/vit-mae-base" in code and "CenterCrop(8)" in code
    exec(code.replace("facebook/vit-mae-base", checkpoint).replace("CenterCrop(8)", "CenterCrop(2)"), {})
    ViTMAEForPreTraining.from_pretrained("unlearned")


@pytest.mark.parametrize("page", ["README.md", "model_cards/README.md"])
def test_what_a_page_points_to_is_there(page):
    page = ROOT / page
    links = re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())
    assert links
    for link in links:
        assert (page.parent / link).exists(), link
    for config in re.findall(r"recipes/[^\s\]\)]+\.(?:yaml|py)", page.read_text()):  # a file, or a pattern for several
        assert list(ROOT.glob(config)), config
