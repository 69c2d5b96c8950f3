"""The one reader of checkpoints as other programs write them: the tensors are taken, and nothing in the file is executed."""

import pickle
import re
from pathlib import Path

import safetensors.torch
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from .errors import InputError

STATE_DICTS = (
    "model",
    "state_dict",
    "model_state_dict",
    "network",
    "net",
    "params",
    "module",
)  # where programs keep the weights
WRAPPERS = ("module.", "model.", "_orig_mod.")  # what DDP, Lightning and torch.compile put before every name


class _Inert:
    """Stands for an object in a file that is no tensor, as a training script's arguments: it takes all and does nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def read_tensors(path) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint, on the CPU, without the prefixes that wrappers put before every name.

    Args:
        path: a .safetensors file, or one of torch (.pth, .pt, .ckpt): a bare state dict, or what a training script or Lightning
            saves around one (`STATE_DICTS`), with optimizer, arguments and all.

    Raises:
        InputError: there is no such file, it is no checkpoint, or there are no weights in it.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file '{path}'; give the path of a checkpoint.")
    content = _read(path)
    if isinstance(content, dict):
        content = next((content[key] for key in STATE_DICTS if isinstance(content.get(key), dict)), content)
    tensors = (
        {name: value for name, value in content.items() if isinstance(value, torch.Tensor)} if isinstance(content, dict) else {}
    )
    if not tensors:
        what = f"a {type(content).__name__}" if not isinstance(content, dict) else "no tensors"
        raise InputError(
            f"'{path}' holds {what}, expected a state dict, bare or under one of {', '.join(repr(k) for k in STATE_DICTS)}, as "
            "torch.save(model.state_dict(), FILE) writes it."
        )
    return without_wrappers(tensors)


def without_wrappers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same under shorter names, where all of them begin alike with one of `WRAPPERS`."""
    while prefix := next((w for w in WRAPPERS if all(name.startswith(w) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _read(path: Path):
    """What is in the file, with `_Inert` objects in the place of everything but tensors and plain values."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return _read_torch(path)
    except Exception as error:  # a file that is no checkpoint fails in any way: KeyError, EOFError, UnpicklingError, ...
        reason = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()  # without torch's colours
        raise InputError(
            f"'{path}' cannot be read as a file of tensors ({reason[0][:200] if reason else type(error).__name__}); save its "
            "state dict alone, by torch.save(model.state_dict(), FILE), with the code that made it."
        ) from None


def _read_torch(path):
    try:
        names = get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # of the format before torch 1.6, which cannot be looked at without being read
        names = ["argparse.Namespace"]
    stand_ins = {name: type(f"StandIn{i}", (_Inert,), {}) for i, name in enumerate(names)}
    while True:
        try:
            with safe_globals([(stand_in, name) for name, stand_in in stand_ins.items()]):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            # torch fills no object as a dictionary or a list unless it is one: the stand-in of that class becomes one.
            found = re.search(r"Can only (SETITEM|append).*?StandIn(\d+)", str(error), re.DOTALL)
            if not found:
                raise
            stand_ins[names[int(found[2])]] = dict if found[1] == "SETITEM" else list
