"""Rehearsals in miniature: the whole of one, and the models of all."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from conftest import png
from PIL import Image

from hf_i2i_unlearn import InputError, RunError, load_model
from hf_i2i_unlearn.commands.jobs.published import PUBLISHED, make
from hf_i2i_unlearn.commands.jobs.reloaded import plain
from hf_i2i_unlearn.commands.rehearse import NAMES, RehearsalArguments, own_command, pack_shards, rehearse, run_child

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name, value in {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)


def test_a_patch_is_rehearsed_from_model_to_merged_patch(tmp_path):
    args = RehearsalArguments(lora=True, size="tiny", options="--lora_rank 2", use_cpu=True, cpu_time=True)
    lines = rehearse(args, tmp_path / "rehearsal")
    assert [f.name for f in (tmp_path / "rehearsal").iterdir()] == ["rehearsal.json"]
    found = json.loads((tmp_path / "rehearsal" / "rehearsal.json").read_text())
    assert found["steps"] == 4 and found["seconds_a_step"] > 0 and found["gigabytes"] > 0.1
    assert found["reloaded"] == "patch, merged: ViTMAEForPreTraining" and found["plan"]["steps"] == 4
    assert found["written"] > 3 * found["plan"]["disk"]["the result"]  # two checkpoints and the result
    assert lines[2].startswith("| MAE, ViT-B, LoRA |") and "and then measured" in lines[-3]
    assert lines[-1] == (
        "`hf-i2i-unlearn rehearse --model mae-base --lora true --size tiny --options '--lora_rank 2' --cpu_time true`"
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_models_are_those_of_their_library(tmp_path, name):
    make(name, tmp_path, tiny=True)
    known = {"mae": "ViTMAEForPreTraining", "mage": "MageModel", "palette": "UNet2DModel"}
    assert plain(tmp_path) == known.get(name.split("-")[0], "StableDiffusionInpaintPipeline")
    model = load_model(str(tmp_path))
    assert model.grid[0] >= 4 and model.channels == 3
    assert set(NAMES) == PUBLISHED.keys()


def test_shards_of_made_and_of_given_pictures(tmp_path):
    pack_shards(tmp_path / "made", 64, None, 8)
    (tmp_path / "photos").mkdir()
    for i in range(8):
        (tmp_path / "p.png").write_bytes(png(i, i % 4, 40))
        Image.open(tmp_path / "p.png").save(tmp_path / "photos" / f"{i}.jpg")
    pack_shards(tmp_path / "given", 64, str(tmp_path / "photos"), 8)
    for kind in ("made", "given"):
        names, classes = [], []
        for shard in sorted((tmp_path / kind).iterdir()):
            with tarfile.open(shard) as tar:
                for member in tar.getmembers():
                    names.append(member.name)
                    if member.name.endswith("jpg"):
                        assert min(Image.open(tar.extractfile(member)).size) >= 64  # never smaller than the model's pictures
                    else:
                        classes.append(tar.extractfile(member).read())
        assert len(names) == len(set(names)) == 16 and sorted(classes) == [b"0"] * 4 + [b"1"] * 4
    with pytest.raises(InputError, match="holds 8 JPEGs, and 9 are needed"):
        pack_shards(tmp_path / "more", 64, str(tmp_path / "photos"), 9)


def test_what_fails_says_so(tmp_path):
    with pytest.raises(RunError, match="ended with status 3, expected 0: ... no luck"):
        run_child([sys.executable, "-c", "import sys; print('no luck', file=sys.stderr); sys.exit(3)"], tmp_path)
    with pytest.raises(InputError, match="2 steps or more"):
        RehearsalArguments(steps=1)
    done = run_child([sys.executable, "-c", "print('x' * 10**6)"], tmp_path)
    assert done.written >= 10**6 or not os.path.exists("/proc/self/io")
    assert done.gigabytes > 0 and done.said.startswith("xxx")
    assert own_command(RehearsalArguments(model="palette")) == "hf-i2i-unlearn rehearse --model palette"


def test_the_recipe_explains_itself():
    done = subprocess.run([sys.executable, str(ROOT / "recipes" / "rehearse.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "kill -9" in done.stdout
