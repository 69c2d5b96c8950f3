"""The words of the command line, turned into objects: here and nowhere else."""

from collections.abc import Callable

import torch

from ..errors import InputError
from ..methods.corruptions import CenterCrop, CenterRatio, Corruption, Extend, Outpaint, RandomBlock, RandomMask, Turns
from ..methods.distances import DISTANCES, Distance
from ..methods.method import METHODS, REFERENCE_METHODS, Method
from ..methods.noise import Batches, BatchMatched, Constant, LowRankNormal, MomentMatched, Noise, StandardNormal, Uniform

VARIANTS = ("paper", "reference")

_WORDS = {
    "center": (int, CenterCrop),
    "outpaint": (int, Outpaint),
    "left": (int, lambda size: Extend("left", size)),
    "right": (int, lambda size: Extend("right", size)),
    "up": (int, lambda size: Extend("up", size)),
    "down": (int, lambda size: Extend("down", size)),
    "random": (float, RandomMask),
    "block": (int, RandomBlock),
    "ratio": (float, CenterRatio),
}


CORRUPTION_HELP = (
    "center:K hides the central KxK patches, random:R a random share R of them, outpaint:K all but the central KxK, "
    "left:K / right:K / up:K / down:K the K outermost columns or rows, block:K a KxK block at a random place, "
    "ratio:R a central block of about a share R of them"
)


def parse_corruption(text: str, several: bool = False) -> Corruption:
    """'center:8' -> CenterCrop(8); the words are those of `CORRUPTION_HELP`.

    With `several`, 'center:8,left:4' -> Turns((CenterCrop(8), Extend("left", 4))).

    Raises:
        InputError: an unknown word or a number that is not one; several where one is wanted.
    """
    if several and "," in text:
        return Turns(tuple(parse_corruption(word.strip()) for word in text.split(",")))
    word, _, number = text.partition(":")
    try:
        convert, build = _WORDS[word]
        value = convert(number)
    except (KeyError, ValueError):
        raise InputError(f"'{text}' is not a corruption: {CORRUPTION_HELP}.") from None
    return build(value)


NOISE_HELP = (
    "normal: N(0, I), the paper's; moments: mean and deviation of each channel of the forget set; low_rank: its "
    "covariance up to --noise_rank directions; batch: matched to each batch and clamped, as the reference code does; "
    "uniform: on [-1, 1]; constant: 0"
)


# Of these nothing is learnt from pictures.
UNFITTED_NOISE: dict[str, Callable[[], Noise]] = {"normal": StandardNormal, "uniform": Uniform, "constant": Constant}


def make_noise(word: str, batches: Batches, low: torch.Tensor, high: torch.Tensor, rank: int = 64, seed: int = 0) -> Noise:
    """The noise that a word of `NOISE_HELP` names, fitted where it has to be.

    Args:
        batches: passes over the forget set's pixel values; only `moments` and `low_rank` look at it.
        low, high: (C,) normalised values of black and white.

    Raises:
        InputError: an unknown word.
    """
    makers = UNFITTED_NOISE | {
        "moments": lambda: MomentMatched.fit(batches),
        "low_rank": lambda: LowRankNormal.fit(batches, rank, seed),
        "batch": lambda: BatchMatched(low, high),
    }
    if word not in makers:
        raise InputError(f"'{word}' is no noise; choose {NOISE_HELP}.")
    return makers[word]()


def noise_maker(forget, reader, rank: int, seed: int):
    """word -> the noise, fitted to the forget set, undecoded rows that `reader` reads."""

    def make(word: str) -> Noise:
        from ..data.reading import pixel_batches

        low, high = reader.black_and_white()
        return make_noise(word, lambda: pixel_batches(forget, reader), low, high, rank, seed)

    return make


def find_method(word: str, variant: str = "paper") -> Method:
    """'ours' -> the method; with the variant "reference" the released code's, where that departs from the paper.

    Raises:
        InputError: an unknown word.
    """
    _refuse_unknown("method", word, METHODS)
    _refuse_unknown("variant", variant, VARIANTS)
    return (METHODS | REFERENCE_METHODS)[word] if variant == "reference" else METHODS[word]


def find_distance(word: str) -> Distance:
    """'mse' -> the distance. Raises InputError for an unknown word."""
    _refuse_unknown("distance", word, DISTANCES)
    return DISTANCES[word]


def _refuse_unknown(what, word, known):
    if word not in known:
        raise InputError(f"{what} is one of {', '.join(known)}, got '{word}'.")
