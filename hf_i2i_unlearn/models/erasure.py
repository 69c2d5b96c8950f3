"""Taking out of weights what was learnt by heart: they are moved towards a fresh initialisation, to be trained again.

Unlearning (eq. 10) keeps a model from using what it knows and leaves it in the weights, from where ordinary training brings it
back. What is not in the weights cannot come back. After "unlearn, noise, distil" for language models (arXiv 2506.06278).
"""

import torch

from ..errors import InputError
from .base import I2IModel


@torch.no_grad()
def move_to_fresh(i2i: I2IModel, share: float, seed: int = 0, decoder: bool = False) -> tuple[int, int]:
    """w <- (1 - share) w + share w_fresh, for the encoder's trainable weights, in place.

    w_fresh is as each layer's own initialiser makes it (`I2IModel.fresh`): norms become the identity and embeddings what the
    family starts them as. What is a fixed table, such as sine-cosine positions, says nothing of pictures and stays.

    Args:
        share: above 0, at most 1. seed: of the fresh weights. decoder: the decoder's weights too, where training changes them.

    Returns:
        How many weights were moved, and how many the model has.

    Raises:
        InputError: a share out of range, or nothing to move.
    """
    if not 0 < share <= 1:
        raise InputError(f"The share of the way to a fresh initialisation lies above 0 and is at most 1; got {share}.")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = dict(i2i.fresh().model.named_parameters())
    encoder = {id(p) for module in i2i.encoder_modules() for p in module.parameters()}
    moved = 0
    for name, weight in i2i.model.named_parameters():
        if weight.requires_grad and (decoder or id(weight) in encoder):
            weight.lerp_(fresh[name].to(weight), share)
            moved += weight.numel()
    if not moved:
        raise InputError("No weight of the encoder is to be trained, so nothing can be erased.")
    return moved, sum(p.numel() for p in i2i.parameters())
