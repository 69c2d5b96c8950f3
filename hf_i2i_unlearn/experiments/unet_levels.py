"""Noise's representation in the place of a picture's, in some levels of a U-Net's encoder."""

import contextlib
from typing import Any

import torch

from ..models.diffusion.modeling import I2IUNet


def levels_of(unet: torch.nn.Module) -> dict[str, list[torch.nn.Module]]:
    """{name: modules of the encoder, from all to the middle block alone}."""
    blocks, middle = list(unet.down_blocks), unet.mid_block
    found = {"all levels": [unet.conv_in, *blocks, middle]}
    found |= {f"down block {k + 1} and after": [*blocks[k:], middle] for k in range(len(blocks))}
    return found | {"the middle block": [middle]}


@contextlib.contextmanager
def noise_from(unet: torch.nn.Module, modules: list[torch.nn.Module], noise: torch.Tensor):
    """Within it the up blocks read E0(T(n)) in place of what these modules of the encoder give.

    noise: n, (B, C, H, W); stands for condition and noisy picture both. The time is that of the pass.
    """
    seen, forward = {}, unet.forward

    def replaced(sample, time, **options):
        count = sample.shape[1] // noise.shape[1]
        with hooks(lambda module, args, output: seen.__setitem__(module, output)):
            forward(noise.to(sample).repeat(1, count, 1, 1), time, **options)
        with hooks(lambda module, args, output: seen[module]):
            return forward(sample, time, **options)

    @contextlib.contextmanager
    def hooks(hook):
        handles = [module.register_forward_hook(hook) for module in modules]
        yield
        for handle in handles:
            handle.remove()

    unet.forward = replaced
    try:
        yield
    finally:
        del unet.forward


def with_noise(model: I2IUNet, name: str, seed: int) -> I2IUNet:
    """A copy that completes pictures with noise's representation in the levels of that name; n of each picture is its own."""
    copy: Any = model.frozen_copy()
    generator = torch.Generator().manual_seed(seed)
    modules = levels_of(copy.model)[name]

    def generate(pixels, mask, seeds=None):
        with noise_from(copy.model, modules, torch.randn(pixels.shape, generator=generator)):
            return model.__class__.generate(copy, pixels, mask, seeds)

    copy.generate = generate  # type: ignore[method-assign]  # of this one object
    return copy
