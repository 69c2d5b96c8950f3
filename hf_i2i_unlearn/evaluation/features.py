"""A feature network: what pictures are measured by. It knows its input and says in a report what it is."""

import math

import torch
from torch import nn

from ..storage import content_hash

# What a processor is given at a time, so that the layers' outputs stay in its cache (recipes/benchmarks/benchmark_features.py).
PIXELS_AT_ONCE = 4 * 224 * 224


class FeatureNetwork(nn.Module):
    """A frozen network from pictures to features, and to logits if it classifies.

    Args:
        network: any module that takes (B, channels, height, width).
        name: for reports. size: (height, width) it takes; pictures are resized, never cropped.
        mean, std: per channel, or one for all, of its input: (x - mean) / std for x in [0, 1].
        channels: 1 or 3. A grey picture is repeated, a colour one becomes its luma.
        resize: "bilinear" or "bicubic". antialias: as PIL does, when pictures get smaller.
        head: the last linear layer of a classifier: what goes into it are the features, what comes out the logits. None: the
            output of `network` are the features.
        kind: the word that made it.
    """

    def __init__(
        self, network, name: str, size: tuple[int, int], mean=0.5, std=0.5, channels: int = 3, resize: str = "bicubic",
        antialias: bool = True, head: nn.Linear | None = None, kind: str = "module",
    ):  # fmt: skip
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.name, self.kind, self.size, self.channels = name, kind, (size[0], size[1]), channels
        self.resize, self.antialias, self.head = resize, antialias, [head]  # in a list: it is a part of the network already
        for key, value in (("mean", mean), ("std", std)):
            value = torch.as_tensor(value, dtype=torch.float).flatten()
            self.register_buffer(key, value.expand(channels).clone().view(-1, 1, 1))
        self.weights = hash_weights(network)

    @property
    def classifies(self) -> bool:
        """Whether there are logits."""
        return self.head[0] is not None

    def describe(self) -> dict:
        """What a figure must carry to be understood: network, hash of the weights, input, resize, range."""
        return {
            "network": self.name,
            "kind": self.kind,
            "weights_sha256": self.weights,
            "input": [self.channels, *self.size],
            "resize": self.resize + (", antialiased" if self.antialias else ""),
            "range": f"(x - {_short(self.mean)}) / {_short(self.std)} of x in [0, 1]",
        }

    def fill(self, channels: int) -> torch.Tensor:
        """The colour of a blank, in [0, 1]: the mean colour of the network's training pictures, (channels,)."""
        mean = self.mean.flatten()
        return mean if len(mean) == channels else mean.mean().expand(channels)

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1 or 3, H, W) in [0, 1] -> the network's input, (B, channels, height, width)."""
        x = images.to(self.mean)
        if x.shape[1] == 1 and self.channels == 3:
            x = x.expand(-1, 3, -1, -1)
        elif x.shape[1] == 3 and self.channels == 1:
            x = (x * x.new_tensor([0.299, 0.587, 0.114]).view(-1, 1, 1)).sum(1, keepdim=True)
        if x.shape[2:] != self.size:
            x = nn.functional.interpolate(x, self.size, mode=self.resize, align_corners=False, antialias=self.antialias)
        return (x.clamp(0, 1) - self.mean) / self.std

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, 1 or 3, H, W) in [0, 1] -> features (B, D) and logits (B, classes) or None."""
        if self.mean.device.type != "cpu" or not len(images):
            return self.at_once(images)
        found = [self.at_once(piece) for piece in images.split(max(1, PIXELS_AT_ONCE // math.prod(self.size)))]
        features, logits = zip(*found)
        return torch.cat(features), torch.cat(logits) if self.classifies else None

    @torch.no_grad()
    def at_once(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same in one pass."""
        x, head, seen = self.prepare(images), self.head[0], []
        if head is None:
            return self.network(x).flatten(1).float(), None
        hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            logits = self.network(x)
        finally:
            hook.remove()
        logits = getattr(logits, "logits", logits)
        return seen[0].flatten(1).float(), logits.float()

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """The features alone."""
        return self(images)[0]


def crop_to_hole(images: torch.Tensor, hole: torch.Tensor, size: tuple[int, int], fill: torch.Tensor) -> torch.Tensor:
    """The hole alone: the box around it, resized, with the visible pixels in the box (if any) set to one colour.

    A rectangular hole fills its box, so nothing is set. A random mask's box is nearly the whole picture; what is visible of it,
    which no model has generated, is blanked.

    Args:
        images: (B, C, H, W) in [0, 1]. hole: (B, 1, H, W) boolean, True = hidden. fill: (C,) or (1,) in [0, 1].

    Returns:
        (B, C, height, width), bicubic.
    """
    images = torch.where(hole, images, fill.to(images).view(1, -1, 1, 1))
    rows, cols = hole.any(3)[:, 0], hole.any(2)[:, 0]  # (B, H), (B, W)
    boxes = torch.stack([_first(rows), _last(rows), _first(cols), _last(cols)], 1)  # (B, 4)
    kinds, which = boxes.unique(dim=0, return_inverse=True)
    result = images.new_empty(len(images), images.shape[1], *size)
    for number, (top, bottom, left, right) in enumerate(kinds.tolist()):
        part = images[which == number, :, top:bottom, left:right]
        part = nn.functional.interpolate(part, size, mode="bicubic", align_corners=False, antialias=True)
        result[which == number] = part.clamp(0, 1)
    return result


def _first(line):
    return line.int().argmax(1)


def _last(line):
    return line.shape[1] - line.flip(1).int().argmax(1)


def hash_weights(network: nn.Module) -> str:
    """sha256 over names, shapes and values of a state dict; the same wherever and however often the weights are loaded."""
    return content_hash(sorted(network.state_dict().items()))


def _short(value) -> str:
    values = [f"{v:g}" for v in value.flatten().tolist()]
    return values[0] if len(set(values)) == 1 else f"({', '.join(values)})"
