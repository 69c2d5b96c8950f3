"""A command as the console runs it, within this process: quick, and with its exit status."""

import sys

import pytest

from hf_i2i_unlearn.commands.cli import run


@pytest.fixture
def console(monkeypatch, capsys):
    """(main of a command, *words) -> (exit status, what it printed, what it said on stderr)."""

    def call(main, *words):
        monkeypatch.setattr(sys, "argv", ["hf-i2i-unlearn command", *map(str, words)])
        capsys.readouterr()
        try:
            run(main)
            code = 0
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def files_with(folder, *texts):
    """The files of a folder in which one of these texts stands, as bytes; weights aside, whose header is searched too."""
    found = set()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and "checkpoint-" not in str(file.relative_to(folder)):
            content = file.read_bytes()
            if any(str(text).encode() in content for text in texts):
                found.add(str(file.relative_to(folder)))
    return found
