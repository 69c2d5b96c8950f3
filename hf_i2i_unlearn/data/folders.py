"""What lies below a folder, file by file: which pictures a split has, and what is left out and why. No picture is opened."""

import csv
import hashlib
import json
import os
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
from datasets.data_files import DataFilesList
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.webdataset.webdataset import WebDataset, base_plus_ext

from ..errors import InputError

# Folders of these names, all of them on one level, are splits; `datasets` has the same words.
SPLITS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip

METADATA = set(ImageFolder.METADATA_FILENAMES)
ARCHIVES = {".zip", ".tar", ".tgz", ".gz", ".7z", ".rar", ".xz", ".bz2"}
PICTURES = {ending.lower() for ending in ImageFolder.EXTENSIONS}

NO_PICTURE, HIDDEN, ARCHIVE = "no picture by its ending", "hidden", "an archive, not opened"
OTHER_SPLIT, BESIDE, NOT_NAMED = "of another split", "beside the folders of the splits", "not named in the metadata file"
ABOVE = "a metadata file above the folders of the splits"
NO_SAMPLE = "a name that webdataset does not read"


@dataclass
class Accounting:
    """What was found for one split, and what became of it: `found` files are those used and those in `left_out`.

    `left_out` is {reason: file names relative to `source`}. `metadata` are the files that say more about pictures.
    """

    source: str
    split: str | None
    used: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)
    metadata: list[str] = field(default_factory=list)

    @property
    def found(self) -> int:
        """All files."""
        return self.used + len(self.metadata) + sum(map(len, self.left_out.values()))

    def unexpected(self) -> dict[str, list[str]]:
        """What was left out though nobody asked for it: not the pictures of the other splits."""
        return {reason: files for reason, files in self.left_out.items() if reason != OTHER_SPLIT}

    def __str__(self):
        parts = [f"{len(files)} {reason} (first '{files[0]}')" for reason, files in self.unexpected().items()]
        said = f"'{self.source}', split '{self.split}': {self.found} files, {self.used} used"
        return f"{said}; left out: {', '.join(parts) or 'none'}"

    def as_data(self) -> dict:
        """Numbers for a record, without names of files."""
        left_out = {reason: len(files) for reason, files in sorted(self.left_out.items())}
        return {"found": self.found, "used": self.used, "metadata": len(self.metadata), "left_out": left_out}


def files_below(folder: str | Path) -> Iterator[str]:
    """Every file below a folder, relative to it and with /, sorted; links are followed, each folder once."""
    seen = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        folders[:] = sorted(folders) if real not in seen else []
        files = sorted(files) if real not in seen else []
        seen.add(real)
        inside = os.path.relpath(where, folder).replace(os.sep, "/")
        yield from (name if inside == "." else f"{inside}/{name}" for name in files)


def is_hidden(file: str) -> bool:
    """Whether a part of the name begins with a dot, or a folder of it with two underscores."""
    *folders, _ = parts = file.split("/")
    return any(part.startswith(".") for part in parts) or any(part.startswith("__") for part in folders)


def is_picture(file: str) -> bool:
    """Whether the ending is one of a picture, as `datasets` lists them."""
    return os.path.splitext(file)[1].lower() in PICTURES


def pictures_of(folder: str, split: str | None) -> tuple[dict[str, DataFilesList], Accounting]:
    """The pictures below a folder of pictures, {split: files}, and what became of all files below it.

    The folders of the splits are the top-level ones, if all those that hold pictures are called like splits; a folder that is
    the only one with pictures is looked into. Else all of it is the split "train".

    Raises:
        InputError: there is no picture, or no such split.
    """
    account, pictures, metadata = Accounting(folder, split), [], []
    left_out = defaultdict(list)
    for file in files_below(folder):
        if is_hidden(file):
            left_out[HIDDEN].append(file)
        elif is_picture(file):
            pictures.append(file)
        elif file.rpartition("/")[2] in METADATA:
            metadata.append(file)
        else:
            left_out[ARCHIVE if Path(file).suffix.lower() in ARCHIVES else NO_PICTURE].append(file)
    if not pictures:
        inside = ", ".join(f"{len(files)} {reason}" for reason, files in left_out.items())
        raise InputError(f"'{folder}' holds no picture ({inside or 'it is empty'}); unpack archives, or check the path.")
    top = _top(pictures)
    parted, splits, beside = _by_split(pictures, top)
    if split is not None and split not in splits:
        raise InputError(
            f"'{folder}' has the splits {sorted(splits)}, not '{split}'; for a folder without an evaluation split give "
            "--eval_split none."
        )
    wanted = list(splits) if split is None else [split]
    left_out[BESIDE] += beside
    left_out[OTHER_SPLIT] += [file for name, files in splits.items() if name not in wanted for file in files]
    saying = {name: [] for name in splits}
    for file in metadata:
        name = _split_of(file, top) if parted else "train"
        if name in splits:
            saying[name].append(file)
            (account.metadata if name in wanted else left_out[OTHER_SPLIT]).append(file)
        else:
            left_out[ABOVE].append(file)
    for name in wanted:
        if saying[name]:
            named = _named(folder, saying[name])
            left_out[NOT_NAMED] += [file for file in splits[name] if file not in named]
            splits[name] = [file for file in splits[name] if file in named]
        account.used += len(splits[name])
    account.left_out = {reason: files for reason, files in left_out.items() if files}
    # A builder of `datasets` that meets metadata in one split expects it in all.
    loaded = wanted if any(saying.values()) else list(splits)
    return {name: data_files(folder, splits[name] + saying[name]) for name in loaded}, account


def _top(pictures: list[str]) -> str:
    """Where the folders of the splits lie, "" or "a/b/": down from the folder while one folder alone holds all pictures."""
    top = ""
    while True:
        inside = [file[len(top) :].partition("/") for file in pictures]
        names = {name for name, slash, _ in inside if slash}
        if len(names) != 1 or not all(slash for _, slash, _ in inside) or _is_split(*names):
            return top
        top += f"{names.pop()}/"


def _is_split(name: str) -> bool:
    return name.casefold() in SPLITS


def _split_of(file: str, top: str) -> str | None:
    """The split that the folder of a file below `top` is called like, if any."""
    name, inside, _ = file.removeprefix(top).partition("/")
    return SPLITS.get(name.casefold()) if inside and file.startswith(top) else None


def _by_split(pictures, top) -> tuple[bool, dict[str, list[str]], list[str]]:
    """Whether there are folders of splits, {split: files}, and the pictures that lie beside those folders."""
    folders = {name for file in pictures for name, inside, _ in [file[len(top) :].partition("/")] if inside}
    if not folders or not all(map(_is_split, folders)):
        return False, {"train": pictures}, []
    splits, beside = defaultdict(list), []
    for file in pictures:
        name = _split_of(file, top)
        (beside if name is None else splits[name]).append(file)
    return True, dict(splits), beside


def _named(folder: str, metadata: list[str]) -> set[str]:
    """The files that metadata files name, relative to the folder."""
    names = set()
    for file in metadata:
        where = file.rpartition("/")[0]
        for row in _metadata_rows(os.path.join(folder, file)):
            for column, value in row.items():
                if column and column.endswith(("file_name", "file_names")) and value:
                    values = [value] if isinstance(value, str) else value
                    names.update(os.path.normpath(os.path.join(where, v)).replace(os.sep, "/") for v in values)
    return names


def _metadata_rows(file: str) -> list[dict]:
    try:
        if file.endswith(".parquet"):
            return pq.read_table(file).to_pylist()
        with open(file, encoding="utf-8-sig", newline="") as text:
            return list(csv.DictReader(text)) if file.endswith(".csv") else [json.loads(line) for line in text if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"Cannot read the metadata file '{file}': {' '.join(str(error).split())[:200]}.") from error


def data_files(folder: str, files: list[str]) -> DataFilesList:
    """These very files for `datasets.load_dataset`, whatever characters are in their names.

    A plain list would be taken for patterns. The builder's cache knows the files by names, sizes and times.
    """
    top = os.path.abspath(folder) if folder else ""
    paths = [os.path.join(top, file) if top else os.path.abspath(file) for file in files]
    seen = hashlib.sha256()
    for path in paths:
        try:
            state = os.stat(path)
            seen.update(f"{path}\0{state.st_size} {state.st_mtime_ns}\n".encode(errors="surrogateescape"))
        except OSError:  # a link to nowhere; its row is an unreadable picture
            seen.update(f"{path}\n".encode(errors="surrogateescape"))
    return DataFilesList(paths, [(seen.hexdigest(),)])


def account_for_shards(folder: str, files: list[str], used: list[str], split: str | None, kind: str) -> Accounting:
    """What lies beside the parquet files or tar shards of a split: `files` are those of all splits."""
    left_out = defaultdict(list)
    for file in files_below(folder):
        if file in used:
            continue
        reason = HIDDEN if is_hidden(file) else OTHER_SPLIT if file in files else f"beside the {kind} files"
        left_out[reason].append(file)
    return Accounting(folder, split, len(used), dict(left_out))


def check_shards(files: list[str]) -> dict[str, list[str]]:
    """The members of tar shards that `datasets` passes over, {reason: names}. Only the headers are read.

    Raises:
        InputError: pictures whose names differ in what follows the first dot: of some, no column would have the picture.
    """
    endings, samples, left_out, example = Counter(), 0, defaultdict(list), {}
    pictures = set(WebDataset.IMAGE_EXTENSIONS)
    for file in files:
        last = None
        with tarfile.open(file) as tar:
            for member in tar:
                if not member.isfile():
                    continue
                key, ending = base_plus_ext(member.name)
                if key is None:
                    left_out[NO_SAMPLE].append(f"{file}/{member.name}")
                    continue
                samples += key != last
                last = key
                if ending.rpartition(".")[2].lower() in pictures:
                    endings[ending] += 1
                    example.setdefault(ending, member.name)
    # No column has a picture of every sample, or all pictures are taken for one sample.
    spread = bool(endings) and (max(endings.values()) < samples or len(endings) > samples)
    if spread and any("." in ending for ending in endings):
        dotted = next(ending for ending in endings if "." in ending)
        raise InputError(
            f"'{example[dotted]}' in '{Path(files[0]).parent}' has a dot in its name: webdataset takes a name up to its "
            f"first dot, and what follows ('{dotted}') is its column. The pictures would be in {len(endings)} columns "
            f"({', '.join(sorted(endings)[:3])}); pack them under other names."
        )
    return dict(left_out)
