"""Files that are whole or not there, results that are made once, and one hash of what a result depends on."""

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

HALF_WRITTEN = "*.part"  # what `write_aside` writes before the file has its name; a killed process may leave some


def write_aside(file, write: Callable[[Path], object]) -> None:
    """Have `write` write another file, flush it to the disk, and give it the name `file`; whatever fails leaves nothing behind.

    Args:
        write: is given the path to write to, in the same folder, which is made if need be.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f"{file.name}.{uuid.uuid4().hex[:12]}.part")  # several processes may write the same file at once
    try:
        write(aside)
        flush(aside)
        os.replace(aside, file)
        flush(file.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_text(file, text: str) -> None:
    """Write a text file at once."""
    write_aside(file, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_json(file, content) -> None:
    """Write a JSON file at once."""
    write_text(file, json.dumps(content, indent=1))


def read_json(file) -> dict:
    """What a JSON file holds; {} if it is not there."""
    file = Path(file)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def flush(path) -> None:
    """Have a file, or the names in a folder, on the disk: a name must not survive a power cut that its content does not.

    Raises:
        OSError: a fault that the file system kept to itself so far, such as a full disk over the network.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # file systems that cannot do it for a folder
            raise
    finally:
        os.close(descriptor)


def kept(file, key: dict, make: Callable[[], object], accelerator=None):
    """What `make()` returns, made once: `file` holds it with its key, and is read again as long as the key is the same.

    With several processes (`accelerator`) all call this; one writes.

    Args:
        key: plain values; all that the result depends on. make: returns what JSON can hold.
    """
    found = read_kept(file, key)
    if accelerator:
        accelerator.wait_for_everyone()  # nobody writes before everybody knows what is missing
    if found is not None:
        return found
    result = make()
    if accelerator is None or accelerator.is_main_process:
        write_kept(file, key, result)
    return result


def read_kept(file, key: dict):
    """What `write_kept` wrote under this key; None if there is nothing, or what there is has another key."""
    content = read_json(file)
    return content["result"] if content.get("key") == key else None


def write_kept(file, key: dict, result) -> None:
    """Keep a result, for instance one that grows, in place of what the file held."""
    write_json(file, {"key": key, "result": result})


def differences(old: dict, new: dict) -> list[str]:
    """The names under which two dicts of options do not hold the same, sorted."""
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def content_hash(parts: Iterable) -> str:
    """Hexadecimal SHA-256 over the parts in their order; the same in every process and on every machine.

    A part is a pair (name, tensor), of which name, shape, dtype and bytes count; a tensor without a name; a dict or list of
    parts; bytes; or whatever JSON can hold. Over the sorted state dict of a network it is the "weights
    sha256" of cards and results.
    """
    digest = hashlib.sha256()
    for part in parts:
        _update(digest, part)
    return digest.hexdigest()


def _update(digest, part):
    part = ("", part) if isinstance(part, torch.Tensor) else part
    if isinstance(part, dict):
        _update(digest, f"dict of {len(part)}")
        for item in sorted(part.items(), key=lambda item: str(item[0])):
            _update(digest, item)
    elif isinstance(part, tuple) and len(part) == 2 and isinstance(part[1], torch.Tensor):
        name, tensor = part
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.numel():  # one without elements has no bytes that could be viewed
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    elif isinstance(part, (list, tuple)):
        _update(digest, f"list of {len(part)}")
        for value in part:
            _update(digest, value)
    else:
        data = part if isinstance(part, bytes) else json.dumps(part, default=repr, sort_keys=True).encode()
        digest.update(f"{len(data)} ".encode())
        digest.update(data)
