"""Folders of results: what is finished is kept, and never mixed with what was made under other options."""

import json
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path

import yaml
from transformers import TrainingArguments

from ..errors import InputError


def claim_folder(folder, *instances, what: str = "figures", free=(), leave_out=(), networks: list[dict] | None = None) -> None:
    """Write run.yaml (`write_run`) and networks.json to a folder of results, which may hold some of the same options already.

    Args:
        instances: the options. what: the folder holds, for the message. free: options that may differ from time to time.
        leave_out: options that are not written. networks: how feature networks describe themselves.

    Raises:
        InputError: the folder holds results of other options or networks.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file, new, networks_file = folder / "run.yaml", folder / "run.yaml.new", folder / "networks.json"
    write_run(new, *instances, leave_out=leave_out)
    if file.exists():
        old, wanted = ({k: v for k, v in yaml.safe_load(f.read_text()).items() if k not in free} for f in (file, new))
        if networks is not None:
            old["networks"] = json.loads(networks_file.read_text()) if networks_file.exists() else None
            wanted["networks"] = networks
        changed = sorted(k for k in old.keys() | wanted.keys() if old.get(k) != wanted.get(k))
        if changed:
            new.unlink()
            raise InputError(
                f"'{folder}' holds {what} made with other options ({', '.join(changed)}); choose another --output_dir, or empty it."
            )
    if networks is not None:
        write_json(networks_file, networks)
    new.replace(file)


def write_json(file, content) -> None:
    """Write a file at once: a run that is killed leaves no half of it."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(file.name + ".new")
    new.write_text(json.dumps(content, indent=1))
    new.replace(file)


def kept(file, key: dict, make, accelerator=None):
    """What `make()` returns, made once: `file` holds it with its key, and is read again as long as the key is the same.

    With several processes (`accelerator`) all call this; one writes.
    """
    file = Path(file)
    content = json.loads(file.read_text()) if file.exists() else {}
    if accelerator:
        accelerator.wait_for_everyone()  # nobody writes before everybody knows what is missing
    if content.get("key") == key:
        return content["result"]
    result = make()
    if accelerator is None or accelerator.is_main_process:
        write_json(file, {"key": key, "result": result})
    return result


def refuse_full_folder(output_dir: str, resuming: bool) -> None:
    """Raise InputError if results would be written over something and the run does not resume it."""
    folder = Path(output_dir)
    if folder.is_file():
        raise InputError(f"The output folder '{output_dir}' is a file; choose another --output_dir.")
    if folder.is_dir() and any(folder.iterdir()) and not resuming:
        hint = " or go on with it: --resume_from_checkpoint true" if any(folder.glob("checkpoint-*")) else ""
        raise InputError(f"The output folder '{output_dir}' is not empty; choose another --output_dir, empty it{hint}.")


def write_run(path, *instances, leave_out=()) -> None:
    """Write the options of a run as YAML that `--config` reads: ours in full, the Trainer's where they are not the default.

    Access tokens are left out, and the options named in `leave_out`.
    """
    options = {}
    for instance in instances:
        for option in fields(instance):
            value = getattr(instance, option.name)
            default = (
                option.default_factory()
                if option.default is MISSING and option.default_factory is not MISSING
                else option.default
            )
            ours = not isinstance(instance, TrainingArguments) or option.name in vars(type(instance))["__annotations__"]
            secret = "token" in option.name or option.name in leave_out
            if not secret and option.init and (ours or value != default):
                options[option.name] = _plain(value)
    Path(path).write_text(yaml.safe_dump(options, sort_keys=False))


def _plain(value):
    """Enums and dataclasses of the Trainer as what YAML can hold."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
