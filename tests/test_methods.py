"""The distances of eq. 10 and the noise, against numbers worked out by hand."""

import math

import pytest
import torch

from hf_i2i_unlearn import DISTANCES, StandardNormal

A = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]])
B = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, -1.0]]])


@pytest.mark.parametrize(
    "name, expected",
    [("mse", [(9 + 16) / 4, 4 / 4]), ("l2", [5.0, 2.0]), ("unit_l2", [1.0, math.sqrt(2 - 2 * (2 / 4))])],
)
def test_by_hand(name, expected):
    assert DISTANCES[name](A, B).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", DISTANCES)
def test_is_zero_with_a_finite_gradient_at_the_original_weights(name):
    a = A.clone().requires_grad_()
    distance = DISTANCES[name](a, A)
    distance.sum().backward()
    assert distance.tolist() == pytest.approx([0.0, 0.0]) and a.grad.abs().max() == 0


@pytest.mark.parametrize("name, alpha, forgets", [("l2", 0.25, False), ("l2", 4.0, True), ("mse", 0.25, True)])
def test_the_literal_norm_forgets_nothing_below_alpha_one(name, alpha, forgets):
    """The smallest case: one weight holds retain at 0 and is pulled towards 1 by the forget term."""
    theta = torch.linspace(0, 1, 101).view(-1, 1)
    objective = DISTANCES[name](theta, torch.zeros(1)) + alpha * DISTANCES[name](theta, torch.ones(1))
    best = theta[objective.argmin()].item()
    assert (best > 0.1) == forgets


def test_standard_normal_noise():
    like = torch.zeros(400, 3, 8, 8)
    noise = StandardNormal()(like, range(400))
    assert noise.shape == like.shape and noise.dtype == like.dtype
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert torch.equal(noise[7:9], StandardNormal()(like[:2], [7, 8]))
