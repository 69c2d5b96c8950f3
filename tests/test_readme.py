"""What the README tells a user to type in Python must run; its commands run in CI and in test_recipes.py."""

import re
import shlex
from pathlib import Path

import datasets
import pytest
from conftest import make_dataset
from transformers import ViTMAEForPreTraining

from hf_i2i_unlearn.experiments.study_page import families_of, read_rows, summary_table

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


@pytest.mark.parametrize("page", ["README.md", "known-by-heart/unet.md"])
def test_a_table_of_what_was_known_by_heart_is_that_of_its_studies(page):
    """The command beside it makes it of the committed rows; some of those were read off pages, to three digits."""
    page = (ROOT / "model_cards" / page).read_text()
    words = shlex.split(re.search(r"recipes/evidence.py (.*?)```", page, re.S)[1].replace("\\\n", " "))
    at, end = words.index("--families"), words.index("--output_dir")
    folder = ROOT / "model_cards" / "known-by-heart" / "studies"
    made = summary_table(families_of(words[at + 1 : end], [read_rows(folder / name) for name in words[1:at]])).splitlines()
    published = page[page.index(made[0]) :].split("\n\n")[0].splitlines()
    assert [line.split("|")[1:3] for line in made] == [line.split("|")[1:3] for line in published]
    for row in zip(made[2:], published[2:]):
        for ours, theirs in zip(*(line.split("|")[3:-1] for line in row)):
            one, two = (float(cell.strip(" x%") or 0) for cell in (ours, theirs))
            assert abs(one - two) < (1.01 if "%" in ours else 0.021), row
