"""How a U-Net is loaded and saved: the layout follows from its config, and the other options stand beside its weights."""

import abc
import inspect
import json
import re
from pathlib import Path
from typing import Self

from ...errors import InputError
from ..base import HUB, I2IModel
from .folders import Pipeline, copy_components
from .loading import find_unet

KINDS = ("UNet2DModel", "UNet2DConditionModel")  # of diffusers, by `_class_name` in config.json

SETTINGS = "i2i_model.json"


class UNetFiles(I2IModel):
    """The part of `I2IUNet` that reads and writes folders.

    A subclass is a layout; all of them are known here once they are imported, those of this package with the package.
    """

    layouts: list[type["UNetFiles"]] = []

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        UNetFiles.layouts.append(cls)

    @classmethod
    def from_pretrained(cls, path: str, scheduler=None, **kwargs) -> Self:
        """Load a folder or Hub repository that holds a U-Net of diffusers, or a whole pipeline with one.

        Options that are not given (or None) are those the model was saved with, else the defaults.

        Args:
            scheduler, and the others of `I2IUNet` or of its layout (prompt and vae_dtype of `I2ILatentUNet`). revision, token,
            subfolder (of a U-Net that is to be taken without its pipeline), cache_dir, local_files_only, torch_dtype,
            variant: as in diffusers.

        Raises:
            InputError: a checkpoint of another kind, with weights missing or in no safetensors file.
        """
        hub = {name: kwargs.pop(name) for name in HUB if name in kwargs}
        loading = {name: kwargs.pop(name) for name in ("torch_dtype", "variant") if name in kwargs}
        place = find_unet(path, kwargs.pop("subfolder", None) or "", loading.get("variant"), hub)
        layout = cls._layout(place.load_config(), f"'{path}'")
        model = place.load_model(layout.kind, loading)
        settings = place.load_settings(SETTINGS, layout.stored if scheduler else (*layout.stored, "sampler"))
        given = {name: value for name, value in kwargs.items() if value is not None}
        return layout.assemble(model, scheduler or place.load_scheduler(), place.pipeline, **settings | given)

    @classmethod
    def assemble(cls, model, scheduler, pipeline: Pipeline | None, prompt=None, vae_dtype=None, **options) -> Self:
        """A model of this layout from its loaded parts; prompt and vae_dtype are of no other than the latent one."""
        if prompt is not None or vae_dtype is not None:
            raise InputError("prompt and vae_dtype are for latent inpainting; this U-Net works on pixels and reads no text.")
        return cls(model, scheduler, pipeline=pipeline, **options)

    @classmethod
    def from_config(cls, config: dict, **kwargs) -> Self:
        """A fresh model; `palette_config` makes configs. The other arguments are those of `I2IUNet`."""
        layout = cls._layout({"_class_name": "UNet2DModel"} | dict(config), "The config")
        return layout(layout.kind.from_config(config), **kwargs)

    @classmethod
    def _layout(cls, config, what: str) -> type[Self]:
        kind = config.get("_class_name") or config.get("model_type") or "unknown"
        if kind not in KINDS:
            raise InputError(f"{what} holds a '{kind}' model, expected '{KINDS[0]}' or '{KINDS[1]}'.")
        config = {**config, "_class_name": kind}
        if not inspect.isabstract(cls) and cls.reads(config):
            return cls
        layout = next(one for one in cls.layouts if not inspect.isabstract(one) and one.reads(config))
        if not issubclass(layout, cls):
            raise InputError(
                f"{what} is of the layout of {layout.__name__}, not of {cls.__name__}; use I2IUNet.from_pretrained."
            )
        return layout

    @staticmethod
    @abc.abstractmethod
    def reads(config: dict) -> bool:
        """Whether a U-Net with this config, `_class_name` one of `KINDS`, is of this layout. The first that says so has it."""

    def save_pretrained(self, folder, **kwargs):
        """Write what diffusers reads: U-Net and scheduler, or the whole pipeline where the model came from one.

        Beside the weights stands `i2i_model.json`, from which `from_pretrained` takes the other options. A trainer's checkpoint
        folder ("checkpoint-100") gets of a pipeline only the U-Net and the scheduler: the other parts never change.
        """
        weights = Path(folder, "unet") if self.pipeline else Path(folder)
        super().save_pretrained(weights, **kwargs)
        settings = {name: getattr(self, name) for name in self.stored} | {"sampler": json.loads(self.sampler.to_json_string())}
        (weights / SETTINGS).write_text(json.dumps(settings, indent=1))
        self.scheduler.save_pretrained(Path(folder, "scheduler"))
        here = self.pipeline and Path(folder).resolve() == self.pipeline.folder.resolve()
        if self.pipeline and not here and not re.fullmatch(r"checkpoint-\d+", Path(folder).name):
            copy_components(self.pipeline, folder, ("unet", "scheduler"))

    def load_weights(self, folder):
        super().load_weights(Path(folder, "unet") if self.pipeline else folder)
