"""Verdicts per picture: on errors by hand, and on models that know, forget, and never saw."""

import numpy as np
import pytest
import torch
from conftest import make_dataset, make_mae

from hf_i2i_unlearn import CenterCrop, ImageReader, InputError, RandomMask, undecoded
from hf_i2i_unlearn.audit.picture_verdicts import (
    CANNOT,
    FLAT,
    IN_PART,
    NEVER_SEEN,
    NOTHING,
    STILL,
    Bounds,
    Judge,
    Standing,
    counted,
    other_masks,
    so_many,
)
from hf_i2i_unlearn.data.decoding import picture_hash

BOUNDS = Bounds.of(np.linspace(0, 1, 101))


@pytest.mark.parametrize(
    "before, after, grade",
    [
        (0.01, 0.96, CANNOT),
        (0.96, 0.96, CANNOT),  # nobody could, before or after
        (0.2, 0.6, NEVER_SEEN),
        (0.2, 0.4, IN_PART),
        (0.2, 0.24, STILL),
        (0.6, 0.6, STILL),  # hard, but untouched: nothing was done
        (0.2, 0.1, STILL),
    ],
)
def test_grades(before, after, grade):
    assert BOUNDS.grade(before, after) == grade


def test_bounds_need_pictures():
    assert (BOUNDS.low, BOUNDS.median, BOUNDS.high) == pytest.approx((0.05, 0.5, 0.95))
    none = Bounds.of(np.ones(0))
    assert none.count == 0 and none.grade(0.1, 9.0) == IN_PART and none.grade(0.1, 0.1) == STILL


def test_so_many():
    found = so_many([True] * 9 + [False])
    assert (found["count"], found["of"], found["share"]) == (9, 10, 0.9) and found["low"] < 0.9 < found["high"]
    assert so_many([])["share"] is None


@pytest.mark.parametrize(
    "grid, trained", [((4, 4), [CenterCrop(2)]), ((7, 7), [CenterCrop(3), RandomMask(0.5)]), ((14, 14), [CenterCrop(8)])]
)
def test_other_masks_are_others(grid, trained):
    found = other_masks(grid, trained)
    assert len({str(c) for c in found}) == 3 and not {str(c) for c in found} & {str(c) for c in trained}
    for corruption in found:
        corruption.check(grid)


class Knows(torch.nn.Module):
    """Completes the pictures it knows exactly, others by noise of a given size."""

    def __init__(self, mae, known, size):
        super().__init__()
        self.mae, self.known, self.size = mae, known, size
        self.grid, self.hole = mae.grid, mae.hole

    def generate(self, pixels, mask, seeds=None):
        hole = self.mae.hole(mask)
        made = pixels.clone()
        for i, picture in enumerate(pixels):
            known = any(torch.equal(picture, other) for other in self.known)
            noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(int(seeds[i])))
            made[i] += hole[i] * noise * (0.01 if known else self.size)
        return made


def test_what_was_known_and_is_forgotten(processor):
    """A model that knew four pictures by heart, and after unlearning completes two of them as unseen ones, one hardly worse."""
    rows = [{"image": row["image"]} for row in undecoded(make_dataset(44))]
    forget, unseen = rows[:4], rows[4:]
    reader = ImageReader(processor, 3)
    pixels = reader.pixels([reader.decode(row) for row in forget])
    original = Knows(make_mae(), list(pixels), 1.0)
    after = Knows(make_mae(), list(pixels[3:]), 5.0)
    judge = Judge(original, reader, [CenterCrop(2)], other_masks((4, 4), [CenterCrop(2)]), progress=False)
    found = judge(after, forget, unseen)
    assert [p["grade"] for p in found["pictures"]] == [CANNOT, CANNOT, CANNOT, STILL]
    assert all(p["memorised"] for p in found["pictures"]) and found["memorised"]["count"] == 4
    assert [p["sha256"] for p in found["pictures"]] == [picture_hash(row) for row in forget]
    assert (found["honoured"]["count"], found["honoured"]["of"]) == (3, 4)
    assert found["honoured_other_masks"]["count"] == 3
    untouched = judge(original, forget, unseen)
    assert {p["grade"] for p in untouched["pictures"]} == {STILL} and untouched["honoured"]["count"] == 0


def test_unseen_pictures_are_not_memorised_and_nothing_is_honoured_where_nothing_was_done(processor):
    """The grades of an untouched model on pictures it never saw: about 5 of 100 are hard by chance, no more."""
    rows = [{"image": row["image"]} for row in undecoded(make_dataset(200))]
    original = make_mae()
    judge = Judge(original, ImageReader(processor, 3), [CenterCrop(2)], [], progress=False)
    found = judge(original, rows[:100], rows[100:])
    assert found["honoured"]["share"] <= 0.15 and found["memorised"]["share"] <= 0.15
    assert found["grades"][NEVER_SEEN] == found["grades"][IN_PART] == 0


def test_a_picture_without_content_is_not_counted(processor):
    flat = make_dataset(1)
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (90, 90, 90)).save(buffer, "PNG")
    rows = [{"image": {"bytes": buffer.getvalue(), "path": "flat.png"}}, *({"image": r["image"]} for r in undecoded(flat))]
    unseen = [{"image": row["image"]} for row in undecoded(make_dataset(30))]
    original = make_mae()
    found = Judge(original, ImageReader(processor, 3), [CenterCrop(2)], [], progress=False)(original, rows, unseen)
    assert [p["grade"] for p in found["pictures"]][0] == NOTHING and found["honoured"]["of"] == 1 and FLAT > 0


def test_unreadable_pictures_are_named_and_not_judged(processor):
    rows = [{"image": row["image"]} for row in undecoded(make_dataset(24))]
    broken = {"image": {"bytes": b"no picture", "path": "x.png"}}
    original = make_mae()
    judge = Judge(original, ImageReader(processor, 3, on_corrupt="skip"), [CenterCrop(2)], [], progress=False)
    found = judge(original, [broken, *rows[:3]], rows)
    assert found["unreadable"] == [picture_hash(broken)] and len(found["pictures"]) == 3
    with pytest.raises(InputError, match="None of the 1 forget pictures can be read"):
        judge(original, [broken], rows)


def test_counting_takes_the_worst_trained_mask():
    def cell(grade):
        return {"grade": grade, "before": 0.1, "after": 1.0}

    pictures = [
        {"grade": CANNOT, "memorised": True, "masks": {"a": cell(CANNOT), "b": cell(STILL)}},
        {"grade": STILL, "memorised": False, "masks": {"a": cell(STILL), "b": cell(CANNOT)}},
    ]
    found = counted(pictures, ["a"])
    assert found["honoured"]["count"] == 1 and found["honoured_other_masks"]["count"] == 1


def test_a_model_that_never_saw_a_picture_says_what_never_seen_is():
    bounds = Bounds(0.2, 0.6, 1.5, 100)
    assert bounds.grade(0.1, 0.5) == IN_PART  # an easy picture stays below the median, whoever completes it
    assert bounds.grade(0.1, 0.5, twin=0.55) == NEVER_SEEN
    assert bounds.grade(0.1, 0.4, twin=0.55) == IN_PART
    assert bounds.grade(0.5, 0.55, twin=0.55) == STILL  # it was never known, and nothing has changed


def test_looks_during_training_compare_with_that_model_too(processor):
    some = list(undecoded(make_dataset(24)))
    original, model = make_mae(0).eval(), make_mae(1).eval()
    found = []
    for twin in (None, model):
        judge = Judge(original, ImageReader(processor, 3), [CenterCrop(2)], [], progress=False, twin=twin)
        done, of, _ = Standing(judge, some[:4], some[4:], some[4:8])(model)
        assert done == judge(model, some[:4], some[4:])["honoured"]["count"] and of == 4
        found.append(done)
    assert found[1] >= found[0]
