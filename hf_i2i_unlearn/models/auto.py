"""One loader for all that this package reads and writes: checkpoints of every family, and patches on top of an original."""

import json
from pathlib import Path

from huggingface_hub import snapshot_download
from transformers.utils import cached_file

from .. import demo
from ..errors import InputError
from .base import I2IModel
from .diffusion.modeling import I2IUNet
from .mae.modeling import I2IMAE
from .mage.modeling import I2IMage

# Originals that come with the package, by the names that `--model` knows them by.
DEMOS = {"mnist-demo": demo.MAE, "mnist-demo-unet": demo.UNET, "mnist-demo-mage": demo.MAGE}


# What config.json calls the model: `model_type` of transformers, `_class_name` of diffusers.
FAMILIES = {"vit_mae": I2IMAE, "mage": I2IMage, "UNet2DModel": I2IUNet, "UNet2DConditionModel": I2IUNet}


PATCHES_FILE = "patches.json"  # beside a patch that was trained on top of others: their Hub ids or folders, lowest first


HUB = ("revision", "token", "cache_dir", "local_files_only")


def load_model(path: str, patches: list[str] = (), **kwargs) -> I2IModel:
    """A model of the family that the checkpoint's own configuration names.

    Args:
        path: Hub id or folder of a checkpoint, of a diffusers pipeline, or of a patch, which brings its original and the patches
            below it; or a demo's name.
        patches: Hub ids or folders of patches to put on top, in this order.
        kwargs: of the family's `from_pretrained`; its revision is that of `path`.

    Raises:
        InputError: nothing there, or a model of no known family.
    """
    hub = {name: kwargs[name] for name in HUB if name in kwargs}
    original, below = split_patch(path, **hub)
    if below:
        revision = kwargs.pop("revision", None)
        if revision is not None:  # peft takes a patch from the main branch
            below[-1] = snapshot_download(path, revision=revision, **{name: kwargs[name] for name in HUB if name in kwargs})
        return load_model(original, [*below, *patches], **kwargs)
    path = DEMOS.get(path, path)
    if kwargs.get("subfolder") is None and config_file(path, "model_index.json", **hub):
        family = I2IUNet
    else:
        config = config_file(path, "config.json", subfolder=kwargs.get("subfolder") or "", **hub)
        if config is None:
            raise InputError(f"'{path}' has no config.json and no adapter_config.json; give a checkpoint or a patch.")
        kind = config.get("_class_name") or config.get("model_type")
        if kind not in FAMILIES:
            raise InputError(f"'{path}' holds a '{kind}' model; known are {', '.join(FAMILIES)}.")
        family = FAMILIES[kind]
    model = family.from_pretrained(path, **kwargs)
    if patches:
        from .patches import load_patches

        load_patches(model, patches)
    return model


def family_options(run: dict, generation_steps: int | None = None) -> dict:
    """What `load_model` takes besides the path, from the options of a run (its run.yaml) of any family's recipe."""
    names = {"denoising_steps": "steps", "decoding_steps": "steps"} | {
        n: n for n in (
            "subfolder", "image_size", "patch_size", "combine", "train_time_embedding", "temperature", "margin", "blank_hole",
            "feather", "train_word_embeddings", "code_temperature", "toward_mean",
        )
    }  # fmt: skip
    found = {names[key]: value for key, value in run.items() if key in names and value is not None}
    if run.get("mask_rate") == "mage":
        found["mask_rate"] = "mage"
    if generation_steps is not None and "steps" in found:
        found["steps"] = generation_steps
    return found


def split_patch(path: str, **hub) -> tuple[str, list[str]]:
    """A patch as its original and the patches on it, itself last; anything else as (path, []).

    Raises:
        InputError: nothing there, or a patch that does not name its original.
    """
    config = None if path in DEMOS else config_file(path, "adapter_config.json", **hub)
    if config is None:
        return path, []
    original = config.get("base_model_name_or_path")
    if not original:
        raise InputError(f"The patch '{path}' does not name its original (base_model_name_or_path in adapter_config.json).")
    return original, [*(config_file(path, PATCHES_FILE, **hub) or []), str(path)]


def config_file(path: str, name: str, **hub):
    """What a JSON file of a folder or Hub repository holds; None if it is not there. Raises InputError if nothing is."""
    try:
        file = cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"Cannot load a model from '{path}': {reason} Give a folder or a Hub id.") from error
    return None if file is None else json.loads(Path(file).read_text())
