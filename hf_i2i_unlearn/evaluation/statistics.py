"""FID, KID, Inception score, similarity and accuracy from features and logits: streaming, in float64, over all processes.

Every metric is a small object: `update` adds a batch, `reduce` what all processes have, and a property, a function or `compute`
gives the figure. It holds sums, which `merge` adds up, or `KERNEL_SAMPLES` samples at most, so its size does not grow with the
data.
"""

import warnings

import torch
from accelerate.utils import gather_object

KERNEL_SAMPLES = 1000  # pictures of a set that the kernel distance looks at


class _Sums:
    """Named float64 sums that can be added up: the state of a streaming metric. The first update decides their device."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}

    def _add(self, **terms: torch.Tensor):
        for name, term in terms.items():
            self.sums[name] = self.sums[name] + term if name in self.sums else term

    def merge(self, other: "_Sums") -> "_Sums":
        """Add the sums of another part of the same data."""
        self._add(
            **{name: term.to(self.sums[name].device if name in self.sums else "cpu") for name, term in other.sums.items()}
        )
        return self

    def reduce(self, accelerator) -> "_Sums":
        """Add up the sums of all processes (`accelerate.Accelerator`), each of which has seen at least one sample."""
        for name in sorted(self.sums):
            self.sums[name] = accelerator.reduce(self.sums[name].to(accelerator.device), "sum")
        return self

    @property
    def count(self) -> int:
        """Samples seen."""
        return int(self.sums["count"].sum()) if self.sums else 0


def _double(x: torch.Tensor) -> torch.Tensor:
    x = x.detach()
    return (x.cpu() if x.device.type == "mps" else x).double()


class GaussianStatistics(_Sums):
    """Mean and covariance of features, as the Frechet distance needs them."""

    def update(self, features: torch.Tensor) -> None:
        """Features (B, D)."""
        x = _double(features)
        self._add(count=x.new_tensor(float(len(x))), first=x.sum(0), second=x.T @ x)

    @property
    def dimensions(self) -> int:
        """D."""
        return len(self.sums["first"])

    @property
    def mean(self) -> torch.Tensor:
        """(D,)."""
        return self.sums["first"] / self.sums["count"]

    @property
    def covariance(self) -> torch.Tensor:
        """(D, D), unbiased."""
        n, mean = self.sums["count"], self.mean
        return (self.sums["second"] - n * torch.outer(mean, mean)) / (n - 1)


def frechet_distance(one: GaussianStatistics, two: GaussianStatistics) -> float:
    """Frechet (Wasserstein-2) distance of two Gaussians, squared; FID for Inception features (Heusel et al., 2017):

        |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^(1/2) S2 S1^(1/2))^(1/2)

    Both roots are of symmetric matrices, so a symmetric eigen-solver serves: faster than the general root and never complex.

    Warns:
        UserWarning: fewer samples than feature dimensions. The covariance is then singular and the distance biased upwards.

    Raises:
        ValueError: fewer than two samples, or statistics of different networks.
    """
    if one.dimensions != two.dimensions:
        raise ValueError(f"The statistics are of {one.dimensions} and {two.dimensions} dimensions; take one feature network.")
    samples = min(one.count, two.count)
    if samples < 2:
        raise ValueError(f"A covariance needs two samples or more, got {samples}.")
    if samples < one.dimensions:
        warnings.warn(
            f"The Frechet distance of {samples} samples in {one.dimensions} dimensions is biased upwards; compare it only with "
            "others of as many samples, or take more pictures.",
            stacklevel=2,
        )
    s1, s2 = one.covariance, two.covariance.to(one.covariance.device)
    values, vectors = torch.linalg.eigh(s1)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ s2 @ root).clamp_min(0).sqrt().sum()
    mean = (one.mean - two.mean.to(one.mean.device)).square().sum()
    return max(0.0, (mean + s1.trace() + s2.trace() - 2 * cross).item())


class KernelSamples:
    """The features of the first `KERNEL_SAMPLES` pictures of a set, as the kernel distance needs them."""

    def __init__(self):
        self.parts: list[torch.Tensor] = []

    def update(self, features: torch.Tensor, numbers: torch.Tensor) -> None:
        """Features (B, D); `numbers` (B,) are those of the pictures in their set."""
        kept = features.detach().cpu()[numbers.cpu() < KERNEL_SAMPLES]
        if len(kept):
            self.parts.append(kept)

    def reduce(self, accelerator) -> "KernelSamples":
        """Put the samples of all processes together."""
        if accelerator.num_processes > 1:
            self.parts = gather_object(self.parts)
        return self

    @property
    def features(self) -> torch.Tensor:
        """(N, D), float64."""
        return torch.cat(self.parts).double()


def kernel_distance(one: KernelSamples, two: KernelSamples) -> float:
    """Squared maximum mean discrepancy of two sets of features; KID for Inception features (Binkowski et al., 2018, eq. 4):

        mean k(x, x') over pairs of different x + the same of y - 2 mean k(x, y),    k(a, b) = (a . b / D + 1)^3

    It is unbiased, however few pictures there are. So it can be a little below 0 where both sets are of one distribution.

    Raises:
        ValueError: fewer than two samples, or samples of different networks.
    """
    x, y = one.features, two.features
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"The samples are of {x.shape[1]} and {y.shape[1]} dimensions; take one feature network.")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"A kernel distance needs two samples or more, got {min(len(x), len(y))}.")

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a):
        values = kernel(a, a)
        return (values.sum() - values.trace()) / (len(a) * (len(a) - 1))

    return (within(x) + within(y) - 2 * kernel(x, y).mean()).item()


class InceptionScore(_Sums):
    """exp of the mean KL divergence of p(class | picture) from the marginal p(class) (Salimans et al., 2016), from logits.

    Args:
        splits: parts whose scores are averaged, as Salimans et al. do with 10 parts of 5,000 pictures. A score grows with the
            number of pictures, so compare equal ones only. Sample i belongs to part i modulo `splits`.
    """

    def __init__(self, splits: int = 1):
        super().__init__()
        self.splits, self._next = splits, 0

    def update(self, logits: torch.Tensor, numbers: torch.Tensor | None = None) -> None:
        """Logits (B, classes); `numbers` (B,) are those of the samples, counted on if not given."""
        log_p = _double(logits).log_softmax(1)
        p = log_p.exp()
        if numbers is None:
            numbers = torch.arange(self._next, self._next + len(p))
            self._next += len(p)
        part = torch.nn.functional.one_hot(numbers.long().to(p.device) % self.splits, self.splits).double()  # (B, splits)
        self._add(count=part.sum(0), marginal=part.T @ p, negative_entropy=part.T @ (p * log_p).sum(1))

    def compute(self) -> tuple[float, float]:
        """Mean and standard deviation of the score over the parts (0 for one part). Raises ValueError for an empty part."""
        n = self.sums["count"]  # (splits,)
        if not bool((n > 0).all()):
            raise ValueError(f"{self.count} samples do not fill {self.splits} parts; take fewer splits.")
        marginal = self.sums["marginal"] / n[:, None]
        entropy = -torch.special.xlogy(marginal, marginal).sum(1)
        score = (self.sums["negative_entropy"] / n + entropy).exp()
        return score.mean().item(), score.std().item() if self.splits > 1 else 0.0


class CosineSimilarity(_Sums):
    """Mean cosine similarity of pairs of features; of CLIP's embeddings the "CLIP" columns of the paper (App. C.2)."""

    def update(self, one: torch.Tensor, two: torch.Tensor) -> None:
        """Features (B, D) of a completed picture and of the true one."""
        cosine = torch.nn.functional.cosine_similarity(_double(one), _double(two), dim=1)  # (B,)
        self._add(count=cosine.new_tensor(float(len(cosine))), cosine=cosine.sum())

    def compute(self) -> float:
        """In -1..1."""
        return (self.sums["cosine"] / self.sums["count"]).item()


class Accuracy(_Sums):
    """Share of samples whose most likely class is the wanted one."""

    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Logits (B, classes), class numbers (B,)."""
        right = _double(logits.argmax(1) == labels.to(logits.device))
        self._add(count=right.new_tensor(float(len(right))), right=right.sum())

    def compute(self) -> float:
        """In 0..1."""
        return (self.sums["right"] / self.sums["count"]).item()
