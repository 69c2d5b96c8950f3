"""choose-classes: sets of classes that are far from each other, and near pairs."""

import sys

import pytest
import torch

from hf_i2i_unlearn import InputError
from hf_i2i_unlearn.commands import choose_classes as command
from hf_i2i_unlearn.experiments.class_choice import class_centres, distances_of, far_apart, near_pairs


class Colours:
    """A network whose features are a picture's mean colour."""

    name = "colours"

    def embed(self, images):
        return images.mean((2, 3)) - 0.5


def test_two_groups_are_found_and_pairs_cross_none():
    angles = torch.tensor([0.0, 0.1, 0.25, 3.0, 3.1, 3.35])  # two groups of three directions
    centres = torch.stack([angles.cos(), angles.sin()], 1)
    distances = distances_of(centres)
    far = [sorted(some) for some in far_apart(distances, 3)]
    assert sorted(far) == [[0, 1, 2], [3, 4, 5]]
    pairs = list(zip(*near_pairs(distances, 2)))
    assert sorted(pairs) == [(0, 1), (3, 4)]  # and no class twice


def test_centres_are_of_a_class_each():
    red, blue = torch.zeros(4, 3, 2, 2), torch.zeros(3, 3, 2, 2)
    red[:, 0], blue[:, 2] = 1, 1
    centres = class_centres(Colours(), [red, blue])
    assert centres.shape == (2, 3) and centres[0].argmax() == 0 and centres[1].argmax() == 2
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(2))


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["x", *map(str, words)])
    command.main()


@pytest.mark.parametrize("words", [[], ["--eval_split", "none"]])  # it looks at --train_split alone
def test_the_demo_prints_options_of_unlearn(monkeypatch, capsys, words):
    run(monkeypatch, *words)
    text = capsys.readouterr().out
    lines = [line.split(" --retain_classes ") for line in text.splitlines() if line.startswith("--forget_classes")]
    for forget, retain in lines:
        assert sorted(forget.split()[1:] + retain.split()) == list("0123456789")
    means = [float(line.split("mean distance ")[1].split(",")[0]) for line in text.splitlines() if "mean distance" in line]
    assert len(lines) == 2 and means[0] > means[1]


@pytest.mark.parametrize("words", [["--count", 6], ["--samples", 0], ["--streaming", "true"], ["--label_column", "no"]])
def test_refusals(monkeypatch, words):
    with pytest.raises(InputError):
        run(monkeypatch, "--features", "demo", *words)
