"""Checkpoints as people have them: tensors are taken, nothing is executed."""

import argparse
import collections
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hf_i2i_unlearn import InputError
from hf_i2i_unlearn.tensor_files import read_tensors

TENSORS = {"blocks.0.weight": torch.arange(6.0).view(2, 3), "blocks.0.bias": torch.ones(2)}


class Config(dict):
    """What configuration libraries pickle: a dictionary with more to it."""


class Names(list):
    """The same of a list."""


class Settings:
    def __init__(self):
        self.device, self.folder = torch.device("cpu"), Path("x")


class Evil:
    def __reduce__(self):
        return exec, (f"open({str(MARK)!r}, 'w').close()",)


MARK = Path(os.environ.get("TMPDIR", "/tmp")) / f"executed-{os.getpid()}"


def check(path):
    found = read_tensors(path)
    assert set(found) == set(TENSORS)
    assert all(torch.equal(found[name], value) for name, value in TENSORS.items())


@pytest.mark.parametrize("around", ["model", "state_dict", "model_state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "_orig_mod.module."])
def test_layouts_and_prefixes(tmp_path, around, prefix):
    tensors = collections.OrderedDict((prefix + name, value) for name, value in TENSORS.items())
    torch.save({around: tensors, "epoch": 3} if around else tensors, tmp_path / "a.pth")
    check(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "more",
    [
        {"args": argparse.Namespace(lr=1e-3, folder=Path("x"), device=torch.device("cpu"))},
        {
            "optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict(),
            "scaler": {"scale": 2.0},
            "epoch": 9,
        },
        {"hyper_parameters": Config(width=3), "callbacks": {"x": {"best": torch.tensor(1.0)}}},  # as Lightning's
        {"all": [Config(a=Settings()), Names(["x"]), argparse.Namespace(inner=Config(b=1))]},
        {"settings": Settings(), "names": {"a", "b"}, "model_ema": {name: value + 1 for name, value in TENSORS.items()}},
    ],
    ids=["Namespace", "optimizer", "a dictionary of its own", "all together", "an object, and an average"],
)
def test_what_training_scripts_save_beside_the_weights(tmp_path, more):
    torch.save({"model": TENSORS} | more, tmp_path / "a.ckpt")
    check(tmp_path / "a.ckpt")


def test_the_format_before_zip_files(tmp_path):
    torch.save({"model": TENSORS, "args": argparse.Namespace(lr=1)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    check(tmp_path / "old.pth")


def test_safetensors(tmp_path):
    safetensors.torch.save_file(TENSORS, tmp_path / "a.safetensors")
    check(tmp_path / "a.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_executed(tmp_path, zipped):
    torch.save({"model": TENSORS, "evil": Evil()}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    try:
        check(tmp_path / "a.pth")
    except InputError as error:  # refused is as good
        assert "\n" not in str(error) and "\x1b" not in str(error)
    assert not MARK.exists()


@pytest.mark.parametrize(
    "content, words",
    [([1, 2], "holds a list, expected a state dict"), ({"epoch": 3}, "holds no tensors"), ({"model": {}}, "holds no tensors")],
)
def test_files_without_weights(tmp_path, content, words):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match=words):
        read_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["text.pth", "text.safetensors", "none.pth"])
def test_what_is_no_checkpoint(tmp_path, name):
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "text.safetensors").write_text("not a checkpoint")
    with pytest.raises(InputError, match="cannot be read as a file of tensors|There is no file"):
        read_tensors(tmp_path / name)
