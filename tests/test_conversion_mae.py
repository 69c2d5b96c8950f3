"""The MAE authors' layout against `ViTMAEForPreTraining`: a model of theirs, written out here, gives the same numbers."""

import argparse

import pytest
import torch
from helpers.close import assert_close
from torch import nn
from transformers import AutoImageProcessor, ViTMAEForPreTraining

from hf_i2i_unlearn import InputError
from hf_i2i_unlearn.commands.convert import main
from hf_i2i_unlearn.models.mae.conversion import infer_config, mae_to_vit

WIDTH, DEPTH, HEADS, SIDE, PATCH = 24, 3, 4, 4, 4


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.heads = nn.Module(), heads
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        q, k, v = (
            self.attn.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # each (B, heads, N, d)
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        x = x + self.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        return x + self.mlp.fc2(nn.functional.gelu(self.mlp.fc1(self.norm2(x))))


class TheirMAE(nn.Module):
    """The names of theirs, and what they stand for."""

    def __init__(self, decoder_width=16):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls_token, self.pos_embed = (
            nn.Parameter(torch.randn(1, 1, WIDTH)),
            nn.Parameter(torch.randn(1, 1 + SIDE**2, WIDTH)),
        )
        self.blocks, self.norm = nn.ModuleList(Block(WIDTH, HEADS) for _ in range(DEPTH)), nn.LayerNorm(WIDTH, eps=1e-6)
        self.decoder_embed, self.mask_token = nn.Linear(WIDTH, decoder_width), nn.Parameter(torch.randn(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(torch.randn(1, 1 + SIDE**2, decoder_width))
        self.decoder_blocks = nn.ModuleList(Block(decoder_width, 2) for _ in range(2))
        self.decoder_norm, self.decoder_pred = nn.LayerNorm(decoder_width, eps=1e-6), nn.Linear(decoder_width, 3 * PATCH**2)

    def forward(self, pictures, hidden):
        """(B, 3, H, W), (N,) True = hidden -> latent (B, 1 + kept, D) and prediction (B, N, 3 p p)."""
        x = self.patch_embed.proj(pictures).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x[:, ~hidden]], 1)
        for block in self.blocks:
            x = block(x)
        latent = self.norm(x)
        x = self.decoder_embed(latent)
        whole = self.mask_token.expand(len(x), SIDE**2, -1).clone()
        whole[:, ~hidden] = x[:, 1:]
        x = torch.cat([x[:, :1], whole], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return latent, self.decoder_pred(self.decoder_norm(x))[:, 1:]


@pytest.fixture
def theirs():
    torch.manual_seed(0)
    model = TheirMAE().eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model


@pytest.mark.parametrize("as_published", [False, True])
def test_same_numbers(theirs, tmp_path, as_published):
    """In memory, and by the command from a training script's own file to a folder."""
    if as_published:
        state = {f"module.{name}": value for name, value in theirs.state_dict().items()}
        torch.save({"model": state, "args": argparse.Namespace(lr=1e-3), "epoch": 9, "scaler": {}}, tmp_path / "their.pth")
        main(["mae", str(tmp_path / "their.pth"), str(tmp_path / "ours"), "--heads", str(HEADS), "--decoder_heads", "2"])
        ours = ViTMAEForPreTraining.from_pretrained(tmp_path / "ours").eval()
        assert AutoImageProcessor.from_pretrained(tmp_path / "ours", backend="pil").size == {"height": 16, "width": 16}
    else:
        ours = mae_to_vit(theirs.state_dict(), HEADS, 2)
    hidden = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    hidden[1:3, 1:3] = True
    hidden, pictures = hidden.flatten(), torch.randn(2, 3, 16, 16)
    ours.config.mask_ratio = ours.vit.embeddings.config.mask_ratio = (4 - 0.5) / 16
    noise = hidden + torch.linspace(0, 0.5, SIDE**2)
    with torch.no_grad():
        latent, prediction = theirs(pictures, hidden)
        encoded = ours.vit(pictures, noise=noise.expand(2, -1))
        decoded = ours(pictures, noise=noise.expand(2, -1))
    assert_close(encoded.last_hidden_state, latent, 1e-5)
    assert_close(decoded.logits, prediction, 1e-5)


@pytest.mark.parametrize(
    "width, decoder, depth, heads, patch, side",
    [(768, 512, 12, 12, 16, 14), (1024, 512, 24, 16, 16, 14), (1280, 512, 32, 16, 14, 16)],
    ids=["base", "large", "huge"],
)
def test_the_published_sizes_are_known_by_their_shapes(width, decoder, depth, heads, patch, side):
    empty = {
        "cls_token": (1, 1, width), "pos_embed": (1, 1 + side**2, width), "patch_embed.proj.weight": (width, 3, patch, patch),
        "decoder_embed.weight": (decoder, width), "blocks.0.mlp.fc1.weight": (4 * width, width),
        "decoder_blocks.0.mlp.fc1.weight": (4 * decoder, decoder),
    }  # fmt: skip
    empty |= {f"blocks.{n}.norm1.weight": (width,) for n in range(depth)}
    empty |= {f"decoder_blocks.{n}.norm1.weight": (decoder,) for n in range(8)}
    config = infer_config({name: torch.empty(shape, device="meta") for name, shape in empty.items()})
    found = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.patch_size, config.image_size)
    assert found == (width, depth, heads, patch, side * patch)
    assert (config.decoder_num_attention_heads, config.decoder_num_hidden_layers, config.layer_norm_eps) == (16, 8, 1e-6)


def test_what_is_no_whole_mae_is_refused(theirs):
    state = theirs.state_dict()
    encoder = {name: value for name, value in state.items() if not name.startswith(("decoder", "mask"))}
    with pytest.raises(InputError, match="holds an encoder alone .* give the file with both"):
        mae_to_vit(encoder, HEADS, 2)
    with pytest.raises(InputError, match="This is no MAE of its authors"):
        mae_to_vit({"a": torch.ones(1)})
    with pytest.raises(InputError, match="heads at width 24 is unknown"):
        mae_to_vit(state)
    with pytest.raises(InputError, match="1 differ, first 'vit.layernorm.bias'"):
        mae_to_vit({name: value for name, value in state.items() if name != "norm.bias"}, HEADS, 2)
