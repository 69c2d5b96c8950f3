"""The two terms of a method's loss on one batch: what is encoded, by whom, and compared with what."""

from typing import Any

import torch

from ..data.pairs import seeds_for
from ..errors import InputError
from ..methods.bounds import information_bound
from ..methods.corruptions import Corruption
from ..methods.distances import Distance
from ..methods.method import Method
from ..methods.noise import Noise
from ..methods.targets import Halves
from ..models.base import I2IModel, join


class Objective:
    """Distances per picture of a method.

    Args:
        method: the method.
        original: the original model, frozen; only used where the method needs it.
        distance: per-sample distance between representations, for methods in the encoder space.
        noise: the distribution of n.
        noise_target: "fresh" encodes new noise for each forget picture (the paper); "mean" takes E[E0(T(n))] for target.
            With the squared distance both have the same expected gradient; "mean" has less variance, and for a fixed T costs
            no teacher pass. For a random T all forget pictures of a step share one T, and the mean is over the step's draws.
        mean_draws: draws behind the mean for a fixed T.
        seed: fixes those draws, and those of the bank.
        noise_bank: for a fixed T, the fresh noise is one of so many draws, whose E0(T(n)) are computed once; 0 = no bank.

    Raises:
        InputError: see `check_noise_target`; noise that was made for pictures, where n lives in a latent space, or that changes
            with the batch, where the forget target must not.
    """

    def __init__(
        self,
        method: Method,
        original: I2IModel,
        distance: Distance,
        noise: Noise,
        noise_target: str = "fresh",
        mean_draws: int = 1024,
        seed: int = 0,
        noise_bank: int = 0,
    ):
        check_noise_target(method, distance, noise_target, noise_bank)
        self.method, self.distance, self.noise = method, distance, noise
        self.original: Any = original  # None once all that it says is known
        self.target: Any = method.target  # which methods it has follows from the space
        self.noise_target, self.mean_draws, self.seed = noise_target, mean_draws, seed
        self.noise_bank = noise_bank
        self._fixed: dict[Corruption, torch.Tensor] = {}
        model: Any = getattr(original, "module", original)
        if method.shared_target and not noise.any_space and not model.noise_is_a_picture:
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
        if self.noise_target == "mean" and corruption.is_random:
            masks[1] = corruption(grid, seeds_for(self.seed, step, 1)).expand(len(forget), *grid)
        draws = [i2i.draw(retain, masks[0], seeds[:, 0]), i2i.draw(forget, masks[1], seeds[:, 1])]
        halves = Halves(retain, forget, seeds, draws, masks, self.noise, i2i, self.original)
        if not self.method.trains_encoder_alone:
            return self._output(model, halves)
        target, encoded_target = self._teacher(halves, corruption, retain_target)
        encoded = model(halves.both, join(*draws))  # (2B, ...)
        half = len(retain)
        if self.is_fixed(corruption):
            forget_target = encoded_target
        else:
            with torch.no_grad():
                forget_target = self.target.representation(halves, target, encoded_target, encoded[half:])
            if self.noise_target == "mean":
                forget_target = forget_target.mean(0, keepdim=True)
        forget_target = forget_target.expand(half, *forget_target.shape[1:])
        distance = self.distance(encoded, torch.cat([target, forget_target]))  # (2B,)
        diagnostics = {
            "retain_information_bound": information_bound(encoded[:half], target),
            "forget_information_bound": information_bound(encoded[half:], forget_target),
        }
        return distance[:half], distance[half:], diagnostics

    def is_fixed(self, corruption: Corruption) -> bool:
        """Whether the forget target is computed once (`fix`), so that no step encodes it."""
        return bool(self.noise_target == "mean" or self.noise_bank) and not corruption.is_random

    @torch.no_grad()
    def _teacher(self, halves: Halves, corruption, known):
        """The original encoder, in one pass: of the retain pictures (B, ...), and of what the target asks for, or None."""
        if self.is_fixed(corruption):
            forget_target = self.fix(halves.forget, halves.masks[1][:1], corruption)
            if self.noise_bank:
                forget_target = forget_target[(halves.noise_seeds % self.noise_bank).tolist()]
            return (self.original(halves.retain, halves.draws[0]) if known is None else known), forget_target
        inputs = self.target.teacher_inputs(halves)
        if inputs is None:
            return (self.original(halves.retain, halves.draws[0]) if known is None else known), None
        pixels, draw = inputs
        if known is not None:
            return known, self.original(pixels, draw)
        encoded = self.original(torch.cat([halves.retain, pixels]), join(halves.draws[0], draw))
        return encoded[: len(halves.retain)], encoded[len(halves.retain) :]

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
        original = getattr(self.original, "alone", self.original)  # one target, whichever patches are on at that moment
        for start in range(0, count, 64):
            numbers = range(start, min(start + 64, count))
            pictures = self.target.shared_pictures(self.noise, like, [seeds_for(self.seed, i, 1)[0] for i in numbers])
            yield original(pictures, mask.expand(len(pictures), *mask.shape[1:]))

    def _output(self, model, halves: Halves):
        """The family's training loss with x_r for target, and with the method's target on the forget half."""
        retain, target = halves.retain, self.target
        if not self.method.sign:
            return model(retain, halves.draws[0]), None, {}
        with torch.no_grad():
            targets = torch.cat([target.retain_pictures(halves), target.pictures(halves)])
        loss = model(halves.both, join(*halves.draws), targets)  # (2B,)
        return loss[: len(retain)], loss[len(retain) :], {}


def settled_noise_target(
    wanted: str, method: Method, distance: Distance, corruption: Corruption, model: I2IModel, noise: Noise, noise_bank: int = 0
) -> str:
    """`wanted`, or where that is "auto": "mean" where it has the expected gradient of "fresh" and costs less, else "fresh"."""
    if wanted != "auto":
        return wanted
    equal = method.shared_target and distance.squared and model.noise_target_is_shared and not noise.of_batch
    return "mean" if equal and not corruption.is_random and not noise_bank else "fresh"


def check_noise_target(method: Method, distance: Distance, noise_target: str, noise_bank: int = 0) -> None:
    """Raise InputError where the mean target would not be equal in expectation, or where it or a bank has no meaning."""
    if noise_bank < 0:
        raise InputError(f"noise_bank is a number of draws of n, or 0 for no bank; got {noise_bank}.")
    if noise_bank and (not method.shared_target or noise_target == "mean"):
        what = f"not '{method}'" if not method.shared_target else "and noise_target 'mean' needs none"
        raise InputError(f"noise_bank serves the fresh noise of a method such as 'ours', {what}; leave it at 0.")
    if noise_target == "mean" and not method.shared_target:
        raise InputError(
            f"noise_target 'mean' needs a method whose target all forget pictures share, such as 'ours'; that of '{method}' is "
            "another one for each. Leave it at 'fresh'."
        )
    if noise_target == "mean" and not distance.squared:
        raise InputError(
            f"noise_target 'mean' equals fresh noise in expectation for the squared distance only, not for '{distance}'; use "
            "mse, or fresh noise."
        )
