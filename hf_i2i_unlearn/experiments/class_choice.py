"""Which classes to forget: those that a feature network tells well from the retain ones, or hardly."""

from collections.abc import Sequence

import torch

from ..evaluation.features import FeatureNetwork


def class_centres(network: FeatureNetwork, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean direction of each class's features, (classes, D), of length 1.

    Args:
        pictures: of each class, (N, 3, H, W) in [0, 1].
    """
    means = [torch.nn.functional.normalize(network.embed(some)).mean(0) for some in pictures]
    return torch.nn.functional.normalize(torch.stack(means))


def distances_of(centres: torch.Tensor) -> torch.Tensor:
    """1 - cosine between all classes, (classes, classes), centred on the mean of all of them: what they share says nothing."""
    unit = torch.nn.functional.normalize(centres - centres.mean(0))
    return 1 - unit @ unit.T


def far_apart(distances: torch.Tensor, count: int) -> tuple[list[int], list[int]]:
    """Two sets of `count` classes each, far from each other: begun with the farthest two, each grows by turns.

    The class is taken that is farther from the other set than from its own, by the largest difference of mean distances.
    """
    first, second = divmod(int(distances.argmax()), len(distances))
    sets, free = ([first], [second]), set(range(len(distances))) - {first, second}
    while len(sets[1]) < count:
        for own, other in (sets, sets[::-1]):
            gains = {c: float(distances[c, other].mean() - distances[c, own].mean()) for c in sorted(free)}
            own.append(max(gains, key=gains.__getitem__))
            free.remove(own[-1])
    return sets


def near_pairs(distances: torch.Tensor, count: int) -> tuple[list[int], list[int]]:
    """Two sets of `count` classes each, of which every class has a near one in the other: the hard case."""
    left, free = distances.clone().fill_diagonal_(torch.inf), []
    for _ in range(count):
        pair = sorted(divmod(int(left.argmin()), len(left)))
        free.append(pair)
        left[pair], left[:, pair] = torch.inf, torch.inf
    return [a for a, _ in free], [b for _, b in free]
