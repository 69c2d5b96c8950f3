"""Which pictures an audit looks at, and for what."""

from dataclasses import dataclass, fields, replace

import datasets
import numpy as np

from ..data.options import SplitArguments
from ..data.reading import ImageReader
from ..data.requests import FILE_NAME, ROW_NUMBER, by_classes, by_values, select
from ..data.sources import first_rows, load_source, undecoded_column
from ..data.splits import build_splits, forget_selection
from .options import AuditArguments


@dataclass
class Sets:
    """Rows of an audit: {"image": {"bytes", "path"}, "label"}.

    known: forget pictures that the attacker has. held: others that the attacks are tested on. members: forget pictures that were
    trained on; unseen: pictures of the same classes that were not, None if there are none; the same for retain.
    """

    known: list
    held: list
    members: list
    unseen: list | None
    unseen_are: str
    retain: list
    retain_unseen: list | None
    description: dict


def build_sets(args: AuditArguments, split_args: SplitArguments) -> Sets:
    """The rows of every purpose. Where single pictures were forgotten they are parted into known and held ones."""
    count, has_eval = args.samples, split_args.eval_split not in (None, "none")
    splits = build_splits(split_args)
    train = source_of(split_args, split_args.train_split)
    forget_by = forget_selection(split_args, train)
    forget = select(train, forget_by, True, split_args.image_column)
    single = forget_by.column in (ROW_NUMBER, FILE_NAME)
    unseen, unseen_are = None, ""
    if has_eval:
        pool = source_of(split_args, split_args.eval_split)
        unseen_are = "of the same selection"
        if not single:
            pool = select(pool, forget_by, True, split_args.image_column)
        elif split_args.label_column in (train.features or {}):
            labels = sorted({row["label"] for row in rows_of(forget, split_args, 0)}, key=str)
            feature = train.features[split_args.label_column]
            by = by_classes if isinstance(feature, datasets.ClassLabel) else by_values
            words = [feature.int2str(x) if by is by_classes else x for x in labels]
            by = by(pool, words, split_args.label_column) if by is by_classes else by(pool, split_args.label_column, words)
            pool, unseen_are = select(pool, by, True, split_args.image_column), "of the same classes"
        else:
            unseen_are = "of any kind"
        unseen = rows_of(pool, split_args, args.membership_samples) or None
    members = rows_of(forget, split_args, args.membership_samples)
    if single or unseen is None:
        rows = rows_of(forget, split_args, 2 * count)
        order = np.random.default_rng(args.seed).permutation(len(rows))
        known, held = [rows[i] for i in order[::2]], [rows[i] for i in order[1::2]]
    else:
        known, held = rows_of(forget, split_args, count), spread(unseen, count)
    retain = [{"image": row["image"]} for row in first_rows(splits.retain, args.membership_samples)]
    return Sets(
        known, held, members, unseen, unseen_are, retain, splits.eval_retain if has_eval else None, dict(splits.description)
    )


def readable(sets: Sets, reader: ImageReader) -> Sets:
    """Without the unreadable pictures, where those are to be skipped, so that pictures and labels stay together."""
    if reader.on_corrupt == "refuse":
        return sets
    lists = {f.name: rows for f in fields(sets) if isinstance(rows := getattr(sets, f.name), list)}
    return replace(sets, **{name: [row for row in rows if reader.decode(row) is not None] for name, rows in lists.items()})


def source_of(split_args, split):
    """The rows of a split."""
    return load_source(split_args.dataset, split, split_args.dataset_config, split_args.streaming)


def rows_of(dataset, split_args, count):
    """`count` rows {"image": {"bytes", "path"}, "label"}, evenly spread; all if count is 0."""
    image, label = split_args.image_column, split_args.label_column
    columns = [image] + ([label] if label in (dataset.features or {}) else [])
    rows = first_rows(undecoded_column(dataset, image).select_columns(columns), count)
    return [{"image": row[image], "label": row.get(label)} for row in rows]


def spread(rows, count):
    """`count` rows, evenly spread; all if there are fewer, or if count is 0."""
    return [rows[i] for i in np.linspace(0, len(rows) - 1, count).astype(int)] if 0 < count < len(rows) else rows
