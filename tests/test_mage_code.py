"""The code of MAGE: what travels with the weights, the copies in this repository, and how it is known to transformers."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_mage import make_mage

from hf_i2i_unlearn import demo
from hf_i2i_unlearn.models.mage.refresh import CODE, refresh

ROOT = Path(__file__).parents[1]
COPIES = sorted({f.parent for part in ("model_cards", "hf_i2i_unlearn/demo") for f in (ROOT / part).rglob("*_mage.py")})


@pytest.mark.parametrize("folder", COPIES, ids=lambda folder: folder.name)
def test_the_code_beside_the_weights_is_the_packages(folder):
    """Byte for byte."""
    how = f"`python -m hf_i2i_unlearn.models.mage.refresh {folder.relative_to(ROOT)}` puts the package's code there"
    theirs = {f.name: f.read_bytes() for f in folder.glob("*.py")}
    ours = {f.name: f.read_bytes() for f in CODE}
    assert theirs.keys() == ours.keys(), how
    assert [name for name in ours if ours[name] != theirs[name]] == [], how


def test_all_copies_are_found():
    assert {"photos-mage", "photos-mage-16", "takedown-photos-mage", "unlearned-photos-mage"} <= {f.name for f in COPIES}


def test_saving_copies_all_of_it(tmp_path):
    make_mage().save_pretrained(tmp_path)
    assert {f.name for f in tmp_path.glob("*.py")} == {f.name for f in CODE}


def test_refreshing(tmp_path):
    shutil.copyfile(CODE[0], tmp_path / "old_mage.py")
    with pytest.raises(FileNotFoundError, match="has no configuration_mage.py; give a folder with MAGE's code"):
        refresh(tmp_path)
    (tmp_path / "configuration_mage.py").write_text("old")
    (tmp_path / "README.md").write_text("a card")
    refresh(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {f.name for f in CODE} | {"README.md"}
    assert all((tmp_path / f.name).read_bytes() == f.read_bytes() for f in CODE)


def test_the_code_imports_nothing_of_ours():
    """But one another, from the same folder; and no circles."""
    imports = {}
    for file in CODE:
        nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        assert all(node.level <= 1 for node in nodes) and "hf_i2i_unlearn" not in file.read_text()
        imports[file.stem] = {node.module for node in nodes if node.level}
    assert set().union(*imports.values()) <= imports.keys()
    while imports:  # take away those that need nothing that is left
        free = {name for name, needed in imports.items() if not needed & imports.keys()}
        assert free, f"a circle among {sorted(imports)}"
        imports = {name: needed for name, needed in imports.items() if name not in free}


def fresh(script, tmp_path):
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_published_folders_load_without_the_package(tmp_path):
    """In one fresh process, with what the card says; and they complete a picture."""
    fresh(
        f"""
import sys; sys.modules["hf_i2i_unlearn"] = None
import torch
from transformers import AutoModel
for folder in {[str(f) for f in COPIES]}:
    model, info = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(info.values()), (folder, info)
    assert type(model).__module__.startswith("transformers_modules"), type(model)
    mask = torch.zeros(1, *model.config.grid, dtype=torch.bool)
    mask[:, 1:3, 1:3] = True
    assert model.complete(torch.rand(1, 3, 32, 32), mask, 2).isfinite().all()
""",
        tmp_path,
    )


def test_transformers_knows_mage_once_a_public_name_of_it_is_used(tmp_path):
    """`import hf_i2i_unlearn` alone loads nothing, so it registers nothing; see `models.mage.hf`."""
    fresh(
        f"""
import sys
import hf_i2i_unlearn
assert "transformers" not in sys.modules
from transformers import AutoModel
try:
    AutoModel.from_pretrained({demo.MAGE!r})
except ValueError as error:
    assert "mage" in str(error)
else:
    raise AssertionError
from hf_i2i_unlearn import MageModel
assert type(AutoModel.from_pretrained({demo.MAGE!r})) is MageModel
""",
        tmp_path,
    )
