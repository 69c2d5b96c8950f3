"""The configuration of MAGE; its defaults are the published ViT-B model."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)


UNUSED_CLASSES = 1000  # MAGE reserves rows for ImageNet classes that it never reads


CLASS_TOKEN_OFFSET = 76  # the class token is row codebook_size + 76, inside that reserve


@strict
class MageConfig(PreTrainedConfig):
    r"""
    Masked generative encoder (MAGE) with its VQ-GAN tokenizer.

    The token grid follows from `image_size` and the tokenizer: each level after the first halves the picture. The
    vocabulary is the codebook, 1000 reserved rows and the mask token.

    Args:
        image_size: side of the square pictures, in pixels.
        num_channels: colour channels, 1 or 3.
        hidden_size, num_hidden_layers, num_attention_heads: the encoder.
        decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads: the decoder.
        mlp_ratio: width of the MLPs over the width of their blocks.
        layer_norm_eps: of every layer norm but the head's.
        head_layer_norm_eps: of the layer norm in the head.
        embedding_dropout_prob, hidden_dropout_prob, attention_dropout_prob: dropout after the token embedding, in the
            blocks' projections and MLPs, and on the attention weights. MAGE was pretrained with 0.1 for all three; the
            defaults are those of the unlearning reference, which keeps the embedding's only.
        codebook_size, codebook_dim: rows and width of the tokenizer's codebook.
        tokenizer_channels, tokenizer_channel_multipliers, tokenizer_res_blocks: width of the first level, multiplier of
            each level, residual blocks per level.
        tokenizer_norm_groups, tokenizer_norm_eps: of every group norm of the tokenizer.
        max_position_embeddings: rows of the position table; one for the class token and one for each token are needed.
        vocab_size: rows of the word table, codebook_size + 1001 (the default).
        label_smoothing: of the training loss.
        mask_ratio_min, mask_ratio_max, mask_ratio_mean, mask_ratio_std: the truncated normal that the share of masked
            tokens is drawn from; `mask_ratio_min` is also the share that the encoder does not see.
        fill_color: what a hole is filled with before tokenization, one value in [0, 1] a channel (ImageNet's mean).
        keep_unused_tensors: keep the tensors of an original checkpoint that no forward reads, as buffers, so that the
            model can be converted back bit for bit. Set by the conversion.
        initializer_range: deviation of fresh embeddings. The head reads the word embeddings without training them, so they
            bound its logits: a narrow model that is trained from nothing wants about 1 / sqrt(hidden_size).

    Raises:
        ValueError: sizes that do not fit each other; the message names them.
    """

    model_type = "mage"

    image_size: int = 256
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    decoder_hidden_size: int = 768
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    mlp_ratio: float | int = 4.0
    layer_norm_eps: float = 1e-6
    head_layer_norm_eps: float = 1e-5
    embedding_dropout_prob: float | int = 0.1
    hidden_dropout_prob: float | int = 0.0
    attention_dropout_prob: float | int = 0.0
    codebook_size: int = 1024
    codebook_dim: int = 256
    tokenizer_channels: int = 128
    tokenizer_channel_multipliers: list[int] | tuple[int, ...] = (1, 1, 2, 2, 4)
    tokenizer_res_blocks: int = 2
    tokenizer_norm_groups: int = 32
    tokenizer_norm_eps: float = 1e-6
    max_position_embeddings: int = 257
    vocab_size: int | None = None
    label_smoothing: float | int = 0.1
    mask_ratio_min: float = 0.5
    mask_ratio_max: float = 1.0
    mask_ratio_mean: float = 0.55
    mask_ratio_std: float = 0.25
    fill_color: list[float] | tuple[float, ...] | None = None
    keep_unused_tensors: bool = False
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if self.vocab_size is None:
            self.vocab_size = self.codebook_size + UNUSED_CLASSES + 1
        if self.fill_color is None:
            mean = IMAGENET_MEAN if self.num_channels == 3 else [sum(IMAGENET_MEAN) / 3] * self.num_channels
            self.fill_color = list(mean)
        super().__post_init__(**kwargs)
        self._check()

    @property
    def patch_size(self) -> int:
        """Pixels of a token's side."""
        return 2 ** (len(self.tokenizer_channel_multipliers) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, cols) of tokens."""
        return (self.image_size // self.patch_size, self.image_size // self.patch_size)

    @property
    def num_tokens(self) -> int:
        """Tokens of a picture, N; the class token is not counted."""
        return self.grid[0] * self.grid[1]

    @property
    def class_token_id(self) -> int:
        return self.codebook_size + CLASS_TOKEN_OFFSET

    @property
    def mask_token_id(self) -> int:
        return self.vocab_size - 1  # type: ignore[operator]  # `__post_init__` has set it

    def _check(self):
        assert self.vocab_size is not None and self.fill_color is not None
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size is {self.image_size}, expected a multiple of {self.patch_size} pixels, the side of a token of a "
                f"tokenizer with {len(self.tokenizer_channel_multipliers)} levels."
            )
        if self.num_tokens + 1 > self.max_position_embeddings:
            rows, cols = self.grid
            raise ValueError(
                f"image_size {self.image_size} gives a grid of {rows}x{cols} tokens, which needs {self.num_tokens + 1} "
                f"positions with the class token, but max_position_embeddings is {self.max_position_embeddings}; make the "
                "pictures smaller or the table larger."
            )
        if self.vocab_size != self.codebook_size + UNUSED_CLASSES + 1:
            raise ValueError(
                f"The codebook does not match the head: codebook_size {self.codebook_size} needs a vocabulary of "
                f"{self.codebook_size + UNUSED_CLASSES + 1} (codes + {UNUSED_CLASSES} + mask token), got {self.vocab_size}; "
                "use the tokenizer that the transformer was trained with."
            )
        for name, width, heads in (
            ("encoder", self.hidden_size, self.num_attention_heads),
            ("decoder", self.decoder_hidden_size, self.decoder_num_attention_heads),
        ):
            if width % heads:
                raise ValueError(f"The {name}'s width {width} is not a multiple of its {heads} attention heads.")
        for multiplier in self.tokenizer_channel_multipliers:
            if (self.tokenizer_channels * multiplier) % self.tokenizer_norm_groups:
                raise ValueError(
                    f"A tokenizer level has {self.tokenizer_channels * multiplier} channels, expected a multiple of "
                    f"tokenizer_norm_groups = {self.tokenizer_norm_groups}."
                )
        if len(self.fill_color) != self.num_channels:
            raise ValueError(
                f"fill_color has {len(self.fill_color)} values, expected one for each of {self.num_channels} channels."
            )


__all__ = ["MageConfig"]
