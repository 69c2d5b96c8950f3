"""A U-Net of diffusers as it lies in a folder or Hub repository: alone, or in a pipeline."""

import json
from pathlib import Path
from typing import NamedTuple

from diffusers import UNet2DModel

from ...errors import InputError
from .folders import Pipeline, find_file, find_pipeline, load_scheduler, scheduler_class
from .schedules import plain_config


class Place(NamedTuple):
    """Where a U-Net lies.

    path: folder or Hub id. subfolder: of the U-Net in it, or "". hub: options of fetching. pipeline: that has it, or None.
    """

    path: str
    subfolder: str
    hub: dict
    pipeline: Pipeline | None

    @property
    def folder(self) -> Path:
        return Path(self.path, self.subfolder)

    def load_config(self) -> dict:
        """The U-Net's config.json; raises InputError where a folder has none."""
        if Path(self.path).is_dir() and not (self.folder / "config.json").is_file():
            raise InputError(f"'{self.folder}' has no config.json; give the folder of a pipeline or of a UNet2DModel.")
        return UNet2DModel.load_config(self.path, subfolder=self.subfolder or None, **self.hub)

    def load_model(self, kind, loading: dict):
        """The U-Net, of the class `kind` of diffusers, from safetensors alone.

        Args:
            loading: torch_dtype and variant, as in diffusers.

        Raises:
            InputError: no such weights, or some are missing.
        """
        places = {"subfolder": self.subfolder or None, "use_safetensors": True, **self.hub, **loading}
        try:
            model, info = kind.from_pretrained(self.path, output_loading_info=True, **places)
        except OSError as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"Cannot read the weights of the U-Net in '{self.folder}', which must be safetensors: {reason}"
            ) from error
        if info["missing_keys"]:
            raise InputError(
                f"'{self.path}' lacks {len(info['missing_keys'])} weights of its U-Net, first '{min(info['missing_keys'])}'; "
                f"save it again with {kind.__name__}.save_pretrained."
            )
        return model

    def load_settings(self, name: str, known: tuple[str, ...]) -> dict:
        """The options in the file `name` beside the weights, those in `known` alone; a sampler is made from its config."""
        file = find_file(self.path, Path(self.subfolder, name).as_posix(), **self.hub)
        settings = json.loads(file.read_text()) if file else {}
        found = {option: value for option, value in settings.items() if option in known}
        sampler = found.pop("sampler", None)
        if sampler:
            kind = scheduler_class(sampler.get("_class_name"), f"'{file}' names")
            found["sampler"] = kind.from_config(plain_config(sampler))
        return found

    def load_scheduler(self):
        """The scheduler beside the weights, as `save_pretrained` puts it, or beside their folder, as in a pipeline; or None."""
        beside = load_scheduler(self.path, self.subfolder, **self.hub)
        return beside or (load_scheduler(self.path, **self.hub) if self.subfolder else None)


def find_unet(path: str, subfolder: str, variant: str | None, hub: dict) -> Place:
    """The place of a U-Net; with a subfolder it is taken without its pipeline."""
    pipeline = None if subfolder else find_pipeline(path, variant, **hub)
    if pipeline:
        return Place(str(pipeline.folder), pipeline.place("unet"), {}, pipeline)
    return Place(path, subfolder, hub, None)
