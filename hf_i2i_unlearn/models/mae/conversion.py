"""The MAE authors' checkpoints (`mae_visualize_vit_base.pth`, also large, huge, ganloss) as `ViTMAEForPreTraining`.

Every weight is carried over as it is; the attention's joint qkv weights are split. A file without a decoder is refused: it is
an encoder alone, made for classification.
"""

import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from ...errors import InputError

HEADS = {768: 12, 1024: 16, 1280: 16, 512: 16}  # width -> heads, of the published encoders and their decoder
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which they were trained with

BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
ENDS = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj.weight": "vit.embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "vit.embeddings.patch_embeddings.projection.bias",
    "norm.weight": "vit.layernorm.weight",
    "norm.bias": "vit.layernorm.bias",
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.decoder_pos_embed",
}


def mae_to_vit(
    tensors: dict[str, torch.Tensor], heads: int | None = None, decoder_heads: int | None = None, norm_pix_loss: bool = False
) -> ViTMAEForPreTraining:
    """The model, in eval mode.

    Args:
        tensors: the authors' state dict. heads, decoder_heads: where the width does not tell them.
        norm_pix_loss: whether it was trained to predict normalised patches, as the files for fine-tuning were; those whose name
            has "visualize" were not.

    Raises:
        InputError: an encoder alone, no MAE of theirs, or heads that nobody knows.
    """
    config = infer_config(tensors, heads, decoder_heads, norm_pix_loss)
    with torch.device("meta"):
        model = ViTMAEForPreTraining(config)
    converted: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        converted |= _renamed(name, value)
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    got = {name: value.shape for name, value in converted.items()}
    if wanted != got:
        wrong = sorted(name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name))
        raise InputError(
            f"The tensors are not those of an MAE: {len(wrong)} differ, first '{wrong[0]}' ({_shape(got.get(wrong[0]))}, "
            f"expected {_shape(wanted.get(wrong[0]))}); give the file as it was published."
        )
    model.load_state_dict(converted, strict=True, assign=True)
    return model.eval()


def image_processor(model: ViTMAEForPreTraining) -> ViTImageProcessorPil:
    """The image processor that the published models take their pictures by."""
    side = model.config.image_size
    return ViTImageProcessorPil(size={"height": side, "width": side}, image_mean=list(MEAN), image_std=list(STD), resample=3)


def infer_config(tensors, heads=None, decoder_heads=None, norm_pix_loss=False) -> ViTMAEConfig:
    """The configuration, from the shapes of the tensors. Errors are those of `mae_to_vit`."""
    if "patch_embed.proj.weight" not in tensors or "cls_token" not in tensors:
        raise InputError(
            f"This is no MAE of its authors: 'patch_embed.proj.weight' is missing, its first tensor is '{min(tensors)}'."
        )
    if "decoder_embed.weight" not in tensors:
        raise InputError(
            "The file holds an encoder alone ('decoder_embed.weight' is missing), made for classification. Nothing can be "
            "completed without its decoder; give the file with both, such as mae_visualize_vit_base.pth."
        )
    width, channels, patch, _ = tensors["patch_embed.proj.weight"].shape
    decoder_width, tokens = tensors["decoder_embed.weight"].shape[0], tensors["pos_embed"].shape[1] - 1
    side = round(tokens**0.5)
    if side * side != tokens:
        raise InputError(f"The encoder has positions for {tokens} patches, expected a square number (a square grid).")
    return ViTMAEConfig(
        hidden_size=width,
        num_hidden_layers=_count(tensors, "blocks."),
        num_attention_heads=heads or _heads(width),
        intermediate_size=tensors["blocks.0.mlp.fc1.weight"].shape[0],
        decoder_hidden_size=decoder_width,
        decoder_num_hidden_layers=_count(tensors, "decoder_blocks."),
        decoder_num_attention_heads=decoder_heads or _heads(decoder_width),
        decoder_intermediate_size=tensors["decoder_blocks.0.mlp.fc1.weight"].shape[0],
        image_size=side * patch,
        patch_size=patch,
        num_channels=channels,
        layer_norm_eps=1e-6,  # theirs; the class's default gives other numbers
        norm_pix_loss=norm_pix_loss,
    )


def _renamed(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """One of their tensors under our names: three for joint queries, keys and values."""
    if name in ENDS:
        return {ENDS[name]: value}
    for theirs, ours in (("decoder_blocks.", "decoder.decoder_layers."), ("blocks.", "vit.layers.")):
        if name.startswith(theirs):
            number, _, rest = name.removeprefix(theirs).partition(".")
            layer, _, kind = rest.rpartition(".")
            if layer == "attn.qkv":
                parts = zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True)
                return {f"{ours}{number}.attention.{part}.{kind}": rows.clone() for part, rows in parts}
            return {f"{ours}{number}.{BLOCK.get(layer, layer)}.{kind}": value}
    return {f"decoder.{name}": value}


def _count(tensors, prefix) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def _heads(width: int) -> int:
    if width not in HEADS:
        raise InputError(
            f"The number of attention heads at width {width} is unknown (known: {', '.join(map(str, HEADS))}); give "
            "--heads and --decoder_heads."
        )
    return HEADS[width]


def _shape(shape) -> str:
    return "missing" if shape is None else "x".join(map(str, shape))
