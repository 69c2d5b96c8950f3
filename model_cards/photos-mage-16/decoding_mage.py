"""Pure functions of MAGE's iterative decoding and of the compositing of its pictures: tensors in, tensors out.

Shapes: B pictures, N tokens in raster order.
"""

import math

import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter


def masks_from_noise(noise, dropped: int, masked: int):
    """The `dropped` and the `masked` smallest of each row of noise (B, N), as two boolean masks (B, N)."""
    rank = noise.argsort(1).argsort(1)
    return rank < dropped, rank < masked


def truncated_normal(uniform: float, mean: float, std: float, low: float, high: float) -> float:
    """The quantile `uniform` in [0, 1] of a normal truncated to [low, high]."""

    def below(x):
        return (1 + math.erf((x - mean) / std / math.sqrt(2))) / 2

    quantile = below(low) + uniform * (below(high) - below(low))
    value = torch.special.ndtri(torch.tensor(quantile, dtype=torch.float64)).item()
    return min(max(mean + std * value, low), high)


def sample_codes(logits, uniform):
    """Inverse-CDF sampling: logits (..., codes), uniform numbers in [0, 1) (...) -> codes (...)."""
    cumulated = logits.softmax(-1).cumsum(-1)
    # Scaled by the last sum, which rounding leaves a little off 1: no code of probability 0 is ever drawn.
    threshold = uniform.unsqueeze(-1) * cumulated[..., -1:]
    return torch.searchsorted(cumulated, threshold, right=True).squeeze(-1).clamp_max(logits.shape[-1] - 1)


def decoding_step(tokens, logits, sampled, gumbel, count, temperature: float, mask_token_id: int):
    """One step of iterative decoding, given its random numbers. N may be some of a picture's places, with all unknown ones.

    Args:
        tokens: (B, N), unknown ones are `mask_token_id`.
        logits: of the codes, (B, N, codes).
        sampled: codes drawn from them, (B, N).
        gumbel: standard Gumbel noise, (B, N).
        count: how many tokens of each sample become unknown again, (B,), at most those that are.
        temperature: of the Gumbel noise.

    Returns:
        The completed codes (B, N), and the tokens of the next step (B, N).
    """
    unknown = tokens == mask_token_id
    ids = torch.where(unknown, sampled, tokens)
    log_p = logits.log_softmax(-1).gather(-1, sampled.unsqueeze(-1)).squeeze(-1)  # (B, N)
    confidence = torch.where(unknown, log_p + temperature * gumbel, math.inf)
    rank = confidence.argsort(dim=1, stable=True).argsort(1)
    return ids, ids.masked_fill(rank < count.unsqueeze(1), mask_token_id)


def grow(mask, by: int):
    """Boolean mask (B, 1, H, W), every True widened to a square of `by` on each side."""
    return F.max_pool2d(mask.float(), 2 * by + 1, stride=1, padding=by) > 0


def fill_hole(pixel_values, hole, color):
    """The picture (B, C, H, W) with one colour (C values) in the hole (B, 1, H, W)."""
    color = torch.tensor(color, dtype=pixel_values.dtype, device=pixel_values.device).view(1, -1, 1, 1)
    return torch.where(hole, color, pixel_values)


def paste(decoded, pixel_values, hole):
    """The decoded picture, clamped to [0, 1], in the hole (B, 1, H, W), the given picture elsewhere."""
    return torch.where(hole, decoded.clamp(0, 1), pixel_values)


def feathered_paste(decoded, filled, hole, margin: int = 14, radius: int = 7):
    """The reference's compositing: (B, C, H, W) in [0, 1].

    The hole (B, 1, H, W) is grown by `margin` pixels and blurred by a Gaussian of `radius` pixels in 8 bit; this
    weight blends the decoded picture into the FILLED input, so a trace of the fill colour is left near the hole.
    """
    weight = grow(hole, margin).to(torch.uint8).mul(255)  # (B, 1, H, W)
    weight = torch.stack([_blur(one, radius) for one in weight.cpu()]).to(decoded) / 255
    return (decoded * weight + filled * (1 - weight)).clamp(0, 1)


def _blur(mask, radius):
    """PIL's Gaussian blur (three box blurs, rounded to 8 bit) of a uint8 mask (1, H, W)."""
    height, width = mask.shape[1:]
    image = Image.frombytes("L", (width, height), bytes(mask.flatten().tolist()))
    blurred = image.filter(ImageFilter.GaussianBlur(radius)).tobytes()
    return torch.frombuffer(bytearray(blurred), dtype=torch.uint8).view(1, height, width)


def draw_noise(rows, total, generator, device):
    """Uniform and Gumbel noise (b, N) for the samples `rows` of a batch, from one generator or from each one's own."""
    if isinstance(generator, list):
        noise = torch.stack([torch.rand(2, total, generator=generator[r], device=generator[r].device) for r in rows], 1)
    else:
        noise = torch.rand(2, len(rows), total, generator=generator, device=device if generator is None else generator.device)
    uniform, other = noise.to(device)  # (b, N) each
    other = other.clamp_min(torch.finfo(other.dtype).tiny)  # no infinite noise: temperature 0 would make it NaN
    return uniform, -torch.log(-torch.log(other))
