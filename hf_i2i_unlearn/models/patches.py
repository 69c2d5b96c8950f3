"""Unlearning patches: LoRA adapters on the encoder alone. The original is the same model with its adapters off."""

import contextlib
import functools
import inspect
from collections.abc import Sequence

import torch
from torch import nn

from ..errors import InputError
from .base import I2IModel


class AdaptersOff(nn.Module):
    """The original model without a second copy of its weights: `i2i` with its adapter off, in eval mode, without gradient.

    Every method of `i2i` can be called on it. Patches below the one that is trained act or not, as they do at that moment.

    Args:
        i2i: has a patch on it. alone: switch the patches below off as well.
    """

    def __init__(self, i2i: I2IModel, alone: bool = False):
        super().__init__()
        self.patched, self.is_alone = i2i, alone

    @property
    def alone(self) -> "AdaptersOff":
        """The original without any patch."""
        return AdaptersOff(self.patched, alone=True)

    @contextlib.contextmanager
    def _off(self):
        modes = [(module, module.training) for module in self.patched.modules()]
        self.patched.eval()
        try:
            with self.patched.patch.off(self.is_alone), torch.no_grad():
                yield
        finally:
            for module, mode in modes:
                module.training = mode

    def forward(self, *args, **kwargs):
        with self._off():
            return self.patched(*args, **kwargs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            value = getattr(self.patched, name)
        if not inspect.ismethod(value):
            return value

        @functools.wraps(value)
        def with_adapters_off(*args, **kwargs):
            with self._off():
                return value(*args, **kwargs)

        return with_adapters_off

    def train(self, mode: bool = True):
        """Does nothing: the mode is the trained model's own affair."""
        return self


def original_of(i2i: I2IModel):
    """The original of a model that is about to be trained: itself with a fresh adapter off, else a frozen copy.

    Where there are patches below a new adapter, they act in the original whenever they act in the model (`Patch.take_turns`):
    what they made it forget stays forgotten with them, and is no concern of the new one without.
    """
    return AdaptersOff(i2i) if i2i.patch and i2i.patch.is_fresh else i2i.frozen_copy()


def add_patch(i2i: I2IModel, base: str, rank: int = 8, alpha: float = 32, targets: list[str] | None = None) -> str:
    """Put a new adapter, which changes nothing yet, on layers of the encoder, and freeze everything else.

    Args:
        base: the original's Hub id or folder, written into the patch. rank, alpha: of LoRA; alpha / rank scales the adapter.
        targets: names of layers, or ends of names; all layers of the encoder of the family's `adapted_layers` if None.

    Returns:
        One line on what was adapted.

    Raises:
        InputError: a rank or alpha that is not positive, a target that is no layer of the encoder, a decoder that would
            change, or a model that has such an adapter.
    """
    if rank < 1 or not alpha > 0:
        raise InputError(f"LoRA takes a rank of 1 or more and an alpha above 0, got rank {rank} and alpha {alpha}.")
    if not i2i.decoder_untouched:
        raise InputError(
            "A patch leaves the decoder as it was; leave out the option that trains weights which the decoder reads."
        )
    from .lora import put_new_adapter
    from .lora_layers import encoder_layers

    names = encoder_layers(i2i, targets)
    put_new_adapter(i2i, str(base), rank, alpha, names)
    own = {id(p) for module in i2i.encoder_modules() for p in module.parameters()}
    trained = {name: p for name, p in i2i.named_parameters() if p.requires_grad}
    outside = [name for name, p in trained.items() if id(p) not in own]
    if outside or not trained:
        raise InputError(
            f"These weights of the decoder would be trained: {', '.join(outside[:3])}; choose other --lora_targets."
        )
    count, total = sum(p.numel() for p in trained.values()), sum(p.numel() for p in i2i.parameters())
    return (
        f"LoRA of rank {rank} on {len(names)} layers of the encoder ({', '.join(names[:2])}, ...): {count:,} weights are "
        f"trained, {count / (total - count):.1%} of the model's {total - count:,}."
    )


def load_patches(i2i: I2IModel, paths: Sequence[str]) -> None:
    """Put trained patches (Hub ids or folders) on a model, on top of those it has, frozen.

    Raises:
        InputError: no patch there, or one of another model.
    """
    from .lora import put_trained_adapter

    for path in paths:
        put_trained_adapter(i2i, str(path))


def merge(i2i: I2IModel) -> None:
    """Add all its patches to the model's own weights; it is then a plain model of its library again."""
    i2i.patch.peft.merge_and_unload()
    for parameter in i2i.patch.thawed:
        parameter.requires_grad_(True)
    i2i.patch = None
