"""Distances between representations, per sample. A new one is a subclass of `Distance`."""

import abc

import torch


class Distance(abc.ABC):
    """d(a, b) between E(T(x)) and its target, for methods in the encoder space.

    Attributes:
        name: its word, for cards and messages.
        squared: whether it is a squared norm. The mean of several targets then stands for all of them: it has the same
            expected gradient (`noise_target` mean).
    """

    name: str
    squared = False

    @abc.abstractmethod
    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """(B, ...) and (B, ...) -> (B,), 0 or more, 0 where they are equal."""

    def __str__(self):
        return self.name


class MeanSquaredError(Distance):
    """The mean squared error per sample: what the released code trains with."""

    name, squared = "mse", True

    def __call__(self, a, b):
        return (a - b).square().flatten(1).mean(1)


class L2(Distance):
    """|a - b|_2 per sample, literally eq. 10.

    It forgets nothing at alpha < 1. At theta_0 the retain distance is zero and its norm has a kink of slope 1 in every
    direction; a forget term of slope alpha < 1 cannot pull the weights off it (an exact penalty). Use alpha > 1, or mse.
    """

    name = "l2"

    def __call__(self, a, b):
        return torch.linalg.vector_norm((a - b).flatten(1), dim=1)


class UnitL2(L2):
    """|a/|a| - b/|b||_2 per sample, between 0 and 2: theorem 1's unit-norm representations. It has the kink of `L2`."""

    name = "unit_l2"

    def __call__(self, a, b):
        return super().__call__(unit(a), unit(b))


def unit(a: torch.Tensor) -> torch.Tensor:
    """Representations as unit vectors, (B, ...) -> (B, D), as theorem 1 assumes."""
    return torch.nn.functional.normalize(a.flatten(1))


MSE = MeanSquaredError()
DISTANCES: dict[str, Distance] = {distance.name: distance for distance in (MSE, L2(), UnitL2())}
