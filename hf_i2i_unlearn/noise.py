"""n ~ N(0, Sigma): what the forget pictures' representation is moved to, in the normalised image space."""

import abc

import torch


class Noise(abc.ABC):
    """Draws noise pictures; each depends on its own seed alone."""

    @abc.abstractmethod
    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        """One noise picture of `shape` (C, H, W) on the generator's device."""

    def __call__(self, like: torch.Tensor, seeds) -> torch.Tensor:
        """(B, C, H, W) noise on the device and in the dtype of the pictures `like`, one seed per picture."""
        pictures = [
            self.draw(tuple(like.shape[1:]), torch.Generator(like.device).manual_seed(int(seed))) for seed in seeds
        ]
        return torch.stack(pictures).to(like.dtype)


class StandardNormal(Noise):
    """n ~ N(0, I), the paper's choice (App. C.4): off-diagonal covariances are near zero, images are normalised."""

    def __str__(self):
        return "N(0, I)"

    def draw(self, shape, generator):
        return torch.randn(shape, generator=generator, device=generator.device)
