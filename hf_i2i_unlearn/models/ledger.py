"""Which patch serves which request: `requests.json`, the ledger beside the patches of one original.

    format     of this file
    original   Hub id, demo or folder of the original
    requests   one a request, the oldest first:
        name       what commands call it: that of the folder of its first patch
        request    hash of the pictures that were to be forgotten
        patch      folder of its patch
        weights    sha256 of the patch's weights
        pictures   the options that name the pictures, apart from those that name people
        asked      what was asked, in words that name nobody
        added, renewed, withdrawn   dates, or None
        held       its last verdict, or None: {"date", "count", "of", "with": names of the patches that were on}

Folders and files stand there relative to the ledger's own folder, so that all can be moved together.
"""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

from ..errors import InputError
from ..places import PLACES, portable, resolved
from ..storage import read_json, write_json

FILE = "requests.json"
FORMAT = 1
WEIGHTS = "adapter_model.safetensors"  # of a patch


def now() -> str:
    """Date and time, to the minute."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


class Ledger:
    """The ledger in a folder, which need not be there yet. What is changed stays in memory until `write`.

    Args:
        folder: of the ledger; as a rule the patches are folders in it.

    Attributes:
        original: Hub id, demo or folder; None in a new ledger. requests: the entries, see above.

    Raises:
        InputError: a newer version wrote it.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        content = read_json(self.folder / FILE)
        if content.get("format", FORMAT) > FORMAT:
            raise InputError(
                f"'{self.folder / FILE}' has format {content['format']}, and this version of hf_i2i_unlearn reads formats up "
                f"to {FORMAT}; update the package."
            )
        self.original: str | None = self.found(content["original"]) if content else None
        self.requests: list[dict] = content.get("requests", [])

    @property
    def active(self) -> list[dict]:
        """The requests whose patches are on."""
        return [entry for entry in self.requests if not entry["withdrawn"]]

    def write(self) -> None:
        """Write the file."""
        original = self.relative(self.original)
        write_json(self.folder / FILE, {"format": FORMAT, "original": original, "requests": self.requests})

    def relative(self, value):
        """A folder or file as it stands in the ledger, see `places`; other values as they are."""
        return portable(value, self.folder) if isinstance(value, str) else value

    def found(self, value):
        """What `relative` gave, as seen from here."""
        return resolved(value, self.folder) if isinstance(value, str) else value

    def patch(self, entry: dict) -> str:
        """The folder of a request's patch."""
        return self.found(entry["patch"])

    def find(self, word: str) -> dict:
        """An active request by its name, or by the first characters of its hash.

        Raises:
            InputError: there is none, or several.
        """
        hits = [e for e in self.active if e["name"] == word] or [e for e in self.active if e["request"].startswith(word)]
        if len(hits) != 1:
            what = "no request" if not hits else f"{len(hits)} requests"
            raise InputError(f"'{word}' names {what} in '{self.folder / FILE}'; active there are {self.names() or 'none'}.")
        return hits[0]

    def names(self) -> str:
        """Those of the active requests, in a line."""
        return ", ".join(entry["name"] for entry in self.active)

    def check_patches(self) -> None:
        """Raise InputError unless the patches that are on are there, with the weights that were entered."""
        for entry in self.active:
            folder = Path(self.patch(entry))
            if not (folder / WEIGHTS).is_file():
                raise InputError(
                    f"The patch of '{entry['name']}' is not in '{folder}'; put it back there, or withdraw the request."
                )
            if weights_of(folder) != entry["weights"]:
                raise InputError(
                    f"The weights of the patch in '{folder}' are not those that were entered for '{entry['name']}'; put them "
                    "back, or withdraw the request."
                )

    def enter(self, name: str, request: str, patch, pictures: dict, asked: str, held: dict) -> dict:
        """Enter a patch for a request, in place of the one that it had; returns the entry.

        Raises:
            InputError: another request has this name.
        """
        entry = next((e for e in self.active if e["request"] == request), None)
        if entry is None:
            if any(e["name"] == name for e in self.active):
                raise InputError(f"The ledger '{self.folder}' has a request '{name}'; choose another --output_dir.")
            entry = {"name": name, "request": request, "added": now(), "renewed": None, "withdrawn": None}
            self.requests.append(entry)
        else:
            entry["renewed"] = now()
        given = {option: self.relative(value) if option in PLACES else value for option, value in pictures.items()}
        weights = {"patch": self.relative(str(patch)), "weights": weights_of(patch)}
        entry.update(weights, pictures=given, asked=asked, held=held)
        return entry


def weights_of(folder) -> str:
    """sha256 of a patch's weights."""
    with open(Path(folder, WEIGHTS), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
