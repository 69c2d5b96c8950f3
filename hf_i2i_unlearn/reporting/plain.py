"""Words for readers who have never seen a command line: how pictures are hidden, what a test does, what was asked."""

import re
from pathlib import Path

from ..places import ELSEWHERE

# What stands before the number of a mask, and what that mask is, as `{}` patches.
_MASKS = {
    "center": "a square of {0}x{0} patches in the middle",
    "outpaint": "everything but a square of {0}x{0} patches in the middle",
    "left": "the left {0} columns of patches",
    "right": "the right {0} columns of patches",
    "up": "the upper {0} rows of patches",
    "down": "the lower {0} rows of patches",
    "block": "a square of {0}x{0} patches at a random place",
    "random": "{0} of all patches, at random",
    "ratio": "a block in the middle, about {0} of the picture",
}

TESTS = {  # by the part of an audit
    "relearning": "The model is trained again on a few of the forgotten pictures. If that soon brings back the completions of "
    "others, which were not trained on, then they were still known.",
    "membership": "The attacker guesses from the error whether a picture was trained on. AUC is how often he is right, of two "
    "pictures of which one was: 0.5 is guessing, 1 is certainty.",
    "probe": "The simplest classifier is shown the model's inner representation of pictures. What it can read there is there.",
}


def hidden(word: str) -> str:
    """'center:3' -> 'a square of 3x3 patches in the middle'; several, parted by commas, took turns."""
    several = [_one(part.strip()) for part in word.split(",")]
    return several[0] if len(several) == 1 else "in turn " + "; ".join(several)


def _one(word):
    name, _, number = word.partition(":")
    if name not in _MASKS or not re.fullmatch(r"[0-9.]+", number):
        return f"the mask {word}"
    if "." in number or name in ("random", "ratio"):
        number = f"{float(number):.0%}"
    words = _MASKS[name].format(number)
    return re.sub(r"\bthe (left|right|upper|lower) 1 (column|row)s\b", r"the \1 \2", words)


def called(place: str) -> str:
    """A folder by its name; a Hub id or the name of a demo as it is."""
    return Path(place).name if place.startswith(("./", "../", ELSEWHERE, "/")) else place


def test_of(part: str) -> str:
    """What a part of an audit does; nothing where that is not known."""
    return TESTS.get(part.partition("/")[0], "")
