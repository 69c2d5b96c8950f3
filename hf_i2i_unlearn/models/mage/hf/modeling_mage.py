"""MAGE: a masked encoder-decoder over VQ-GAN tokens (Li et al. 2023), and its iterative decoding.

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

from .configuration_mage import MageConfig
from .decoding_mage import (
    decoding_step,
    draw_noise,
    feathered_paste,
    fill_hole,
    grow,
    masks_from_noise,
    paste,
    sample_codes,
    truncated_normal,
)
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


class MageModel(PreTrainedModel):
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

    # ------------------------------------------------------------------------------------------------- tokens and model

    @torch.no_grad()
    def tokenize(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) in [0, 1], not normalised -> code numbers (B, N). Autocast does not reach the tokenizer."""
        wanted = (self.config.num_channels, self.config.image_size, self.config.image_size)
        if pixel_values.dim() != 4 or tuple(pixel_values.shape[1:]) != wanted:
            (rows, cols), got = self.config.grid, "x".join(map(str, pixel_values.shape[1:]))
            raise ValueError(
                f"Pictures of {got} (channels x height x width) do not give the {rows}x{cols} grid of tokens that the model has "
                f"positions for, expected {'x'.join(map(str, wanted))}; resize them."
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
        self._check_tokens(ids)
        if token_all_mask is not None:
            ids = ids.masked_fill(token_all_mask.bool(), self.config.mask_token_id)
        ids = torch.cat([ids.new_full((len(ids), 1), self.config.class_token_id), ids], 1)  # (B, 1 + N)
        x = self.token_emb(ids)  # (B, 1 + N, D)
        if token_drop_mask is not None:
            keep = _with_class_token(~token_drop_mask.bool(), True)  # (B, 1 + N)
            counts = keep.sum(1)
            if not bool((counts == counts[0]).all()):
                raise ValueError(
                    f"All pictures of a batch must keep the same number of tokens, got {sorted({n - 1 for n in counts.tolist()})}; "
                    "hide the others by token_all_mask."
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
        """The head without the words that are no codes: `decoder_states` of any places (..., D') -> logits (..., codebook_size)."""
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

    # ------------------------------------------------------------------------------------------------------- generation

    @torch.no_grad()
    def generate(self, batch: int = 1, steps: int = 12, temperature: float = 4.5, generator=None) -> torch.Tensor:
        """Pictures from nothing: (B, C, H, W) in [0, 1]. `generator`: one, or a list of one a picture."""
        ids = torch.full((batch, self.config.num_tokens), self.config.mask_token_id, device=self.device)
        ids = self.complete_tokens(ids, torch.ones_like(ids, dtype=torch.bool), steps, temperature, generator)
        return self.decode_tokens(ids).clamp(0, 1)

    @torch.no_grad()
    def complete(
        self,
        pixel_values: torch.Tensor,
        mask: torch.Tensor,
        steps: int = 20,
        temperature: float = 6.0,
        generator=None,
        margin: int = 1,
        feather: bool = False,
        code_temperature: float = 1.0,
        toward_mean: float = 0.0,
    ) -> torch.Tensor:
        """Fill holes by iterative decoding; every sample has a hole of its own.

        Args:
            pixel_values: (B, C, H, W) in [0, 1]; what the hole covers is replaced by `config.fill_color` before tokenization.
            mask: boolean (B, rows, cols) over the token grid, True = hole.
            steps, temperature, code_temperature, toward_mean: of the decoding, see `complete_tokens`.
            generator: a `torch.Generator`, or a list of one a picture: then a picture's completion does not depend on
                the batch it is in.
            margin: tokens around the hole that are predicted too, since the tokenizer has seen the hole in them.
            feather: the reference's soft paste in place of the plain one, see `feathered_paste`.

        Returns:
            (B, C, H, W) in [0, 1]. With the plain paste every pixel outside the hole is that of `pixel_values`.
        """
        if tuple(mask.shape) != (len(pixel_values), *self.config.grid):
            raise ValueError(
                f"The mask has shape {tuple(mask.shape)}, expected {(len(pixel_values), *self.config.grid)}: "
                "one value for each token of each picture."
            )
        mask, side = mask.to(pixel_values.device).bool(), self.config.patch_size
        hole = mask.repeat_interleave(side, 1).repeat_interleave(side, 2).unsqueeze(1)  # (B, 1, H, W)
        filled = fill_hole(pixel_values, hole, self.config.fill_color)
        hidden = grow(mask.unsqueeze(1), margin).flatten(1)
        ids = self.complete_tokens(
            self.tokenize(filled), hidden, steps, temperature, generator, code_temperature, toward_mean
        )
        decoded = self.decode_tokens(ids).to(pixel_values.dtype)
        return feathered_paste(decoded, filled, hole) if feather else paste(decoded, pixel_values, hole)

    @torch.no_grad()
    def complete_tokens(
        self,
        ids,
        hidden,
        steps: int = 20,
        temperature: float = 6.0,
        generator=None,
        code_temperature: float = 1.0,
        toward_mean: float = 0.0,
    ) -> torch.Tensor:
        """Iterative decoding: codes (B, N) and a boolean mask (B, N), True = unknown -> codes (B, N).

        At step k of K (r = k / K) all unknown tokens are sampled; the floor(N cos(pi r / 2)) least certain become unknown
        again, at least 1 and fewer than were unknown. A sample sits out the steps that would leave at least its
        initial share unknown. The codes sampled in the last step are the result.

        `temperature` is that of the Gumbel noise in the certainty. Codes are sampled from softmax(logits / code_temperature): at 1,
        as released, what the model believes; below, likelier codes and less variety; 0 takes the likeliest. `toward_mean`: the
        share of the way that the vector of a drawn code c is moved to the mean of all codes, before the nearest code is taken,
        c + toward_mean (sum_k p_k c_k - c): 0, as released, keeps the drawn one. It lowers the error of a sample, which is
        further from the truth than the mean is.
        """
        self._check_tokens(ids)
        if steps < 1 or temperature < 0 or code_temperature < 0 or not 0 <= toward_mean <= 1:
            raise ValueError(
                "Decoding needs at least 1 step, temperatures of 0 or more and toward_mean from 0 to 1, got "
                f"{steps}, {temperature}, code_temperature {code_temperature} and toward_mean {toward_mean}."
            )
        if isinstance(generator, list) and len(generator) != len(ids):
            raise ValueError(f"Got {len(generator)} generators for {len(ids)} pictures, expected one each.")
        total, mask_id = self.config.num_tokens, self.config.mask_token_id
        tokens = ids.masked_fill(hidden.bool(), mask_id)  # unknown = mask token
        result = ids.clone()
        share = [count / total for count in hidden.sum(1).tolist()]  # of unknown tokens at the start
        unknown = (tokens == mask_id).sum(1).tolist()
        for step in range(1, steps + 1):
            ratio = step / steps
            left = math.cos(math.pi / 2 * ratio)
            rows = [row for row, start in enumerate(share) if left < start]  # the samples that take this step
            if not rows:
                continue
            current = tokens[rows]  # (b, N)
            # The unknown places of each sample in raster order, then known ones up to the longest list: nothing is asked
            # of the head, nor drawn, elsewhere.
            places = (current == mask_id).int().argsort(dim=1, descending=True, stable=True)
            places = places[:, : max(unknown[row] for row in rows)]  # (b, P)
            logits = self.code_logits(current, places)  # (b, P, codes)
            uniform, gumbel = (n.gather(1, places) for n in draw_noise(rows, total, generator, ids.device))  # (b, P) each
            for row in rows:
                unknown[row] = max(1, min(unknown[row] - 1, math.floor(total * left)))
            count = torch.tensor([unknown[row] for row in rows], device=ids.device)
            sampled = sample_codes(logits / code_temperature, uniform) if code_temperature else logits.argmax(-1)
            if toward_mean:
                vectors = self.vqgan.quantize.embedding.weight.float()  # (codes, codebook_dim)
                drawn, mean = vectors[sampled], logits.softmax(-1) @ vectors  # (b, P, codebook_dim) each
                sampled = self.vqgan.quantize.nearest(drawn.lerp(mean, toward_mean))
            completed, kept = decoding_step(
                current.gather(1, places), logits, sampled, gumbel, count, temperature * (1 - ratio), mask_id
            )
            result[rows] = current.scatter(1, places, completed)
            tokens[rows] = current.scatter(1, places, kept)
        return result

    def code_logits(self, tokens, places=None) -> torch.Tensor:
        """Logits of the codes, in float32: tokens (B, N), unknown ones mask tokens -> (B, N, codebook_size).

        places: where they are wanted, (B, P); the result is (B, P, codebook_size).
        """
        mask = tokens == self.config.mask_token_id
        states = self.decoder_states(self.encode(tokens), None, mask)[:, 1:]  # (B, N, D')
        if places is not None:
            states = states.gather(1, places.unsqueeze(2).expand(-1, -1, states.shape[2]))
        return self.head_of_codes(states).float()

    def _check_tokens(self, ids):
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
