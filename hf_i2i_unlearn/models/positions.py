"""Positions of patches and tokens."""

import torch

from ..errors import InputError


def sincos_positions(rows: int, dim: int) -> torch.Tensor:
    """Fixed 2-D sine-cosine positions as in MAE, (1, 1 + rows * rows, dim), zero for the class token.

    The first half of a row encodes the column and the second the row, as in the published checkpoints.
    """
    if dim % 4:
        raise InputError(f"Sine-cosine positions need a width that is a multiple of 4, got {dim}.")
    omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))  # (dim/4,)
    angle = torch.arange(rows, dtype=torch.float64)[:, None] * omega  # (rows, dim/4)
    line = torch.cat([angle.sin(), angle.cos()], 1)  # (rows, dim/2)
    table = torch.cat([line[None].expand(rows, -1, -1), line[:, None].expand(-1, rows, -1)], 2)  # (rows, cols, dim)
    return torch.cat([torch.zeros(1, dim, dtype=torch.float64), table.reshape(-1, dim)])[None].float()
