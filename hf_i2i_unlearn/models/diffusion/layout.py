"""Configurations of U-Nets: those of the Palette layout, and checks that all layouts share."""

from diffusers import UNet2DModel

from ...errors import InputError


def palette_config(
    image_size: int = 256,
    channels: int = 3,
    inner: int = 64,
    multipliers: tuple[int, ...] = (1, 2, 4, 8),
    layers: int = 2,
    attention: tuple[int, ...] = (),
    encoder_attention: tuple[int, ...] = (),
    head_channels: int = 32,
    norm_groups: int = 32,
    dropout: float = 0.0,
) -> dict:
    """The config of a `UNet2DModel` in the Palette layout; the defaults are the published model's.

    Args:
        inner, multipliers: channels of level i are inner * multipliers[i]. layers: res blocks per level.
        attention: levels (0 is the full resolution) with attention; the middle block always has it. encoder_attention: levels
            with attention in their down block alone.
        head_channels: width of one attention head. norm_groups: groups of every norm; must divide all channel counts.
    """
    last, down, up = len(multipliers) - 1, [], []
    for level in range(last + 1):
        down.append("AttnDownBlock2D" if level in (*attention, *encoder_attention) else "ResnetDownsampleBlock2D")
        up.append("AttnUpBlock2D" if last - level in attention else "ResnetUpsampleBlock2D")
    return {
        "sample_size": image_size, "in_channels": 2 * channels, "out_channels": channels,
        "block_out_channels": [inner * m for m in multipliers], "layers_per_block": layers,
        "down_block_types": down, "up_block_types": up, "downsample_type": "resnet", "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift", "flip_sin_to_cos": True, "freq_shift": 0, "act_fn": "silu",
        "norm_num_groups": norm_groups, "norm_eps": 1e-5, "attention_head_dim": head_channels, "dropout": dropout,
        # With scale-shift norms and None here, the library leaves the middle block's attention without its norm.
        "attn_norm_num_groups": norm_groups,
    }  # fmt: skip


def with_encoder_attention(model: UNet2DModel, levels: list[int]) -> UNet2DModel:
    """A copy of a U-Net whose down blocks of these levels (0 is the full resolution) have attention after each res block.

    The new layers give nothing at first, so the copy computes what the model does until it is trained on. Convolutions see
    few pixels; with attention the encoder can tell pictures apart in the levels that the decoder relies on.

    Raises:
        InputError: a level that is not there, or has attention, or is no ResnetDownsampleBlock2D or DownBlock2D.
    """
    # "_name_or_path" would be a folder here.
    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    kinds = list(config["down_block_types"])
    for level in levels:
        if not 0 <= level < len(kinds):
            raise InputError(f"The U-Net has no level {level} to give attention to; its levels are 0 to {len(kinds) - 1}.")
        if kinds[level] not in ("ResnetDownsampleBlock2D", "DownBlock2D"):
            raise InputError(f"Level {level} of the U-Net is a {kinds[level]}, which cannot be given attention; leave it out.")
        kinds[level] = "AttnDownBlock2D"
    grown = UNet2DModel.from_config(config | {"down_block_types": kinds})
    missing = grown.load_state_dict(model.state_dict(), strict=False).missing_keys
    state = grown.state_dict()
    for name in missing:
        if ".attentions." not in name:
            raise InputError(f"The U-Net mixes kinds of downsampling, of which attention would change '{name}'.")
        if ".to_out." in name:
            state[name].zero_()
    return grown


def check_config(config, expected: dict) -> None:
    """Raise InputError unless the U-Net's config has the expected values; the layouts that are known have no others."""
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise InputError(f"The U-Net's config has {name}={config[name]}, expected {value}; this layout has no other.")


def check_divisible(size, what: str, side: int) -> None:
    """Raise InputError unless (height, width) are multiples of `side`."""
    if side < 1 or size[0] % side or size[1] % side:
        raise InputError(f"The image size {size[0]}x{size[1]} is not divisible by {what} {side}; choose a multiple of it.")
