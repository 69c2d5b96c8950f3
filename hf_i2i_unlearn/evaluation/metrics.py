"""What a completed picture is measured by beside the true one. A new metric is a subclass of `Metric`."""

import abc

import torch

from ..errors import InputError
from .scores import SCORES

# What `Evaluator`, and the rows of a table made of its figures, have under these names already.
TAKEN = {"count", "mse", "psnr", "drift", "features", "corruption", "model", "set", "network", "region", *SCORES}
PREFIXES = ("original_", "blank_", "true_")


class Metric(abc.ABC):
    """A number per completed picture, whose mean over a set is a figure of `Evaluator`.

    Attributes:
        name: its key in results and CSV files, one word. title: its name in tables; `name` if not given.
        unit: True: it is given pixels in [0, 1]. False: normalised ones, as the model makes them.
        higher_is_better: whether a completion like the truth has a high value. An audit takes errors alone: there it is low.
    """

    name: str = ""
    title: str = ""
    unit = True
    higher_is_better = False

    @abc.abstractmethod
    def __call__(self, completed: torch.Tensor, truth: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
        """The value of each picture, in any unit.

        Args:
            completed, truth: (B, C, H, W); see `unit` for their range. Outside the hole they are the same, except in
                cross-validation, where the hole is the whole picture.
            hole: (B, 1, H, W) boolean, True = hidden. Both are on the device of the model.

        Returns:
            (B,)
        """

    def text(self, value: float) -> str:
        """A mean as it stands in a table."""
        return f"{value:.3g}"


class HoleError(Metric):
    """Mean squared error in the hole, normalised units."""

    name, title, unit = "mse", "hole error", False

    def __call__(self, completed, truth, hole):
        return hole_mse(completed, truth, hole)

    def text(self, value):
        return f"{value:.3f}"


class PSNR(Metric):
    """Peak signal-to-noise ratio in the hole, dB, of pixels clipped to [0, 1]; at most 100."""

    name, title, higher_is_better = "psnr", "PSNR", True

    def __call__(self, completed, truth, hole):
        return -10 * hole_mse(completed, truth, hole).clamp_min(1e-10).log10()

    def text(self, value):
        return f"{value:.1f} dB"


BUILT_IN = (HoleError(), PSNR())  # what every evaluation has, beside the drift from the original


def hole_mse(a: torch.Tensor, b: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """Mean squared difference over the hidden pixels, (B, C, H, W) x 2 and (B, 1, H, W) boolean -> (B,)."""
    error = (a - b).square() * hole
    return error.flatten(1).sum(1) / (hole.flatten(1).sum(1) * a.shape[1])


def measured(metric: Metric, completed: torch.Tensor, truth: torch.Tensor, hole: torch.Tensor, unit) -> torch.Tensor:
    """A metric of normalised pictures, (B, C, H, W) x 2 and (B, 1, H, W) -> (B,).

    Args:
        unit: normalised pixels -> pixels in [0, 1] (`ImageReader.unit`).

    Raises:
        InputError: it does not give a number per picture.
    """
    values = metric(unit(completed), unit(truth), hole) if metric.unit else metric(completed, truth, hole)
    if not isinstance(values, torch.Tensor) or values.shape != completed.shape[:1]:
        got = f"shape {tuple(values.shape)}" if isinstance(values, torch.Tensor) else type(values).__name__
        raise InputError(
            f"The metric '{metric.name}' must give a tensor with a value per picture, ({len(completed)},); got {got}."
        )
    return values


def check_metrics(metrics) -> None:
    """Raise InputError unless all are `Metric` objects with a name of their own."""
    names = []
    for metric in metrics:
        if not isinstance(metric, Metric):
            what = f"the class {metric.__name__}" if isinstance(metric, type) else repr(metric)
            raise InputError(f"A metric is an object of a subclass of Metric, such as HoleError(); got {what}.")
        name = metric.name
        if not isinstance(name, str) or not name.isidentifier():
            raise InputError(f"The metric {type(metric).__name__} needs a name of one word, such as 'ssim'; got {name!r}.")
        if name in TAKEN or name in names or name.startswith(PREFIXES):
            raise InputError(
                f"The name '{name}' of a metric is taken; give {type(metric).__name__} another one, which does not begin with "
                f"{', '.join(PREFIXES)}."
            )
        names.append(name)
