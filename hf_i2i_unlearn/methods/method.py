"""What an unlearning method is: a target for the forget pictures, which says the space, and a sign.

The paper's are rows of a table.

loss = distance_on_retain + sign * alpha * distance_on_forget, each a mean over its own half of the batch.
"""

from dataclasses import dataclass

from ..errors import InputError
from .targets import (
    CompletedRetainPictures,
    EncodedNoise,
    ForgetPictures,
    ForgetTarget,
    MatchedNoiseRepresentation,
    NoisePictures,
    NoiseRepresentation,
    NoTarget,
    PictureTarget,
    RepresentationTarget,
    RetainPictures,
)


@dataclass(frozen=True)
class Method:
    """One row of the table. A new one is a new `Method`, as a rule with a new target.

    Args:
        name: for tables, cards and file names. target: what the forget pictures are moved to, or away from.
        sign: 1 moves them towards the target, -1 away from it; 0 goes with `NoTarget` alone.
        source: equation or paper. summary: what it does, in half a sentence.

    Raises:
        InputError: no name, a target that is no `ForgetTarget` object, or a sign that does not go with it.
    """

    name: str
    target: ForgetTarget
    sign: int = 1
    source: str = "not in the paper"
    summary: str = ""

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name or "/" in self.name:
            raise InputError(f"A method needs a name that can stand in a table and in a file name, got {self.name!r}.")
        if not isinstance(self.target, (RepresentationTarget, PictureTarget, NoTarget)):
            what = f"the class {self.target.__name__}" if isinstance(self.target, type) else repr(self.target)
            raise InputError(
                f"The target of the method '{self.name}' must be an object of a subclass of EncodedTarget, "
                f"RepresentationTarget or PictureTarget, or NoTarget(); got {what}."
            )
        if self.sign not in (-1, 0, 1) or (self.sign == 0) != isinstance(self.target, NoTarget):
            raise InputError(
                f"The sign of the method '{self.name}' is 1 (towards its target), -1 (away from it) or, with NoTarget alone, "
                f"0; got {self.sign!r} with {type(self.target).__name__}."
            )

    def __str__(self):
        return self.name

    @property
    def space(self) -> str:
        """Where the distances are taken: "encoder" or "output"."""
        return self.target.space

    @property
    def trains_encoder_alone(self) -> bool:
        """Whether everything but the encoder stays bit for bit what it was."""
        return self.space == "encoder"

    @property
    def shared_target(self) -> bool:
        """Whether all forget pictures have the same target under one T, which then can be computed once or be a mean."""
        return self.target.shared


def _table(*methods: Method) -> dict[str, Method]:
    return {method.name: method for method in methods}


METHODS = _table(
    Method("ours", EncodedNoise(), 1, "eq. 10, C.25", "E(T(x_f)) is moved to E0(T(n))"),
    Method("random_encoder", NoiseRepresentation(), 1, "C.35, C.36", "E(T(x_f)) is moved to Gaussian noise"),
    Method("max_loss", ForgetPictures(), -1, "C.26-C.28", "the training loss on x_f is maximised"),
    Method("noisy_label", NoisePictures(), 1, "C.32-C.34", "the training target of x_f is a Gaussian noise picture"),
    Method("retain_label", RetainPictures(), 1, "C.29-C.31", "the training target of x_f is a retain picture"),
    Method("control", NoTarget(), 0, "no unlearning", "ordinary training on the retain set alone"),
)
OURS = METHODS["ours"]

# What the released code intends where it departs from the paper, by the same names.
REFERENCE_METHODS = _table(
    Method(
        "random_encoder",
        MatchedNoiseRepresentation(),
        1,
        "C.35, C.36",
        "E(T(x_f)) is moved to Gaussian noise with the moments of the original's representations",
    ),
    Method(
        "retain_label",
        CompletedRetainPictures(),
        1,
        "C.29-C.31",
        "the training target of both halves is the original's completion of a retain picture",
    ),
)
