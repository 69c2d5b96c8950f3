"""unet-levels: noise's representation in the place of a picture's."""

import sys

import pytest
import torch
from helpers.close import assert_close, is_close
from test_unet import make_unet

from hf_i2i_unlearn import CenterCrop
from hf_i2i_unlearn.commands import unet_levels as command
from hf_i2i_unlearn.experiments.unet_levels import levels_of, noise_from


@pytest.fixture
def unet():
    return make_unet(steps=3, patch_size=4)


def pictures(seed):
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_with_all_levels_replaced_nothing_of_the_picture_is_left(unet):
    """And the features that are put there are the teacher's, E0(T(n))."""
    mask, noise, seeds = CenterCrop(2)(unet.grid, torch.arange(2)), torch.randn(2, 3, 16, 16), [1, 2]
    hole = unet.hole(mask).expand(2, 3, 16, 16)

    levels = levels_of(unet.model)
    names = ["all levels", "down block 1 and after", "down block 2 and after", "the middle block"]
    assert list(levels) == names

    def completed(name, seed):
        with noise_from(unet.model, levels[name], noise):
            return unet.generate(pictures(seed), mask, seeds)[hole]

    assert torch.equal(completed(names[0], 1), completed(names[0], 2))
    for name in names[1:]:
        assert not is_close(completed(name, 1), completed(name, 2), 1e-3)
    # A picture that is noise has noise's representation already, whatever level is replaced.
    time, inputs = torch.tensor(0.5), noise.repeat(1, 2, 1, 1)
    plain = unet.model(inputs, time).sample
    for name in names:
        with noise_from(unet.model, levels[name], noise):
            assert_close(unet.model(inputs, time).sample, plain)
            other = unet.model(torch.cat([pictures(3)] * 2, 1), time).sample
        assert is_close(other, plain) == (name == names[0])
    assert not any(module._forward_hooks for module in unet.model.modules())
    assert "forward" not in vars(unet.model)


def test_the_table_of_the_demo(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["unet_levels.py", "--config", "unet_levels_mnist",
                                      "--denoising_steps", "2", "--eval_samples", "8", "--features", "demo"])  # fmt: skip
    command.main()
    table = capsys.readouterr().out
    assert "8 pictures of split 'validation', center:3, 2 steps, seed 0" in table
    errors, features = table.split("| mnist-demo |")
    moved = [float(line.split("|")[3]) for line in errors.splitlines() if line.startswith("| all") or "block" in line]
    distances = [float(line.split("|")[4]) for line in features.splitlines() if line.startswith(("| no level", "| all levels"))]
    assert "KD, whole" in features and distances[1] > distances[0]
    assert moved == sorted(moved, reverse=True) and moved[0] > 0.3 and moved[-1] < 0.01
