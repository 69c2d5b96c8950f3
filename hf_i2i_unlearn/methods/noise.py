"""n ~ N(0, Sigma): what the forget pictures are moved to, in the normalised image space.

`StandardNormal` is the paper's choice. `MomentMatched` and `LowRankNormal` are fitted on the forget set in passes over
batches of pixels, never holding the set; the others serve ablations. Every noise picture depends on its own seed alone.
"""

import abc
from collections.abc import Callable, Iterable

import torch

from ..errors import InputError

Batches = Callable[[], Iterable[torch.Tensor]]  # each call is one pass over (B, C, H, W) pixel values


class Noise(abc.ABC):
    """Draws noise pictures. A new kind implements `draw`, and `__str__` for cards.

    Attributes:
        any_space: whether it has a meaning in a latent space too, where n lives in some families; else it is made for pixels.
        of_batch: whether a picture's noise depends on the other pictures of its batch.
    """

    any_space = False
    of_batch = False

    def __str__(self):
        return type(self).__name__

    @abc.abstractmethod
    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        """One noise picture of `shape` (C, H, W) on the generator's device."""

    def __call__(self, like: torch.Tensor, seeds) -> torch.Tensor:
        """One noise picture per seed, (len(seeds), C, H, W), on the device and in the dtype of the pictures `like`."""
        pictures = [self.draw(tuple(like.shape[1:]), torch.Generator(like.device).manual_seed(int(seed))) for seed in seeds]
        return torch.stack(pictures).to(like.dtype)


class StandardNormal(Noise):
    """n ~ N(0, I), the paper's choice (App. C.4): off-diagonal covariances are near zero, images are normalised."""

    any_space = True

    def __str__(self):
        return "N(0, I)"

    def draw(self, shape, generator):
        return torch.randn(shape, generator=generator, device=generator.device)


class Uniform(Noise):
    """Uniform on [-1, 1] (ablation E.20)."""

    any_space = True

    def __str__(self):
        return "uniform on [-1, 1]"

    def draw(self, shape, generator):
        return torch.rand(shape, generator=generator, device=generator.device) * 2 - 1


class Constant(Noise):
    """The same value everywhere; 0 is the mean colour of the normalisation."""

    any_space = True

    def __init__(self, value: float = 0.0):
        self.value = value

    def __str__(self):
        return f"constant {self.value:g}"

    def draw(self, shape, generator):
        return torch.full(shape, self.value, device=generator.device)


class BatchMatched(Noise):
    """The reference code's noise: randn * std + mean of the batch (scalars over all its values), clamped to [low, high].

    Args:
        low, high: (C,) or (1,), the pixel values of black and white in the normalised space.
    """

    of_batch = True

    def __init__(self, low: torch.Tensor, high: torch.Tensor):
        self.low, self.high = low.view(-1, 1, 1), high.view(-1, 1, 1)

    def __str__(self):
        return "matched to each batch and clamped to the pixel range (the reference code's)"

    def draw(self, shape, generator):
        return torch.randn(shape, generator=generator, device=generator.device)

    def __call__(self, like, seeds):
        noise = super().__call__(like, seeds) * like.std() + like.mean()
        return noise.clamp(self.low.to(like), self.high.to(like))


class MomentMatched(Noise):
    """Independent pixels with the mean and deviation of each channel of the forget set.

    Args:
        mean, std: (C,).
    """

    def __init__(self, mean: torch.Tensor, std: torch.Tensor):
        self.mean, self.std = mean.view(-1, 1, 1), std.view(-1, 1, 1)

    def __str__(self):
        return "N(mean, variance) of each channel of the forget set"

    @classmethod
    def fit(cls, batches: Batches) -> "MomentMatched":
        """Channel means and deviations in one pass, summed in float64."""
        count, total = 0, torch.zeros((), dtype=torch.float64)  # grows to (C,), as the squares do
        squares = total
        for pixels in batches():
            channels = pixels.double().movedim(1, 0).flatten(1)  # (C, B*H*W)
            count += channels.shape[1]
            total, squares = total + channels.sum(1), squares + channels.square().sum(1)
        _refuse_none(count)
        mean = total / count
        return cls(mean.float(), (squares / count - mean.square()).clamp_min(0).sqrt().float())

    def draw(self, shape, generator):
        noise = torch.randn(shape, generator=generator, device=generator.device)
        return noise * self.std.to(noise) + self.mean.to(noise)


class LowRankNormal(Noise):
    """N(mu, L L^T + sigma^2 I): the covariance of the forget set up to its `rank` largest directions (App. C.4, future work).

    L = U (Lambda - sigma^2)^(1/2) and sigma^2 = the mean of the eigenvalues left out, the maximum-likelihood solution of
    probabilistic PCA (Tipping & Bishop 1999), so that total variance and leading eigenvalues are those of the set.

    Args:
        mean: (D,) with D = C*H*W. factor: (D, rank). sigma: a number.
    """

    def __init__(self, mean: torch.Tensor, factor: torch.Tensor, sigma: float):
        self.mean, self.factor, self.sigma = mean, factor, sigma

    def __str__(self):
        return f"N(mu, L L^T + sigma^2 I) of the forget set, rank {self.factor.shape[1]}"

    @classmethod
    def fit(cls, batches: Batches, rank: int, seed: int = 0, oversampling: int = 10, power: int = 1) -> "LowRankNormal":
        """Streaming randomised SVD (Halko, Martinsson & Tropp 2011) in 2 + `power` passes over the set.

        Memory is about three D x (rank + oversampling) float32 matrices; the D x D covariance is never formed.

        Raises:
            InputError: fewer than two pictures, or a rank that is not between 1 and min(D, pictures - 1).
        """
        sketch: torch.Tensor = None  # made with the first batch, whose size it needs
        mean: torch.Tensor = None  # after the first pass
        count, total_variance = 0, 0.0
        for number in range(1 + power):
            # One pass: C Q = (sum x (x^T Q) - m mu (mu^T Q)) / (m - 1); the first one gathers mu and the variance too.
            product: torch.Tensor = None
            sums, squares, seen = torch.zeros((), dtype=torch.float64), 0.0, 0
            for pixels in batches():
                x = pixels.flatten(1).float()  # (B, D)
                if sketch is None:
                    width = min(rank + oversampling, x.shape[1])
                    sketch = torch.randn(x.shape[1], width, generator=torch.Generator().manual_seed(seed))
                if product is None:
                    product = torch.zeros_like(sketch)  # (D, width)
                product.addmm_(x.T, x @ sketch)
                seen += len(x)
                if number == 0:
                    sums, squares = sums + x.double().sum(0), squares + x.double().square().sum().item()
            if number == 0:
                _refuse_none(seen - 1)
                count, mean = seen, (sums / seen).float()
                _check_rank(rank, len(mean), count)
                total_variance = (squares - count * mean.double().square().sum().item()) / (count - 1)
            # The scale does not matter: the next step takes an orthonormal basis of it.
            sketch = torch.linalg.qr(product.addr_(mean, mean @ sketch, alpha=-count))[0]  # (D, width)
            del product
        small = torch.zeros(sketch.shape[1], sketch.shape[1], dtype=torch.float64)
        for pixels in batches():
            y = (pixels.flatten(1).float() - mean) @ sketch  # (B, width)
            small += (y.T @ y).double()
        values, vectors = torch.linalg.eigh(small / (count - 1))  # ascending
        values, vectors = values.flip(0)[:rank], vectors.flip(1)[:, :rank]
        sigma2 = max(0.0, (total_variance - values.sum().item()) / max(1, len(mean) - rank))
        factor = sketch @ (vectors * (values - sigma2).clamp_min(0).sqrt()).float()  # (D, rank)
        return cls(mean, factor, sigma2**0.5)

    def draw(self, shape, generator):
        """The white noise behind a picture, one value per pixel and per direction: (D + rank,)."""
        return torch.randn(len(self.mean) + self.factor.shape[1], generator=generator, device=generator.device)

    def __call__(self, like, seeds):
        self.mean, self.factor = self.mean.to(like.device), self.factor.to(like.device)
        white = super().__call__(like, seeds).float()  # (B, D + rank)
        own, shared = white.split([len(self.mean), self.factor.shape[1]], dim=1)
        pictures = self.mean + self.sigma * own + shared @ self.factor.T  # one product for the batch: L is read once
        return pictures.view(-1, *like.shape[1:]).to(like.dtype)


def _refuse_none(count):
    if count < 1:
        raise InputError("The forget set holds too few pictures to fit noise on; two at least are needed.")


def _check_rank(rank, dimensions, count):
    largest = min(dimensions, count - 1)
    if not 1 <= rank <= largest:
        raise InputError(
            f"The noise's rank must lie between 1 and {largest} ({count} pictures of {dimensions} values), got {rank}."
        )
