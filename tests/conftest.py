"""Tiny models and pictures, made in milliseconds."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTMAEConfig
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_i2i_unlearn import I2IMAE

CLASSES = ["ant", "bee", "cat", "dog"]


def pytest_configure(config):
    # Two threads of a tiny model thrash beside other processes; one is also reproducible.
    torch.set_num_threads(1)


def png(seed: int, label: int = 0, size: int = 16) -> bytes:
    """A picture of coloured noise over its class's own colour."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 120, (size, size, 3)) + np.array([0, 45, 90, 135])[label]
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def make_dataset(count: int = 24, size: int = 16) -> datasets.Dataset:
    """`count` pictures of four classes in turn, with the columns image, label and owner."""
    rows = range(count)
    return datasets.Dataset.from_dict(
        {
            "image": [{"bytes": png(i, i % 4, size), "path": f"{CLASSES[i % 4]}/{i:03d}.png"} for i in rows],
            "label": [i % 4 for i in rows],
            "owner": [f"person{i % 6}" for i in rows],
        },
        features=datasets.Features(
            image=datasets.Image(), label=datasets.ClassLabel(names=CLASSES), owner=datasets.Value("string")
        ),
    )


def make_mae(seed: int = 0, **changes) -> I2IMAE:
    """A MAE for 16x16 pictures on a 4x4 grid, all weights random."""
    options = {
        "image_size": 16, "patch_size": 4, "num_channels": 3, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 32, "decoder_hidden_size": 12, "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2, "decoder_intermediate_size": 24, "layer_norm_eps": 1e-6, "norm_pix_loss": False,
    }  # fmt: skip
    torch.manual_seed(seed)
    return I2IMAE.from_config(ViTMAEConfig(**options | changes))


@pytest.fixture
def dataset():
    return make_dataset()


@pytest.fixture
def mae():
    return make_mae()


@pytest.fixture
def processor():
    return ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.25] * 3)


@pytest.fixture
def checkpoint(tmp_path, mae, processor):
    """A folder with a tiny MAE and its image processor."""
    folder = tmp_path / "original"
    mae.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)
