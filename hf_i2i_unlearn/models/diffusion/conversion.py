"""Published checkpoints -> `from_pretrained` folders, and back.

    python -m hf_i2i_unlearn.conversion palette 16_Network.pth palette-inpainting

Palette's U-Net is `diffusers.UNet2DModel` under other names, so every weight is carried over as it is; only the attention's
joint qkv weights are split. Files are read as tensors only: nothing in them is executed.
"""

import re

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel

from ...errors import InputError
from .layout import palette_config

PREFIX = "denoise_fn."


BUFFERS = (
    "gammas",
    "sqrt_recip_gammas",
    "sqrt_recipm1_gammas",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)


# Names inside a block, ours (UNet2DModel) -> theirs.
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


ATTENTION = {"group_norm": "norm", "to_out.0": "proj_out", "to_q": "qkv", "to_k": "qkv", "to_v": "qkv"}


ENDS = {
    "time_embedding.linear_1": "cond_embed.0",
    "time_embedding.linear_2": "cond_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def palette_to_unet(
    state_dict: dict[str, torch.Tensor],
    image_size: int = 256,
    num_head_channels: int = 32,
    norm_groups: int = 32,
    dropout: float = 0.0,
) -> UNet2DModel:
    """A Palette checkpoint as a U-Net that takes cat(y_cond, y_noisy) and gamma, a 1-D float tensor.

    Channels, levels, blocks and attention are read off the names and shapes; the other arguments cannot be seen there.

    Args:
        state_dict: `denoise_fn.*` (the prefix may be missing); schedule buffers and `teacher_denoise_fn.*` are left out.

    Raises:
        InputError: an unknown layout; the first missing and the first unexpected key are named.
    """
    theirs = {name: t for name, t in state_dict.items() if not name.startswith("teacher_denoise_fn.") and name not in BUFFERS}
    prefix = PREFIX if any(name.startswith(PREFIX) for name in theirs) or "input_blocks.0.0.weight" not in theirs else ""
    config = _infer(theirs, prefix) or palette_config()
    config |= {"sample_size": image_size, "norm_num_groups": norm_groups, "attn_norm_num_groups": norm_groups}
    config |= {"attention_head_dim": num_head_channels, "dropout": dropout}
    for channels in config["block_out_channels"]:
        if channels % norm_groups or channels % num_head_channels:
            raise InputError(
                f"A level of {channels} channels cannot be divided into {norm_groups} norm groups and heads of "
                f"{num_head_channels} channels; set norm_groups and num_head_channels as the checkpoint was trained."
            )
    with torch.device("meta"):
        unet = UNet2DModel(**config)
    names = _names(unet)
    _refuse_difference([prefix + key for key, _ in names.values()], theirs, "a Palette checkpoint")
    ours = {}
    for name, (key, part) in names.items():
        tensor = theirs[prefix + key]
        if part is not None:
            tensor = _split_qkv(tensor, num_head_channels)[part]
        ours[name] = tensor.reshape(tensor.shape[:2]) if tensor.ndim == 3 else tensor  # Conv1d(1) -> Linear
        wanted = unet.get_parameter(name).shape
        if ours[name].shape != wanted:
            raise InputError(
                f"'{prefix + key}' gives shape {tuple(ours[name].shape)}, expected {tuple(wanted)}: no Palette U-Net."
            )
    unet = unet.to_empty(device="cpu")
    unet.load_state_dict(ours, strict=True)
    return unet.eval()


def unet_to_palette(unet: UNet2DModel, scheduler=None) -> dict[str, torch.Tensor]:
    """The inverse of `palette_to_unet`; with the six schedule buffers if the scheduler of the training is given.

    Raises:
        InputError: a U-Net that is not in the Palette layout.
    """
    parts, head = {}, unet.config.attention_head_dim
    for name, (key, part) in _names(unet).items():
        parts.setdefault(key, {})[part] = unet.get_parameter(name).detach()
    theirs = {}
    for key, tensors in parts.items():
        joint = _join_qkv([tensors[i] for i in range(3)], head) if len(tensors) == 3 else tensors[None]
        conv1d = re.search(r"\.(qkv|proj_out)\.weight$", key)
        theirs[PREFIX + key] = (joint.unsqueeze(-1) if conv1d else joint).clone()
    return theirs if scheduler is None else theirs | schedule_buffers(scheduler)


def palette_scheduler(gammas: torch.Tensor) -> DDPMScheduler:
    """The schedule of a checkpoint's `gammas` buffer, as linear betas if they are (the published ones are), else one by one."""
    gammas = gammas.double()
    betas = 1 - gammas / torch.cat([gammas.new_ones(1), gammas[:-1]])
    for digits in range(6):  # the ends are round numbers, blurred by the buffer's float32
        ends = [float(f"{beta:.{digits}e}") for beta in (betas[0].item(), betas[-1].item())]
        if 0 < ends[0] < ends[1]:
            linear = torch.from_numpy(np.cumprod(1 - np.linspace(ends[0], ends[1], len(gammas))))
            if torch.allclose(linear.float(), gammas.float(), rtol=1e-6, atol=0):
                return DDPMScheduler(num_train_timesteps=len(gammas), beta_start=ends[0], beta_end=ends[1])
    return DDPMScheduler(num_train_timesteps=len(gammas), trained_betas=betas.tolist())


def schedule_buffers(scheduler) -> dict[str, torch.Tensor]:
    """The six buffers of a Palette checkpoint, computed in float64 and kept in float32 as Palette does."""
    config = scheduler.config
    if config.trained_betas is not None:
        betas = np.asarray(config.trained_betas, dtype=np.float64)
    elif config.beta_schedule == "linear":
        betas = np.linspace(config.beta_start, config.beta_end, config.num_train_timesteps, dtype=np.float64)
    else:
        raise InputError(f"A Palette checkpoint holds a linear noise schedule, got '{config.beta_schedule}'.")
    gammas = np.cumprod(1 - betas)
    before = np.append(1.0, gammas[:-1])
    variance = betas * (1 - before) / (1 - gammas)
    values = (
        gammas,
        np.sqrt(1 / gammas),
        np.sqrt(1 / gammas - 1),
        np.log(np.maximum(variance, 1e-20)),
        betas * np.sqrt(before) / (1 - gammas),
        (1 - before) * np.sqrt(1 - betas) / (1 - gammas),
    )
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in zip(BUFFERS, values)}


def _blocks(config):
    """{our block: (their block, names inside)} of a U-Net config; their lists count the blocks of all levels through."""
    levels, layers, blocks, number = len(config["block_out_channels"]), config["layers_per_block"], {}, 1
    for level, kind in enumerate(config["down_block_types"]):
        for layer in range(layers):
            blocks[f"down_blocks.{level}.resnets.{layer}"] = (f"input_blocks.{number}.0", RESNET)
            if kind == "AttnDownBlock2D":
                blocks[f"down_blocks.{level}.attentions.{layer}"] = (f"input_blocks.{number}.1", ATTENTION)
            number += 1
        if level < levels - 1:
            blocks[f"down_blocks.{level}.downsamplers.0"] = (f"input_blocks.{number}.0", RESNET)
            number += 1
    blocks["mid_block.resnets.0"] = ("middle_block.0", RESNET)
    blocks["mid_block.attentions.0"] = ("middle_block.1", ATTENTION)
    blocks["mid_block.resnets.1"] = ("middle_block.2", RESNET)
    number = 0
    for level, kind in enumerate(config["up_block_types"]):
        attends = kind == "AttnUpBlock2D"
        for layer in range(layers + 1):
            blocks[f"up_blocks.{level}.resnets.{layer}"] = (f"output_blocks.{number}.0", RESNET)
            if attends:
                blocks[f"up_blocks.{level}.attentions.{layer}"] = (f"output_blocks.{number}.1", ATTENTION)
            number += 1
        if level < levels - 1:  # the up block stands behind the last res block of its level
            blocks[f"up_blocks.{level}.upsamplers.0"] = (f"output_blocks.{number - 1}.{1 + attends}", RESNET)
    return blocks


def _names(unet):
    """{our tensor: (their tensor without prefix, part)}; part is 0, 1, 2 for q, k, v and None for whole tensors."""
    modules = dict(ENDS)
    for block, (theirs, inside) in _blocks(unet.config).items():
        modules |= {f"{block}.{ours}": f"{theirs}.{name}" for ours, name in inside.items()}
    names = {}
    for name in unet.state_dict():
        module, _, kind = name.rpartition(".")
        if module in modules:
            part = {"to_q": 0, "to_k": 1, "to_v": 2}.get(module.rpartition(".")[2])
            names[name] = (f"{modules[module]}.{kind}", part)
    # A shortcut exists only where channels change; everything else must.
    always = [module for module in modules if not module.endswith("conv_shortcut")]
    needed = [f"{module}.{kind}" for module in always for kind in ("weight", "bias")]
    optional = [name for name in names if "conv_shortcut" in name]
    _refuse_difference([*needed, *optional], unet.state_dict(), "a U-Net in the Palette layout")
    return names


def _infer(theirs, prefix):
    """The config that names and shapes tell, or None if they make no sense as a Palette U-Net."""

    def shape(key):
        return theirs[prefix + key].shape

    def indices(pattern):
        pattern = re.compile(re.escape(prefix) + pattern)
        return sorted({int(match[1]) for name in theirs if (match := pattern.match(name))})

    try:
        inner, inputs = shape("input_blocks.0.0.weight")[:2]
        # Up blocks are the res blocks that are not first in their list entry: one less than there are levels.
        ups = indices(r"output_blocks\.(\d+)\.[12]\.in_layers\.0\.weight")
        count, levels = 1 + indices(r"output_blocks\.(\d+)\.")[-1], len(ups) + 1
        layers = count // levels - 1
        firsts = [1 + level * (layers + 1) for level in range(levels)]
        attending = set(indices(r"input_blocks\.(\d+)\.1\.qkv\.weight"))
        channels = [shape(f"input_blocks.{first}.0.out_layers.3.weight")[0] for first in firsts]
        scale_shift = shape("input_blocks.1.0.emb_layers.1.weight")[0] == 2 * channels[0]
        attention = tuple(level for level, first in enumerate(firsts) if first in attending)
        outputs, embedding = shape("out.2.weight")[0], shape("cond_embed.0.weight")[0]
    except (KeyError, IndexError):
        return None
    config = palette_config(channels=outputs, multipliers=(1,) * levels, layers=layers, attention=attention)
    config |= {"in_channels": inputs, "block_out_channels": channels}
    config |= {"time_embedding_dim": None if embedding == 4 * inner else embedding}
    return config | {"resnet_time_scale_shift": "scale_shift" if scale_shift else "default"}


def _split_qkv(joint, head):
    """Legacy layout: channels are ordered head, then q, k, v. (3C, ...) -> three of (C, ...)."""
    heads = len(joint) // (3 * head)
    return [part.reshape(-1, *joint.shape[1:]) for part in joint.reshape(heads, 3, head, *joint.shape[1:]).unbind(1)]


def _join_qkv(parts, head):
    """The inverse of `_split_qkv`: three of (C, ...) -> (3C, ...)."""
    rest = parts[0].shape[1:]
    return torch.stack([part.reshape(-1, head, *rest) for part in parts], 1).reshape(-1, *rest)


def _refuse_difference(expected, got, what):
    got, expected = dict.fromkeys(got), dict.fromkeys(expected)  # sets that keep their order
    missing = next((key for key in expected if key not in got), None)
    unexpected = next((key for key in got if key not in expected), None)
    if missing or unexpected:
        found = [f"'{missing}' is missing"] * bool(missing) + [f"'{unexpected}' is unexpected"] * bool(unexpected)
        raise InputError(f"This is not {what}: {' and '.join(found)} (the first of each kind); check the file and its model.")
