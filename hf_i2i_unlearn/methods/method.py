"""What the methods of the paper are: a space, a forget target and a sign; and the distances. Only tensors are known here.

loss = distance_on_retain + sign * alpha * distance_on_forget, each a mean over its own half of the batch. A sixth method is a
sixth row of `METHODS`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One row of the table.

    `space` "encoder": distances between representations, the encoder alone is trained, the retain target is E0(T(x_r)).
    `space` "output": the family's own training loss, the whole model is trained, the retain target is x_r itself.
    `forget_target`: what the forget pictures are moved to (or away from, where `sign` is negative):
    "encoded noise" E0(T(n)), "noise" n itself (as a representation or as a picture), "forget" x_f, "retain" x_r, "none".
    """

    space: str
    forget_target: str
    sign: int
    source: str
    summary: str


METHODS = {
    "ours": Method("encoder", "encoded noise", 1, "eq. 10, C.25", "E(T(x_f)) is moved to E0(T(n))"),
    "random_encoder": Method("encoder", "noise", 1, "C.35, C.36", "E(T(x_f)) is moved to Gaussian noise"),
    "max_loss": Method("output", "forget", -1, "C.26-C.28", "the training loss on x_f is maximised"),
    "noisy_label": Method("output", "noise", 1, "C.32-C.34", "the training target of x_f is a Gaussian noise picture"),
    "retain_label": Method("output", "retain", 1, "C.29-C.31", "the training target of x_f is a retain picture"),
    "control": Method("output", "none", 0, "no unlearning", "ordinary training on the retain set alone"),
}
