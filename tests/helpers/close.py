"""Comparisons of floating-point numbers that hold on every processor: relative to the scale of what is compared."""

import math

import torch


def assert_close(actual, expected, tolerance=1e-5):
    """Numbers, lists, arrays, tensors, or dicts of them by name, within `tolerance` of the largest absolute value expected.

    A processor rounds in its own order, and the error goes with the numbers that were added, not with their sum: where 24 can
    be off by 1e-5, so can a 0 beside it. In a dict the scale is that of all entries, as some gradients are 0 but for rounding.
    """
    error, where, scale = worst(actual, expected)
    assert error <= tolerance * scale, (
        f"{where}off by {error:.3g}, which is {error / scale if scale else math.inf:.2g} of the largest value, {scale:.4g}; "
        f"allowed are {tolerance:.2g}"
    )


def is_close(actual, expected, tolerance=1e-5) -> bool:
    """What assert_close asserts."""
    error, _, scale = worst(actual, expected)
    return error <= tolerance * scale


def worst(actual, expected):
    """The largest error (NaN if there is one), the words to say where, and the largest absolute value expected."""
    if not isinstance(expected, dict):
        actual, expected = {"": actual}, {"": expected}
    assert actual.keys() == expected.keys(), f"other names: {sorted(actual.keys() ^ expected.keys())}"
    found, scale = [(0.0, "")], 0.0
    for name in expected:
        one, two = as_doubles(actual[name]), as_doubles(expected[name])
        assert one.shape == two.shape, f"{name}: shape {tuple(one.shape)} in place of {tuple(two.shape)}"
        types = [getattr(value, "dtype", None) for value in (actual[name], expected[name])]
        assert None in types or types[0] == types[1], f"{name}: {types[0]} in place of {types[1]}"
        if two.numel():
            found.append(((one - two).abs().max().item(), f"{name}: " if name else ""))
            scale = max(scale, two.abs().max().item())
    return *max(found, key=lambda error: math.inf if math.isnan(error[0]) else error[0]), scale


def as_doubles(values):
    return values.detach().double() if isinstance(values, torch.Tensor) else torch.as_tensor(values, dtype=torch.float64)
