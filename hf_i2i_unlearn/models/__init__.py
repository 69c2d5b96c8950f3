from .base import I2IModel, TrainingLoss
from .diffusion import I2IUNet
from .latent import I2ILatentUNet
from .mae import I2IMAE
from .mage import I2IMage
from .unet import I2IPaletteUNet, I2IPlainUNet, palette_config, with_encoder_attention

__all__ = [
    "I2IMAE", "I2IMage", "I2IUNet", "I2IPaletteUNet", "I2IPlainUNet", "I2ILatentUNet", "palette_config", "with_encoder_attention", "I2IModel",
    "TrainingLoss",
]  # fmt: skip
