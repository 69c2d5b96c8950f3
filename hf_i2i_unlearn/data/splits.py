"""From a `datasets` source and a takedown request to the four sets of a run: forget and retain, to train and to evaluate."""

import hashlib
import logging
from dataclasses import dataclass, field, replace

import datasets
import numpy as np

from ..errors import InputError
from .copies import Copies
from .copy_search import copy_notes, drop_copies, look_for_copies, remembered_copies
from .folders import Accounting
from .options import SplitArguments
from .pairs import ForgetRetainPairs
from .requests import Found, Request, by_classes, by_rows, classes_request, find, list_request, per_class, select
from .sources import class_label, first_rows, load_accounted, load_source, undecoded, undecoded_column
from .streams import ForgetRetainStream

logger = logging.getLogger(__name__)

FEWEST = 20  # pictures to compare with


@dataclass
class Splits:
    """The four sets of a run, undecoded, and their description for the card.

    `forget`, `retain` are map-style datasets or streams; `eval_forget`, `eval_retain` are lists of rows.

    Beside them what a record needs: `found`, the request and the rows of the training source that each of its items names;
    `copies`, None if they were not looked for; `accounting`, what became of the files below the folders; `notes` for people.
    """

    forget: object
    retain: object
    eval_forget: list
    eval_retain: list
    description: dict[str, str]
    found: Found | None = None
    copies: Copies | None = None
    accounting: list[Accounting] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_pairs(args: SplitArguments, splits: Splits, seed: int) -> ForgetRetainPairs | ForgetRetainStream:
    """The training pairs of the splits that `build_splits(args)` gave; a stream of them with `streaming`."""
    if not args.streaming:
        return ForgetRetainPairs(splits.forget, splits.retain, seed)
    names = " or ".join(f"'{name}'" for name in (args.dataset, args.retain_dataset, args.proxy_dataset) if name)
    return ForgetRetainStream(splits.forget, splits.retain, seed, attempts=args.stream_attempts, source=f"The dataset {names}")


def build_splits(args: SplitArguments, record: dict | None = None) -> Splits:
    """The sets that the options name.

    Args:
        record: `request.json` of a run. Where it is of the same pictures, copies are taken from it, and not looked for again.

    Raises:
        InputError: no or several ways to name the forget set, an item that names no picture, an empty or an overlapping set, or
            exact copies of forget pictures.
    """
    image = args.image_column
    sources, retain_by, accounting = _sources(args)
    train = sources["dataset"]
    found = find_request(args, train)
    asked = found.request
    copies = _copies(args, sources, asked, record)
    notes = [*found.notes, *copy_notes(copies, args.copies, args.card_names)]
    forget_by = asked
    if copies is not None and args.copies == "forget":
        rows = {name: copies.rows(name) for name in sources}
        forget_by = replace(asked, more_rows=rows["dataset"])
        sources |= {name: select(sources[name], by_rows(sorted(rows[name])), False, image) for name in sources if rows[name]}
    forget = select(train, forget_by, True, image)
    _refuse_empty(forget, "forget", _describe(args))
    forget_asked = select(train, asked, True, image) if forget_by.more_rows else forget
    if args.retain_dataset:
        retain = sources["retain"]
    elif args.retain_classes:
        retain_by = by_classes(train, args.retain_classes, args.label_column)
        _refuse_overlap(asked, retain_by, forget_asked, train, image)
        retain = select(sources["dataset"], retain_by, True, image)
    else:
        retain = select(train, forget_by, False, image)
    eval_pool = retain  # the figures are those of the real retain set, whatever was available
    retain = _available(args, sources, retain, asked, forget_asked, retain_by)
    if args.hold_out and args.eval_split in (None, "none") and retain is eval_pool and not args.streaming:
        retain, eval_pool = _held_out(retain, args.hold_out, args.eval_samples)
    _refuse_empty(retain, "retain", "it is everything but the forget set" if retain_by is None else "see --retain_classes")

    eval_forget, eval_retain, where = _eval_sets(args, asked, retain_by, forget, eval_pool)
    left_out: list[str] = []
    if copies is not None and args.copies != "keep":
        eval_retain, left_out = drop_copies(eval_retain, copies)
        if not eval_retain:
            raise InputError(
                f"All retain pictures of the split '{args.eval_split}' are copies of forget pictures; choose another."
            )
    for note in [*notes, *left_out]:
        logger.warning("%s", note)
    return Splits(
        undecoded(forget, image),
        undecoded(retain, image),
        eval_forget,
        eval_retain,
        {
            "dataset": args.dataset,
            "forget": _describe_request(args, found.request),
            "forget_size": str(len(forget)) if hasattr(forget, "__len__") else "streamed",
            "retain": _describe_retain(args),
            "retain_availability": _describe_availability(args),
            "retain_size": str(len(retain)) if hasattr(retain, "__len__") else "streamed",
            "evaluation": where,
        },
        found,
        copies,
        accounting,
        notes + left_out,
    )


def _copies(args, sources, asked, record):
    """The copies of what is asked for, as the run of a record has found them, or looked for; None if they were not to be."""
    copies = None
    if record and record.get("dataset") == args.dataset:
        copies = remembered_copies(record, asked, sources["dataset"], args.image_column, args.copies)
    return copies or look_for_copies(sources, asked, args.image_column, args.copies, args.card_names)


def _sources(args):
    """{"dataset", where given "retain", "proxy": rows}, the request for a part of the retain dataset, the accountings."""
    sources, retain_by, accounting = {}, None, []
    for name, source in {"dataset": args.dataset, "retain": args.retain_dataset, "proxy": args.proxy_dataset}.items():
        if source:
            config = args.dataset_config if name == "dataset" else None
            sources[name], account = load_accounted(source, args.train_split, config, args.streaming)
            accounting += [account] if account is not None else []
    if args.retain_dataset:
        if args.retain_classes:
            retain_by = by_classes(sources["retain"], args.retain_classes, args.label_column)
            sources["retain"] = select(sources["retain"], retain_by, True, args.image_column)
        sources["retain"] = undecoded_column(sources["retain"], args.image_column)
    for account in accounting:
        if account.unexpected():
            logger.warning("%s.", account)
    return sources, retain_by, accounting


def find_request(args: SplitArguments, train) -> Found:
    """The pictures of the training source that the options ask to be forgotten.

    Raises:
        InputError: no or several ways to name them, or an item that names no picture.
    """
    request = _request(args, train)
    return find(train, request, args.image_column, whole=not isinstance(train, datasets.IterableDataset))


def forget_selection(args: SplitArguments, train) -> Request:
    """The request alone."""
    return find_request(args, train).request


def _request(args, train) -> Request:
    ways = [
        name
        for name, given in {
            "--forget_classes": args.forget_classes,
            "--forget_values": args.forget_values,
            "--forget_rows": args.forget_rows,
            "--forget_list": args.forget_list,
        }.items()
        if given
    ]
    if len(ways) != 1:
        raise InputError(
            f"Name the forget set in exactly one way (--forget_classes, --forget_values with --forget_column, --forget_rows or "
            f"--forget_list); got {' and '.join(ways) or 'none'}."
            # Where a finished run is measured.
            + ("" if ways else " A run.yaml keeps neither rows nor values unless --card_names true: give them again.")
        )
    if args.forget_classes:
        return classes_request(train, args.forget_classes, args.label_column)
    if args.forget_values:
        if not args.forget_column:
            raise InputError("--forget_values needs --forget_column, the column that holds them.")
        return classes_request(train, args.forget_values, args.forget_column)
    if args.forget_rows:
        return by_rows(args.forget_rows)
    return list_request(train, args.forget_list, args.forget_column, args.forget_list_column)


def _available(args, sources, retain, asked, forget_asked, retain_by):
    """The retain pictures that training may use: all, some of each class, proxies, or proxies and some (section 4.3, D.1)."""
    image, parts, train = args.image_column, [], sources["dataset"]
    if args.retain_per_class is None and not (args.proxy_classes or args.proxy_dataset):
        return retain
    if args.proxy_classes and args.proxy_dataset:
        raise InputError("Give proxies as --proxy_classes or as --proxy_dataset, not both.")
    if args.proxy_classes:
        proxy_by = by_classes(train, args.proxy_classes, args.label_column)
        _refuse_overlap(asked, proxy_by, forget_asked, train, image)
        if retain_by is None:
            retain = select(retain, proxy_by, False, image)  # what stands in for the retain set is no part of it
        else:
            _refuse_overlap(retain_by, proxy_by, retain, train, image, "be retained and stand in as a proxy")
        parts.append(select(train, proxy_by, True, image))
    if args.proxy_dataset:
        parts.append(undecoded_column(sources["proxy"], image))
    count = args.retain_per_class
    if count:
        parts.append(select(retain, per_class(retain, count, args.label_column), True, image))
    if not parts:
        raise InputError("--retain_per_class 0 leaves no retain picture; add --proxy_classes or --proxy_dataset.")
    return datasets.concatenate_datasets([part.select_columns([image]) for part in parts])


def _eval_sets(args, asked, retain_by, forget, retain):
    """Rows for the figures: the same classes of the evaluation split where that makes sense, else training pictures."""
    name, image, single = args.eval_split, args.image_column, asked.names_pictures
    if name in (None, "none"):
        pools, where = (forget, retain), "pictures that were trained on"
        if args.hold_out and not args.streaming:
            where = "forget: the pictures themselves; retain: pictures that were held out of training"
    else:
        held_out = load_source(args.dataset, name, args.dataset_config, args.streaming)
        if args.retain_dataset:
            other = load_source(args.retain_dataset, name, None, args.streaming)
            held_retain = undecoded_column(other, image) if retain_by is None else select(other, retain_by, True, image)
        elif retain_by is not None:
            held_retain = select(held_out, retain_by, True, image)
        elif single:
            held_retain = undecoded_column(held_out, image)
        else:
            held_retain = select(held_out, asked, False, image)
        if single:
            # Single pictures were asked to be forgotten: they are what must no longer be completed.
            pools, where = (forget, held_retain), f"forget: the pictures themselves; retain: split '{name}'"
        else:
            pools, where = (select(held_out, asked, True, image), held_retain), f"split '{name}', never trained on here"
    rows = [first_rows(undecoded(pool, image), args.eval_samples) for pool in pools]
    for kind, found in zip(("forget", "retain"), rows):
        if not found:
            raise InputError(f"The split '{name}' holds no {kind} picture; choose another --eval_split, or 'none'.")
    return *rows, where


def _held_out(retain, share: float, most: int):
    """(rows to train on, rows to compare with), evenly spread; all for both of fewer than 40."""
    count = len(retain)
    if count < 2 * FEWEST:
        return retain, retain
    held = np.linspace(0, count - 1, min(max(FEWEST, round(share * count)), most or count)).astype(int)
    return retain.select(np.setdiff1d(np.arange(count), held)), retain.select(held)


def _refuse_empty(dataset, name, how):
    if hasattr(dataset, "__len__"):
        empty = len(dataset) == 0
    else:
        empty = next(iter(dataset.take(1)), None) is None
    if empty:
        raise InputError(f"The {name} set is empty ({how}); choose classes, rows or files that the dataset holds.")


def _refuse_overlap(forget_by, retain_by, forget, train, image, what="be forgotten and retained"):
    if forget_by.column == retain_by.column:
        both = sorted(forget_by.values & retain_by.values)
        if both:
            raise InputError(f"{', '.join(map(repr, both[:3]))} would {what} at once; take it out of one of the two lists.")
        feature = (train.features or {}).get(retain_by.column)
        if feature is None or feature is class_label(feature) or isinstance(feature, datasets.Value):
            return  # one value a row
    shared = select(forget, retain_by, True, image)
    if len(shared) if hasattr(shared, "__len__") else next(iter(shared.take(1)), None) is not None:
        raise InputError(
            f"Some pictures would {what} at once: single pictures are named that belong to the classes listed; leave those "
            "classes out, or do not list classes, which takes the rest."
        )


def _describe(args) -> str:
    if args.forget_classes:
        return f"classes {', '.join(map(str, args.forget_classes))}"
    if args.forget_values:
        return f"{args.forget_column} in {', '.join(map(str, args.forget_values))}"
    return f"rows {args.forget_rows}" if args.forget_rows else "a list of pictures"


def _describe_request(args, forget_by) -> str:
    """What was forgotten, for a card: without the names of single pictures or people, unless they are wanted there."""
    names = sorted(forget_by.items if args.forget_list else map(str, forget_by.values))
    if args.forget_classes or (args.card_names and not args.forget_list):
        return _describe(args)
    if args.card_names:
        return f"the list {', '.join(names)}"
    if args.forget_values:
        return f"{len(args.forget_values)} value(s) of the column '{args.forget_column}', not named here"
    # As `LC_ALL=C sort -u list.txt | sha256sum` prints it, for a list without comments.
    digest = hashlib.sha256("".join(f"{name}\n" for name in names).encode()).hexdigest()
    what = "row numbers" if args.forget_rows else "lines"
    return f"a list of {len(names)} {what}, not named here; sha256 of the sorted list: {digest}"


def _describe_retain(args) -> str:
    where = f" of {args.retain_dataset}" if args.retain_dataset else ""
    if args.retain_classes:
        return f"classes {', '.join(map(str, args.retain_classes))}{where}"
    return f"all{where}" if where else "everything else"


def _describe_availability(args) -> str:
    proxy = "proxy classes " + ", ".join(args.proxy_classes) if args.proxy_classes else f"proxy dataset {args.proxy_dataset}"
    some = f"{args.retain_per_class} pictures per class"
    if args.proxy_classes or args.proxy_dataset:
        return f"{proxy} and {some}" if args.retain_per_class else f"{proxy} alone"
    return "full" if args.retain_per_class is None else some
