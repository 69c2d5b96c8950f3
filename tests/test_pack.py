import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from hf_i2i_unlearn import load_source

RECIPE = Path(__file__).parents[1] / "recipes" / "pack.py"


def pack(*options):
    command = [sys.executable, str(RECIPE), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True)


def folder_of_pictures(root):
    for name, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        folder = root / "train" / name
        folder.mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (40, 20), colour).save(folder / f"{name}{i}.png")
    return root


def test_pack_keeps_labels_and_names_and_the_chosen_classes(tmp_path):
    source = folder_of_pictures(tmp_path / "photos")
    done = pack("--dataset", source, "--splits", "train", "--size", 8, "--classes", "red", "--output_dir", tmp_path / "small")
    assert done.returncode == 0, done.stderr
    packed = load_source(str(tmp_path / "small"), "train")
    assert len(packed) == 3 and packed.features["label"].names == ["blue", "red"]
    assert set(packed["label"]) == {1}
    assert np.array_equal(np.array(packed[0]["image"]), np.full((8, 8, 3), (255, 0, 0)))
    names = packed.cast_column("image", datasets.Image(decode=False))["image"]
    assert sorted(row["path"] for row in names) == [f"train/red/red{i}.png" for i in range(3)]  # and not where they lay


def test_pack_refuses_nonsense(tmp_path):
    done = pack("--dataset", "mnist-demo", "--size", 0, "--output_dir", tmp_path / "small")
    assert done.returncode == 2 and "size" in done.stderr and not (tmp_path / "small").exists()


def test_pack_reads_pictures_as_training_does(tmp_path):
    """Transparency lies on the background; what cannot be read is refused, or left out."""
    folder = tmp_path / "photos" / "train" / "ink"
    folder.mkdir(parents=True)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(folder / "clear.png")
    (folder / "broken.png").write_bytes(b"no picture")
    options = ["--dataset", tmp_path / "photos", "--splits", "train", "--size", 8]
    done = pack(*options, "--output_dir", tmp_path / "refused")
    assert done.returncode == 2 and "broken.png" in done.stderr and "--on_corrupt skip" in done.stderr
    done = pack(*options, "--on_corrupt", "skip", "--background", "#ff0000", "--output_dir", tmp_path / "small")
    assert done.returncode == 0, done.stderr
    packed = load_source(str(tmp_path / "small"), "train")
    assert len(packed) == 1 and np.asarray(packed[0]["image"])[0, 0].tolist() == [255, 0, 0]
    done = pack(*options, "--on_corrupt", "skip", "--background", "rde", "--output_dir", tmp_path / "other")
    assert done.returncode == 2 and "'rde' is no colour" in done.stderr
