"""LoRA adapters on a model, by `peft`. Importing this module takes peft; `patches` does so when a patch is asked for."""

import contextlib
import json
import warnings
from pathlib import Path

import numpy as np
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

from ..errors import InputError
from .base import PATCHES_FILE, I2IModel
from .fused_lora import FusedLinear
from .lora_layers import anchored

NAME = "default"  # of the adapter that is trained; those below it are numbered

TURNS = 3  # a stream of random numbers of its own


class Patch:
    """The adapter of an `I2IModel` that is trained, saved and loaded in the place of its weights (`I2IModel.patch`).

    Args:
        i2i: the model. config, name: of its first adapter.

    Attributes:
        peft: peft's model around the inner one, whose layers it has replaced.
        below: Hub ids or folders of the patches under the adapter that is trained.
        brings_others: whether a saved patch names those below it, so that `load_model` brings them along.
    """

    brings_others = True

    def __init__(self, i2i: I2IModel, config: PeftConfig, name: str):
        self.thawed = [p for p in i2i.parameters() if p.requires_grad]  # to be trainable again when all is merged
        with warnings.catch_warnings():  # peft asks for a property that transformers has renamed
            warnings.simplefilter("ignore", FutureWarning)
            self.peft = PeftModel(i2i.model, config, name)
        self.below: list[str] = []

    def save_pretrained(self, folder) -> None:
        """Write adapter_config.json and adapter_model.safetensors, which plain peft loads onto the original.

        Of a U-Net of a pipeline pytorch_lora_weights.safetensors too, which `pipe.load_lora_weights` reads.
        """
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
        if hasattr(self.peft.base_model.model, "load_lora_adapter"):  # what pipelines load adapters into
            save_for_pipelines(folder, weights, config)
        if self.below and self.brings_others:
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

    @property
    def is_fresh(self) -> bool:
        """Whether no adapter of this patch's own has learnt anything yet."""
        return not any(p.any() for name, p in self.peft.named_parameters() if f".lora_B.{NAME}." in name)

    def layers(self) -> list[BaseTunerLayer]:
        """The layers with adapters."""
        return [module for module in self.peft.modules() if isinstance(module, BaseTunerLayer)]

    def train_only(self, name: str | None) -> None:
        """Let all adapters act, and train the one of this name alone; None trains none."""
        tuner = self.peft.base_model
        tuner.set_adapter([*tuner.peft_config], inference_mode=True)
        if name is not None:
            tuner.set_requires_grad(name)

    def take_turns(self, seed: int, step: int) -> None:
        """Let the trained adapter act, and some of those below it: one draw a step, the same in every process and run.

        In half of the steps it is alone, where forgetting is hardest: others that act help. In the other half the number of
        those that act is uniform from none to all, so that with many of them both ends still come up.
        """
        generator = np.random.default_rng([seed, step, TURNS])
        share = generator.random() if generator.random() < 0.5 else 0.0
        below = [name for name in self.peft.peft_config if name != NAME]
        self._act([name for name in below if generator.random() < share] + [NAME])

    def all_on(self) -> None:
        """Let all adapters act."""
        self._act([*self.peft.peft_config])

    @contextlib.contextmanager
    def off(self, alone: bool = False):
        """Within it the trained adapter does not act; `alone`: nor do those below it."""
        layers = self.layers()
        acting, learning = layers[0].active_adapters, self._learning()
        others = [] if alone else [name for name in acting if name != NAME]
        for layer in layers:
            if others:
                layer.set_adapter(others, inference_mode=True)
            else:
                layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            self._act(acting, learning)

    def _act(self, names, learning=None):
        """Let these adapters act; what learns goes on learning."""
        learning = self._learning() if learning is None else learning
        for layer in self.layers():
            layer.set_adapter(names, inference_mode=True)
        for parameter in learning:
            parameter.requires_grad_(True)

    def _learning(self):
        return [p for name, p in self.peft.named_parameters() if p.requires_grad]


def save_for_pipelines(folder: Path, weights: dict[str, torch.Tensor], config: PeftConfig) -> None:
    """Write a U-Net's adapter as pipelines of diffusers read it: other keys, and rank and scale in the file's metadata."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    layers = {name.removeprefix("base_model.model."): w.contiguous() for name, w in weights.items()}
    facts = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    StableDiffusionLoraLoaderMixin.save_lora_weights(folder, layers, unet_lora_adapter_metadata=facts)


def put_adapter(i2i: I2IModel, config: PeftConfig, name: str) -> Patch:
    """Put an adapter on a model, above those that it has; returns the model's patch."""
    if i2i.patch is None:
        i2i.patch = Patch(i2i, config, name)
    else:
        i2i.patch.peft.add_adapter(name, config)
    for layer in i2i.model.modules():
        if type(layer) is PeftLinear:
            layer.__class__ = FusedLinear  # the same weights, names and format; another way to compute
    return i2i.patch


def put_new_adapter(i2i: I2IModel, base: str, rank: int, alpha: float, names: list[str]) -> Patch:
    """Put the adapter that is to be trained on layers of the inner model, by their full names."""
    if i2i.patch and NAME in i2i.patch.peft.peft_config:
        raise InputError("The model has a patch of its own; save it, and load it below a new one (load_patches).")
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=anchored(names, i2i.model), base_model_name_or_path=base)
    patch = put_adapter(i2i, config, NAME)
    patch.train_only(NAME)
    return patch


def put_trained_adapter(i2i: I2IModel, path: str) -> None:
    """Put an adapter that was saved to a Hub id or folder on a model, frozen.

    Raises:
        InputError: no adapter there, or one of another model.
    """
    below = i2i.patch.below if i2i.patch else []
    name = f"patch{len(below)}"
    try:
        config, weights = PeftConfig.from_pretrained(path), load_peft_weights(path, device="cpu")
        patch = put_adapter(i2i, config, name)
        patch.set_weights(weights, name, path)
    except (ValueError, OSError, RuntimeError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"Cannot put the patch '{path}' on the model: {reason}") from error
    patch.below = [*below, path]
    patch.train_only(None)
