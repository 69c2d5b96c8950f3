"""A desk where a request was honoured: pictures, an original, a list of names, and the folder that the run left."""

import pytest
from conftest import make_dataset, make_mae

from hf_i2i_unlearn.commands import unlearn

from .console import console  # noqa: F401 (a fixture)

RUN = (
    "--corruption center:2 --use_cpu true --disable_tqdm true --learning_rate 1e-2 --save_strategy no --eval_strategy no "
    "--max_steps 12 --eval_samples 32"
).split()
ASKED = ("ant/000.png", "bee/001.png", "cat/002.png")  # what request.txt names


@pytest.fixture
def site(tmp_path, processor, monkeypatch, console):  # noqa: F811
    """A folder with photos/, original/, request.txt and the finished run unlearned/; the console stands in an empty one."""
    site = tmp_path / "monday"
    make_mae().save_pretrained(site / "original")
    processor.save_pretrained(site / "original")
    make_dataset(32).to_parquet(site / "photos" / "train.parquet")
    make_dataset(64).select(range(32, 64)).to_parquet(site / "photos" / "validation.parquet")
    (site / "request.txt").write_text("\n".join(ASKED))
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")
    code, said, err = console(unlearn.main, *words_of(site), *RUN, "--pictures", 2, "--output_dir", site / "unlearned")
    assert code == 0, err
    return site


def words_of(site) -> list:
    """Where things are, by absolute paths."""
    return ["--model", site / "original", "--dataset", site / "photos", "--forget_list", site / "request.txt"]
