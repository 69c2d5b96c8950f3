"""A stranger's family: a small autoencoder through loader, trainer, evaluator and patches, by the public names alone."""

import inspect
import textwrap

import pytest
import torch
from conftest import make_dataset
from huggingface_hub import PyTorchModelHubMixin
from peft import PeftModel
from torch import nn

from hf_i2i_unlearn import (
    METHODS,
    CenterCrop,
    Evaluator,
    ForgetRetainPairs,
    I2IModel,
    ImageReader,
    UnlearningConfig,
    UnlearningTrainer,
    add_patch,
    by_classes,
    load_model,
    merge,
    select,
    undecoded,
)

PICTURES = make_dataset(16)
CATS = by_classes(PICTURES, ["cat"])
FORGET, RETAIN = (undecoded(select(PICTURES, CATS, keep)) for keep in (True, False))


class Autoencoder(nn.Module, PyTorchModelHubMixin):
    """Patches of 4x4 pixels, a linear layer over all of them, and back."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.mix = nn.Linear(16 * width, 16 * width)
        self.decoder = nn.Sequential(nn.Linear(16 * width, 16 * width), nn.Unflatten(1, (width, 4, 4)),
                                     nn.ConvTranspose2d(width, 3, 4, stride=4))  # fmt: skip


class I2IAutoencoder(I2IModel):
    family, image_size, channels, grid = "autoencoder", (16, 16), 3, (4, 4)
    run_options = {"sharpness": "sharpness"}

    def __init__(self, model, sharpness=1.0):
        super().__init__()
        self.model, self.sharpness = model, sharpness

    @classmethod
    def from_pretrained(cls, path, sharpness=1.0, **options):
        return cls(Autoencoder.from_pretrained(path, **options), sharpness)

    def encoder_modules(self):
        return [self.model.patches, self.model.mix]

    def forward(self, pixel_values, draw):
        hole = self.hole(draw).to(pixel_values.device)
        return self.model.mix(self.model.patches(pixel_values.masked_fill(hole, 0)).flatten(1).relu())  # (B, 16 * width)

    def _decode(self, pixel_values, mask):
        return self.model.decoder(self(pixel_values, mask)) * self.sharpness

    @torch.no_grad()
    def generate(self, pixel_values, mask, seeds=None):
        return torch.where(self.hole(mask).to(pixel_values.device), self._decode(pixel_values, mask), pixel_values)

    def training_loss(self, pixel_values, draw, target=None):
        error = (self._decode(pixel_values, draw) - (pixel_values if target is None else target)).square()
        hole = self.hole(draw).to(error)
        return (error * hole).flatten(1).sum(1) / (hole.flatten(1).sum(1) * self.channels)


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    Autoencoder(6).save_pretrained(tmp_path / "original")
    return str(tmp_path / "original")


def make_trainer(folder, processor, model, method="ours", **options):
    options = {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "logging_steps": 1} | options
    return UnlearningTrainer(
        model,
        UnlearningConfig(str(folder), use_cpu=True, disable_tqdm=True, seed=5, save_steps=2, **options),
        ForgetRetainPairs(FORGET, RETAIN, seed=5),
        processor,
        CenterCrop(2),
        {"forget": list(FORGET), "retain": list(RETAIN)},
        method=METHODS[method],
    )


def figures(model, original, processor):
    rows = {"forget": list(FORGET), "retain": list(RETAIN)}
    return Evaluator(original, rows, ImageReader(processor, 3), CenterCrop(2))(model, progress=False)


def moved(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_loading(path):
    model = load_model(path, family=I2IAutoencoder, sharpness=0.5)
    assert type(model) is I2IAutoencoder and model.sharpness == 0.5 and model.model.patches.out_channels == 6


def test_unlearning_moves_the_encoder_alone(path, tmp_path, processor):
    """The drift is measured by the error of the original."""
    model, original = (load_model(path, family=I2IAutoencoder) for _ in range(2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert figures(model, original.eval(), processor)["retain"]["drift"] == 0
    trainer = make_trainer(tmp_path / "out", processor, model)
    trainer.train()
    assert moved(model, before) == {name for name in before if not name.startswith("model.decoder.")}
    result = figures(model, original, processor)
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        assert result[name]["drift"] > 1e-6 * result[name]["original_mse"]
        assert result[name]["mse"] != result[name]["original_mse"] and result[name]["count"] == len(rows)
    again = load_model(str(tmp_path / "out" / "checkpoint-4"), family=I2IAutoencoder)
    assert not moved(again, {name: value.clone() for name, value in model.state_dict().items()})


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if name != "ours"])
def test_the_other_methods(path, tmp_path, processor, method):
    model = load_model(path, family=I2IAutoencoder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make_trainer(tmp_path / "out", processor, model, method, max_steps=2).train()
    encoder = {name for name in before if not name.startswith("model.decoder.")}
    assert moved(model, before) == (encoder if METHODS[method].trains_encoder_alone else set(before))


def test_targets_that_are_kept(path, tmp_path, processor):
    """The files of precomputed targets are named after a model without a config, too."""
    losses = []
    for folder in ("one", "two"):
        options = {"cache_targets": True, "targets_dir": str(tmp_path / "targets"), "noise_target": "mean"}
        trainer = make_trainer(tmp_path / folder, processor, load_model(path, family=I2IAutoencoder), **options)
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert losses[0] == losses[1]


def test_a_patch(path, tmp_path, processor):
    """Its linear layers of the encoder are adapted; saved, it brings the original of the same family, and merges."""
    model = load_model(path, family=I2IAutoencoder)
    line = add_patch(model, path, rank=2)
    assert "LoRA of rank 2 on 1 layers of the encoder (mix" in line
    make_trainer(tmp_path / "out", processor, model).train()
    model.patch.save_pretrained(tmp_path / "patch")
    x, mask = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), CenterCrop(2)((4, 4), range(2))
    wanted = model.eval().generate(x, mask)
    again = load_model(str(tmp_path / "patch"), family=I2IAutoencoder).eval()
    torch.testing.assert_close(again.generate(x, mask), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
    plain = load_model(path, family=I2IAutoencoder).eval()
    assert (plain.generate(x, mask) - wanted).abs().max() > 1e-4 * wanted.abs().max()
    PeftModel.from_pretrained(plain.model, tmp_path / "patch")
    torch.testing.assert_close(plain.generate(x, mask), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
    merge(again)
    assert type(again.model.mix) is nn.Linear
    torch.testing.assert_close(again.generate(x, mask), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def test_the_example_of_the_docstring(tmp_path, processor):
    """What a stranger copies works as it stands."""
    text = inspect.getdoc(I2IModel)
    example = textwrap.dedent(text[text.index("::\n") + 2 : text.index("The rest has defaults")])
    names = {"torch": torch, "nn": nn, "PyTorchModelHubMixin": PyTorchModelHubMixin, "I2IModel": I2IModel}
    exec(example, names)
    names["Autoencoder"]().save_pretrained(tmp_path / "original")
    model = load_model(str(tmp_path / "original"), family=names["I2IAutoencoder"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make_trainer(tmp_path / "out", processor, model, max_steps=1).train()
    assert moved(model, before) == {"model.encoder.weight", "model.encoder.bias"}
    x, mask = torch.randn(2, 3, 16, 16), CenterCrop(2)((4, 4), range(2))
    assert model.training_loss(x, mask).shape == (2,) and torch.equal(model.generate(x, mask)[:, :, :4], x[:, :, :4])
