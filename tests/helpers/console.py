"""A command as the console runs it, within this process: quick, and with its exit status."""

import sys

import pytest

from hf_i2i_unlearn.commands.cli import run


def call(main, *words) -> int:
    """The exit status of a command, as the console runs it."""
    before, sys.argv = sys.argv, ["hf-i2i-unlearn command", *map(str, words)]
    try:
        run(main)
        return 0
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = before


@pytest.fixture
def console(capsys):
    """(main of a command, *words) -> (exit status, what it printed, what it said on stderr)."""

    def called(main, *words):
        capsys.readouterr()
        code = call(main, *words)
        said = capsys.readouterr()
        return code, said.out, said.err

    return called


def files_with(folder, *texts):
    """The files of a folder in which one of these texts stands, as bytes; weights aside, whose header is searched too."""
    found = set()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and "checkpoint-" not in str(file.relative_to(folder)):
            content = file.read_bytes()
            if any(str(text).encode() in content for text in texts):
                found.add(str(file.relative_to(folder)))
    return found
