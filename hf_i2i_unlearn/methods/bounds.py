"""The bounds of theorem 1, as diagnostics of a run."""

import math

import torch

from .distances import L2, unit


@torch.no_grad()
def information_bound(student: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The lower bound of the mutual information in theorem 1 (eq. 8 on retain, eq. 9 on forget pictures), in nats.

    log K - 1/K sum_i log( exp(eps_i^2 / 2 - 1) sum_j exp(eps_j + R_ij) ),  eps_i = |e_i - t_i|,  R_ij = t_i . t_j

    with both representations normalised to unit length first.

    Args:
        student, target: (K, ...), E(T(x)) and what it is compared with: E0(T(x_r)), or E0(T(n)).
    """
    e, t = unit(student.float()), unit(target.float())  # (K, D)
    eps = L2()(e, t)  # (K,)
    inner = eps.square() / 2 - 1 + torch.logsumexp(eps[None] + t @ t.T, 1)  # (K,)
    return math.log(len(e)) - inner.mean()
