"""Unlearning patches: LoRA adapters on the encoder alone, by `peft`. The original is the same model with its adapters off."""

import contextlib
import functools
import inspect
import json
import warnings
from pathlib import Path

import torch
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

from ..errors import InputError
from .auto import PATCHES_FILE
from .base import I2IModel
from .fused_lora import FusedLinear
from .lora_layers import anchored, encoder_layers

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
