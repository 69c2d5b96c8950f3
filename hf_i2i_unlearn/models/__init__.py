from .base import I2IModel, TrainingLoss
from .mae import I2IMAE
from .mage import I2IMage
from .unet import I2IUNet, palette_config

__all__ = ["I2IMAE", "I2IMage", "I2IUNet", "palette_config", "I2IModel", "TrainingLoss"]
