"""What is to be forgotten: a request, and the rows that it names. Nothing here decodes a picture."""

import difflib
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from ..errors import InputError
from .options import SourceArguments
from .sources import load_source, undecoded_column

ROW_NUMBER, FILE_NAME = "row number", "file name"  # what a Selection can look at besides a column


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
            f"{len(missing)} of the {len(wanted)} pictures in '{file}' are not in the dataset, first '{missing[0]}'; correct "
            "the list, or name the column it refers to."
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


def load_classes(args: SourceArguments, split: str, classes: list[str] | None = None, streaming: bool = False):
    """One split of the source that the options name, all of it or these classes alone.

    Raises:
        InputError: nothing is found there, or no such class.
    """
    source = load_source(args.dataset, split, args.dataset_config, streaming)
    if classes:
        source = select(source, by_classes(source, classes, args.label_column), True, args.image_column)
    return source


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
