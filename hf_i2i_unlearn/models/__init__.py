from .base import I2IModel, TrainingLoss
from .mae import I2IMAE

__all__ = ["I2IMAE", "I2IModel", "TrainingLoss"]
