"""Which pictures an audit looks at, and for what."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ..data.reading import ImageReader
from ..errors import InputError
from .options import AuditOptions


@dataclass
class Sets:
    """Rows of an audit: {"image": {"bytes", "path"}, "label": of any kind, or None}.

    known: forget pictures that the attacker has. held: others that the attacks are tested on; `held_trained`: whether the
    original was trained on those too, so that it may remember them, and not only others like them.
    members: forget pictures that were trained on. unseen: pictures of the same kind that were not, None if there are none; the
    same for retain.
    """

    known: list
    held: list
    members: list
    unseen: list | None
    unseen_are: str
    retain: list
    retain_unseen: list | None
    description: dict
    held_trained: bool = False


def sets_of(rows: dict[str, list], unseen: dict[str, list] | None, options: AuditOptions) -> Sets:
    """The sets of an audit from rows at hand.

    Args:
        rows: {"forget": rows, "retain": rows} that the original was trained on. unseen: pictures of the same kinds that it was
            not trained on, or None: then the forget pictures are parted into known and held ones.

    Raises:
        InputError: no forget or no retain picture.
    """
    for name in ("forget", "retain"):
        if not rows.get(name):
            raise InputError(f"There are no {name} pictures to audit with; rows is {{'forget': rows, 'retain': rows}}.")
    unseen = unseen or {}
    forget, others = (_labelled(r) for r in (rows["forget"], unseen.get("forget") or []))
    if others:
        known, held = spread(forget, options.samples), spread(others, options.samples)
    else:
        known, held = parted(spread(forget, 2 * options.samples), options.seed)
    some = options.membership_samples
    return Sets(
        known,
        held,
        spread(forget, some),
        spread(others, some) or None,
        "of the same kind",
        spread(rows["retain"], some),
        spread(unseen.get("retain") or [], some) or None,
        {"dataset": "rows", "forget": f"{len(forget)} pictures", "retain": f"{len(rows['retain'])} pictures"},
        not others,
    )


def _labelled(rows):
    return [{"image": row["image"], "label": row.get("label")} for row in rows]


def parted(rows: list, seed: int) -> tuple[list, list]:
    """(known, held): two halves at random, where no other pictures of the kind are at hand."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[i] for i in order[::2]], [rows[i] for i in order[1::2]]


def readable(sets: Sets, reader: ImageReader) -> Sets:
    """Without the unreadable pictures, where those are to be skipped, so that pictures and labels stay together."""
    if reader.on_corrupt == "refuse":
        return sets
    lists = {f.name: rows for f in fields(sets) if isinstance(rows := getattr(sets, f.name), list)}
    left: dict[str, Any] = {name: [r for r in rows if reader.decode(r) is not None] for name, rows in lists.items()}
    return replace(sets, **left)


def spread(rows: list, count: int) -> list:
    """`count` rows, evenly spread; all if there are fewer, or if count is 0."""
    return [rows[i] for i in np.linspace(0, len(rows) - 1, count).astype(int)] if 0 < count < len(rows) else list(rows)
