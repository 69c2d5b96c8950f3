"""MAGE: a masked encoder-decoder over VQ-GAN tokens (Li et al. 2023). What it makes of holes is in `completion_mage`.

Shapes: B pictures, N tokens (`config.num_tokens`) in raster order, D and D' the widths of encoder and decoder. Sequences
of 1 + N rows begin with the class token. Token masks are boolean (B, N): "drop" = the encoder does not see the token,
"all" = the token is hidden and to be predicted; what is dropped is hidden. Pictures have values in [0, 1].

Bad input raises ValueError. Module names are those of the published checkpoints.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .completion_mage import MageCompletion
from .configuration_mage import MageConfig
from .decoding_mage import masks_from_noise, truncated_normal
from .layers_mage import MageBlock, MageHead, MageTokenEmbedding, MageUnused
from .tokenizer_mage import MageTokenizer


@dataclass
class MageModelOutput(ModelOutput):
    """What `MageModel.forward` returns.

    Args:
        loss: label-smoothed cross-entropy over the hidden tokens, scalar.
        logits: over the whole vocabulary, (B, 1 + N, vocab_size).
        last_hidden_state: the encoder latent, (B, 1 + kept, D).
        token_ids: the true codes, (B, N).
        token_drop_mask, token_all_mask: the masks used, (B, N).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    token_ids: torch.Tensor | None = None
    token_drop_mask: torch.Tensor | None = None
    token_all_mask: torch.Tensor | None = None


class MageModel(MageCompletion, PreTrainedModel):
    """Tokenizer, encoder, decoder and head. The tokenizer is frozen; `model.vqgan.requires_grad_()` thaws it.

    Encoder: `token_emb`, `blocks`, `norm`. Decoder: `decoder_embed`, `decoder_pos_embed_learned`, `decoder_blocks`,
    `decoder_norm`, `mlm_layer`, which also reads `token_emb.word_embeddings`.
    """

    config_class = MageConfig
    base_model_prefix = "mage"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ("MageBlock", "ResBlock")
    # Rounded vectors fall to other codes: the tokenizer is loaded in float32 whatever the rest is loaded in.
    _keep_in_fp32_modules_strict = ("vqgan",)

    def __init__(self, config: MageConfig):
        super().__init__(config)
        width, decoder_width = config.hidden_size, config.decoder_hidden_size
        self.vqgan = MageTokenizer(config).requires_grad_(False)
        self.token_emb = MageTokenEmbedding(config)
        self.blocks = nn.ModuleList(
            MageBlock(config, width, config.num_attention_heads) for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, 1 + config.num_tokens, decoder_width))
        self.decoder_blocks = nn.ModuleList(
            MageBlock(config, decoder_width, config.decoder_num_attention_heads)
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=config.layer_norm_eps)
        self.mlm_layer = MageHead(config)
        if config.keep_unused_tensors:
            self.unused = MageUnused(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        # The library makes a new, trainable parameter of every tensor it reads.
        (loaded[0] if isinstance(loaded, tuple) else loaded).vqgan.requires_grad_(False)
        return loaded

    @torch.no_grad()
    def _init_weights(self, module):
        """Xavier linears, normal embeddings as in MAGE; the usual convolutions and a small uniform codebook as in VQ-GAN."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        elif module is self.vqgan.quantize.embedding:
            init.uniform_(module.weight, -1 / self.config.codebook_size, 1 / self.config.codebook_size)
        elif isinstance(module, MageHead):
            init.zeros_(module.bias)
        elif isinstance(module, MageModel):
            init.normal_(module.decoder_pos_embed_learned, std=self.config.initializer_range)
        elif isinstance(module, MageUnused):
            for buffer in module.buffers():
                init.zeros_(buffer)

    def get_input_embeddings(self):
        return self.token_emb.word_embeddings

    @torch.no_grad()
    def tokenize(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) in [0, 1], not normalised -> code numbers (B, N). Autocast does not reach the tokenizer."""
        wanted = (self.config.num_channels, self.config.image_size, self.config.image_size)
        if pixel_values.dim() != 4 or tuple(pixel_values.shape[1:]) != wanted:
            (rows, cols), got = self.config.grid, "x".join(map(str, pixel_values.shape[1:]))
            raise ValueError(
                f"Pictures of {got} (channels x height x width) do not give the {rows}x{cols} grid of tokens that the model "
                f"has positions for, expected {'x'.join(map(str, wanted))}; resize them."
            )
        with torch.autocast(pixel_values.device.type, enabled=False):
            return self.vqgan.tokenize(pixel_values).flatten(1)

    @torch.no_grad()
    def decode_tokens(self, ids: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """Code numbers (B, rows * cols) -> pictures (B, C, H, W), not clamped. The default grid is the model's own."""
        rows, cols = grid or self.config.grid
        if rows * cols != ids.shape[1]:
            raise ValueError(f"{ids.shape[1]} tokens do not fill a grid of {rows}x{cols}; give the grid they belong to.")
        with torch.autocast(ids.device.type, enabled=False):
            return self.vqgan.decode_tokens(ids.view(-1, rows, cols))

    def encode(self, ids, token_drop_mask=None, token_all_mask=None) -> torch.Tensor:
        """The encoder latent.

        Args:
            ids: code numbers or mask tokens (B, N).
            token_drop_mask: True = removed from the sequence, (B, N), equally many for each picture; None removes nothing.
            token_all_mask: True = replaced by the mask token, (B, N); None replaces nothing.

        Returns:
            (B, 1 + kept, D), the class token first, then what is kept in raster order.
        """
        self.check_tokens(ids)
        if token_all_mask is not None:
            ids = ids.masked_fill(token_all_mask.bool(), self.config.mask_token_id)
        ids = torch.cat([ids.new_full((len(ids), 1), self.config.class_token_id), ids], 1)  # (B, 1 + N)
        x = self.token_emb(ids)  # (B, 1 + N, D)
        if token_drop_mask is not None:
            keep = _with_class_token(~token_drop_mask.bool(), True)  # (B, 1 + N)
            counts = keep.sum(1)
            if not bool((counts == counts[0]).all()):
                raise ValueError(
                    "All pictures of a batch must keep the same number of tokens, got "
                    f"{sorted({n - 1 for n in counts.tolist()})}; hide the others by token_all_mask."
                )
            x = x[keep].view(len(x), -1, x.shape[2])  # (B, 1 + kept, D)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def decode(self, latent, token_drop_mask=None, token_all_mask=None) -> torch.Tensor:
        """Latent (B, 1 + kept, D) and the masks it was made with -> logits (B, 1 + N, vocab_size)."""
        states = self.decoder_states(latent, token_drop_mask, token_all_mask)
        return self.mlm_layer(states, self.token_emb.word_embeddings.weight)

    def decoder_states(self, latent, token_drop_mask=None, token_all_mask=None) -> torch.Tensor:
        """What the head reads: latent (B, 1 + kept, D) and the masks it was made with -> (B, 1 + N, D').

        Every hidden place is filled with the picture's own class-token output.
        """
        x = self.decoder_embed(latent)  # (B, 1 + kept, D')
        batch, rows = len(x), 1 + self.config.num_tokens
        hidden = torch.zeros(batch, rows, dtype=torch.bool, device=x.device)
        if token_drop_mask is not None:
            hidden = _with_class_token(token_drop_mask.bool(), False)
        place = ((~hidden).cumsum(1) - 1).unsqueeze(2)  # (B, 1 + N, 1): where in the latent each kept token is
        if token_all_mask is not None:
            hidden = hidden | _with_class_token(token_all_mask.bool(), False)
        full = x.gather(1, place.expand(-1, -1, x.shape[2]))  # (B, 1 + N, D')
        x = torch.where(hidden.unsqueeze(2), x[:, :1], full) + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_norm(x)

    def head_of_codes(self, states) -> torch.Tensor:
        """The head without the words that are no codes: `decoder_states` of places (..., D') -> logits (..., codebook_size)."""
        return self.mlm_layer(states, self.token_emb.word_embeddings.weight[: self.config.codebook_size])

    def token_loss(self, logits, ids) -> torch.Tensor:
        """Label-smoothed cross-entropy of every token: logits (B, 1 + N, vocab_size), true codes (B, N) -> (B, N).

        (1 - s) nll + s * mean over the codes of -log p, in float32 and over the codebook's logits only.
        """
        logits = logits[:, 1:, : self.config.codebook_size]  # (B, N, codes)
        return self.code_loss(logits, ids)

    def code_loss(self, logits, ids) -> torch.Tensor:
        """`token_loss` of any places: logits of the codes (..., codes), true codes (...) -> (...)."""
        smoothing = float(self.config.label_smoothing)
        return F.cross_entropy(logits.float().movedim(-1, 1), ids, reduction="none", label_smoothing=smoothing)

    def loss(self, logits, ids, token_all_mask) -> torch.Tensor:
        """The training loss: `token_loss` summed over the hidden tokens of the batch over their number, scalar."""
        mask = token_all_mask.to(torch.float32)
        return (self.token_loss(logits, ids) * mask).sum() / mask.sum().clamp_min(1)

    def sample_masks(self, batch: int, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Random (token_drop_mask, token_all_mask), boolean (B, N), as MAGE trains.

        One share of hidden tokens for the batch from the truncated normal of the config; `mask_ratio_min` of the tokens
        are dropped. On the generator's device, or the model's without one.
        """
        config, device = self.config, self.device if generator is None else generator.device
        uniform = torch.rand((), generator=generator, device=device, dtype=torch.float32).item()
        ratio = truncated_normal(
            uniform, config.mask_ratio_mean, config.mask_ratio_std, config.mask_ratio_min, config.mask_ratio_max
        )
        noise = torch.rand(batch, config.num_tokens, generator=generator, device=device)
        dropped = math.ceil(config.num_tokens * config.mask_ratio_min)
        return masks_from_noise(noise, dropped, math.ceil(config.num_tokens * ratio))

    def forward(
        self, pixel_values=None, token_ids=None, token_drop_mask=None, token_all_mask=None, generator=None
    ) -> MageModelOutput:
        """Hide tokens, encode, decode, and score the guesses.

        Args:
            pixel_values: (B, C, H, W) in [0, 1]; or
            token_ids: their codes (B, N).
            token_drop_mask, token_all_mask: boolean (B, N). With neither they are drawn by `sample_masks(generator)`; with
                `token_all_mask` alone nothing is dropped.
        """
        if (pixel_values is None) == (token_ids is None):
            raise ValueError("Give either pixel_values or token_ids, got " + ("neither." if token_ids is None else "both."))
        if token_ids is None:
            token_ids = self.tokenize(pixel_values)
        if token_all_mask is None and token_drop_mask is None:
            masks = self.sample_masks(len(token_ids), generator)
            token_drop_mask, token_all_mask = (mask.to(token_ids.device) for mask in masks)
        elif token_all_mask is None:
            token_all_mask = token_drop_mask  # what is dropped is hidden
        latent = self.encode(token_ids, token_drop_mask, token_all_mask)
        logits = self.decode(latent, token_drop_mask, token_all_mask)
        return MageModelOutput(
            loss=self.loss(logits, token_ids, token_all_mask),
            logits=logits,
            last_hidden_state=latent,
            token_ids=token_ids,
            token_drop_mask=token_drop_mask,
            token_all_mask=token_all_mask,
        )

    def check_tokens(self, ids):
        if ids.dim() != 2 or ids.shape[1] != self.config.num_tokens:
            rows, cols = self.config.grid
            raise ValueError(
                f"Tokens of shape {tuple(ids.shape)} do not fit the model, expected (batch, {self.config.num_tokens}): it has "
                f"positions for a {rows}x{cols} grid."
            )


def _with_class_token(mask, value: bool):
    """(B, N) -> (B, 1 + N)."""
    return torch.cat([mask.new_full((len(mask), 1), value), mask], 1)


__all__ = ["MageModel", "MageModelOutput"]
