"""The layers of MAGE's transformer."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class MageTokenEmbedding(nn.Module):
    """Words + positions, layer norm, dropout: ids (B, 1 + N) -> (B, 1 + N, D)."""

    def __init__(self, config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.embedding_dropout_prob)

    def forward(self, ids):
        places = self.position_embeddings.weight[: ids.shape[1]]  # (1 + N, D)
        return self.dropout(self.LayerNorm(self.word_embeddings(ids) + places))


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Plain attention, (B, heads, L, head_dim) each -> (B, L, heads, head_dim) and the weights (B, heads, L, L)."""
    weights = (query @ key.transpose(2, 3) * scaling).softmax(-1, dtype=torch.float32).to(query.dtype)
    output = F.dropout(weights, p=dropout, training=module.training) @ value
    return output.transpose(1, 2), weights


class MageAttention(nn.Module):
    def __init__(self, config, width, heads):
        super().__init__()
        self.config = config
        self.heads = heads
        self.scaling = (width // heads) ** -0.5
        self.is_causal = False  # read by the library's SDPA function
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_dropout = config.attention_dropout_prob
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x):
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, L, head_dim) each
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        output, _ = attend(self, query, key, value, None, scaling=self.scaling, dropout=dropout)
        return self.dropout(self.proj(output.reshape(batch, length, width)))


class MageMLP(nn.Module):
    def __init__(self, config, width):
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * config.mlp_ratio))
        self.fc2 = nn.Linear(int(width * config.mlp_ratio), width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x):
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class MageBlock(GradientCheckpointingLayer):
    """Pre-norm transformer block, (B, L, width) -> the same."""

    def __init__(self, config, width, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attn = MageAttention(config, width, heads)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = MageMLP(config, width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MageHead(nn.Module):
    """(..., D'), word table (V, D) -> logits (..., V); V may be less than the vocabulary, its first words.

    The table is the input embedding, used detached as in the original: the head's loss does not reach it.
    """

    def __init__(self, config):
        super().__init__()
        self.fc = nn.Linear(config.decoder_hidden_size, config.hidden_size)
        self.ln = nn.LayerNorm(config.hidden_size, eps=config.head_layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(1, 1, config.vocab_size))

    def forward(self, x, words):
        return F.linear(self.ln(F.gelu(self.fc(x))), words.detach()) + self.bias[0, 0, : len(words)]


class MageUnused(nn.Module):
    """Tensors of an original checkpoint that no forward reads, one buffer each ("." in their names became "__").

    Buffers, not parameters: no optimiser, weight decay or gradient synchronisation meets them.
    """

    def __init__(self, config):
        super().__init__()
        width, rows, side = config.hidden_size, 1 + config.num_tokens, config.patch_size
        pixels = side * side * config.num_channels
        for name, shape in {
            "cls_token": (1, 1, width),
            "mask_token": (1, 1, config.decoder_hidden_size),
            "pos_embed": (1, rows, width),
            "decoder_pos_embed": (1, rows, config.decoder_hidden_size),
            "patch_embed.proj.weight": (width, config.num_channels, side, side),
            "patch_embed.proj.bias": (width,),
            "decoder_pred.weight": (pixels, config.decoder_hidden_size),
            "decoder_pred.bias": (pixels,),
        }.items():
            self.register_buffer(name.replace(".", "__"), torch.zeros(shape))
