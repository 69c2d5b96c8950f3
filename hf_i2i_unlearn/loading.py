"""The old name of `models.auto`, which the cards of patches have."""

from .models.auto import DEMOS, load_model

__all__ = ["DEMOS", "load_model"]
