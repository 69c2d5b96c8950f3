"""Where things lie, as a file may say it that leaves the machine: as seen from that file, or by a name alone.

An absolute path tells strangers who works where, and holds on one machine only. So what a run writes names a folder near it by
the way from the run's folder (`../photos`), and one that lies elsewhere by its last part (`.../photos`), which has to be named
again by an option. What a user wrote in another way, such as a Hub id or the name of a demo, stays as it is.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from .demo import DEMOS
from .errors import InputError

ELSEWHERE = ".../"  # stands before the name of what is not near

# Options whose values are, or may be, files or folders.
PLACES = {
    "model", "original", "dataset", "retain_dataset", "proxy_dataset", "forget_list", "patches", "original_patches",
    "targets_dir", "never_trained", "init", "record", "models", "erase_from", "ledger",
}  # fmt: skip

_CROWDED = {Path("/"), Path("/home"), Path("/Users")}  # what has only these in common is not near
_QUOTED = re.compile(r"(?<=['\"])/[^'\"\n]+(?=['\"])")
_BARE = re.compile(r"(?<![^\s\"'=:(,\[`>])/[^\s'\"`,;:)\]<]+")


def portable(place: str, base) -> str:
    """A file or folder as seen from the folder `base`: `../photos`, `./photos`, or `.../photos` where it is not near.

    Patterns (`shards/{split}-*.tar`) are places too. What is no place on this machine is returned as it is.
    """
    demo = next((word for word, folder in DEMOS.items() if folder == place), None)
    if demo or place in DEMOS or place.startswith(ELSEWHERE) or not _is_local(place):
        return demo or place
    here, there = os.path.abspath(base), os.path.abspath(place)
    if Path(os.path.commonpath([here, there])) in _CROWDED:
        return ELSEWHERE + Path(place).name
    way = os.path.relpath(there, here)
    return way if way == ".." or way.startswith("../") else f"./{way}" if way != "." else "./"


def resolved(place: str, base) -> str:
    """The place that `portable` meant, for a reader who knows the folder `base`; what is not there is returned as it is."""
    if not place.startswith(("./", "../")):
        return place
    found = os.path.normpath(os.path.join(base, place))
    return found if _exists(found) else place


def portable_options(options: dict, base) -> dict:
    """Options of a run for its run.yaml: see `portable`. Of an output folder the name counts, for it is where the file is."""
    known = _mapped(options, lambda place: portable(place, base))
    if os.path.isabs(known.get("output_dir") or ""):
        known["output_dir"] = Path(known["output_dir"]).name
    return without_absolute(known, base)


def resolved_options(options: dict, base) -> dict:
    """What `portable_options` wrote, for a reader."""
    return _mapped(options, lambda place: resolved(place, base))


def without_absolute(value, base):
    """Texts, in dicts and lists of any depth, with `portable` names in the place of absolute paths of this machine."""
    if isinstance(value, Mapping):
        return {key: without_absolute(one, base) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_absolute(one, base) for one in value]
    if not isinstance(value, str) or "/" not in value:
        return value
    if os.path.isabs(value) and "\n" not in value:
        return portable(value, base)
    for pattern in (_QUOTED, _BARE):
        value = pattern.sub(lambda found: portable(found[0], base), value)
    return value


def check_places(options: Mapping, names: Iterable[str], origin) -> None:
    """Refuse places of a run that are not here.

    Args:
        options: {option: its value, as a run.yaml holds it or as it was given}. names: those that are needed.
        origin: the folder of the run, for the message.

    Raises:
        InputError: one of them is known by its name alone, or lies no longer where it did.
    """
    for name in names:
        values = options.get(name)
        for place in values if isinstance(values, list) else [values]:
            if not isinstance(place, str):
                continue
            if place.startswith(ELSEWHERE):
                raise InputError(
                    f"The run in '{origin}' knows its {name} by a name alone ('{place}'), for it lay far from the run; "
                    f"say where it is: --{name}."
                )
            if place.startswith(("./", "../")) and not _exists(place):
                raise InputError(
                    f"The {name} of the run in '{origin}' is '{place}', seen from there, and nothing is there now; "
                    f"say where it is: --{name}."
                )


def _mapped(options, change):
    """The options, those that name places changed."""
    found = dict(options)
    for name in PLACES & found.keys():
        value = found[name]
        if isinstance(value, list):
            found[name] = [_named(one, change) if isinstance(one, str) else one for one in value]
        elif isinstance(value, str):
            found[name] = change(value)
    return found


def _named(word, change):
    """NAME=FOLDER, or a folder."""
    name, equals, place = word.partition("=")
    return f"{name}={change(place)}" if equals else change(word)


def _exists(place: str) -> bool:
    """Whether a file or folder is there, of a pattern the part before what it leaves open."""
    plain = re.split(r"[*?\[{]", place, maxsplit=1)[0]
    return os.path.exists(place) or (plain != place and os.path.exists(os.path.dirname(plain) or "."))


def _is_local(place: str) -> bool:
    """Whether this names something on this machine, and is not a Hub id or a word; something made elsewhere does not count."""
    if os.path.isabs(place):
        return len(Path(place).parts) > 1 and os.path.exists(os.path.join("/", Path(place).parts[1]))
    return _exists(place)
