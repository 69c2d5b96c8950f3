"""The two terms of a method's loss on one batch: what is encoded, by whom, and compared with what."""

import torch

from ..data.pairs import seeds_for
from ..errors import InputError
from ..methods.bounds import information_bound
from ..methods.corruptions import Corruption
from ..methods.method import Method
from ..methods.noise import Constant, Noise, StandardNormal, Uniform
from ..models.base import I2IModel, join


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
        seed: fixes those draws, and those of the bank.
        noise_bank: for a fixed T, the fresh noise is one of so many draws, whose E0(T(n)) are computed once; 0 = no bank.

    Raises:
        InputError: noise that was made for pictures, where n lives in a latent space, or that changes with the batch, where the
            forget target must not.
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
        noise_bank: int = 0,
    ):
        self.method, self.original, self.distance, self.noise = method, original, distance, noise
        self.variant, self.noise_target, self.mean_draws, self.seed = variant, noise_target, mean_draws, seed
        self.noise_bank = noise_bank
        self._fixed = {}
        model = getattr(original, "module", original)
        pixels_only = not isinstance(noise, (StandardNormal, Uniform, Constant))
        if method.forget_target == "encoded noise" and pixels_only and not model.noise_is_a_picture:
            raise InputError(
                f"The noise '{noise}' is made for pixels, but n of the family '{model.family}' lives in latent space here; use "
                "normal, uniform or constant."
            )
        if (noise_target == "mean" or noise_bank) and noise.of_batch:
            raise InputError(
                f"The noise '{noise}' is another one for each batch, so the forget target cannot be fixed; use other noise, or "
                "noise_target fresh without a noise_bank."
            )

    def __call__(self, model, i2i: I2IModel, corruption: Corruption, retain, forget, seeds, step: int = 0, retain_target=None):
        """One student pass over both halves, and no teacher pass that is not needed.

        Args:
            model: the module that is trained, perhaps wrapped: `i2i` in the encoder space, its `TrainingLoss` in the output
                space. i2i: the target model itself, for what has no weights: its grid and its draws.
            retain, forget: (B, C, H, W). seeds: (B, 3), of T for retain, T for forget, and n. step: of the run.
            retain_target: (B, ...), E0(T(x_r)) where it is known already.

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
        target, forget_target = self._targets(i2i, retain, forget, draws, masks, seeds, corruption, retain_target)
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
    def _targets(self, i2i, retain, forget, draws, masks, seeds, corruption, known):
        """Representations by the original encoder: of the retain pictures (B, ...), and the forget target.

        The forget target is None where it is noise in the shape of a representation; the reference's variant of that needs
        the original's representations of all pictures, (2B, ...), which then come first.
        """
        half = len(retain)
        if self.method.forget_target == "noise":
            if self.variant == "reference":
                return self.original(torch.cat([retain, forget]), join(*draws)), None
            return (self.original(retain, draws[0]) if known is None else known), None
        if (self.noise_target == "mean" or self.noise_bank) and not corruption.is_random:
            forget_target = self.fix(forget, masks[1][:1], corruption)
            if self.noise_bank:
                forget_target = forget_target[(seeds[:, 2] % self.noise_bank).tolist()]
            return (self.original(retain, draws[0]) if known is None else known), forget_target
        noise = self.noise(i2i.noise_like(torch.cat([retain, forget])), seeds[:, 2])
        pixels, draw = i2i.noised(forget, draws[1], noise)
        if known is None:
            encoded = self.original(torch.cat([retain, pixels]), join(draws[0], draw))
            known, forget_target = encoded[:half], encoded[half:]
        else:
            forget_target = self.original(pixels, draw)
        return known, forget_target.mean(0, keepdim=True) if self.noise_target == "mean" else forget_target

    def _with_moments(self, i2i, noise, encoded):
        """Standard normal noise with mean and deviation of each level of the original's representations, (B, ...) and (2B, ...)."""
        pairs = zip(i2i.levels(noise), i2i.levels(encoded))
        return torch.cat([part * level.std() + level.mean() for part, level in pairs], 1)

    @torch.no_grad()
    def fix(self, like, mask, corruption, store=None):
        """The forget target under a fixed T, computed once with the same draws in every run and process.

        E[E0(T(n))], (1, ...), or E0(T(n)) of the draws of the bank, (noise_bank, ...).

        Args:
            like: (B, C, H, W), for shape, device and dtype of n. mask: (1, rows, cols), T.
            store: a `TargetStore`, where it is kept for other runs.
        """
        if corruption not in self._fixed:
            kind, count = ("bank", self.noise_bank) if self.noise_bank else ("mean", self.mean_draws)

            def make():
                encoded = self._encoded_noise(like, mask, count)
                if self.noise_bank:
                    return torch.cat([*encoded])
                return sum(part.float().sum(0, keepdim=True) for part in encoded) / count

            target = store.forget(self.noise, count, kind, self.seed, make).to(like.device) if store else make()
            self._fixed[corruption] = target
        return self._fixed[corruption]

    def _encoded_noise(self, like, mask, count):
        """E0(T(n)) of `count` draws in chunks, each (up to 64, ...)."""
        for start in range(0, count, 64):
            numbers = range(start, min(start + 64, count))
            noise = self.noise(like, [seeds_for(self.seed, i, 1)[0] for i in numbers])
            yield self.original(noise, mask.expand(len(noise), *mask.shape[1:]))

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


def check_noise_target(noise_target: str, distance: str, method: str, noise_bank: int = 0) -> None:
    """Raise InputError where the mean target would not be equal in expectation, or where it or a bank has no meaning."""
    if noise_bank < 0:
        raise InputError(f"noise_bank is a number of draws of n, or 0 for no bank; got {noise_bank}.")
    if noise_bank and (method != "ours" or noise_target == "mean"):
        what = f"not '{method}'" if method != "ours" else "and noise_target 'mean' needs none"
        raise InputError(f"noise_bank serves the fresh noise of the method 'ours', {what}; leave it at 0.")
    if noise_target == "mean" and method != "ours":
        raise InputError(f"noise_target 'mean' is a way to run the method 'ours', not '{method}'; leave it at 'fresh'.")
    if noise_target == "mean" and distance != "mse":
        raise InputError(
            f"noise_target 'mean' equals fresh noise in expectation for the squared distance only, not for '{distance}'; use mse, "
            "or fresh noise."
        )
