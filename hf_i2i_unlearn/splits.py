"""From a `datasets` source and a takedown request to the four sets of a run: forget and retain, to train and to evaluate."""

import difflib
import glob
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from .data import undecoded, undecoded_column
from .errors import InputError

ROW_NUMBER, FILE_NAME = "row number", "file name"  # what a Selection can look at besides a column


@dataclass
class SourceArguments:
    """Where pictures come from."""

    dataset: str = field(
        default="mnist-demo",
        metadata={
            "help": "Pictures: a Hub id, a folder of class folders (imagefolder), a parquet file, folder or pattern, or "
            "mnist-demo (real digits, embedded). {split} in a pattern stands for the name of the split."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration name of a Hub dataset."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(
        default="validation", metadata={"help": "Split to evaluate on; 'none' evaluates on the training pictures."}
    )
    streaming: bool = field(default=False, metadata={"help": "Stream instead of loading; needs --max_steps."})
    image_column: str = field(default="image", metadata={"help": "Column that holds the pictures."})
    label_column: str = field(default="label", metadata={"help": "Column that holds the classes."})


@dataclass
class SplitArguments(SourceArguments):
    """Which pictures are forgotten and which are retained. Name the forget set in exactly one of the four ways."""

    forget_classes: list[str] | None = field(default=None, metadata={"help": "Classes to forget, by name or number."})
    forget_column: str | None = field(
        default=None, metadata={"help": "Column to select forget pictures by (with --forget_values)."}
    )
    forget_values: list[str] | None = field(default=None, metadata={"help": "Values of that column to forget."})
    forget_rows: str | None = field(default=None, metadata={"help": "Row numbers to forget, from 0: '3,17,100-199'."})
    forget_list: str | None = field(
        default=None,
        metadata={
            "help": "The takedown request: a text file with one picture per line, by file name (enough of the path to be "
            "unique), or by a value of --forget_column. Every line must be found."
        },
    )
    retain_classes: list[str] | None = field(
        default=None, metadata={"help": "Classes to retain; all that is not forgotten if not given."}
    )
    retain_dataset: str | None = field(default=None, metadata={"help": "Take the retain pictures from this dataset instead."})
    retain_per_class: int | None = field(
        default=None,
        metadata={
            "help": "Only so many retain pictures of each class are available (App. D.1); they are over-sampled, as the retain set "
            "is cycled. 0: none, with proxies."
        },
    )
    proxy_classes: list[str] | None = field(
        default=None,
        metadata={"help": "Classes that stand in for the retain set in training (section 4.3), never in the figures."},
    )
    proxy_dataset: str | None = field(default=None, metadata={"help": "Dataset that stands in for the retain set in training."})
    eval_samples: int = field(default=500, metadata={"help": "Pictures per set for the figures, evenly spread; 0 = all."})


@dataclass(frozen=True)
class Selection:
    """Rows whose `column` (or row number, or file name) is one of `values`.

    Values are compared as text, or as numbers for classes and rows. A file name matches by as many parts of its path,
    from the end, as were given.
    """

    column: str
    values: frozenset

    def matches(self, table: pa.Table, rows: np.ndarray, image_column: str) -> np.ndarray:
        """Boolean array over the rows of an arrow table whose row numbers in the dataset are `rows`."""
        found = [key in self.values for key in self._keys(table, rows, image_column)]
        return np.array(found, dtype=bool)

    def _keys(self, table, rows, image_column):
        if self.column == ROW_NUMBER:
            return rows.tolist()
        if self.column == FILE_NAME:
            depths = sorted({value.count("/") + 1 for value in self.values})
            return [self._file_key(path, depths) for path in file_names(table, image_column)]
        keys = table.column(self.column).to_pylist()
        return keys if all(isinstance(v, int) for v in self.values) else [str(k) for k in keys]

    def _file_key(self, path, depths):
        parts = path.replace("\\", "/").split("/")
        endings = ("/".join(parts[-depth:]) for depth in depths)
        return next((ending for ending in endings if ending in self.values), None)

    def columns(self, image_column: str) -> list[str]:
        """The columns that must be read to decide."""
        return [image_column] if self.column in (ROW_NUMBER, FILE_NAME) else [self.column]


def file_names(table: pa.Table, image_column: str) -> list[str]:
    """The `path` of every undecoded image of an arrow table, "" where there is none."""
    return [path or "" for path in pa.chunked_array(table.column(image_column)).combine_chunks().field("path").to_pylist()]


def load_source(source: str, split: str | None, config: str | None = None, streaming: bool = False):
    """One split of a dataset by name: the demo, parquet, an imagefolder or a Hub id (see `SourceArguments.dataset`).

    Returns:
        `datasets.Dataset`, or `datasets.IterableDataset` when streaming.

    Raises:
        InputError: nothing is found there, or there is no such split.
    """
    if source == "mnist-demo":
        from .demo import load_mnist

        loaded = load_mnist()
        if split not in loaded:
            raise InputError(f"mnist-demo has the splits {sorted(loaded)}, not '{split}'.")
        return loaded[split].to_iterable_dataset() if streaming else loaded[split]
    files = _parquet_files(source, split)
    if files:
        return datasets.load_dataset("parquet", data_files={"data": files}, split="data", streaming=streaming)
    if source.endswith(".parquet") or any(c in source for c in "*?{"):
        raise InputError(f"No parquet file matches '{source}' for the split '{split}'; check the path.")
    kind = "imagefolder" if Path(source).is_dir() else source
    where = {"data_dir": source} if kind == "imagefolder" else {"name": config}
    try:
        return datasets.load_dataset(kind, **where, split=split, streaming=streaming)
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError, ConnectionError) as error:
        raise InputError(
            f"'{source}' is no folder here and could not be loaded from the Hub ({type(error).__name__}: {error})."
        )
    except ValueError as error:  # datasets' "Unknown split" and "Bad split"
        raise InputError(f"Cannot load the split '{split}' of '{source}': {error}")


def _parquet_files(source: str, split: str | None) -> list[str]:
    if source.endswith(".parquet") or any(c in source for c in "*?{"):
        return sorted(glob.glob(source.replace("{split}", split or "*")))
    folder = Path(source)
    if not folder.is_dir():
        return []
    files = sorted(str(f) for f in folder.rglob("*.parquet"))
    named = [f for f in files if split and re.search(rf"(^|[/_-]){split}([/_.-]|$)", f[len(source) :])]
    if files and not named:
        raise InputError(f"'{source}' holds {len(files)} parquet files but none of the split '{split}' in its name.")
    return named


def by_classes(dataset, classes: list, column: str = "label") -> Selection:
    """Rows of the classes, given by name or number.

    Raises:
        InputError: a class that the dataset does not have (the nearest names are given), or no such column.
    """
    feature = _feature(dataset, column)
    if not isinstance(feature, datasets.ClassLabel):
        known = sorted({str(v) for v in dataset.unique(column)}) if hasattr(dataset, "unique") else None
        for name in classes:
            if known is not None and str(name) not in known:
                raise InputError(f"No picture has {column} '{name}'.{_nearest(str(name), known)}")
        return Selection(column, frozenset(str(c) for c in classes))
    ids = set()
    for name in classes:
        name = str(name)
        if name in feature.names:
            ids.add(feature.str2int(name))
        elif name.isdigit() and int(name) < feature.num_classes:
            ids.add(int(name))
        else:
            raise InputError(f"The dataset has no class '{name}' in its {feature.num_classes}.{_nearest(name, feature.names)}")
    return Selection(column, frozenset(ids))


def by_values(dataset, column: str, values: list) -> Selection:
    """Rows whose column holds one of the values, compared as text."""
    feature = _feature(dataset, column)
    if isinstance(feature, datasets.ClassLabel):
        return by_classes(dataset, values, column)
    return Selection(column, frozenset(str(v) for v in values))


def by_rows(rows: str | list[int]) -> Selection:
    """Rows by number from 0: a list, or text such as '3,17,100-199' (both ends included)."""
    if isinstance(rows, str):
        numbers = []
        for part in rows.replace(" ", "").split(","):
            match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
            if not match:
                raise InputError(f"'{part}' in '{rows}' is not a row number; write '3,17,100-199'.")
            numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
        rows = numbers
    return Selection(ROW_NUMBER, frozenset(int(r) for r in rows))


def by_list(dataset, file: str, column: str | None = None, image_column: str = "image") -> Selection:
    """The rows that a takedown request names: a text file, one picture per line; blank lines and #comments are ignored.

    The whole source is looked through (undecoded), since a request that names a picture which is not there, or which is
    there twice, must not pass in silence.

    Raises:
        InputError: no such file, an empty one, lines that match nothing or that match several pictures.
    """
    try:
        lines = [line.strip() for line in Path(file).read_text().splitlines()]
    except OSError as error:
        raise InputError(f"Cannot read the takedown list '{file}': {error}.") from None
    wanted = frozenset(line for line in lines if line and not line.startswith("#"))
    if not wanted:
        raise InputError(f"The takedown list '{file}' names no picture; write one file name per line.")
    if column is not None:
        _feature(dataset, column)
    selection = Selection(column or FILE_NAME, wanted)
    found = defaultdict(int)
    for table, rows in _tables(undecoded_column(dataset, image_column), selection.columns(image_column)):
        for key in selection._keys(table, rows, image_column):
            if key in wanted:
                found[key] += 1
    missing = sorted(wanted - found.keys())
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(wanted)} pictures in '{file}' are not in the dataset, first '{missing[0]}'; correct the "
            "list, or name the column it refers to."
        )
    double = [name for name in sorted(found) if found[name] > 1]
    if double and column is None:
        raise InputError(
            f"'{double[0]}' in '{file}' matches {found[double[0]]} pictures; give more of the path (folder/name) so that it "
            "matches one."
        )
    return selection


def select(dataset, selection: Selection, keep: bool = True, image_column: str = "image"):
    """The rows that the selection matches, or with keep=False all others. Nothing is decoded, streams stay streams."""
    dataset = undecoded_column(dataset, image_column)
    if isinstance(dataset, datasets.IterableDataset):

        def wanted(table, rows):
            return table.filter(pa.array(selection.matches(table, np.asarray(rows), image_column) == keep))

        # A map, because two arrow filters on one stream break in `datasets` 5.2 (their mask columns have the same name).
        arrow = dataset.with_format("arrow").map(wanted, with_indices=True, batched=True, features=dataset.features)
        return arrow.with_format(None)
    found = [
        rows[selection.matches(table, rows, image_column) == keep]
        for table, rows in _tables(dataset, selection.columns(image_column))
    ]
    return dataset.select(np.concatenate(found) if found else [])


def per_class(dataset, count: int, label_column: str = "label", seed: int = 0) -> Selection:
    """`count` rows of every class, drawn with `seed`; all rows of a class that has fewer.

    The labels of the whole source are read, and no picture.

    Raises:
        InputError: a negative count, or no such column.
    """
    if count < 0:
        raise InputError(f"The number of retain pictures per class must be 0 or more, got {count}.")
    _feature(dataset, label_column)
    rows = defaultdict(list)
    for table, numbers in _tables(dataset, [label_column]):
        for label, number in zip(table.column(label_column).to_pylist(), numbers.tolist()):
            rows[label].append(number)
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(rows[label])[:count].tolist() for label in sorted(rows, key=str)]
    return by_rows([row for part in chosen for row in part])


def _tables(dataset, columns: list[str], size: int = 1000):
    """(arrow table of the columns, row numbers) in pieces, for map-style datasets and streams."""
    start = 0
    for table in dataset.select_columns(columns).with_format("arrow").iter(size):
        yield table, np.arange(start, start + table.num_rows)
        start += table.num_rows


def _feature(dataset, column):
    if dataset.features is not None and column not in dataset.features:
        raise InputError(f"The dataset has no column '{column}'; it has {sorted(dataset.features)}.")
    return dataset.features[column] if dataset.features is not None else None


def _nearest(name, names):
    close = [n for n in names if name.lower() in n.lower()][:3] or difflib.get_close_matches(name, names, 3, 0.4)
    return (
        f" Nearest: {', '.join(repr(n) for n in close)}."
        if close
        else f" It has, for example, {', '.join(map(repr, names[:3]))}."
    )


@dataclass
class Splits:
    """The four sets of a run, undecoded, and their description for the card.

    `forget`, `retain` are map-style datasets or streams; `eval_forget`, `eval_retain` are lists of rows.
    """

    forget: object
    retain: object
    eval_forget: list
    eval_retain: list
    description: dict[str, str]


def build_splits(args: SplitArguments) -> Splits:
    """The sets that the options name.

    Raises:
        InputError: no or several ways to name the forget set, unknown names, an empty or an overlapping set.
    """
    train = load_source(args.dataset, args.train_split, args.dataset_config, args.streaming)
    image = args.image_column
    forget_by = _forget_selection(args, train)
    forget = select(train, forget_by, True, image)
    _refuse_empty(forget, "forget", _describe(args))
    if args.retain_dataset:
        retain_source = load_source(args.retain_dataset, args.train_split, None, args.streaming)
        retain_by = by_classes(retain_source, args.retain_classes, args.label_column) if args.retain_classes else None
        retain = undecoded_column(retain_source, image) if retain_by is None else select(retain_source, retain_by, True, image)
        _refuse_same_pictures(forget, retain, image)
    elif args.retain_classes:
        retain_by = by_classes(train, args.retain_classes, args.label_column)
        retain = select(train, retain_by, True, image)
        _refuse_overlap(forget_by, retain_by, forget, train, image)
    else:
        retain_by = None
        retain = select(train, forget_by, False, image)
    eval_pool = retain  # the figures are those of the real retain set, whatever was available
    retain = _available(args, train, retain, forget_by, retain_by)
    _refuse_empty(retain, "retain", "it is everything but the forget set" if retain_by is None else "see --retain_classes")

    eval_forget, eval_retain, where = _eval_sets(args, forget_by, retain_by, forget, eval_pool)
    return Splits(
        undecoded(forget, image),
        undecoded(retain, image),
        eval_forget,
        eval_retain,
        {
            "dataset": args.dataset,
            "forget": _describe(args),
            "forget_size": str(len(forget)) if hasattr(forget, "__len__") else "streamed",
            "retain": _describe_retain(args),
            "retain_availability": _describe_availability(args),
            "retain_size": str(len(retain)) if hasattr(retain, "__len__") else "streamed",
            "evaluation": where,
        },
    )


def _forget_selection(args, train) -> Selection:
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
        )
    if args.forget_classes:
        return by_classes(train, args.forget_classes, args.label_column)
    if args.forget_values:
        if not args.forget_column:
            raise InputError("--forget_values needs --forget_column, the column that holds them.")
        return by_values(train, args.forget_column, args.forget_values)
    if args.forget_rows:
        return by_rows(args.forget_rows)
    return by_list(train, args.forget_list, args.forget_column, args.image_column)


def _available(args, train, retain, forget_by, retain_by):
    """The retain pictures that training may use: all, some of each class, proxies, or proxies and some (section 4.3, D.1)."""
    image, parts = args.image_column, []
    if args.retain_per_class is None and not (args.proxy_classes or args.proxy_dataset):
        return retain
    if args.proxy_classes and args.proxy_dataset:
        raise InputError("Give proxies as --proxy_classes or as --proxy_dataset, not both.")
    if args.proxy_classes:
        proxy_by = by_classes(train, args.proxy_classes, args.label_column)
        _refuse_overlap(forget_by, proxy_by, select(train, forget_by, True, image), train, image)
        if retain_by is None:
            retain = select(retain, proxy_by, False, image)  # what stands in for the retain set is no part of it
        else:
            _refuse_overlap(retain_by, proxy_by, retain, train, image, "be retained and stand in as a proxy")
        parts.append(select(train, proxy_by, True, image))
    if args.proxy_dataset:
        proxies = load_source(args.proxy_dataset, args.train_split, None, args.streaming)
        _refuse_same_pictures(select(train, forget_by, True, image), undecoded_column(proxies, image), image)
        parts.append(undecoded_column(proxies, image))
    count = args.retain_per_class
    if count:
        parts.append(select(retain, per_class(retain, count, args.label_column), True, image))
    if not parts:
        raise InputError("--retain_per_class 0 leaves no retain picture; add --proxy_classes or --proxy_dataset.")
    return datasets.concatenate_datasets([part.select_columns([image]) for part in parts])


def _eval_sets(args, forget_by, retain_by, forget, retain):
    """Rows for the figures: the same classes of the evaluation split where that makes sense, else training pictures."""
    name, image = args.eval_split, args.image_column
    if name in (None, "none"):
        pools, where = (forget, retain), "pictures that were trained on"
    else:
        held_out = load_source(args.dataset, name, args.dataset_config, args.streaming)
        if args.retain_dataset:
            other = load_source(args.retain_dataset, name, None, args.streaming)
            held_retain = undecoded_column(other, image) if retain_by is None else select(other, retain_by, True, image)
        elif retain_by is not None:
            held_retain = select(held_out, retain_by, True, image)
        elif forget_by.column in (ROW_NUMBER, FILE_NAME):
            held_retain = undecoded_column(held_out, image)
        else:
            held_retain = select(held_out, forget_by, False, image)
        if forget_by.column in (ROW_NUMBER, FILE_NAME):
            # Single pictures were asked to be forgotten: they are what must no longer be completed.
            pools, where = (forget, held_retain), f"forget: the pictures themselves; retain: split '{name}'"
        else:
            pools, where = (select(held_out, forget_by, True, image), held_retain), f"split '{name}', never trained on here"
    rows = [first_rows(undecoded(pool, image), args.eval_samples) for pool in pools]
    for kind, found in zip(("forget", "retain"), rows):
        if not found:
            raise InputError(f"The split '{name}' holds no {kind} picture; choose another --eval_split, or 'none'.")
    return *rows, where


def first_rows(dataset, count: int) -> list[dict]:
    """`count` rows of a map-style dataset, evenly spread, or the first ones of a shuffled stream; all if count is 0."""
    if isinstance(dataset, datasets.IterableDataset):
        if not count:
            return list(dataset)
        return list(dataset.shuffle(seed=0, buffer_size=max(1000, count), max_buffer_input_shards=1).take(count))
    if count and count < len(dataset):
        dataset = dataset.select(np.linspace(0, len(dataset) - 1, count).astype(int))
    return list(dataset)


def _refuse_empty(dataset, name, how):
    if hasattr(dataset, "__len__"):
        empty = len(dataset) == 0
    else:
        empty = next(iter(dataset.take(1)), None) is None
    if empty:
        raise InputError(f"The {name} set is empty ({how}); choose classes, rows or files that the dataset holds.")


def _refuse_overlap(forget_by, retain_by, forget, train, image, what="be forgotten and retained"):
    if forget_by.column == retain_by.column:
        both = sorted(forget_by.values & retain_by.values, key=str)
        if both:
            feature = train.features[retain_by.column]
            names = [repr(feature.int2str(b) if isinstance(feature, datasets.ClassLabel) else b) for b in both[:3]]
            raise InputError(f"{', '.join(names)} would {what} at once; take it out of one of the two lists.")
        return
    shared = select(forget, retain_by, True, image)
    if len(shared) if hasattr(shared, "__len__") else next(iter(shared.take(1)), None) is not None:
        raise InputError(
            f"Some pictures would {what} at once: single pictures are named that belong to the classes listed; leave those "
            "classes out, or do not list classes, which takes the rest."
        )


def _refuse_same_pictures(forget, retain, image):
    """The same file bytes in both sets would be pulled two ways. Streams are not searched."""
    if not hasattr(forget, "__len__") or not hasattr(retain, "__len__"):
        return
    ours = {hash(row[image]["bytes"]) for row in forget.select_columns([image]) if row[image]["bytes"]}
    shared = sum(hash(row[image]["bytes"]) in ours for row in retain.select_columns([image]) if row[image]["bytes"])
    if shared:
        raise InputError(f"{shared} pictures of the retain dataset are in the forget set too; take them out of one of the two.")


def _describe(args) -> str:
    if args.forget_classes:
        return f"classes {', '.join(map(str, args.forget_classes))}"
    if args.forget_values:
        return f"{args.forget_column} in {', '.join(map(str, args.forget_values))}"
    return f"rows {args.forget_rows}" if args.forget_rows else "a list of pictures"


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
