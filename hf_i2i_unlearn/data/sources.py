"""Sources of pictures. Nothing here decodes one."""

import glob
import re
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputError


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

    Returns:
        `datasets.Dataset`, or `datasets.IterableDataset` when streaming.

    Raises:
        InputError: nothing is found there, there is no such split, or it has no rows.
    """
    if source == "mnist-demo":
        from ..demo import load_mnist

        loaded = load_mnist()
        if split not in loaded:
            raise InputError(f"mnist-demo has the splits {sorted(loaded)}, not '{split}'.")
        return loaded[split].to_iterable_dataset() if streaming else loaded[split]
    files, kind = _data_files(source, split)
    if files:
        if kind == "parquet":
            _refuse_no_rows(files, source, split)
        try:
            return datasets.load_dataset(kind, data_files={"data": files}, split="data", streaming=streaming)
        except (ValueError, StopIteration, IndexError, tarfile.TarError, datasets.exceptions.DatasetGenerationError) as error:
            reason = " ".join(str(error.__cause__ or error).split())[:300]
            raise InputError(f"Cannot read '{source}' as {kind}: {reason or 'it holds no rows'}.") from error
    if source.endswith((".parquet", ".tar")) or any(c in source for c in "*?{"):
        raise InputError(f"No {kind} file matches '{source}' for the split '{split}'; check the path.")
    kind = "imagefolder" if Path(source).is_dir() else source
    where = {"data_dir": source} if kind == "imagefolder" else {"name": config}
    try:
        return datasets.load_dataset(kind, **where, split=split, streaming=streaming)
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError, ConnectionError) as error:
        raise InputError(
            f"'{source}' is no folder here and could not be loaded from the Hub ({type(error).__name__}: {error})."
        ) from error
    except ValueError as error:  # datasets' "Unknown split" and "Bad split"
        raise InputError(f"Cannot load the split '{split}' of '{source}': {error}") from error


def _data_files(source: str, split: str | None) -> tuple[list[str], str]:
    """Files of the split, and the builder of `datasets` that reads them: "parquet", or "webdataset" for tar shards."""
    if source.endswith((".parquet", ".tar")) or any(c in source for c in "*?{"):
        files = sorted(glob.glob(source.replace("{split}", split or "*")))
        return files, "webdataset" if source.endswith(".tar") else "parquet"
    folder = Path(source)
    for kind, ending in {"parquet": "parquet", "webdataset": "tar"}.items() if folder.is_dir() else ():
        files = sorted(str(f) for f in folder.rglob(f"*.{ending}"))
        named = [f for f in files if split and re.search(rf"(^|[/_-]){split}([/_.-]|$)", f[len(source) :])]
        if files and not named:
            raise InputError(f"'{source}' holds {len(files)} {ending} files but none of the split '{split}' in its name.")
        if named:
            return named, kind
    return [], "parquet"


def _refuse_no_rows(files, source, split):
    rows = 0
    for file in files:
        try:
            rows += pq.read_metadata(file).num_rows
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"Cannot read '{file}' as parquet: {' '.join(str(error).split())[:300]}") from error
    if not rows:
        raise InputError(f"'{source}' holds no rows for the split '{split}'; choose another split or file.")


def first_rows(dataset, count: int) -> list[dict]:
    """`count` rows of a map-style dataset, evenly spread, or the first ones of a shuffled stream; all if count is 0."""
    if isinstance(dataset, datasets.IterableDataset):
        if not count:
            return list(dataset)
        return list(dataset.shuffle(seed=0, buffer_size=max(1000, count), max_buffer_input_shards=1).take(count))
    if count and count < len(dataset):
        dataset = dataset.select(np.linspace(0, len(dataset) - 1, count).astype(int))
    return list(dataset)
