"""The distances and the bounds of theorem 1, against numbers worked out by hand."""

import math

import pytest
import torch

from hf_i2i_unlearn import DISTANCES, METHODS
from hf_i2i_unlearn.methods.bounds import information_bound

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


def test_information_bound_is_equations_8_and_9():
    """The formula of theorem 1 with its sums written out."""
    torch.manual_seed(0)
    student, target = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
    e, t = ([x.flatten() / x.norm() for x in side] for side in (student, target))
    K, total = 4, 0.0
    for i in range(K):
        eps_i = (e[i] - t[i]).norm()
        inner = sum(torch.exp((e[j] - t[j]).norm() + t[i] @ t[j]) for j in range(K))
        total += torch.log(torch.exp(eps_i**2 / 2 - 1) * inner) / K
    assert information_bound(student, target).item() == pytest.approx(math.log(K) - total.item(), rel=1e-5)


def test_information_bound_by_hand():
    # Two orthogonal unit vectors, matched exactly: log 2 - log(e^-1 (e^1 + e^0)).
    both = torch.eye(2)
    assert information_bound(both, both).item() == pytest.approx(math.log(2) + 1 - math.log(math.e + 1), rel=1e-5)
    # A worse match must lower the bound; the length of a representation must not matter.
    assert information_bound(both.flip(0), both) < information_bound(both, both)
    assert information_bound(3 * both, both) == information_bound(both, both)


def test_the_table_is_the_papers():
    rows = {name: (m.space, type(m.target).__name__, m.sign) for name, m in METHODS.items()}
    assert rows == {
        "ours": ("encoder", "EncodedNoise", 1),
        "random_encoder": ("encoder", "NoiseRepresentation", 1),
        "max_loss": ("output", "ForgetPictures", -1),
        "noisy_label": ("output", "NoisePictures", 1),
        "retain_label": ("output", "RetainPictures", 1),
        "control": ("output", "NoTarget", 0),
    }
