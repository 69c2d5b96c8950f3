"""MAGE as something to pretrain.

Its tokenizer comes first, by reconstruction, then its transformer on the frozen tokens, and last the way from tokens to pixels
under a discriminator.
"""

import math
from typing import NamedTuple

import torch
from torch import nn

from ...errors import InputError
from ..adversarial import Discriminator, check_weight
from ..base import FOR_TRAINING, seeded
from ..positions import sincos_positions
from .hf.decoding_mage import fill_hole
from .hf.layers_mage import MageAttention
from .hf.modeling_mage import MageModel
from .modeling import I2IMage


class MageTokenizerTraining(I2IMage):
    """The tokenizer of a MAGE model under its own loss: reconstruction + codebook + commitment (van den Oord et al. 2017).

    Nothing else of the model trains. Codes that a batch does not use are replaced at intervals, see `before_step`. The
    tokenizer stays in float32 under autocast.

    Every second picture is given the tokens of another one in T, and has to be reconstructed with the other's pixels there.
    A token then has to tell of its own pixels: convolutions and group norms look at the whole picture, and without this the
    tokens of a small picture are one code for all of it, in which no part can be told from the others.

    Args:
        reseed_every: steps between replacements of unused codes. reseed_until: share of the run after which there are none.
        options: those of `I2IMage`.
    """

    def __init__(self, model: MageModel, reseed_every: int = 100, reseed_until: float = 0.7, **options):
        super().__init__(model, **options)
        model.requires_grad_(False)
        model.vqgan.requires_grad_(True)
        self.reseed_every, self.reseed_until = reseed_every, reseed_until
        self.diagnostics: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def before_step(self, pixel_values, step: int, total: int, gather=lambda vectors: vectors) -> None:
        """Start the codebook on vectors of the first batch; later replace the codes that a batch leaves unused.

        What happens depends on the step and its batch alone, so a resumed run does the same. `gather` joins the vectors of
        all processes.
        """
        if step % self.reseed_every or step > self.reseed_until * total:
            return
        with torch.autocast(pixel_values.device.type, enabled=False):
            vectors = gather(self.model.vqgan.encode(pixel_values).flatten(0, 2))  # (B * rows * cols, codebook_dim)
        self.model.vqgan.quantize.reseed(vectors, torch.Generator().manual_seed(step), everything=step == 0)

    def draw(self, pixel_values, mask, seeds):
        """T for every second picture of the batch, none for the others: (B, rows, cols)."""
        every_second = torch.arange(len(mask)) % 2 == 1
        return (mask.cpu() & every_second.view(-1, 1, 1)).to(pixel_values.device)

    def training_loss(self, pixel_values, draw, target=None):
        """L1 + L2 of the reconstruction, and the codebook's loss of the batch: (B,). `draw`: where tokens are exchanged."""
        self.check_pixels(pixel_values)
        with torch.autocast(pixel_values.device.type, enabled=False):
            tokenizer = self.model.vqgan
            codes, codebook, ids = tokenizer.quantized(tokenizer.encode(pixel_values.float()))
            mixed = torch.where(draw.unsqueeze(-1), codes.roll(1, 0), codes)  # (B, rows, cols, codebook_dim)
            wanted = pixel_values.float() if target is None else target.float()
            wanted = torch.where(self.hole(draw), wanted.roll(1, 0), wanted)
            error = tokenizer.decode(mixed) - wanted
        shares = torch.bincount(ids.flatten(), minlength=self.model.config.codebook_size) / ids.numel()
        self.diagnostics = {
            "codebook_loss": codebook.detach(),
            "reconstruction_mse": error.detach().square().mean(),
            "perplexity": perplexity(shares),
            "codes_used": (shares > 0).sum().float(),
        }
        return (error.abs() + error.square()).flatten(1).mean(1) + codebook

    @torch.no_grad()
    def generate(self, pixel_values, mask=None, seeds=None):
        """The reconstruction of the whole picture, whatever the mask: (B, C, H, W) in [0, 1]."""
        self.check_pixels(pixel_values)
        return self.model.decode_tokens(self.model.tokenize(pixel_values)).clamp(0, 1)

    @torch.no_grad()
    def figures(self, batches) -> dict[str, float]:
        """Of (B, C, H, W) batches in [0, 1]: count, mse and psnr (dB, mean over pictures), codes_used, perplexity."""
        device, codes, errors = self.model.device, self.model.config.codebook_size, []
        counts = torch.zeros(codes, dtype=torch.double, device=device)
        for pixels in batches:
            pixels = pixels.to(device)
            ids = self.model.tokenize(pixels)
            errors.append((self.model.decode_tokens(ids).clamp(0, 1) - pixels).square().flatten(1).mean(1).double())  # (B,)
            counts += torch.bincount(ids.flatten(), minlength=codes)
        error = torch.cat(errors)
        return {
            "count": len(error),
            "mse": error.mean().item(),
            "psnr": (-10 * error.clamp_min(1e-10).log10()).mean().item(),
            "codes_used": int((counts > 0).sum()),
            "perplexity": perplexity(counts / counts.sum()).item(),
        }


class MagePretrainingDraw(NamedTuple):
    """One step of pretraining, each (B, rows, cols) boolean.

    hole: T; its pixels are blanked, and its tokens, where the encoder is given them, are those of the whole picture, as
    decoding has put them there. dropped: removed from the encoder's sequence. hidden: to be predicted.
    """

    hole: torch.Tensor
    dropped: torch.Tensor
    hidden: torch.Tensor


@torch.no_grad()
def informed_start(model: MageModel, share: float = 0.5) -> None:
    """Start a fresh transformer with what is known before training: which codes are alike, and where the tokens lie.

    MAGE starts words and positions at random, which a long training makes up for. Here the words of the codes start partly as
    the tokenizer's own vectors: centred, rotated at random into D dimensions, and with both parts at unit variance,
    initializer_range * (sqrt(share) vector + sqrt(1 - share) noise). Positions start as sines and cosines of row and column
    (as in MAE): the encoder's at the size of the words that they are added to, the decoder's at half of that of its
    normalised input.

    Args:
        share: of the words' variance that comes from the tokenizer's vectors, 0 to 1.

    Raises:
        InputError: a share outside of that, codes with more dimensions than the words, or widths that are no multiples of 4.
    """
    config, (side, _) = model.config, model.config.grid
    if not 0 <= share <= 1:
        raise InputError(f"The share of the codes in the word embeddings must lie between 0 and 1, got {share}.")
    if config.codebook_dim > config.hidden_size or config.hidden_size % 4 or config.decoder_hidden_size % 4:
        raise InputError(
            f"An informed start needs widths that are multiples of 4 and at least the codes' {config.codebook_dim} dimensions, "
            f"got hidden_size {config.hidden_size} and decoder_hidden_size {config.decoder_hidden_size}; change them, or "
            "leave it out."
        )
    words, codes = model.token_emb.word_embeddings.weight, model.vqgan.quantize.embedding.weight
    rotation = torch.linalg.qr(torch.randn(config.hidden_size, config.codebook_dim, device=codes.device))[0]
    known = (codes - codes.mean(0)) @ rotation.T  # (codes, D)
    start = share**0.5 * known / known.std() + (1 - share) ** 0.5 * torch.randn_like(known)
    words[: len(codes)] = config.initializer_range * start
    for table, size in (
        (model.token_emb.position_embeddings.weight, config.initializer_range),
        (model.decoder_pos_embed_learned[0], 0.5),
    ):
        waves = sincos_positions(side, table.shape[1])[0, 1:].to(table)  # (N, D)
        table[1 : 1 + len(waves)] = size * waves / waves.std()  # row 0 is the class token's


class MageTransformerTraining(I2IMage):
    """Encoder, decoder and head of a MAGE model under its own loss, on the tokens of its frozen tokenizer.

    There are three kinds of steps, equally often. As MAGE trains: T is dropped, and a random share of tokens beside it hidden
    (with T = `RandomMask(0.5)` this is MAGE's pretraining). What unlearning looks at: T is dropped, and nothing else hidden.
    What iterative decoding looks at: nothing is dropped, and a random share of T, from all to one token, is hidden. MAGE
    leaves the last two to generalisation, which small models lack.

    Args:
        dropout: of embedding, blocks and attention during pretraining; the config keeps its own for later.
        options: those of `I2IMage`.
    """

    def __init__(self, model: MageModel, dropout: float = 0.1, **options):
        super().__init__(model, mask_rate="mage", **options)
        if not 0 <= dropout < 1:
            raise InputError(f"The dropout must lie between 0 and 1 (excluded), got {dropout}.")
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
            elif isinstance(module, MageAttention):
                module.attention_dropout = dropout

    def draw(self, pixel_values, mask, seeds) -> MagePretrainingDraw:  # type: ignore[override]  # for its own loss alone
        """The kind of step follows from the first picture's seed, for a batch drops equally many tokens of each picture."""
        mask = mask.to(pixel_values.device)
        generators = seeded(seeds, FOR_TRAINING)
        kind = torch.randint(3, (), generator=generators[0])
        if kind == 0:
            return MagePretrainingDraw(mask, *super().draw(pixel_values, mask, seeds))
        if kind == 1:
            return MagePretrainingDraw(mask, mask, mask)
        hidden = []
        for hole, generator in zip(mask.flatten(1).cpu(), generators):  # (N,)
            share, noise = torch.rand((), generator=generator).item(), torch.rand(len(hole), generator=generator)
            count = max(1, math.ceil(share * int(hole.sum())))
            hidden.append(noise.masked_fill(~hole, 2).argsort().argsort() < count)
        return MagePretrainingDraw(mask, torch.zeros_like(mask), torch.stack(hidden).view_as(mask).to(mask.device))

    def training_loss(self, pixel_values, draw: MagePretrainingDraw, target=None):
        """Label-smoothed cross-entropy over the hidden tokens of each picture, (B,)."""
        self.check_pixels(pixel_values)
        hole, dropped, hidden = (m.flatten(1) for m in draw)  # (B, N)
        truth = self.model.tokenize(pixel_values)
        blanked = fill_hole(pixel_values, self.hole(draw.hole), self.model.config.fill_color)
        ids = torch.where(hole, truth, self.model.tokenize(blanked))
        states = self.model.decoder_states(self.model.encode(ids, dropped, hidden), dropped, hidden)[:, 1:]  # (B, N, D')
        wanted = truth if target is None else self.model.tokenize(target)
        loss = states.new_zeros(hidden.shape, dtype=torch.float32)  # (B, N)
        loss[hidden] = self.model.code_loss(self.model.head_of_codes(states[hidden]), wanted[hidden])
        return loss.sum(1) / hidden.sum(1)


class MageDecoderTraining(I2IMage):
    """The decoder of a trained MAGE's tokenizer under squared error + `weight` x adversarial loss of its own `Discriminator`.

    Codes and transformer stay as they are, bit for bit, so this can follow at any time; published VQ-GANs have their
    discriminator from the start (Esser et al. 2021). The decoder is given what generation gives it, but with the true tokens in
    the hole.

    Args:
        weight: of the adversarial part, larger than 0; the squared error of the hole's pixels in [0, 1] has weight 1.
        options: those of `I2IMage`.

    Raises:
        InputError: a weight that is not larger than 0, or an image side that is not a multiple of 4.
    """

    def __init__(self, model: MageModel, weight: float = 0.01, **options):
        super().__init__(model, **options)
        check_weight(weight)
        model.requires_grad_(False)
        model.vqgan.decoder.requires_grad_(True)
        self.weight = weight
        self.discriminator = Discriminator(model.config.num_channels, model.config.image_size)
        self.diagnostics: dict[str, torch.Tensor] = {}

    @property
    def training_only(self):
        return self.discriminator

    def draw(self, pixel_values, mask, seeds):
        """T itself: (B, rows, cols)."""
        return mask.to(pixel_values.device)

    def training_loss(self, pixel_values, draw, target=None):
        """Squared error in the hole + weight x -verdict on it + the discriminator's hinge loss: (B,). `draw`: T."""
        self.check_pixels(pixel_values)
        truth = pixel_values if target is None else target
        hole = self.hole(draw)  # (B, 1, H, W)
        visible = self.model.tokenize(fill_hole(pixel_values, hole, self.model.config.fill_color))  # (B, N)
        ids = torch.where(draw.flatten(1), self.model.tokenize(truth), visible)
        with torch.autocast(pixel_values.device.type, enabled=False):
            pixels = self.model.vqgan.decode_tokens(ids.view_as(draw))
        squared = ((pixels - truth).square().mean(1, keepdim=True) * hole).flatten(1).sum(1) / hole.flatten(1).sum(1)
        real, made = (torch.where(hole, x, pixel_values) for x in (truth, pixels))
        fooled, told_apart, verdicts = self.discriminator.losses(2 * real - 1, 2 * made - 1, hole)
        self.diagnostics = {"squared_error": squared.detach().mean()} | verdicts
        return squared + self.weight * fooled + told_apart


def perplexity(shares: torch.Tensor) -> torch.Tensor:
    """exp of the entropy of a distribution (codes,): how many codes are used as if equally often."""
    return torch.special.entr(shares).sum().exp()
