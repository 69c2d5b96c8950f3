"""T(x), section 3 of the paper: which patches of a picture are hidden.

A corruption knows only the patch grid, so it serves every model and every image size. It returns a boolean mask over
patches, True where a patch is hidden; the model turns the mask into tokens to drop or pixels to blank. Every corruption
hides an exact number of patches, the same for each picture of a batch.
"""

import abc
import math
from dataclasses import dataclass

import torch

from ..errors import InputError

Grid = tuple[int, int]


class Corruption(abc.ABC):
    """T(x) as a mask over a grid of patches.

    A new kind implements `draw`, and `__str__` for cards; where two draws can differ it says so (`is_random`). Calling a
    corruption checks that something is hidden and something is left. Every draw must hide equally many patches.
    """

    def __str__(self):
        return type(self).__name__

    @abc.abstractmethod
    def draw(self, grid: Grid, generator: torch.Generator) -> torch.Tensor:
        """One boolean mask of shape (rows, cols), True = hidden."""

    @property
    def is_random(self) -> bool:
        """Whether two draws can differ."""
        return False

    def __call__(self, grid: Grid, seeds) -> torch.Tensor:
        """Masks for a batch.

        Args:
            grid: (rows, cols) of patches.
            seeds: one integer per picture. The mask of a picture depends on its own seed alone, so it does not change
                with the batch size, the number of processes or a resumed run.

        Returns:
            Boolean tensor (B, rows, cols) on the CPU, True = hidden.

        Raises:
            InputError: the mask would hide nothing or everything on this grid.
        """
        self.check(grid)
        if not self.is_random:
            return self.draw(grid, torch.Generator()).expand(len(seeds), *grid)
        return torch.stack([self.draw(grid, torch.Generator().manual_seed(int(seed))) for seed in seeds])

    def at(self, step: int) -> "Corruption":
        """The T of training step `step` (from 0): this one itself, unless several take turns (`Turns`)."""
        return self

    def hidden(self, grid: Grid) -> int:
        """The number of patches hidden on `grid`, the same for every draw."""
        return int(self.draw(grid, torch.Generator().manual_seed(0)).sum())

    def check(self, grid: Grid) -> None:
        """Raise InputError unless at least one patch is hidden and at least one is visible on `grid`."""
        rows, cols = grid
        hidden, total = self.hidden(grid), rows * cols
        if not 0 < hidden < total:
            what = "nothing" if hidden == 0 else "everything"
            raise InputError(
                f"The corruption '{self}' hides {what} ({hidden} of {total} patches) of the model's {rows}x{cols} grid; "
                f"choose one that hides between 1 and {total - 1} patches."
            )


def _square(grid: Grid, size: int) -> torch.Tensor:
    """True in the centred size x size square (clipped to the grid; half a patch up-left where it cannot be centred)."""
    mask = torch.zeros(grid, dtype=torch.bool)
    height, width = (min(size, side) for side in grid)
    top, left = (grid[0] - height) // 2, (grid[1] - width) // 2
    mask[top : top + height, left : left + width] = True
    return mask


def _natural(name: str, size: int) -> None:
    if size < 0:
        raise InputError(f"{name} must be a number of patches, 1 or more; got {size}.")


@dataclass(frozen=True)
class CenterCrop(Corruption):
    """Hides the central `size` x `size` patches (inpainting; "cropping 8x8 patches" of Tables 1 and 2)."""

    size: int

    def __post_init__(self):
        _natural("The centre crop", self.size)

    def __str__(self):
        return f"center:{self.size}"

    def draw(self, grid, generator):
        return _square(grid, self.size)


@dataclass(frozen=True)
class CenterRatio(Corruption):
    """Hides a central block of about a share `ratio` of the patches, as square as it can be (Fig. E.18 and E.19)."""

    ratio: float

    def __post_init__(self):
        if not 0 <= self.ratio <= 1:
            raise InputError(f"The ratio of a crop must lie between 0 and 1, got {self.ratio}.")

    def __str__(self):
        return f"ratio:{self.ratio:g}"

    def draw(self, grid, generator):
        rows, cols = grid
        height = max(1, round(rows * self.ratio**0.5))
        width = max(1, min(cols, round(self.ratio * rows * cols / height)))
        mask = torch.zeros(grid, dtype=torch.bool)
        if self.ratio:
            top, left = (rows - height) // 2, (cols - width) // 2
            mask[top : top + height, left : left + width] = True
        return mask


@dataclass(frozen=True)
class Outpaint(Corruption):
    """Hides everything but the central `keep` x `keep` patches (uncropping, App. E.1)."""

    keep: int

    def __post_init__(self):
        _natural("The part kept by outpainting", self.keep)

    def __str__(self):
        return f"outpaint:{self.keep}"

    def draw(self, grid, generator):
        return ~_square(grid, self.keep)


@dataclass(frozen=True)
class Extend(Corruption):
    """Hides the `size` outermost columns or rows at one `side`: image extension to the left, right, up or down."""

    side: str
    size: int

    def __post_init__(self):
        if self.side not in ("left", "right", "up", "down"):
            raise InputError(f"An extension goes left, right, up or down; got {self.side!r}.")
        _natural("The extension", self.size)

    def __str__(self):
        return f"{self.side}:{self.size}"

    def draw(self, grid, generator):
        mask = torch.zeros(grid, dtype=torch.bool)
        size = self.size
        if size:
            part = {
                "left": (slice(None), slice(None, size)),
                "right": (slice(None), slice(-size, None)),
                "up": (slice(None, size),),
                "down": (slice(-size, None),),
            }[self.side]
            mask[part] = True
        return mask


@dataclass(frozen=True)
class RandomMask(Corruption):
    """Hides a uniformly random share `ratio` of the patches: ceil(ratio * N) of N, as MAE and MAGE count them."""

    ratio: float

    def __post_init__(self):
        if not 0 <= self.ratio <= 1:
            raise InputError(f"The ratio of a random mask must lie between 0 and 1, got {self.ratio}.")

    def __str__(self):
        return f"random:{self.ratio:g}"

    @property
    def is_random(self):
        return True

    def hidden(self, grid):
        # The 1e-6 undoes binary fractions: 0.07 * 100 is 7.000000000000001.
        return math.ceil(self.ratio * grid[0] * grid[1] - 1e-6)

    def draw(self, grid, generator):
        order = torch.randperm(grid[0] * grid[1], generator=generator)  # (N,)
        mask = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
        mask[order[: self.hidden(grid)]] = True
        return mask.view(grid)


@dataclass(frozen=True)
class RandomBlock(Corruption):
    """Hides one `size` x `size` block of patches at a uniformly random place (the boxes of Palette's training masks)."""

    size: int

    def __post_init__(self):
        _natural("The block", self.size)

    def __str__(self):
        return f"block:{self.size}"

    @property
    def is_random(self):
        return True

    def draw(self, grid, generator):
        mask = torch.zeros(grid, dtype=torch.bool)
        height, width = (min(self.size, side) for side in grid)
        top = int(torch.randint(grid[0] - height + 1, (), generator=generator))
        left = int(torch.randint(grid[1] - width + 1, (), generator=generator))
        mask[top : top + height, left : left + width] = True
        return mask


@dataclass(frozen=True)
class Turns(Corruption):
    """Several T that take turns in training, a step each: what is forgotten under one T alone is completed under others.

    A step has one T, so that all its pictures hide equally many patches. Masks are drawn of the T of a step, `at(step)`.
    """

    parts: tuple[Corruption, ...]

    def __str__(self):
        return ",".join(map(str, self.parts))

    @property
    def is_random(self):
        return True

    def at(self, step):
        return self.parts[step % len(self.parts)]

    def check(self, grid):
        for part in self.parts:
            part.check(grid)

    def draw(self, grid, generator):
        raise InputError(f"'{self}' are several corruptions that take turns in training; one of them is wanted here.")
