"""Lists of what is to be forgotten, as people send them: text, CSV or JSONL, in the encodings of three systems."""

import csv
import io
import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError

FILE_NAME_COLUMN = "file_name"  # as `datasets` calls it in metadata files


@dataclass(frozen=True)
class Written:
    """Items of a list as they are written. `perhaps` are lines like comments, which are items if there is such a file."""

    items: tuple[str, ...]
    perhaps: frozenset[str] = frozenset()


def plain(text) -> str:
    """Text as it is compared: in NFC, since one system writes an umlaut as one character and another as two."""
    text = str(text)
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def plain_path(path: str) -> str:
    """A file name as it is compared: in NFC, with /, without a leading ./ and spaces around it."""
    path = plain(path).replace("\\", "/").strip()
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    return path


def read_list(file: str, column: str | None = None, default_column: str = FILE_NAME_COLUMN) -> Written:
    """The items of a takedown list: lines of text, or one column of a .csv, .tsv or .jsonl file.

    Blank lines are ignored. A text file may hold lines that begin with # as comments.

    Raises:
        InputError: the file cannot be read or decoded, or has no such column, or names nothing.
    """
    text = _text(file)
    kind = Path(file).suffix.lower()
    if kind in (".csv", ".tsv"):
        written = _from_csv(file, text, column, default_column)
    elif kind in (".jsonl", ".ndjson"):
        written = _from_jsonl(file, text, column or default_column)
    elif column is not None:
        raise InputError(f"'{file}' has no columns; --forget_list_column is for .csv and .jsonl files, leave it out.")
    else:
        written = _from_lines(text)
    if not written.items:
        raise InputError(f"The takedown list '{file}' names no picture; write one file name per line.")
    return written


def _text(file: str) -> str:
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read the takedown list '{file}': {error}.") from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in content[:2]:
        encoding = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    else:
        encoding = "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"The takedown list '{file}' is no {encoding.removesuffix('-sig')} text (byte {error.start}); save it as UTF-8."
        ) from None


def _lines(text: str) -> list[str]:
    """Lines; unlike `str.splitlines`, not broken at characters that may be in a name."""
    return [line for line in map(str.strip, re.split(r"\r\n|\r|\n", text)) if line]


def _from_lines(text: str) -> Written:
    lines = _lines(text)
    return Written(tuple(lines), frozenset(line for line in lines if line.startswith("#")))


def _from_csv(file, text, column, default_column):
    header = next(iter(_lines(text)), "")
    delimiter = max(",;\t", key=header.count)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    names = [name.strip() for name in rows.fieldnames or ()]
    wanted = column or default_column
    if wanted not in names:
        if column is None and delimiter not in header:
            return _from_lines(text)  # one name a line, whatever the file is called
        raise InputError(f"'{file}' has no column '{wanted}'; it has {names}. Name the one with --forget_list_column.")
    rows.fieldnames = names
    try:
        return Written(tuple(value.strip() for row in rows if (value := row[wanted]) and value.strip()))
    except csv.Error as error:
        raise InputError(f"Cannot read '{file}' as CSV: {error}.") from None


def _from_jsonl(file, text, column):
    items = []
    for number, line in enumerate(_lines(text), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"Line {number} of '{file}' is no JSON: {error}.") from None
        if isinstance(row, dict) and column not in row:
            raise InputError(
                f"Line {number} of '{file}' has no '{column}'; it has {sorted(row)}. Name the one with --forget_list_column."
            )
        value = row[column] if isinstance(row, dict) else row
        if not isinstance(value, str | int | float) or value == "":
            raise InputError(f"Line {number} of '{file}' holds {json.dumps(value)[:80]}, not a name; write a text there.")
        items.append(str(value).strip())
    return Written(tuple(items))
