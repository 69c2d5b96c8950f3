"""The search for copies of forget pictures in the sources of a run, and what is done about them."""

import logging
import time
from dataclasses import replace

import datasets

from ..errors import InputError
from ..storage import content_hash
from .copies import EXACT, Catalogue, Copies, Copy, can_find_near, compare, find_copies, prints
from .requests import Matcher, Request, counted, tables
from .sources import class_label, undecoded_column

logger = logging.getLogger(__name__)

CHOICES = ("refuse", "forget", "keep", "skip")
_LAST: dict[tuple, Copies] = {}  # of the sources that this process has searched; commands build the same sets several times


class Pictures:
    """(row number, undecoded image) of a dataset or stream, in its order, some hundred rows at a time.

    Args:
        request: only what it names, or with keep=False all else; with keep=None all, and the numbers of what it names are added
            to `named`.
    """

    def __init__(self, dataset, image_column: str, request: Request | None = None, keep: bool | None = True):
        self.dataset, self.image_column = undecoded_column(dataset, image_column), image_column
        self.request, self.keep = request, keep
        self.named: set[int] = set()
        self.total = len(dataset) if hasattr(dataset, "__len__") and not (request and keep) else None

    def __iter__(self):
        columns = [self.image_column, *(self.request.columns(self.image_column) if self.request else ())]
        named = self.request and Matcher(self.request, self.dataset.features, self.image_column)
        for table, rows in tables(self.dataset, list(dict.fromkeys(columns)), 200):
            if named:
                mask = named.matches(table, rows)
                self.named.update(rows[mask].tolist())
                if self.keep is not None:
                    table, rows = table.filter(mask == self.keep), rows[mask == self.keep]
            yield from zip(rows.tolist(), table.column(self.image_column).to_pylist())


def look_for_copies(sources: dict, request: Request, image_column: str, choice: str, names: bool = False) -> Copies | None:
    """Copies of what the request names in "dataset": in the rest of it, and in the other sources.

    Near copies are not looked for where whole classes are named: pictures of one class look alike without being copies. (Of 30
    single digits among 3,000, 51 others are near; of 51 photographs among 1,012, none.)

    Args:
        sources: {"dataset": rows, and perhaps "retain", "proxy"}. choice: one of `CHOICES`. names: whether a refusal may give
            the names of pictures, and not their row numbers.

    Returns:
        None if they were not to be looked for.

    Raises:
        InputError: there are exact copies, and they are refused.
    """
    if choice not in CHOICES:
        raise InputError(f"--copies is one of {', '.join(CHOICES)}, got '{choice}'.")
    if choice == "skip":
        return None
    near = can_find_near() and class_label((sources["dataset"].features or {}).get(request.column)) is None
    train, others = sources["dataset"], {name: rows for name, rows in sources.items() if name != "dataset"}
    prints_of = tuple((name, getattr(source, "_fingerprint", None)) for name, source in sources.items())
    key = (request.column, request.values, image_column, near, prints_of)
    known = _LAST.get(key)
    if known is None:
        start = time.monotonic()
        rows = {name: Pictures(source, image_column) for name, source in others.items()}
        if isinstance(train, datasets.IterableDataset):
            known = _in_stream(Pictures(train, image_column, request, None), rows, near)
        else:
            rest = Pictures(train, image_column, request, False)
            known = find_copies(Pictures(train, image_column, request), {"dataset": rest, **rows}, near)
        known.seconds = time.monotonic() - start
        logger.info("Looked for copies among %d pictures in %.0f s.", known.pictures, known.seconds)
        if all(not isinstance(source, datasets.IterableDataset) for source in sources.values()):
            _LAST[key] = known
            while len(_LAST) > 4:
                del _LAST[next(iter(_LAST))]
    copies = replace(known, of={forgotten: list(found) for forgotten, found in known.of.items()})
    if choice == "refuse":
        _refuse(copies, names)
    return copies


def remembered_copies(record: dict, request: Request, train, image_column: str, choice: str) -> Copies | None:
    """What the run of a record has found in the same sources, so that they need not be read again; None if it is no help.

    It is none where its forget set is another one, by its hash, or where exact copies were found and have to be told from the
    rest by their rows. Of the sources the forget pictures alone are read.

    Args:
        record: `request.json` of the run, see `reporting.request`; the rest as for `look_for_copies`.
    """
    found = record.get("copies", {})
    if not found.get("looked_for") or choice == "skip":
        return None
    of = {
        forgotten: [Copy(copy["how"], copy["source"], -1, copy["sha256"]) for copy in some if copy["source"] != "evaluation"]
        for forgotten, some in found["of"].items()
    }
    copies = Copies({forgotten: some for forgotten, some in of.items() if some}, tuple(found["looked_for"]))
    if choice != "keep" and copies.all(*EXACT):
        return None
    known = list(prints(Pictures(train, image_column, request), "forget"))
    if content_hash(sorted(one.sha256.hex() for one in known)) != record["identity"]["forget"]:
        return None
    copies.catalogue = Catalogue(known)
    return copies


def _in_stream(train: Pictures, others, near) -> Copies:
    """One pass over the stream: which pictures are to be forgotten is known as they come, so all are decoded."""
    everything = list(prints(train, "dataset", None, near))
    catalogue = Catalogue(one for one in everything if one.row in train.named)
    rest = (one for one in everything if one.row not in train.named)
    rows = {name: prints(pictures, name, catalogue.sizes, near) for name, pictures in others.items()}
    return compare(catalogue, {"dataset": rest, **rows}, near)


def _refuse(copies: Copies, names: bool) -> None:
    for source in ("dataset", "retain", "proxy"):
        exact = copies.all(*EXACT, source=source)
        if exact and copies.catalogue is not None:
            forgotten = next(sha for sha, found in copies.of.items() if exact[0] in found)
            where = "rest of the dataset" if source == "dataset" else f"{source} dataset"
            what = "is an exact copy" if len(exact) == 1 else "are exact copies"
            first = f"'{exact[0].name}', of '{copies.catalogue.names[forgotten]}'" if names else f"row {exact[0].row}"
            raise InputError(
                f"{counted(len(exact), 'picture')} of the {where} {what} of pictures to be forgotten (first: {first}) and "
                "would be trained to stay; forget them too with --copies forget, take them out (--card_names true names them), "
                "or keep them with --copies keep."
            )


def copy_notes(copies: Copies | None, choice: str, names: bool = False) -> list[str]:
    """What was found, for people; with the name of one copy each, or without names."""
    if copies is None:
        return ["Copies of the forget pictures were not looked for (--copies skip)."]
    notes, exact, near = [], copies.all(*EXACT), copies.all("near")
    if exact:
        what = "are forgotten too" if choice == "forget" else "are kept, and trained to stay"
        notes.append(f"Exact copies of forget pictures under other names: {len(exact)}{_first(exact, names)}. They {what}.")
    if near:
        notes.append(
            f"Pictures that look much like forget pictures, and are trained to stay: {len(near) + copies.unlisted}"
            f"{_first(near, names)}. Look at them, and add them to the request if they are copies"
            f"{'' if names else ' (--card_names true names the first)'}."
        )
    if "near" not in copies.looked_for and can_find_near():
        notes.append("Near copies were not looked for: the request names whole classes, whose pictures look alike.")
    elif "near" not in copies.looked_for:
        notes.append("Near copies were not looked for: that needs imagehash (pip install 'hf_i2i_unlearn[copies]').")
    return notes


def drop_copies(rows: list[dict], copies: Copies) -> tuple[list[dict], list[str]]:
    """Evaluation rows {"image"} without exact copies of forget pictures, which are added to `copies`; and a note on them."""
    found, catalogue = set(), copies.catalogue or Catalogue(())
    for one in prints(enumerate(row["image"] for row in rows), "evaluation", catalogue.sizes):
        exact = catalogue.exact(one)
        if exact is not None:
            found.add(one.row)
            copies.of.setdefault(exact[1], []).append(Copy(exact[0], "evaluation", one.row, one.sha256.hex(), one.name))
    note = f"Retain pictures of the evaluation that are exact copies of forget pictures, and left out of it: {len(found)}."
    return [row for i, row in enumerate(rows) if i not in found], [note] if found else []


def _first(copies, names):
    return f" (first '{copies[0].name}')" if names else ""
