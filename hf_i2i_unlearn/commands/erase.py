"""Erase what a finished run has only suppressed, so that an attacker cannot bring it back.

    hf-i2i-unlearn erase --model unlearned --output_dir erased

Unlearning keeps a model from using what it knows, and leaves it in the weights: a few steps of ordinary training bring it back.
Here the encoder's weights start anew (--erase 1.0, or a share of the way) and learn the original's work again, from retain
pictures and the forget target of the run; the decoder stays as it is, unless --erase_decoder true. The options of the run are
those of its run.yaml; rows and values that it does not name are given again. `unlearn --erase 1.0` does both at once.
"""

import sys
from argparse import ArgumentParser
from pathlib import Path

from ..errors import InputError
from ..reporting.run_folder import OPTIONS, RunFolder


def main() -> None:
    early = ArgumentParser(prog="hf-i2i-unlearn erase", add_help=False, allow_abbrev=False)
    for name in ("--model", "--original", "--erase", "--output_dir"):
        early.add_argument(name)
    given, rest = early.parse_known_args(sys.argv[1:])
    if {"-h", "--help", "--help_all"} & set(rest):
        return _unlearn("mae", rest)
    folder = RunFolder(given.model or "")
    run = folder.options if given.model else {}
    if not run:
        raise InputError(
            f"'{given.model or ''}' has no {OPTIONS}; give --model the output folder of an unlearning run, or use "
            "`unlearn --erase 1.0` on an original."
        )
    if run.get("lora") and not run.get("merge"):
        raise InputError(
            f"'{given.model}' is a patch on an untouched original, which knows what it knew; merge it, or train anew."
        )
    from ..models.auto import DEMOS, family_of

    original = given.original or run["model"]
    family = family_of(DEMOS.get(original, original), run.get("subfolder")).family
    words = ["--config", str(folder.path / OPTIONS), "--model", original, "--erase", given.erase or "1.0"]
    words += ["--erase_from", str(Path(given.model)), "--output_dir", given.output_dir or "erased"]
    _unlearn(family, [*words, *rest])


def _unlearn(family: str, words: list[str]) -> None:
    """The same job as `unlearn`, with these options."""
    from .unlearn import main as unlearn

    sys.argv[1:] = words
    unlearn(family)
