"""The tokenizer of MAGE: a VQ-GAN from pictures to a grid of code numbers and back.

It differs from the usual VQ-GAN: no attention, no convolutions around the codebook, parameter-free average pooling in
the encoder, as many residual blocks in the decoder as in the encoder, and an odd shortcut (`ResBlock`).
Module names are those of the published checkpoints.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


def group_norm(config, channels):
    return nn.GroupNorm(config.tokenizer_norm_groups, channels, eps=config.tokenizer_norm_eps)


class ResBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv: (B, in, H, W) -> (B, out, H, W).

    Where the number of channels changes, the published model adds a projection of the branch's own result, and the
    block's input not at all. That is how it was trained, so that is how it must run.
    """

    def __init__(self, config, in_channels, out_channels):
        super().__init__()
        self.norm1 = group_norm(config, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = group_norm(config, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.nin_shortcut = None
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(out_channels, out_channels, 1, bias=False)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return x + h if self.nin_shortcut is None else self.nin_shortcut(h) + h


class Mid(nn.Module):
    def __init__(self, config, channels):
        super().__init__()
        self.block_1 = ResBlock(config, channels, channels)
        self.block_2 = ResBlock(config, channels, channels)

    def forward(self, x):
        return self.block_2(self.block_1(x))


class Upsample(nn.Module):
    """Nearest neighbour x2, then a convolution."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, and in the decoder the way up to the next."""

    def __init__(self, config, in_channels, out_channels, upsample=False):
        super().__init__()
        widths = [in_channels] + [out_channels] * config.tokenizer_res_blocks
        self.block = nn.ModuleList(ResBlock(config, a, b) for a, b in pairwise(widths))
        self.upsample = Upsample(out_channels) if upsample else None

    def forward(self, x):
        for block in self.block:
            x = block(x)
        return x if self.upsample is None else self.upsample(x)


class Encoder(nn.Module):
    """(B, channels, H, W) -> (B, codebook_dim, rows, cols)."""

    def __init__(self, config):
        super().__init__()
        widths = [config.tokenizer_channels * m for m in config.tokenizer_channel_multipliers]
        self.conv_in = nn.Conv2d(config.num_channels, config.tokenizer_channels, 3, padding=1, bias=False)
        inputs = [config.tokenizer_channels] + widths[:-1]
        self.down = nn.ModuleList(Level(config, a, b) for a, b in zip(inputs, widths, strict=True))
        self.mid = Mid(config, widths[-1])
        self.norm_out = group_norm(config, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.codebook_dim, 1)

    def forward(self, x):
        x = self.conv_in(x)
        for number, level in enumerate(self.down):
            x = level(F.avg_pool2d(x, 2) if number else x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """(B, codebook_dim, rows, cols) -> (B, channels, H, W)."""

    def __init__(self, config):
        super().__init__()
        widths = [config.tokenizer_channels * m for m in config.tokenizer_channel_multipliers]
        self.conv_in = nn.Conv2d(config.codebook_dim, widths[-1], 3, padding=1)
        self.mid = Mid(config, widths[-1])
        inputs = widths[1:] + widths[-1:]
        # Numbered by resolution as in the encoder, so the last one runs first.
        levels = enumerate(zip(inputs, widths, strict=True))
        self.up = nn.ModuleList(Level(config, a, b, upsample=n > 0) for n, (a, b) in levels)
        self.norm_out = group_norm(config, widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.num_channels, 3, padding=1)

    def forward(self, x):
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Quantizer(nn.Module):
    """The codebook: (codebook_size, codebook_dim)."""

    def __init__(self, config):
        super().__init__()
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_dim)

    def nearest(self, z):
        """The row nearest to each vector by squared distance, in float32: (..., dim) -> (...)."""
        z, codes = z.float(), self.embedding.weight.float()
        distance = z.square().sum(-1, keepdim=True) + codes.square().sum(-1) - 2 * z @ codes.t()  # (..., codes)
        return distance.argmin(-1)

    @torch.no_grad()
    def reseed(self, vectors, generator, everything=False):
        """Replace the codes that no vector (n, dim) is nearest to, or all, by vectors; returns how many were replaced.

        Each new code is drawn with a probability proportional to the squared distance from the codes so far (k-means++,
        Arthur & Vassilvitskii 2007), so it serves what is served worst. `generator` is on the CPU.
        """
        codes, vectors = self.embedding.weight, vectors.float()
        ids = self.nearest(vectors)
        distance = (vectors - codes[ids]).square().sum(-1)  # (n,)
        unused = (torch.bincount(ids, minlength=len(codes)) == 0).nonzero().flatten().tolist()
        if everything:
            unused, distance = list(range(len(codes))), torch.full_like(distance, 1e30)  # the first draw is uniform
        for row in unused:
            pick = torch.multinomial(distance.clamp_min(1e-12).double().cpu(), 1, generator=generator).item()
            codes[row] = vectors[pick]
            distance = distance.minimum((vectors - vectors[pick]).square().sum(-1))
        return len(unused)


class MageTokenizer(nn.Module):
    """The VQ-GAN. Pictures (B, C, H, W) have values in [0, 1], not normalised; tokens are in raster order."""

    def __init__(self, config):
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config)

    @property
    def dtype(self):
        return self.quantize.embedding.weight.dtype

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, rows, cols, codebook_dim), before the codebook."""
        return self.encoder(pixel_values.to(self.dtype)).permute(0, 2, 3, 1)

    def tokenize(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> code numbers (B, rows, cols)."""
        return self.quantize.nearest(self.encode(pixel_values))

    def decode_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        """Code numbers (B, rows, cols) -> (B, C, H, W), not clamped."""
        return self.decode(self.quantize.embedding(ids))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """(B, rows, cols, codebook_dim) -> (B, C, H, W), not clamped."""
        return self.decoder(codes.permute(0, 3, 1, 2))

    def quantized(self, z, commitment=0.25):
        """For training: vectors (B, rows, cols, codebook_dim) -> (their codes, of the same shape, codebook loss, code numbers).

        The loss, a scalar, moves codes towards vectors, and `commitment` times it vectors towards codes (van den Oord et al.
        2017); the gradient of what is made of the codes passes straight through to the vectors.
        """
        ids = self.quantize.nearest(z)
        codes = self.quantize.embedding(ids)
        loss = F.mse_loss(codes, z.detach()) + commitment * F.mse_loss(z, codes.detach())
        return z + (codes - z).detach(), loss, ids

    def forward(self, pixel_values):
        """For training: (reconstruction (B, C, H, W), codebook loss (scalar), code numbers (B, rows, cols))."""
        codes, loss, ids = self.quantized(self.encode(pixel_values))
        return self.decode(codes), loss, ids
