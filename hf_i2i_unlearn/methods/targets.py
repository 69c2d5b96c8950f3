"""What the forget pictures of a batch are compared with: the second column of the table of methods.

A new method is a new target in most cases: a subclass of `EncodedTarget`, where its pictures are encoded by the original model,
of `RepresentationTarget` where it makes a representation itself, or of `PictureTarget` where the model's own training loss is
taken. `Method` puts it into the table.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .noise import Noise, StandardNormal


@dataclass
class Halves:
    """A batch, half of it to be forgotten, and all that was drawn for it: what a target may look at.

    Attributes:
        retain, forget: pictures, (B, C, H, W) each, normalised. seeds: (B, 3) integers: of T for retain, of T for forget, of n.
        draws: what the model drew for either half, T first of all (`I2IModel.draw`). masks: T alone, (B, rows, cols) each.
        noise: the distribution of n.
        model: the model that is trained (its weights do not matter here: `noise_like`, `noised`, `levels`).
        original: the original model; called as original(pictures, draw) -> (B, ...), and `generate`.
    """

    retain: torch.Tensor
    forget: torch.Tensor
    seeds: Any
    draws: Sequence
    masks: Sequence[torch.Tensor]
    noise: Noise
    model: Any
    original: Any

    @property
    def both(self) -> torch.Tensor:
        """Retain and forget pictures, (2B, C, H, W)."""
        return torch.cat([self.retain, self.forget])

    @property
    def noise_seeds(self):
        """(B,) seeds of n."""
        return self.seeds[:, 2]


class ForgetTarget(abc.ABC):
    """What the forget half is compared with.

    Attributes:
        space: "encoder": a representation; the encoder alone is trained, and retain pictures are held to E0(T(x_r)).
            "output": pictures; the family's own training loss is taken on both halves, and the whole model is trained.
        encodes: whether the original model encodes something for it.
        shared: whether it is the same for all pictures under one T, so that it can be computed once, of `shared_pictures`
            (see `EncodedNoise`).
    """

    space: str
    encodes = False
    shared = False


class RepresentationTarget(ForgetTarget):
    """A representation that the target makes by itself, in the encoder space."""

    space = "encoder"

    def teacher_inputs(self, halves: Halves):
        """(pictures, draw) for the original model to encode; None for nothing."""
        return None

    @abc.abstractmethod
    def representation(self, halves: Halves, retain, encoded, like: torch.Tensor) -> torch.Tensor:
        """The target, (B, ...) or (1, ...).

        Args:
            retain: (B, ...), E0(T(x_r)). encoded: (B, ...), what the original made of `teacher_inputs`, or None.
            like: (B, ...), E(T(x_f)), for shape, device and dtype.
        """


class EncodedTarget(RepresentationTarget):
    """E0(T(y)) of other pictures y, under the T of the forget pictures whose place they take. Subclasses give `pictures`."""

    encodes = True

    @abc.abstractmethod
    def pictures(self, halves: Halves) -> torch.Tensor:
        """y, (B, C, H, W), normalised."""

    def teacher_inputs(self, halves):
        return self.pictures(halves), halves.draws[1]

    def representation(self, halves, retain, encoded, like):
        return encoded


class EncodedNoise(EncodedTarget):
    """E0(T(n)) (eq. 10); where a family says so, n lives in its latent space or takes the hole alone (C.25)."""

    shared = True

    def pictures(self, halves):
        return halves.noise(halves.model.noise_like(halves.both), halves.noise_seeds)

    def shared_pictures(self, noise: Noise, like: torch.Tensor, seeds) -> torch.Tensor:
        """What the original encodes once, where the target is a mean or one of a bank: (len(seeds), C, H, W)."""
        return noise(like, seeds)

    def teacher_inputs(self, halves):
        return halves.model.noised(halves.forget, halves.draws[1], self.pictures(halves))


class NoiseRepresentation(RepresentationTarget):
    """N(0, I) in the place of a representation (C.36)."""

    def representation(self, halves, retain, encoded, like):
        return StandardNormal()(like, halves.noise_seeds)


class MatchedNoiseRepresentation(NoiseRepresentation):
    """The released code's: noise with mean and deviation of the original's representations of the batch, level by level."""

    encodes = True

    def teacher_inputs(self, halves):
        return halves.forget, halves.draws[1]

    def representation(self, halves, retain, encoded, like):
        noise = super().representation(halves, retain, encoded, like)
        levels = halves.model.levels
        pairs = zip(levels(noise), levels(torch.cat([retain, encoded])), strict=True)
        return torch.cat([part * level.std() + level.mean() for part, level in pairs], 1)


class PictureTarget(ForgetTarget):
    """Pictures that stand for the truth in the family's training loss, in the output space."""

    space = "output"

    @abc.abstractmethod
    def pictures(self, halves: Halves) -> torch.Tensor:
        """What the forget pictures are to be completed to, (B, C, H, W), normalised."""

    def retain_pictures(self, halves: Halves) -> torch.Tensor:
        """What the retain pictures are to be completed to, (B, C, H, W): themselves."""
        return halves.retain


class ForgetPictures(PictureTarget):
    """x_f itself, from which max loss moves away (C.28)."""

    def pictures(self, halves):
        return halves.forget


class NoisePictures(PictureTarget):
    """n (C.34)."""

    def pictures(self, halves):
        return halves.noise(halves.both, halves.noise_seeds)


class RetainPictures(PictureTarget):
    """A retain picture (C.31)."""

    def pictures(self, halves):
        return halves.retain


class CompletedRetainPictures(PictureTarget):
    """The released code's: the original's completions of retain pictures, for both halves, each under its own T."""

    encodes = True

    def pictures(self, halves):
        return self._completed(halves, 1)

    def retain_pictures(self, halves):
        return self._completed(halves, 0)

    def _completed(self, halves, half):
        original = getattr(halves.original, "module", halves.original)
        return original.generate(halves.retain, halves.masks[half], halves.seeds[:, half])


class NoTarget(ForgetTarget):
    """None: the model is trained on retain pictures alone, by its own loss."""

    space = "output"
