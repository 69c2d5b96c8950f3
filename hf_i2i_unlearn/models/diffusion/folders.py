"""Where diffusers keeps things: the folder of a pipeline or of a bare U-Net, local or on the Hub. Only safetensors are read."""

import fnmatch
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import diffusers
from diffusers import DDPMScheduler
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RemoteEntryNotFoundError

from ...errors import InputError

INDEX = "model_index.json"


SCHEDULER = "scheduler_config.json"


class Pipeline(NamedTuple):
    """A pipeline on this machine. index: its model_index.json. variant: of the weights that are read ("fp16"), or None."""

    folder: Path
    index: dict  # type: ignore[assignment]  # not the method of tuples
    variant: str | None

    def place(self, name: str) -> str:
        """The subfolder of a component; "" where the old repositories keep it, beside the index."""
        return name if (self.folder / name).is_dir() else ""

    def check(self, name: str, kind: str) -> str:
        """The place of a component that must be of the class `kind`; raises InputError."""
        found = self.index.get(name) or [None, None]
        if found[1] != kind:
            raise InputError(f"The pipeline '{self.folder}' has {found[1] or 'nothing'} for its {name}, expected a {kind}.")
        return self.place(name)


def find_pipeline(path, variant: str | None = None, **hub) -> Pipeline | None:
    """The pipeline in a folder or Hub repository, fetched without pickles and code; None if there is no model_index.json."""
    folder = Path(path)
    if folder.is_dir():
        if not (folder / INDEX).is_file():
            return None
    else:
        try:
            file = hf_hub_download(str(path), INDEX, **hub)
        except EntryNotFoundError:
            return None
        wanted = ["*.json", *_weights(variant)]
        wanted += [
            f"{name}/{f}" for name in _components(_read(file)) for f in ("*.json", "*.txt", "*.model", *_weights(variant))
        ]
        folder = Path(snapshot_download(str(path), allow_patterns=wanted, **hub))
    pipeline = Pipeline(folder, _read(folder / INDEX), variant)
    for name in _components(pipeline.index):
        files = [f.name for f in (folder / name).glob("*")]
        if "config.json" in files and not any(fnmatch.fnmatch(f, w) for f in files for w in _weights(variant)):
            raise InputError(
                f"The {name} of the pipeline '{path}' has no '{_weights(variant)[0]}' or 'model.safetensors'; only safetensors "
                "are read: load the pipeline with diffusers where you trust it, and save it again with safe_serialization=True."
            )
    return pipeline


def copy_components(pipeline: Pipeline, folder, leave_out) -> None:
    """Copy what makes a pipeline whole into `folder`: its index and every component not in `leave_out`.

    Code, pickles and weights in other formats stay behind; the weights of a variant get the plain names, which diffusers reads.
    """
    weights = _weights(pipeline.variant)
    shutil.copyfile(pipeline.folder / INDEX, Path(folder, INDEX))
    for name in _components(pipeline.index):
        if name in leave_out or not (pipeline.folder / name).is_dir():
            continue
        Path(folder, name).mkdir(parents=True, exist_ok=True)
        for file in (pipeline.folder / name).iterdir():
            kept = any(fnmatch.fnmatch(file.name, w) for w in weights)
            if kept or (file.suffix in (".json", ".txt", ".model") and ".safetensors.index" not in file.name):
                plain = file.name.replace(f".{pipeline.variant}.", ".") if kept and pipeline.variant else file.name
                shutil.copyfile(file, Path(folder, name, plain))


def load_scheduler(path, subfolder: str = "", **hub):
    """The scheduler in `scheduler/` of a (sub)folder or Hub repository, or in it itself; None if there is none.

    Raises:
        InputError: its class is none of diffusers'.
    """
    for place in ("scheduler", ""):
        file = find_file(path, Path(subfolder, place, SCHEDULER).as_posix(), **hub)
        if file:
            kind = DDPMScheduler.load_config(file.parent).get("_class_name")
            return scheduler_class(kind, f"'{file}' names").from_pretrained(file.parent)
    return None


def find_file(path, name: str, **hub) -> Path | None:
    """A file of a folder or Hub repository, on this machine; None if it is not there."""
    if Path(path).is_dir():
        file = Path(path, name)
        return file if file.is_file() else None
    try:
        return Path(hf_hub_download(str(path), name, **hub))
    except RemoteEntryNotFoundError:  # a network that fails is another error, and passes through
        return None


def scheduler_class(kind, where: str):
    """The scheduler class of diffusers with this name; raises InputError."""
    if not hasattr(getattr(diffusers, str(kind), None), "from_config") or not str(kind).endswith("Scheduler"):
        raise InputError(f"{where} the scheduler '{kind}', which diffusers {diffusers.__version__} does not have.")
    return getattr(diffusers, kind)


def _components(index: dict) -> list[str]:
    """Names of the components that are there, but no names that lead out of the folder."""
    return [n for n, c in index.items() if isinstance(c, list) and c[0] and Path(n).name == n and n not in (".", "..")]


def _weights(variant: str | None) -> list[str]:
    """Patterns of weight files, whole and in parts."""
    tag = f".{variant}" if variant else ""
    stems = [f"{stem}{part}" for stem in ("diffusion_pytorch_model", "model") for part in (tag, f"{tag}-*-of-*")]
    return [f"{s}.safetensors" for s in stems] + [
        f"{s}.safetensors.index{tag}.json" for s in ("diffusion_pytorch_model", "model")
    ]


def _read(file) -> dict:
    return json.loads(Path(file).read_text())
