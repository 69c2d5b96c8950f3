"""Published MAGE checkpoints to `from_pretrained` folders, and back with identical tensors.

    python -m hf_i2i_unlearn.conversion_mage mage-vitb-1600.pth mage-vit-base [--vqgan vqgan_jax_strongaug.ckpt]
    python -m hf_i2i_unlearn.conversion_mage mage-vit-base back.pth --back

Module names are the published ones, so conversion renames nothing. Two kinds of tensors differ: the position numbers
(always 0, 1, 2, ...) are checked, left out and made again; tensors that no forward reads become buffers of the model
(`config.keep_unused_tensors`). A side file would be lost as soon as an unlearned model is saved again, while the
original code refuses a checkpoint without these tensors; as buffers they cost 1% of the model and nothing in training.
"""

import copy

import torch
from safetensors.torch import save_file
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from ...errors import InputError
from ...tensor_files import read_tensors
from .hf.configuration_mage import UNUSED_CLASSES, MageConfig
from .hf.modeling_mage import MageModel

HEADS = {768: (12, 16), 1024: (16, 16)}  # width -> heads of encoder and decoder: ViT-B, ViT-L


POSITIONS = "token_emb.position_ids"


UNUSED = "unused."


TOKENIZER = "vqgan."


def infer_config(state: dict, heads: int | None = None, decoder_heads: int | None = None) -> MageConfig:
    """The configuration from the shapes of an original state dict.

    Heads leave no trace in the shapes: they follow from the width (ViT-B, ViT-L) unless given. Normalisation constants
    and dropout leave none either: they are those of the published models.

    Raises:
        InputError: a tensor needed here is missing, the heads are unknown, or the sizes do not fit each other.
    """
    width, decoder_width = _shape(state, "decoder_embed.weight", 2)[::-1]
    if heads is None or decoder_heads is None:
        if width not in HEADS:
            raise InputError(
                f"The number of attention heads of a model of width {width} is unknown (known: {', '.join(map(str, HEADS))}); "
                "give the heads of encoder and decoder."
            )
        heads, decoder_heads = heads or HEADS[width][0], decoder_heads or HEADS[width][1]
    tokens = _shape(state, "decoder_pos_embed_learned", 3)[1] - 1
    channels, colors = _shape(state, "vqgan.encoder.conv_in.weight", 4)[:2]
    levels = _count(state, "vqgan.encoder.down.")
    outputs = [_shape(state, f"vqgan.encoder.down.{n}.block.0.conv1.weight", 4)[0] for n in range(levels)]
    codes, code_width = _shape(state, "vqgan.quantize.embedding.weight", 2)
    words = _shape(state, "token_emb.word_embeddings.weight", 2)[0]
    if words != codes + UNUSED_CLASSES + 1:
        raise InputError(
            f"The codebook does not match the head: {codes} codes need a vocabulary of {codes + UNUSED_CLASSES + 1}, the "
            f"transformer has {words}; use the tokenizer it was trained with."
        )
    side = round(tokens**0.5)
    if side * side != tokens:
        raise InputError(f"The decoder has positions for {tokens} tokens, expected a square number (a square grid).")
    try:
        return MageConfig(
            image_size=side * 2 ** (levels - 1),
            num_channels=colors,
            hidden_size=width,
            num_hidden_layers=_count(state, "blocks."),
            num_attention_heads=heads,
            decoder_hidden_size=decoder_width,
            decoder_num_hidden_layers=_count(state, "decoder_blocks."),
            decoder_num_attention_heads=decoder_heads,
            mlp_ratio=_shape(state, "blocks.0.mlp.fc1.weight", 2)[0] / width,
            codebook_size=codes,
            codebook_dim=code_width,
            tokenizer_channels=channels,
            tokenizer_channel_multipliers=[n // channels for n in outputs],
            tokenizer_res_blocks=_count(state, "vqgan.encoder.down.0.block."),
            max_position_embeddings=_shape(state, "token_emb.position_embeddings.weight", 2)[0],
            keep_unused_tensors=True,
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def from_original(file, folder, vqgan=None, heads: int | None = None, decoder_heads: int | None = None) -> MageModel:
    """Convert a published checkpoint into a folder for `MageModel.from_pretrained`.

    Args:
        file: `mage-vitb-1600.pth` or its like.
        folder: where to write.
        vqgan: `vqgan_jax_strongaug.ckpt`, where `file` lacks the tokenizer.
        heads, decoder_heads: where the width does not tell them.

    Raises:
        InputError: see `read_tensors` and `infer_config`; also a missing, foreign or misshapen tensor.
    """
    state = dict(read_tensors(file))
    inside = any(key.startswith(TOKENIZER) for key in state)
    if inside and vqgan is not None:
        raise InputError(f"'{file}' holds its tokenizer already; leave '{vqgan}' out.")
    if not inside and vqgan is None:
        raise InputError(f"'{file}' holds no tokenizer (keys '{TOKENIZER}*'); give its file (vqgan_jax_strongaug.ckpt) too.")
    if vqgan is not None:
        state |= {TOKENIZER + key: value for key, value in read_tensors(vqgan).items()}

    config = infer_config(state, heads, decoder_heads)
    with torch.device("meta"):
        model = MageModel(config)
    _check(state, config, model, file)
    config.dtype = state["decoder_embed.weight"].dtype
    converted = {_our_key(key): value for key, value in state.items() if key != POSITIONS}
    model.load_state_dict({key: converted[key] for key in model.state_dict()}, strict=True, assign=True)
    model.eval().save_pretrained(folder)
    # Pixels in [0, 1], not normalised, as the published model takes them.
    size = {"height": config.image_size, "width": config.image_size}
    ViTImageProcessorPil(size=size, do_normalize=False, resample=3).save_pretrained(folder)
    return model


def to_original(model: MageModel) -> dict[str, torch.Tensor]:
    """The original state dict of a model.

    A model that was not converted has no unused tensors: they are zeros, which the original code never reads.
    """
    state = model.state_dict()
    if not model.config.keep_unused_tensors:
        with torch.device("meta"):
            wanted = MageModel(_keeping(model.config)).state_dict()
        state |= {key: torch.zeros(value.shape) for key, value in wanted.items() if key.startswith(UNUSED)}
    original = {_original_key(key): value.detach().cpu() for key, value in state.items()}
    original[POSITIONS] = torch.arange(model.config.max_position_embeddings).unsqueeze(0)
    return original


def write_original(folder, file) -> None:
    """Convert a `from_pretrained` folder back: {'model': state dict}, or bare for a `.safetensors` file."""
    try:
        model = MageModel.from_pretrained(folder, dtype="auto")
    except (OSError, ValueError) as error:
        raise InputError(f"'{folder}' cannot be loaded as a MAGE model: {error}") from error
    state = to_original(model)
    if str(file).endswith(".safetensors"):
        save_file({key: value.contiguous() for key, value in state.items()}, file)
    else:
        torch.save({"model": state}, file)


def _check(state, config, model, file):
    """Raise InputError unless the state dict has exactly the tensors of the configuration."""
    wanted = {_original_key(key): value.shape for key, value in model.state_dict().items()}
    wanted[POSITIONS] = torch.Size([1, config.max_position_embeddings])
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unexpected:
        parts = [
            f"{len(keys)} {word}, first '{keys[0]}'"
            for keys, word in ((missing, "missing"), (unexpected, "unexpected"))
            if keys
        ]
        raise InputError(
            f"'{file}' does not hold the tensors of a MAGE checkpoint: {'; '.join(parts)}; give the file as it was published."
        )
    for key, shape in wanted.items():
        if state[key].shape != shape:
            raise InputError(f"'{key}' in '{file}' has shape {tuple(state[key].shape)}, expected {tuple(shape)}.")
    if not torch.equal(state[POSITIONS], torch.arange(config.max_position_embeddings).unsqueeze(0)):
        raise InputError(f"'{POSITIONS}' in '{file}' is not 0, 1, 2, ...; such a model cannot be converted without loss.")


def _our_key(key):
    unused = key.startswith(("patch_embed.", "decoder_pred.")) or key in (
        "cls_token",
        "mask_token",
        "pos_embed",
        "decoder_pos_embed",
    )
    return UNUSED + key.replace(".", "__") if unused else key


def _original_key(key):
    return key.removeprefix(UNUSED).replace("__", ".") if key.startswith(UNUSED) else key


def _keeping(config):
    config = copy.deepcopy(config)
    config.keep_unused_tensors = True
    return config


def _shape(state, key, dimensions):
    if key not in state:
        raise InputError(
            f"This is no MAGE checkpoint: '{key}' is missing, its first tensor is '{min(state)}'; give the file as published."
        )
    if state[key].dim() != dimensions:
        raise InputError(f"'{key}' has shape {tuple(state[key].shape)}, expected {dimensions} dimensions.")
    return tuple(state[key].shape)


def _count(state, prefix):
    """How many numbers follow the prefix: the length of a module list."""
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})
