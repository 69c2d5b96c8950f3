"""What the methods of the paper are: a space, a forget target and a sign; and the distances. Only tensors are known here.

loss = distance_on_retain + sign * alpha * distance_on_forget, each a mean over its own half of the batch. A sixth method is a
sixth row of `METHODS`.
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Method:
    """One row of the table.

    `space` "encoder": distances between representations, the encoder alone is trained, the retain target is E0(T(x_r)).
    `space` "output": the family's own training loss, the whole model is trained, the retain target is x_r itself.
    `forget_target`: what the forget pictures are moved to (or away from, where `sign` is negative):
    "encoded noise" E0(T(n)), "noise" n itself (as a representation or as a picture), "forget" x_f, "retain" x_r, "none".
    """

    space: str
    forget_target: str
    sign: int
    source: str
    summary: str


METHODS = {
    "ours": Method("encoder", "encoded noise", 1, "eq. 10, C.25", "E(T(x_f)) is moved to E0(T(n))"),
    "random_encoder": Method("encoder", "noise", 1, "C.35, C.36", "E(T(x_f)) is moved to Gaussian noise"),
    "max_loss": Method("output", "forget", -1, "C.26-C.28", "the training loss on x_f is maximised"),
    "noisy_label": Method("output", "noise", 1, "C.32-C.34", "the training target of x_f is a Gaussian noise picture"),
    "retain_label": Method("output", "retain", 1, "C.29-C.31", "the training target of x_f is a retain picture"),
    "control": Method("output", "none", 0, "no unlearning", "ordinary training on the retain set alone"),
}


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


@torch.no_grad()
def information_bound(student: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The lower bound of the mutual information in theorem 1 (eq. 8 on retain, eq. 9 on forget pictures), in nats.

    log K - 1/K sum_i log( exp(eps_i^2 / 2 - 1) sum_j exp(eps_j + R_ij) ),  eps_i = |e_i - t_i|,  R_ij = t_i . t_j

    with both representations normalised to unit length first.

    Args:
        student, target: (K, ...), E(T(x)) and what it is compared with: E0(T(x_r)), or E0(T(n)).
    """
    e, t = unit(student.float()), unit(target.float())  # (K, D)
    eps = l2(e, t)  # (K,)
    inner = eps.square() / 2 - 1 + torch.logsumexp(eps[None] + t @ t.T, 1)  # (K,)
    return math.log(len(e)) - inner.mean()
