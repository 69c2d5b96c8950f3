"""The two terms of a method's loss on one batch: what is encoded, by whom, and compared with what."""

import torch

from .corruptions import Corruption
from .data import seeds_for
from .errors import InputError
from .methods import Method, information_bound
from .models.base import I2IModel, join
from .noise import Constant, Noise, StandardNormal, Uniform


class Objective:
    """Distances per picture of a row of `METHODS`.

    Args:
        method: the row.
        original: the original model, frozen; only used where the method needs it.
        distance: per-sample distance between representations (`DISTANCES`), for methods in the encoder space.
        noise: the distribution of n.
        variant: "paper", or "reference" for what the released code intends where it departs: `random_encoder` draws with the
            mean and deviation of the original's representations of the batch, level by level (paper: N(0, I)); `retain_label`
            takes the original's completions of retain pictures for targets on both halves (paper: the pictures themselves).
        noise_target: "fresh" encodes new noise for each forget picture (the paper); "mean" takes E[E0(T(n))] for target.
            With the squared distance both have the same expected gradient; "mean" has less variance, and for a fixed T costs
            no teacher pass. For a random T all forget pictures of a step share one T, and the mean is over the step's draws.
        mean_draws: draws behind the mean for a fixed T.
        seed: fixes those draws.

    Raises:
        InputError: noise that was made for pictures, where n lives in a latent space.
    """

    def __init__(
        self,
        method: Method,
        original: I2IModel,
        distance,
        noise: Noise,
        variant: str = "paper",
        noise_target: str = "fresh",
        mean_draws: int = 1024,
        seed: int = 0,
    ):
        self.method, self.original, self.distance, self.noise = method, original, distance, noise
        self.variant, self.noise_target, self.mean_draws, self.seed = variant, noise_target, mean_draws, seed
        self._means = {}
        model = getattr(original, "module", original)
        pixels_only = not isinstance(noise, (StandardNormal, Uniform, Constant))
        if method.forget_target == "encoded noise" and pixels_only and not model.noise_is_a_picture:
            raise InputError(
                f"The noise '{noise}' is made for pixels, but n of the family '{model.family}' lives in latent space here; use "
                "normal, uniform or constant."
            )

    def __call__(self, model, i2i: I2IModel, corruption: Corruption, retain, forget, seeds, step: int = 0):
        """One student pass over both halves, and no teacher pass that is not needed.

        Args:
            model: the module that is trained, perhaps wrapped: `i2i` in the encoder space, its `TrainingLoss` in the output
                space. i2i: the target model itself, for what has no weights: its grid and its draws.
            retain, forget: (B, C, H, W). seeds: (B, 3), of T for retain, T for forget, and n. step: of the run.

        Returns:
            Retain distances (B,), forget distances (B,) or None for a method without, and diagnostics {name: scalar}.
        """
        grid = i2i.grid
        masks = [corruption(grid, seeds[:, 0]), corruption(grid, seeds[:, 1])]  # each (B, rows, cols)
        if self.noise_target == "mean" and corruption.is_random and self.method.forget_target == "encoded noise":
            masks[1] = corruption(grid, seeds_for(self.seed, step, 1)).expand(len(forget), *grid)
        draws = [i2i.draw(pixels, mask, seeds[:, k]) for k, (pixels, mask) in enumerate(zip((retain, forget), masks))]
        if self.method.space == "output":
            return self._output(model, retain, forget, draws, masks, seeds)
        target, forget_target = self._targets(i2i, retain, forget, draws, masks, seeds, corruption)
        encoded = model(torch.cat([retain, forget]), join(*draws))  # (2B, ...)
        if forget_target is None:  # Gaussian noise in the place of a representation
            forget_target = StandardNormal()(encoded[len(retain) :], seeds[:, 2])
            if self.variant == "reference":
                forget_target = self._with_moments(i2i, forget_target, target)
                target = target[: len(retain)]
        half = len(retain)
        forget_target = forget_target.expand(half, *forget_target.shape[1:])
        distance = self.distance(encoded, torch.cat([target, forget_target]))  # (2B,)
        diagnostics = {
            "retain_information_bound": information_bound(encoded[:half], target),
            "forget_information_bound": information_bound(encoded[half:], forget_target),
        }
        return distance[:half], distance[half:], diagnostics

    @torch.no_grad()
    def _targets(self, i2i, retain, forget, draws, masks, seeds, corruption):
        """Representations by the original encoder: of the retain pictures (B, ...), and the forget target.

        The forget target is None where it is noise in the shape of a representation; the reference's variant of that needs
        the original's representations of all pictures, (2B, ...), which then come first.
        """
        half = len(retain)
        if self.method.forget_target == "noise":
            if self.variant == "reference":
                return self.original(torch.cat([retain, forget]), join(*draws)), None
            return self.original(retain, draws[0]), None
        if self.noise_target == "mean" and not corruption.is_random:
            return self.original(retain, draws[0]), self._mean(forget, masks[1][:1], corruption)
        noise = self.noise(i2i.noise_like(torch.cat([retain, forget])), seeds[:, 2])
        pixels, draw = i2i.noised(forget, draws[1], noise)
        encoded = self.original(torch.cat([retain, pixels]), join(draws[0], draw))
        forget_target = encoded[half:]
        return encoded[:half], forget_target.mean(0, keepdim=True) if self.noise_target == "mean" else forget_target

    def _with_moments(self, i2i, noise, encoded):
        """Standard normal noise with mean and deviation of each level of the original's representations, (B, ...) and (2B, ...)."""
        pairs = zip(i2i.levels(noise), i2i.levels(encoded))
        return torch.cat([part * level.std() + level.mean() for part, level in pairs], 1)

    def _mean(self, like, mask, corruption):
        """E[E0(T(n))] for a fixed T, (1, ...): estimated once, with the same draws in every run and process."""
        if corruption not in self._means:
            total, drawn = 0.0, 0
            while drawn < self.mean_draws:
                count = min(64, self.mean_draws - drawn)
                noise = self.noise(like, [seeds_for(self.seed, drawn + i, 1)[0] for i in range(count)])
                total = total + self.original(noise, mask.expand(count, *mask.shape[1:])).float().sum(0, keepdim=True)
                drawn += count
            self._means[corruption] = total / self.mean_draws
        return self._means[corruption]

    def _output(self, model, retain, forget, draws, masks, seeds):
        """The family's training loss with x_r for target, and with the method's target on the forget half."""
        if self.method.forget_target == "none":
            return model(retain, draws[0]), None, {}
        retain_target, forget_target = retain, forget
        if self.method.forget_target == "noise":
            forget_target = self.noise(torch.cat([retain, forget]), seeds[:, 2])
        elif self.method.forget_target == "retain":
            forget_target = retain
            if self.variant == "reference":
                original = getattr(self.original, "module", self.original)
                retain_target = original.generate(retain, masks[0], seeds[:, 0])
                forget_target = original.generate(retain, masks[1], seeds[:, 1])
        loss = model(torch.cat([retain, forget]), join(*draws), torch.cat([retain_target, forget_target]))  # (2B,)
        return loss[: len(retain)], loss[len(retain) :], {}


def check_noise_target(noise_target: str, distance: str, method: str) -> None:
    """Raise InputError where the mean target would not be equal in expectation, or has no meaning."""
    if noise_target == "mean" and method != "ours":
        raise InputError(f"noise_target 'mean' is a way to run the method 'ours', not '{method}'; leave it at 'fresh'.")
    if noise_target == "mean" and distance != "mse":
        raise InputError(
            f"noise_target 'mean' equals fresh noise in expectation for the squared distance only, not for '{distance}'; use mse, "
            "or fresh noise."
        )
