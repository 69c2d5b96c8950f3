"""What is to be forgotten: a request, and the pictures that each of its items names. Nothing here decodes a picture."""

import difflib
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InputError
from .lists import FILE_NAME_COLUMN, plain, plain_path, read_list
from .options import SourceArguments
from .sources import class_label, load_source, undecoded_column

ROW_NUMBER, FILE_NAME = "row number", "file name"  # what a request can look at besides a column

LOOKED_AT = 50_000  # names among which the nearest is looked for


@dataclass(frozen=True)
class Request:
    """Pictures by the value of a `column`, by row number, or by file name.

    It belongs to no dataset: classes are kept by name, so that each split and each file resolves them by its own numbers.

    Attributes:
        items: {item as it was written: what it stands for, compared as text; row numbers as int}.
        notes: what was odd about the writing, for people; without the items themselves, which may be names.
        perhaps: items that are comments unless there is a file of that name. file: the list that they were read from.
        more_rows: row numbers of one source that are taken besides, such as copies.
    """

    column: str
    items: dict[str, frozenset]
    notes: tuple[str, ...] = ()
    perhaps: frozenset[str] = frozenset()
    file: str | None = None
    more_rows: frozenset[int] = frozenset()

    @property
    def values(self) -> frozenset:
        """What all items stand for."""
        return frozenset().union(*self.items.values())

    @property
    def names_pictures(self) -> bool:
        """Whether single pictures are named, and not what they have in common."""
        return self.column in (ROW_NUMBER, FILE_NAME)

    def columns(self, image_column: str) -> list[str]:
        """The columns that must be read to decide."""
        return [image_column] if self.names_pictures else [self.column]


@dataclass(frozen=True)
class Found:
    """The pictures that a request names in one source.

    `rows` are {item: sorted row numbers}. They are all of them if `complete`; of a stream perhaps only the first ones.
    """

    request: Request
    rows: dict[str, np.ndarray]
    complete: bool = True
    notes: tuple[str, ...] = field(init=False)

    def __post_init__(self):
        shared = sum(map(len, self.rows.values())) - len(self.all_rows())
        overlap = (
            (f"More than one item of the request names {counted(shared, 'picture')}.",) if shared and self.complete else ()
        )
        object.__setattr__(self, "notes", self.request.notes + overlap)

    def all_rows(self) -> np.ndarray:
        """The rows of all items, sorted, each once."""
        return np.unique(np.concatenate([np.empty(0, int), *self.rows.values()]))


class Matcher:
    """Looks for a request's values in arrow tables of one dataset."""

    def __init__(self, request: Request, features, image_column: str):
        self.request, self.image_column, self.values = request, image_column, request.values
        self.label = class_label(features[request.column]) if features and request.column in features else None
        if request.column == ROW_NUMBER:
            self.wanted = np.array(sorted(self.values), dtype=np.int64)
        elif self.label is not None:
            self.name = {i: name for i, name in enumerate(map(plain, self.label.names)) if name in self.values}
        self.more = np.array(sorted(request.more_rows), dtype=np.int64)
        self.depths = sorted({str(value).count("/") + 1 for value in self.values})

    def hits(self, table: pa.Table, rows: np.ndarray):
        """(place in the table, value) of all that match; a row may match several values."""
        if self.request.column == ROW_NUMBER:
            for i in np.flatnonzero(np.isin(rows, self.wanted)).tolist():
                yield i, int(rows[i])
        elif self.request.column == FILE_NAME:
            for i, path in enumerate(file_names(table, self.image_column)):
                parts = plain_path(path).split("/") if path else []
                for depth in self.depths[: len(parts)] if parts else ():
                    if depth <= len(parts) and (ending := "/".join(parts[-depth:])) in self.values:
                        yield i, ending
        else:
            for i, cell in enumerate(table.column(self.request.column).to_pylist()):
                for value in cell if isinstance(cell, list) else (cell,):
                    value = self.name.get(value) if self.label else value if value is None else plain(value)
                    if value is not None and value in self.values:
                        yield i, value

    def matches(self, table: pa.Table, rows: np.ndarray) -> np.ndarray:
        """Boolean array over the rows of the table, whose numbers in the dataset are `rows`."""
        found = np.isin(rows, self.more)
        found[[i for i, _ in self.hits(table, rows)]] = True
        return found


def file_names(table: pa.Table, image_column: str) -> list[str]:
    """The `path` of every undecoded image of an arrow table, "" where there is none."""
    column = table.column(image_column)
    return [path or "" for chunk in column.chunks for path in pc.struct_field(chunk, "path").to_pylist()]


def find(dataset, request: Request, image_column: str = "image", whole: bool = True) -> Found:
    """Where the pictures of a request are. One pass over the column that is needed, undecoded.

    Args:
        whole: False ends as soon as every item was found once; file names are looked for to the end, as they must be unique.

    Raises:
        InputError: an item that names no picture (the nearest ones are given), or a file name that several pictures have.
    """
    reads_pictures = request.names_pictures
    source = undecoded_column(dataset, image_column) if reads_pictures else dataset
    by_value = defaultdict(list)
    for item, values in request.items.items():
        for value in values:
            by_value[value].append(item)
    matcher = Matcher(request, dataset.features, image_column)
    rows, seen, missing, ended = defaultdict(list), 0, set(by_value), True
    last = max(by_value, default=0) if request.column == ROW_NUMBER else None
    for table, numbers in tables(source, request.columns(image_column)):
        for place, value in matcher.hits(table, numbers):
            missing.discard(value)
            for item in by_value[value]:
                rows[item].append(int(numbers[place]))
        seen += table.num_rows
        if not missing and (last is not None or not whole and request.column != FILE_NAME):
            ended = last is not None
            break
    absent = [item for item, values in request.items.items() if not missing.isdisjoint(values) and item not in request.perhaps]
    if absent:
        raise InputError(_not_found(source, request, absent, seen, image_column))
    for item, found in rows.items():
        if len(set(found)) > 1 and request.column == FILE_NAME:
            raise InputError(
                f"'{item}' in '{request.file}' matches {len(found)} pictures; give more of the path (folder/name) so that it "
                "matches one, or name them by --forget_rows."
            )
    items = {item: values for item, values in request.items.items() if item in rows}
    if not items:
        raise InputError(f"The takedown list '{request.file}' names no picture; write one file name per line.")
    return Found(replace(request, items=items), {item: np.unique(rows[item]) for item in items}, ended)


def _not_found(source, request, absent, seen, image_column) -> str:
    first, many = absent[0], f" (and {len(absent) - 1} more items)" if len(absent) > 1 else ""
    if request.column == ROW_NUMBER:
        return f"Row '{first}'{many} is not in the dataset: it has {seen} rows, 0 to {seen - 1}."
    nearest = _nearest(first, _names_in(source, request, image_column))
    if request.file is not None:
        return (
            f"{len(absent)} of the {len(request.items) - len(request.perhaps)} pictures in '{request.file}' are not in the "
            f"dataset, first '{first}'; correct the list, or name the column it refers to.{nearest}"
        )
    return f"No picture has {request.column} '{first}'{many}.{nearest}"


def _names_in(source, request, image_column) -> list[str]:
    """Names that the source does have."""
    names, feature = set(), None if request.names_pictures else (source.features or {}).get(request.column)
    label = class_label(feature)
    depth = max(str(value).count("/") + 1 for value in request.values)
    for table, _ in tables(source, request.columns(image_column)):
        if request.column == FILE_NAME:
            names.update("/".join(plain_path(path).split("/")[-depth:]) for path in file_names(table, image_column) if path)
        else:
            cells = table.column(request.column).to_pylist()
            values = (value for cell in cells for value in (cell if isinstance(cell, list) else [cell]) if value is not None)
            names.update(str(value) if label is None else label.names[value] for value in values if not (label and value < 0))
        if len(names) > LOOKED_AT:
            break
    return sorted(names)


def _items(written, stands_for) -> tuple[dict, tuple[str, ...]]:
    """{item: values} of what was written, each once, and a note on what stands twice."""
    counts = Counter(map(str, written))
    double = sum(count > 1 for count in counts.values())
    note = f"The request says {counted(double, 'item')} more than once."
    return {item: frozenset(stands_for(item)) for item in counts}, (note,) if double else ()


def counted(count: int, what: str) -> str:
    """'1 picture', '2 pictures'."""
    return f"{count} {what}{'s' * (count != 1)}"


def by_classes(dataset, classes: list, column: str = "label") -> Request:
    """Rows of the classes, given by name or by the number that they have in `dataset`. Lists of classes match by membership.

    Raises:
        InputError: a class that the dataset does not have or has no picture of (the nearest are given), or no such column.
    """
    request = classes_request(dataset, classes, column)
    find(dataset, request, whole=False)
    return request


def classes_request(dataset, classes: list, column: str) -> Request:
    """The request for classes; whether there are pictures of them is not looked for."""
    label = class_label(_feature(dataset, column))
    if label is None:
        return Request(column, *_items(classes, lambda name: {plain(name)}))
    names = [plain(name) for name in label.names]

    def named(item):
        if plain(item) in names:
            return {plain(item)}
        if item.isdecimal() and int(item) < len(names):
            return {names[int(item)]}
        raise InputError(f"The dataset has no class '{item}' in its {len(names)}.{_nearest(item, names)}")

    return Request(column, *_items(classes, named))


def classes_of(dataset, column: str = "label") -> list[str]:
    """The classes that a dataset has pictures of, by name, sorted."""
    label, found = class_label(_feature(dataset, column)), set()
    for table, _ in tables(dataset, [column]):
        for cell in table.column(column).to_pylist():
            found.update(cell if isinstance(cell, list) else [cell])
    return sorted(label.names[x] if label else str(x) for x in found if x is not None and not (label and x < 0))


def by_values(dataset, column: str, values: list) -> Request:
    """Rows whose column holds one of the values, compared as text; a list holds them if one of its entries is one of them.

    Raises:
        InputError: no such column, or a value that no row has (the nearest ones are given).
    """
    return by_classes(dataset, values, column)


def by_rows(rows: str | list[int]) -> Request:
    """Rows by number from 0: a list, or text such as '3,17,100-199' (both ends included).

    Raises:
        InputError: what is no row number, or a range that ends before it begins.
    """
    if not isinstance(rows, str):
        rows = list(map(int, rows))
        return Request(ROW_NUMBER, {str(row): frozenset([row]) for row in rows}, _items(rows, lambda row: ())[1])

    def numbers(part):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part, re.ASCII)
        if not match:
            raise InputError(f"'{part}' in '{rows}' is not a row number; write '3,17,100-199'.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise InputError(f"'{part}' in '{rows}' ends before it begins; write '{last}-{first}'.")
        return range(first, last + 1)

    return Request(ROW_NUMBER, *_items(rows.replace(" ", "").split(","), numbers))


def by_list(
    dataset, file: str, column: str | None = None, image_column: str = "image", list_column: str | None = None
) -> Request:
    """The rows that a takedown request names: a text file, one picture per line, or a column of a .csv or .jsonl file.

    A file name matches by as many parts of its path, from the end, as were given. The whole source is looked through
    (undecoded), since a request that names a picture which is not there, or which is there twice, must not pass in silence.

    Args:
        column: the column of the dataset that holds the items, in place of file names. list_column: the column of the list.

    Raises:
        InputError: a file that cannot be read, an empty one, items that match nothing or that match several pictures.
    """
    return find(dataset, list_request(dataset, file, column, list_column), image_column).request


def list_request(dataset, file: str, column: str | None = None, list_column: str | None = None) -> Request:
    """The request in a file; whether the pictures are there is not looked for."""
    written = read_list(file, list_column, column or FILE_NAME_COLUMN)
    label = class_label(_feature(dataset, column)) if column else None
    if column and label is not None:  # without comments, which are no classes
        classes = [item for item in written.items if item not in written.perhaps or plain(item) in label.names]
        return replace(classes_request(dataset, classes, column), file=file)
    items, notes = _items(written.items, lambda item: {plain(item) if column else plain_path(item)})
    return Request(column or FILE_NAME, items, notes, written.perhaps, file)


def select(dataset, request: Request, keep: bool = True, image_column: str = "image"):
    """The rows that the request names, or with keep=False all others. Nothing is decoded, streams stay streams."""
    dataset = undecoded_column(dataset, image_column)
    matcher = Matcher(request, dataset.features, image_column)
    if isinstance(dataset, datasets.IterableDataset):
        if request.column == ROW_NUMBER or request.more_rows:
            dataset = dataset.skip(0)  # forbids `shuffle` to change the order of shards, in which rows are numbered

        def wanted(table, rows):
            return table.filter(pa.array(matcher.matches(table, np.asarray(rows)) == keep))

        # A map, because two arrow filters on one stream break in `datasets` 5.2 (their mask columns have the same name).
        arrow = dataset.with_format("arrow").map(wanted, with_indices=True, batched=True, features=dataset.features)
        return arrow.with_format(None)
    found = [rows[matcher.matches(table, rows) == keep] for table, rows in tables(dataset, request.columns(image_column))]
    return dataset.select(np.concatenate(found) if found else [])


def load_classes(args: SourceArguments, split: str, classes: list[str] | None = None, streaming: bool = False):
    """One split of the source that the options name, all of it or these classes alone.

    Raises:
        InputError: nothing is found there, or no such class.
    """
    source = load_source(args.dataset, split, args.dataset_config, streaming)
    if classes:
        source = select(source, by_classes(source, classes, args.label_column), True, args.image_column)
    return source


def per_class(dataset, count: int, label_column: str = "label", seed: int = 0) -> Request:
    """`count` rows of every class, drawn with `seed`; all rows of a class that has fewer.

    The labels of the whole source are read, and no picture.

    Raises:
        InputError: a negative count, or no such column.
    """
    if count < 0:
        raise InputError(f"The number of retain pictures per class must be 0 or more, got {count}.")
    _feature(dataset, label_column)
    rows = defaultdict(list)
    for table, numbers in tables(dataset, [label_column]):
        for labels, number in zip(table.column(label_column).to_pylist(), numbers.tolist()):
            for label in labels if isinstance(labels, list) else [labels]:
                rows[label].append(number)
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(rows[label])[:count].tolist() for label in sorted(rows, key=str)]
    return by_rows(sorted({row for part in chosen for row in part}))


def tables(dataset, columns: list[str], size: int = 1000):
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
    name = str(name)
    close = [n for n in names if name.lower() in n.lower()][:3] or difflib.get_close_matches(name, names, 3, 0.4)
    return (
        f" Nearest: {', '.join(repr(n) for n in close)}."
        if close
        else f" It has, for example, {', '.join(map(repr, names[:3]))}."
    )
