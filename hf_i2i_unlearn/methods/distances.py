"""Distances between representations, per sample."""

import torch


def mse(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean squared error per sample, (B, ...) x 2 -> (B,): what the released code trains with."""
    return (a - b).square().flatten(1).mean(1)


def l2(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """|a - b|_2 per sample, literally eq. 10: (B, ...) x 2 -> (B,).

    It forgets nothing at alpha < 1. At theta_0 the retain distance is zero and its norm has a kink of slope 1 in every
    direction; a forget term of slope alpha < 1 cannot pull the weights off it (an exact penalty). Use alpha > 1, or mse.
    """
    return torch.linalg.vector_norm((a - b).flatten(1), dim=1)


def unit(a: torch.Tensor) -> torch.Tensor:
    """Representations as unit vectors, (B, ...) -> (B, D), as theorem 1 assumes."""
    return torch.nn.functional.normalize(a.flatten(1))


def unit_l2(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """|a/|a| - b/|b||_2 per sample, theorem 1's unit-norm representations: (B, ...) x 2 -> (B,), between 0 and 2.

    It has the kink of `l2`, so it also needs alpha > 1.
    """
    return l2(unit(a), unit(b))


DISTANCES = {"mse": mse, "l2": l2, "unit_l2": unit_l2}
