"""What a MAGE makes of holes: iterative decoding, and the pictures of it. Shapes and masks are those of `modeling_mage`."""

import math
from collections.abc import Callable

import torch

from .configuration_mage import MageConfig
from .decoding_mage import decoding_step, draw_noise, feathered_paste, fill_hole, grow, paste, sample_codes
from .tokenizer_mage import MageTokenizer


class MageCompletion:
    """The part of `MageModel` that completes pictures; it uses the model's tokens, encoder, decoder and head."""

    config: MageConfig
    device: torch.device
    vqgan: MageTokenizer
    tokenize: Callable[..., torch.Tensor]
    decode_tokens: Callable[..., torch.Tensor]
    encode: Callable[..., torch.Tensor]
    decoder_states: Callable[..., torch.Tensor]
    head_of_codes: Callable[..., torch.Tensor]
    check_tokens: Callable[..., None]

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
        ids = self.complete_tokens(self.tokenize(filled), hidden, steps, temperature, generator, code_temperature, toward_mean)
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

        `temperature` is that of the Gumbel noise in the certainty. Codes are sampled from softmax(logits / code_temperature):
        at 1, as released, what the model believes; below, likelier codes and less variety; 0 takes the likeliest.
        `toward_mean`: the share of the way that the vector of a drawn code c is moved to the mean of all codes, before the
        nearest code is taken, c + toward_mean (sum_k p_k c_k - c): 0, as released, keeps the drawn one. It lowers the error
        of a sample, which is further from the truth than the mean is.
        """
        self._check_decoding(ids, steps, temperature, generator, code_temperature, toward_mean)
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
            sampled = self.draw_codes(logits, uniform, code_temperature, toward_mean)
            completed, kept = decoding_step(
                current.gather(1, places), logits, sampled, gumbel, count, temperature * (1 - ratio), mask_id
            )
            result[rows] = current.scatter(1, places, completed)
            tokens[rows] = current.scatter(1, places, kept)
        return result

    def draw_codes(self, logits, uniform, code_temperature: float = 1.0, toward_mean: float = 0.0) -> torch.Tensor:
        """Codes of any places: logits (..., codes), uniform numbers in [0, 1) (...) -> (...); see `complete_tokens`."""
        sampled = sample_codes(logits / code_temperature, uniform) if code_temperature else logits.argmax(-1)
        if not toward_mean:
            return sampled
        vectors = self.vqgan.quantize.embedding.weight.float()  # (codes, codebook_dim)
        drawn, mean = vectors[sampled], logits.softmax(-1) @ vectors  # (..., codebook_dim) each
        return self.vqgan.quantize.nearest(drawn.lerp(mean, toward_mean))

    def code_logits(self, tokens, places=None) -> torch.Tensor:
        """Logits of the codes, in float32: tokens (B, N), unknown ones mask tokens -> (B, N, codebook_size).

        places: where they are wanted, (B, P); the result is (B, P, codebook_size).
        """
        mask = tokens == self.config.mask_token_id
        states = self.decoder_states(self.encode(tokens), None, mask)[:, 1:]  # (B, N, D')
        if places is not None:
            states = states.gather(1, places.unsqueeze(2).expand(-1, -1, states.shape[2]))
        return self.head_of_codes(states).float()

    def _check_decoding(self, ids, steps, temperature, generator, code_temperature, toward_mean):
        self.check_tokens(ids)
        if steps < 1 or temperature < 0 or code_temperature < 0 or not 0 <= toward_mean <= 1:
            raise ValueError(
                "Decoding needs at least 1 step, temperatures of 0 or more and toward_mean from 0 to 1, got "
                f"{steps}, {temperature}, code_temperature {code_temperature} and toward_mean {toward_mean}."
            )
        if isinstance(generator, list) and len(generator) != len(ids):
            raise ValueError(f"Got {len(generator)} generators for {len(ids)} pictures, expected one each.")


__all__ = ["MageCompletion"]
