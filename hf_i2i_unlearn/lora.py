"""Unlearning patches: LoRA adapters on the encoder alone, by `peft`. The original is the same model with its adapters off."""

import contextlib
import functools
import inspect
import json
import re
import warnings
from pathlib import Path

import torch
from diffusers import ModelMixin
from huggingface_hub.errors import HfHubHTTPError
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import nn
from torch.autograd.function import once_differentiable

from .errors import InputError
from .loading import PATCHES_FILE
from .models.base import I2IModel

NAME = "default"  # of the adapter that is trained; those below it are numbered


class Patch:
    """The adapter of an `I2IModel` that is trained, saved and loaded in the place of its weights (`I2IModel.patch`).

    Args:
        i2i: the model. config, name: of its first adapter.

    Attributes:
        peft: peft's model around the inner one, whose layers it has replaced. below: Hub ids or folders of the patches under the
            adapter that is trained.
    """

    def __init__(self, i2i: I2IModel, config: PeftConfig, name: str):
        self.thawed = [p for p in i2i.parameters() if p.requires_grad]  # to be trainable again when all is merged
        with warnings.catch_warnings():  # peft asks for a property that transformers has renamed
            warnings.simplefilter("ignore", FutureWarning)
            self.peft = PeftModel(i2i.model, config, name)
        self.below: list[str] = []

    def save_pretrained(self, folder) -> None:
        """Write adapter_config.json and adapter_model.safetensors, which plain peft loads onto the original."""
        if NAME not in self.peft.peft_config:
            raise InputError(f"Nothing was trained on the model since its patches were loaded: {', '.join(self.below)}.")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = get_peft_model_state_dict(self.peft, adapter_name=NAME, save_embedding_layers=False)
        save_file({k: v.contiguous() for k, v in weights.items()}, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        config, inner = self.peft.peft_config[NAME], type(self.peft.base_model.model)
        config.inference_mode = True
        config.save_pretrained(
            str(folder), auto_mapping_dict={"base_model_class": inner.__name__, "parent_library": inner.__module__}
        )
        if self.below:
            (folder / PATCHES_FILE).write_text(json.dumps(self.below, indent=1))

    def load_weights(self, folder) -> None:
        """Copy the adapter that `save_pretrained` wrote to `folder` into this one, strictly."""
        self.set_weights(load_file(Path(folder) / SAFETENSORS_WEIGHTS_NAME), NAME, folder)

    def set_weights(self, weights: dict[str, torch.Tensor], name: str, source) -> None:
        """Copy weights into an adapter. Raises InputError if they are not those of all its layers and of no others."""
        if weights.keys() != get_peft_model_state_dict(self.peft, adapter_name=name, save_embedding_layers=False).keys():
            raise InputError(
                f"The adapter in '{source}' is of other layers than this one; use the same model and --lora_targets."
            )
        set_peft_model_state_dict(self.peft, weights, adapter_name=name)


class AdaptersOff(nn.Module):
    """The original model without a second copy of its weights: `i2i` with its adapters off, in eval mode, without gradient.

    Every method of `i2i` can be called on it. `i2i` must have no patch but the one that is trained.
    """

    def __init__(self, i2i: I2IModel):
        super().__init__()
        self.patched = i2i

    @contextlib.contextmanager
    def _off(self):
        modes = [(module, module.training) for module in self.patched.modules()]
        layers = [module for module, _ in modes if isinstance(module, BaseTunerLayer)]
        self.patched.eval()
        for layer in layers:
            layer.enable_adapters(False)
        try:
            with torch.no_grad():
                yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
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

    What lies below a new adapter belongs to the original: what earlier patches made the model forget stays forgotten.
    """
    fresh = not any(p.any() for name, p in i2i.named_parameters() if f".lora_B.{NAME}." in name)
    return AdaptersOff(i2i) if i2i.patch and fresh and not i2i.patch.below else i2i.frozen_copy()


def add_patch(i2i: I2IModel, base: str, rank: int = 8, alpha: float = 32, targets: list[str] | None = None) -> str:
    """Put a new adapter, which changes nothing yet, on layers of the encoder, and freeze everything else.

    Args:
        base: the original's Hub id or folder, written into the patch. rank, alpha: of LoRA; alpha / rank scales the adapter.
        targets: names of layers, or ends of names; all linear layers of the encoder (and convolutions of U-Nets) if None.

    Returns:
        One line on what was adapted.

    Raises:
        InputError: a rank or alpha that is not positive, a target that is no layer of the encoder, or a decoder that would change.
    """
    if rank < 1 or not alpha > 0:
        raise InputError(f"LoRA takes a rank of 1 or more and an alpha above 0, got rank {rank} and alpha {alpha}.")
    if not i2i.decoder_untouched:
        raise InputError(
            "A patch leaves the decoder as it was; leave out the option that trains weights which the decoder reads."
        )
    if i2i.patch and NAME in i2i.patch.peft.peft_config:
        raise InputError("The model has a patch of its own; save it, and load it below a new one (load_patches).")
    names = encoder_layers(i2i, targets)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=anchored(names, i2i.model), base_model_name_or_path=str(base))
    _install(i2i, config, NAME)
    tuner = i2i.patch.peft.base_model
    tuner.set_adapter([*tuner.peft_config], inference_mode=True)
    tuner.set_requires_grad(NAME)
    own = {id(p) for module in i2i.encoder_modules() for p in module.parameters()}
    trained = {name: p for name, p in i2i.named_parameters() if p.requires_grad}
    outside = [name for name, p in trained.items() if id(p) not in own]
    if outside or not trained:
        raise InputError(
            f"These weights of the decoder would be trained: {', '.join(outside[:3])}; choose other --lora_targets."
        )
    count, total = sum(p.numel() for p in trained.values()), sum(p.numel() for p in i2i.parameters())
    return (
        f"LoRA of rank {rank} on {len(names)} layers of the encoder ({', '.join(names[:2])}, ...): {count:,} weights are trained, "
        f"{count / (total - count):.1%} of the model's {total - count:,}."
    )


def load_patches(i2i: I2IModel, paths: list[str]) -> None:
    """Put trained patches (Hub ids or folders) on a model, on top of those it has, frozen.

    Raises:
        InputError: no patch there, or one of another model.
    """
    for path in map(str, paths):
        below = i2i.patch.below if i2i.patch else []
        name = f"patch{len(below)}"
        try:
            config, weights = PeftConfig.from_pretrained(path), load_peft_weights(path, device="cpu")
            _install(i2i, config, name)
            i2i.patch.set_weights(weights, name, path)
        except (ValueError, OSError, RuntimeError, HfHubHTTPError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"Cannot put the patch '{path}' on the model: {reason}") from error
        i2i.patch.below = [*below, path]
        i2i.patch.peft.base_model.set_adapter([*i2i.patch.peft.peft_config], inference_mode=True)


def _install(i2i: I2IModel, config: PeftConfig, name: str) -> None:
    if i2i.patch is None:
        i2i.patch = Patch(i2i, config, name)
    else:
        i2i.patch.peft.add_adapter(name, config)
    for layer in i2i.model.modules():
        if type(layer) is PeftLinear:
            layer.__class__ = FusedLinear  # the same weights, names and format; another way to compute


def merge(i2i: I2IModel) -> None:
    """Add all its patches to the model's own weights; it is then a plain model of its library again."""
    i2i.patch.peft.merge_and_unload()
    for parameter in i2i.patch.thawed:
        parameter.requires_grad_(True)
    i2i.patch = None


class FusedLinear(PeftLinear):
    """peft's layer, with cheaper gradients where one adapter is trained on a frozen `nn.Linear`; elsewhere peft's own forward."""

    def forward(self, x, *args, **kwargs):
        # A compiler fuses on its own, and without gradients what is computed stays bit for bit what plain peft computes.
        plain = torch.is_grad_enabled() and not torch.compiler.is_compiling() and not (args or kwargs)
        weights = self._weights() if plain else None
        if weights is None:
            return super().forward(x, *args, **kwargs)
        tensors, device = [x, *weights], x.device.type
        if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
            tensors = [w if w is None else w.to(torch.get_autocast_dtype(device)) for w in tensors]
        if len({w.dtype for w in tensors if w is not None}) > 1:
            return super().forward(x)
        x, *weights = tensors
        rows = LowRankLinear.apply(x.reshape(-1, x.shape[-1]), *weights, self.scaling[self._name()])  # (N, out)
        return rows.view(*x.shape[:-1], rows.shape[1])

    def _name(self) -> str | None:
        """Of the one adapter that acts, without any of LoRA's variants; None if none does, or several do."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or self.lora_variant or self.fan_in_fan_out or len(names) != 1:
            return None
        plain = isinstance(self.lora_dropout[names[0]], nn.Identity) and not self.lora_bias[names[0]]
        return names[0] if plain else None

    def _weights(self):
        """W, bias, A and B; None where they are not what the fused product takes."""
        name, base = self._name(), self.base_layer
        if name is None or type(base) is not nn.Linear:
            return None
        weights = [base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight]
        learns = any(w is not None and w.requires_grad for w in weights[:2])
        # Not a DTensor, which FSDP has not gathered.
        whole = all(w is None or type(w) in (torch.Tensor, nn.Parameter) for w in weights)
        return weights if whole and not learns else None


class LowRankLinear(torch.autograd.Function):
    """x W^T + bias + scale x A^T B^T, and gradients for x, A and B alone.

    The product with the adapter is added within the matrix product, and thin matrices are (r, N), not (N, r): on a CPU the
    gradient of B takes a sixth of the time so.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, a, b, scale):
        """x: (N, in), weight: (out, in), bias: (out) or None, a: (r, in), b: (out, r) -> (N, out)."""
        low = (a @ x.t()).mul_(scale)  # (r, N)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale = scale
        return nn.functional.linear(x, weight, bias).addmm_(low.t(), b.t())

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, a, b, low = ctx.saved_tensors
        for_x, _, _, for_a, for_b, _ = ctx.needs_input_grad
        back = (b.t() @ dy.t()).mul_(ctx.scale)  # (r, N)
        dx = (dy @ weight).addmm_(back.t(), a) if for_x else None  # nobody needs it below the first adapter
        return dx, None, None, back @ x if for_a else None, (low @ dy).t() if for_b else None, None


def encoder_layers(i2i: I2IModel, targets: list[str] | None = None) -> list[str]:
    """Full names, within the inner model, of the layers of E that get an adapter; see `add_patch`."""
    kinds = (nn.Linear, nn.Conv2d) if targets or isinstance(i2i.model, ModelMixin) else (nn.Linear,)
    inside = {id(part) for module in i2i.encoder_modules() for part in module.modules()}
    layers = {name: id(layer) in inside for name, layer in _layers(i2i.model, kinds).items()}
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
    """One regular expression that fits these layers of the model and no other, block numbers written as `\\d+` where that is so."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\\\.\d+(?=\\\.)", r"\\.\\d+", re.escape(name)), []).append(name)
    everything = {name for name, _ in model.named_modules()}
    patterns = []
    for pattern, members in groups.items():
        fits = {name for name in everything if re.fullmatch(pattern, name)}
        patterns += [pattern] if fits == set(members) else [re.escape(name) for name in members]
    return "|".join(patterns)


def _layers(model: nn.Module, kinds) -> dict[str, nn.Module]:
    """Layers by name; where there is an adapter, the layer below it."""
    found, adapted = {}, None
    for name, module in model.named_modules():
        if adapted and name.startswith(adapted):
            continue
        if isinstance(module, BaseTunerLayer):
            adapted, module = f"{name}.", module.get_base_layer()
        if isinstance(module, kinds):
            found[name] = module
    return found
