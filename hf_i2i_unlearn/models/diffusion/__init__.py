"""Diffusion: what all layouts of U-Nets share is in `modeling`; the layouts are imported here, so that `I2IUNet` knows them."""

from . import latent, pixels

__all__ = ["latent", "pixels"]
