"""Sources of pictures. Nothing here decodes one."""

import glob
import itertools
import logging
import re
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputError
from .folders import Accounting, account_for_shards, check_shards, data_files, files_below, is_hidden, pictures_of

logger = logging.getLogger(__name__)

SHARDS = {"parquet": ".parquet", "webdataset": ".tar"}  # builder of `datasets`: ending


def undecoded(dataset, image_column: str = "image"):
    """`dataset` with only its image column, which yields {"bytes", "path"} instead of decoded pictures.

    Raises:
        InputError: there is no such column, or it holds no images.
    """
    dataset = undecoded_column(dataset, image_column).select_columns([image_column])
    return dataset if image_column == "image" else dataset.rename_column(image_column, "image")


def undecoded_column(dataset, image_column: str = "image"):
    """`dataset` with all columns, its image column undecoded."""
    features = dataset.features or {}
    if features and image_column not in features:
        raise InputError(f"The dataset has no column '{image_column}'; it has {sorted(features)}. Set the image column.")
    if features and not isinstance(features[image_column], datasets.Image):
        raise InputError(
            f"Column '{image_column}' holds {features[image_column]}, expected datasets.Image; cast it with "
            f"dataset.cast_column('{image_column}', datasets.Image())."
        )
    return dataset.cast_column(image_column, datasets.Image(decode=False))


def load_source(source: str, split: str | None, config: str | None = None, streaming: bool = False):
    """One split of a dataset by name: the demo, parquet, tar shards, an imagefolder or a Hub id (`SourceArguments.dataset`).

    What lies below a folder and is not used is said in one line.

    Returns:
        `datasets.Dataset`, or `datasets.IterableDataset` when streaming.

    Raises:
        InputError: nothing is found there, there is no such split, or it has no rows.
    """
    dataset, account = load_accounted(source, split, config, streaming)
    if account is not None and account.unexpected():
        logger.warning("%s.", account)
    return dataset


def load_accounted(source: str, split: str | None, config: str | None = None, streaming: bool = False):
    """What `load_source` returns, and an `Accounting` of all files below a folder; None for what is no folder here."""
    if source == "mnist-demo":
        from ..demo import load_mnist

        loaded = load_mnist()
        if split not in loaded:
            raise InputError(f"mnist-demo has the splits {sorted(loaded)}, not '{split}'.")
        return (loaded[split].to_iterable_dataset() if streaming else loaded[split]), None
    if source == "mnist-demo-canaries":
        from ..demo import CANARIES

        source = CANARIES
    files, kind, account = _shards(source, split)
    if files:
        with _readable(source, kind):
            if kind == "parquet":
                _refuse_no_rows(files, source, split)
                return _load_parquet(files, streaming), account
            passed_over = check_shards(files)
            if passed_over:
                account = account or Accounting(source, split, len(files))
                account.left_out |= passed_over
            return _load(kind, {"data": data_files("", files)}, "data", streaming), account
    if Path(source).is_dir():
        found, account = pictures_of(source, split)
        with _readable(source, "imagefolder"):
            return _load("imagefolder", found, split, streaming), account
    if source.endswith(tuple(SHARDS.values())) or any(c in source for c in "*?{"):
        raise InputError(
            f"No {kind} file matches '{source}' for the split '{split}'; check the path, or give --eval_split none."
        )
    return _from_hub(source, split, config, streaming), None


def _from_hub(source, split, config, streaming):
    try:
        return datasets.load_dataset(source, name=config, split=split, streaming=streaming)
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError, ConnectionError) as error:
        raise InputError(
            f"'{source}' is no folder here and could not be loaded from the Hub ({type(error).__name__}: {error})."
        ) from error
    except ValueError as error:  # datasets' "Unknown split" and "Bad split"
        raise InputError(
            f"Cannot load the split '{split}' of '{source}': {error} Without an evaluation split give --eval_split none."
        ) from error


def _load(kind, files, split, streaming):
    return datasets.load_dataset(kind, data_files=files, split=split, streaming=streaming)


class _readable:
    """What `datasets` raises over files that it cannot read becomes one sentence."""

    def __init__(self, source, kind):
        self.source, self.kind = source, kind

    def __enter__(self):
        return self

    def __exit__(self, _, error, traceback):
        known = (ValueError, OSError, StopIteration, IndexError, tarfile.TarError, datasets.exceptions.DatasetGenerationError)
        if isinstance(error, known) and not isinstance(error, InputError):
            reason = " ".join(str(error.__cause__ or error).split())[:300]
            raise InputError(f"Cannot read '{self.source}' as {self.kind}: {reason or 'it holds no rows'}.") from error


def _shards(source: str, split: str | None) -> tuple[list[str], str, Accounting | None]:
    """Files of the split, the builder of `datasets` that reads them, and what else is in their folder."""
    folder = Path(source)
    if folder.is_dir():
        below = [file for file in files_below(source) if not is_hidden(file)]
        for kind, ending in SHARDS.items():
            files = [file for file in below if file.endswith(ending) and Path(file).name != f"metadata{ending}"]
            named = [file for file in files if split and re.search(rf"(^|[/_-]){re.escape(split)}([/_.-]|$)", file)]
            if files and not named:
                raise InputError(
                    f"'{source}' holds {len(files)} {ending[1:]} files but none of the split '{split}' in its name; without an "
                    "evaluation split give --eval_split none."
                )
            if named:
                account = account_for_shards(source, files, named, split, kind)
                return [str(folder / file) for file in named], kind, account
        return [], "parquet", None
    kind = "webdataset" if source.endswith(".tar") else "parquet"
    if folder.is_file():
        return ([source] if source.endswith(tuple(SHARDS.values())) else []), kind, None
    if source.endswith(tuple(SHARDS.values())) or any(c in source for c in "*?{"):
        pattern = source.replace("{split}", split or "*")
        # A bracket is part of a name before it is a choice of characters.
        return sorted(glob.glob(pattern.replace("[", "[[]")) or glob.glob(pattern)), kind, None
    return [], kind, None


def _refuse_no_rows(files, source, split):
    rows = 0
    for file in files:
        try:
            rows += pq.read_metadata(file).num_rows
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"Cannot read '{file}' as parquet: {' '.join(str(error).split())[:300]}") from error
    if not rows:
        raise InputError(f"'{source}' holds no rows for the split '{split}'; choose another split or file.")


def _load_parquet(files: list[str], streaming: bool):
    """The rows of parquet files in their order. Class names belong to each file; where they differ, they are what counts."""
    features = [datasets.Features.from_arrow_schema(pq.read_schema(file)) for file in files]
    columns = {column: None for one in features for column, feature in one.items() if class_label(feature) is not None}
    named = {column: _class_names(files, features, column) for column in columns}
    names = {column: list(dict.fromkeys(itertools.chain(*named[column]))) for column in columns}
    if all(one == names[column] for column in columns for one in named[column]):
        return _load("parquet", {"data": data_files("", files)}, "data", streaming)
    logger.warning("The %d files name their classes in different orders; they are read by name.", len(files))
    parts, start = [], 0
    # Neighbours of one naming together.
    for _, group in itertools.groupby(range(len(files)), lambda i: [named[column][i] for column in columns]):
        count = len(list(group))
        part = _load("parquet", {"data": data_files("", files[start : start + count])}, "data", streaming)
        for column in columns:
            part = _renamed(part, column, names[column])
        parts, start = [*parts, part], start + count
    return datasets.concatenate_datasets(parts)


def class_label(feature) -> datasets.ClassLabel | None:
    """The ClassLabel of a column of classes, or of lists of classes."""
    feature = getattr(feature, "feature", feature)
    return feature if isinstance(feature, datasets.ClassLabel) and feature.names is not None else None


def _class_names(files, features, column) -> list[list[str]]:
    """The class names that each file has for a column."""
    names = []
    for file, one in zip(files, features):
        label = class_label(one.get(column))
        if label is None:
            raise InputError(
                f"Column '{column}' of '{file}' does not say the names of its classes, other files do; write all files with "
                "the same columns."
            )
        names.append(label.names)
    return names


def _renamed(dataset, column: str, names: list[str]):
    """The dataset with the classes of a column numbered as in `names`. No picture is touched."""
    old = dataset.features[column]
    numbers = pa.array([names.index(name) for name in getattr(old, "feature", old).names], pa.int64())
    label = datasets.ClassLabel(names=names)
    new = label if isinstance(old, datasets.ClassLabel) else datasets.List(label)
    features = datasets.Features({name: new if name == column else f for name, f in dataset.features.items()})

    def renumber(values):
        if new is label:
            return _renumbered(numbers, values.to_pylist())
        return pa.array([v if v is None else _renumbered(numbers, v).to_pylist() for v in values.to_pylist()])

    if isinstance(dataset, datasets.IterableDataset):

        def change(table):
            return table.set_column(table.column_names.index(column), column, renumber(table.column(column)))

        return dataset.with_format("arrow").map(change, batched=True, features=features).with_format(None)
    values = renumber(dataset.select_columns([column]).with_format("arrow")[:].column(column))
    changed = dataset.remove_columns(column).add_column(column, values.to_pylist(), feature=new)
    return changed.select_columns(list(features))


def _renumbered(numbers: pa.Array, ids: list) -> pa.Array:
    """The new number of every id; what is no class (-1, None) becomes None."""
    return numbers.take(pa.array([None if i is None or i < 0 else i for i in ids], pa.int64()))


def first_rows(dataset, count: int) -> list[dict]:
    """`count` rows of a map-style dataset, evenly spread, or the first ones of a shuffled stream; all if count is 0."""
    if isinstance(dataset, datasets.IterableDataset):
        if not count:
            return list(dataset)
        return list(dataset.shuffle(seed=0, buffer_size=max(1000, count), max_buffer_input_shards=1).take(count))
    if count and count < len(dataset):
        dataset = dataset.select(np.linspace(0, len(dataset) - 1, count).astype(int))
    return list(dataset)
