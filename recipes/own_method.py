"""A method, a mask and a metric of your own, compared with the paper's method on the embedded demo: one table.

Run it as it is: python recipes/own_method.py
"""

import torch
from torch.nn.functional import avg_pool2d

from hf_i2i_unlearn import (
    METHODS,
    Corruption,
    EncodedTarget,
    Method,
    Metric,
    UnlearningConfig,
    by_classes,
    compare,
    comparison_table,
    load_model,
    load_processor,
    load_source,
    select,
    undecoded,
)


class Blurred(EncodedTarget):
    """Forget pictures are moved to the representation of the blurred picture, not to that of noise."""

    def pictures(self, halves):
        return avg_pool2d(halves.forget, 7, stride=1, padding=3)


class Cross(Corruption):
    """T: hides the middle row and the middle column of patches."""

    def __str__(self):
        return "cross"

    def draw(self, grid, generator):
        rows, cols = (torch.arange(n) == n // 2 for n in grid)
        return rows[:, None] | cols


class Ink(Metric):
    """How much ink is missing or too much in the hole, as a share of its pixels."""

    name, title = "ink", "ink"

    def __call__(self, completed, truth, hole):
        return ((completed - truth) * hole).sum((1, 2, 3)).abs() / hole.sum((1, 2, 3))


def pictures(split, count):
    """`count` digits 5-9 to be forgotten, and as many of the others."""
    digits = load_source("mnist-demo", split).shuffle(seed=0)
    five_up = by_classes(digits, ["5", "6", "7", "8", "9"])
    sets = {"forget": True, "retain": False}
    return {name: undecoded(select(digits, five_up, keep)).select(range(count)) for name, keep in sets.items()}


def main(steps=(100, 200), count=300):
    training = UnlearningConfig("own-method", logging_strategy="no", use_cpu=True, disable_tqdm=True, seed=0)
    points = compare(
        lambda: load_model("mnist-demo"), load_processor("mnist-demo"), pictures("train", 1000),
        {name: list(rows) for name, rows in pictures("validation", count).items()}, Cross(),
        [METHODS["ours"], Method("blurred", Blurred(), summary="E(T(x_f)) is moved to E0(T(blur(x_f)))")],
        training, learning_rates=(1e-4, 3e-4), measure_at=steps, metrics=(Ink(),),
    )  # fmt: skip
    print(comparison_table(points, tolerance=0.1, metrics=(Ink(),)))


if __name__ == "__main__":
    main()
