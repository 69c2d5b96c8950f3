"""The terms of all methods against the paper's formulas, written out picture by picture."""

from types import SimpleNamespace

import pytest
import torch
from conftest import make_mae
from helpers.close import assert_close

from hf_i2i_unlearn import (
    DISTANCES,
    METHODS,
    CenterCrop,
    ForgetRetainPairs,
    InputError,
    RandomMask,
    StandardNormal,
    UnlearningConfig,
    UnlearningTrainer,
    undecoded,
)
from hf_i2i_unlearn.commands.words import find_method
from hf_i2i_unlearn.models.base import TrainingLoss
from hf_i2i_unlearn.training.config import check_options
from hf_i2i_unlearn.training.objective import Objective, settled_noise_target

STUDENT, TEACHER = make_mae(1), make_mae(2).frozen_copy()
SEEDS = torch.arange(12).view(4, 3).numpy()
GENERATOR = torch.Generator().manual_seed(0)
RETAIN, FORGET = (torch.randn(4, 3, 16, 16, generator=GENERATOR) for _ in range(2))
CROP = CenterCrop(2)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(int(seed)))


def masks(corruption):
    return [torch.stack([corruption((4, 4), [row[k]])[0] for row in SEEDS]) for k in (0, 1)]


def terms(method, corruption=CROP, **options):
    row = find_method(method, options.pop("variant", "paper"))
    model = STUDENT if row.space == "encoder" else TrainingLoss(STUDENT)
    objective = Objective(row, TEACHER, DISTANCES["mse"], StandardNormal(), **options)
    return objective(model, STUDENT, corruption, RETAIN, FORGET, SEEDS)


def square(a, b):
    return torch.stack([((x - y) ** 2).mean() for x, y in zip(a, b)])


def hole_square(pictures, targets, mask):
    """|D(E(T(x))) - y|^2 over the hidden pixels of each picture, by the library's own decoder."""
    predicted = STUDENT.generate(pictures, mask)
    hole = STUDENT.hole(mask).expand_as(pictures)
    return torch.stack([((p - t)[h] ** 2).mean() for p, t, h in zip(predicted, targets, hole)])


@pytest.mark.parametrize("corruption", [CROP, RandomMask(0.5)])
def test_ours(corruption):
    mask_r, mask_f = masks(corruption)
    n = torch.stack([normal(row[2], 3, 16, 16) for row in SEEDS])
    retain, forget, _ = terms("ours", corruption)
    assert_close(retain, square(STUDENT(RETAIN, mask_r), TEACHER(RETAIN, mask_r)))
    assert_close(forget, square(STUDENT(FORGET, mask_f), TEACHER(n, mask_f)))


def test_random_encoder():
    mask_r, mask_f = masks(CROP)
    n = torch.stack([normal(row[2], 13, 16) for row in SEEDS])
    retain, forget, _ = terms("random_encoder")
    assert_close(retain, square(STUDENT(RETAIN, mask_r), TEACHER(RETAIN, mask_r)))
    assert_close(forget, square(STUDENT(FORGET, mask_f), n))
    both = TEACHER(torch.cat([RETAIN, FORGET]), torch.cat([mask_r, mask_f]))
    retain, forget, _ = terms("random_encoder", variant="reference")
    assert_close(retain, square(STUDENT(RETAIN, mask_r), TEACHER(RETAIN, mask_r)))
    assert_close(forget, square(STUDENT(FORGET, mask_f), n * both.std() + both.mean()))


@pytest.mark.parametrize(
    "method, target",
    [
        ("max_loss", FORGET),
        ("retain_label", RETAIN),
        ("noisy_label", torch.stack([normal(row[2], 3, 16, 16) for row in SEEDS])),
    ],
)
@pytest.mark.parametrize("corruption", [CROP, RandomMask(0.5)])
def test_output_methods(method, target, corruption):
    mask_r, mask_f = masks(corruption)
    retain, forget, _ = terms(method, corruption)
    assert_close(retain, hole_square(RETAIN, RETAIN, mask_r))
    assert_close(forget, hole_square(FORGET, target, mask_f))


def test_retain_label_as_the_reference_intends_it():
    mask_r, mask_f = masks(CROP)
    retain, forget, _ = terms("retain_label", variant="reference")
    assert_close(retain, hole_square(RETAIN, TEACHER.generate(RETAIN, mask_r), mask_r))
    assert_close(forget, hole_square(FORGET, TEACHER.generate(RETAIN, mask_f), mask_f))


def test_control_looks_at_retain_alone():
    retain, forget, _ = terms("control")
    assert_close(retain, hole_square(RETAIN, RETAIN, masks(CROP)[0]))
    assert forget is None


def test_mean_target_for_a_fixed_crop_is_the_mean_of_the_fresh_ones():
    mask = masks(CROP)[1]
    objective = Objective(METHODS["ours"], TEACHER, DISTANCES["mse"], StandardNormal(), noise_target="mean", mean_draws=4000)
    _, forget, _ = objective(STUDENT, STUDENT, CROP, RETAIN, FORGET, SEEDS)
    generator = torch.Generator().manual_seed(5)
    encoded = TEACHER(torch.randn(4000, 3, 16, 16, generator=generator), mask[:1].expand(4000, 4, 4))
    assert_close(forget, square(STUDENT(FORGET, mask), encoded.mean(0, keepdim=True).expand(4, -1, -1)), 0.02)


def gradient(forget):
    parameters = [p for p in STUDENT.model.vit.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(forget.mean(), parameters)])


def test_mean_target_has_the_expected_gradient_of_fresh_noise():
    mean = gradient(terms("ours", noise_target="mean", mean_draws=4000)[1])
    objective, fresh = Objective(METHODS["ours"], TEACHER, DISTANCES["mse"], StandardNormal()), 0
    for k in range(200):
        fresh = fresh + gradient(objective(STUDENT, STUDENT, CROP, RETAIN, FORGET, SEEDS + 1000 * k)[1]) / 200
    one = gradient(terms("ours")[1])
    assert (mean - fresh).norm() < 0.05 * mean.norm() < 0.5 * (mean - one).norm() + 0.05 * mean.norm()


def test_mean_target_under_a_random_mask_shares_it_within_a_step():
    objective = Objective(METHODS["ours"], TEACHER, DISTANCES["mse"], StandardNormal(), noise_target="mean", seed=3)
    seen = []
    encode = TEACHER.forward
    TEACHER.forward = lambda x, mask: (seen.append(mask), encode(x, mask))[1]
    try:
        for step in (0, 0, 1):
            objective(STUDENT, STUDENT, RandomMask(0.5), RETAIN, FORGET, SEEDS, step)
    finally:
        del TEACHER.forward
    forget = [mask[4:] for mask in seen]
    assert all((f == f[0]).all() for f in forget)
    assert torch.equal(forget[0], forget[1]) and not torch.equal(forget[0], forget[2])
    assert not (seen[0][:4] == seen[0][0]).all()  # retain pictures keep their own


@pytest.mark.parametrize(
    "method, passes", [("ours", 8), ("random_encoder", 4), ("max_loss", 0), ("noisy_label", 0), ("control", 0)]
)
def test_no_teacher_pass_that_is_not_needed(method, passes):
    pictures = []
    encode = TEACHER.forward
    TEACHER.forward = lambda x, mask: (pictures.append(len(x)), encode(x, mask))[1]
    try:
        terms(method)
        assert sum(pictures) == passes
        objective = Objective(METHODS["ours"], TEACHER, DISTANCES["mse"], StandardNormal(), noise_target="mean", mean_draws=64)
        objective(STUDENT, STUDENT, CROP, RETAIN, FORGET, SEEDS)  # estimates the mean
        pictures.clear()
        objective(STUDENT, STUDENT, CROP, RETAIN, FORGET, SEEDS)
        assert sum(pictures) == 4
    finally:
        del TEACHER.forward


def test_impossible_combinations():
    with pytest.raises(InputError, match="needs a method whose target .* that of 'max_loss'"):
        check_options(UnlearningConfig("x", noise_target="mean"), METHODS["max_loss"], DISTANCES["mse"])
    with pytest.raises(InputError, match="for the squared distance only, not for 'l2'"):
        check_options(UnlearningConfig("x", noise_target="mean"), METHODS["ours"], DISTANCES["l2"])
    with pytest.raises(InputError, match="method is one of ours, .* got 'theirs'"):
        find_method("theirs")
    with pytest.raises(InputError, match="variant is one of paper, reference, got 'theirs'"):
        find_method("ours", "theirs")


@pytest.mark.parametrize(
    "changes, wanted",
    [
        ({}, "mean"),
        ({"method": METHODS["max_loss"]}, "fresh"),
        ({"distance": DISTANCES["l2"]}, "fresh"),
        ({"corruption": RandomMask(0.5)}, "fresh"),
        ({"model": SimpleNamespace(noise_target_is_shared=False)}, "fresh"),  # a U-Net
        ({"noise": SimpleNamespace(of_batch=True)}, "fresh"),
        ({"noise_bank": 8}, "fresh"),
    ],
)
def test_auto_is_the_mean_where_that_is_equal_and_cheaper(changes, wanted):
    given = {
        "method": METHODS["ours"], "distance": DISTANCES["mse"], "corruption": CenterCrop(2),
        "model": SimpleNamespace(noise_target_is_shared=True), "noise": StandardNormal(), "noise_bank": 0,
    }  # fmt: skip
    assert settled_noise_target("auto", **given | changes) == wanted
    assert settled_noise_target("fresh", **given | changes) == "fresh"


def test_a_trainer_settles_it_and_a_run_says_what_it_took(tmp_path, dataset, processor):
    rows = undecoded(dataset)
    for method, wanted in (("ours", "mean"), ("max_loss", "fresh")):
        args = UnlearningConfig(str(tmp_path), use_cpu=True, report_to="none", noise_target="auto", max_steps=1)
        pairs = ForgetRetainPairs(rows.select(range(4)), rows.select(range(4, 12)))
        UnlearningTrainer(make_mae(), args, pairs, processor, CenterCrop(2), method=METHODS[method])
        assert args.noise_target == wanted
