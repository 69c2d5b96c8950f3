"""A family as a stranger would bring it: the smallest model that completes pictures and can be unlearned."""

import json
from pathlib import Path

import torch
from torch import nn

from hf_i2i_unlearn import I2IModel


class Body(nn.Module):
    """An encoder of the visible picture, and a decoder that knows no place but its own."""

    def __init__(self, shade: float):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.encoder = nn.Conv2d(3, 4, 3, padding=1)
        self.decoder = nn.Conv2d(4, 3, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0, 0.3, generator=generator)
            self.decoder.bias.fill_(shade)

    def save_pretrained(self, folder, **options):
        """One file of weights and a configuration."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), Path(folder) / "weights.pt")
        (Path(folder) / "config.json").write_text(json.dumps({"model_type": "smoother"}))


class Smoother(I2IModel):
    """Pictures of 3 channels, 16x16 pixels, on a grid of 4x4."""

    family = "smoother"

    def __init__(self, shade: float = 0.5):
        super().__init__()
        self.model = Body(shade)

    @classmethod
    def from_pretrained(cls, path, **options):
        found = cls()
        found.model.load_state_dict(torch.load(Path(path) / "weights.pt", weights_only=True))
        return found

    image_size, channels, grid = (16, 16), 3, (4, 4)

    def forward(self, pixel_values, draw):
        """(B, C, H, W), (B, rows, cols) -> (B, 4, H, W)."""
        return self.model.encoder(pixel_values.masked_fill(self.hole(draw).to(pixel_values.device), 0.0))

    def generate(self, pixel_values, mask, seeds=None):
        made = self.model.decoder(self(pixel_values, mask))
        return torch.where(self.hole(mask).to(pixel_values.device), made, pixel_values)

    def training_loss(self, pixel_values, draw, target=None):
        hole = self.hole(draw).to(pixel_values.device)
        error = (self.model.decoder(self(pixel_values, draw)) - (pixel_values if target is None else target)).square() * hole
        return error.flatten(1).sum(1) / (hole.flatten(1).sum(1) * 3)

    def encoder_modules(self):
        return [self.model.encoder]
