import math

import pytest
import torch
from conftest import make_dataset, make_mae

from hf_i2i_unlearn import (
    CenterCrop,
    Evaluator,
    ImageReader,
    InputError,
    RandomMask,
    completions,
    markdown_table,
    undecoded,
)
from hf_i2i_unlearn.data import seeds_for
from hf_i2i_unlearn.evaluation import hole_mse

ROWS = list(undecoded(make_dataset(10)))
SPLITS = {"forget": ROWS[:4], "retain": ROWS[4:]}


def test_hole_mse_by_hand():
    a, b = torch.zeros(1, 2, 2, 2), torch.tensor([[[[1.0, 9], [9, 9]], [[3.0, 9], [9, 9]]]])
    hole = torch.tensor([[[[True, False], [False, False]]]])
    assert hole_mse(a, b, hole).tolist() == [(1 + 9) / 2]


def test_figures_by_hand(processor):
    """Against a loop over single pictures."""
    original, model, corruption = make_mae(0), make_mae(1), RandomMask(0.5)
    reader = ImageReader(processor, 3)
    result = Evaluator(original, SPLITS, reader, corruption, batch_size=3, seed=7)(model, progress=False)
    for name, rows in SPLITS.items():
        mse, psnr, drift = [], [], []
        for i, row in enumerate(rows):
            seeds = seeds_for(7, i)
            x, mask = reader.pixels([reader.decode(row)]), corruption((4, 4), seeds[:1])
            hole = model.hole(mask).expand_as(x)
            after, before = model.generate(x, mask), original.generate(x, mask)
            mse.append((after - x)[hole].square().mean())
            error = (reader.unit(after) - reader.unit(x))[hole].square().mean()
            psnr.append(10 * math.log10(1 / error))
            drift.append((after - before)[hole].square().mean())
        assert result[name]["count"] == len(rows)
        for key, values in {"mse": mse, "psnr": psnr, "drift": drift}.items():
            assert result[name][key] == pytest.approx(
                torch.stack([torch.as_tensor(v) for v in values]).mean().item(), rel=1e-5
            ), key


def test_the_original_has_not_drifted(processor):
    original = make_mae()
    evaluator = Evaluator(original, SPLITS, ImageReader(processor, 3), CenterCrop(2), keep_original=True)
    result = evaluator(original, progress=False)
    assert result["retain"]["drift"] == 0 == result["forget"]["drift"]
    assert result["forget"]["mse"] == result["forget"]["original_mse"] > 0
    # Kept completions give the same figures as new ones.
    changed = make_mae(1)
    fresh = Evaluator(original, SPLITS, ImageReader(processor, 3), CenterCrop(2))(changed, progress=False)
    assert evaluator(changed, progress=False) == fresh
    assert changed.training  # left as it was


def test_refuses_an_empty_set(processor):
    with pytest.raises(InputError, match="no forget pictures to evaluate on"):
        Evaluator(make_mae(), {"forget": []}, ImageReader(processor, 3), CenterCrop(2))


def test_table_and_columns(processor):
    table = markdown_table(
        {
            s: {"count": 3, "mse": 2, "psnr": 8, "original_mse": 1, "original_psnr": 12.34, "drift": 0.5}
            for s in ("forget", "retain")
        }
    )
    assert "| retain | 3 | 1.000 | 2.000 | 12.3 dB | 8.0 dB | 0.500 |" in table
    columns = completions({"before": make_mae(0), "after": make_mae(1)}, ImageReader(processor, 3), CenterCrop(2), ROWS[:2])
    assert list(columns) == ["image", "T(x)", "before", "after"]
    for pixels in columns.values():
        assert pixels.shape == (2, 3, 16, 16) and pixels.min() >= 0 and pixels.max() <= 1
    assert (columns["T(x)"][:, :, 4:12, 4:12] == 0.5).all() and torch.equal(columns["T(x)"][..., :4], columns["image"][..., :4])
