"""The same pictures as every kind of source that there is."""

import io
import tarfile
from pathlib import Path

import datasets

CLASSES = ["ant", "bee", "cat", "dog"]
KINDS = ["imagefolder", "parquet", "tar"]


def write_source(kind: str, folder: Path, pictures: list[tuple[str, bytes]], split: str = "train", shards: int = 2) -> dict:
    """Pictures ("class/name.png", bytes) as an imagefolder, as parquet files or as tar shards; the options that read them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted({name.split("/")[0] for name, _ in pictures})
    if kind == "imagefolder":
        for name, content in pictures:
            file = folder / split / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return {"dataset": str(folder)}
    for shard in range(shards):
        part = pictures[shard::shards]
        if kind == "parquet":
            make_table(part, names).to_parquet(folder / f"{split}-{shard}.parquet")
        else:
            with tarfile.open(folder / f"{split}-{shard}.tar", "w") as tar:
                for name, content in part:
                    label = str(names.index(name.split("/")[0])).encode()
                    for member, data in ((name, content), (f"{Path(name).with_suffix('')}.cls", label)):
                        info = tarfile.TarInfo(member)
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
    return {"dataset": str(folder)} | ({} if kind == "parquet" else {"image_column": "png", "label_column": "cls"})


def make_table(pictures: list[tuple[str, bytes | None]], names: list[str], **columns) -> datasets.Dataset:
    """A dataset in memory: classes are the folders of the pictures, numbered as in `names`; columns are (feature, values)."""
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    data = {
        "image": [content and {"bytes": content, "path": name} for name, content in pictures],
        "label": [names.index(name.split("/")[0]) for name, _ in pictures],
    }
    for column, (feature, values) in columns.items():
        features[column], data[column] = feature, values
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


def short(name: str | None) -> str | None:
    """ "class/name.png" of a path, wherever it lies."""
    return name and "/".join(name.split("/")[-2:])


def names_of(rows) -> list[str]:
    """ "class/name.png" of undecoded rows."""
    return [short(row["image"]["path"]) for row in rows]
