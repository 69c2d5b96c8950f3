"""Which layers of the encoder get an adapter."""

import re

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..errors import InputError
from .base import I2IModel


def encoder_layers(i2i: I2IModel, targets: list[str] | None = None) -> list[str]:
    """Full names, within the inner model, of the layers of E that get an adapter; see `add_patch`."""
    kinds = (nn.Linear, nn.Conv2d) if targets else i2i.adapted_layers
    inside = {id(part) for module in i2i.encoder_modules() for part in module.modules()}
    layers = {name: id(layer) in inside for name, layer in layers_below_adapters(i2i.model, kinds).items()}
    encoder = [name for name, is_inside in layers.items() if is_inside]
    if not targets:
        return encoder
    for target in targets:
        hit = [name for name in layers if f".{name}".endswith(f".{target}")]
        if not any(layers[name] for name in hit):
            what = "is a layer of the decoder" if hit else "is no linear layer or convolution of the model"
            ends = sorted({re.sub(r".*\.(?=[^.]*[a-z])", "", name) for name in encoder})
            raise InputError(f"The LoRA target '{target}' {what}; the encoder's are {', '.join(ends)}.")
    return [name for name in encoder if any(f".{name}".endswith(f".{target}") for target in targets)]


def anchored(names: list[str], model: nn.Module) -> str:
    """One regular expression that fits these layers of the model and no other, block numbers as `\\d+` where that is so."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\\\.\d+(?=\\\.)", r"\\.\\d+", re.escape(name)), []).append(name)
    everything = {name for name, _ in model.named_modules()}
    patterns = []
    for pattern, members in groups.items():
        fits = {name for name in everything if re.fullmatch(pattern, name)}
        patterns += [pattern] if fits == set(members) else [re.escape(name) for name in members]
    return "|".join(patterns)


def layers_below_adapters(model: nn.Module, kinds) -> dict[str, nn.Module]:
    """Layers of these kinds by name; where there is an adapter, the layer below it."""
    found, adapted = {}, None
    for name, module in model.named_modules():
        if adapted and name.startswith(adapted):
            continue
        if isinstance(module, BaseTunerLayer):
            adapted, module = f"{name}.", module.get_base_layer()
        if isinstance(module, kinds):
            found[name] = module
    return found
