"""The encoder of a diffusers U-Net: what its up blocks read of the blocks below them."""

import torch


def encoder_levels(unet, sample: torch.Tensor, time: torch.Tensor, context) -> list[torch.Tensor]:
    """conv_in, the down blocks' residuals in order, and the middle block, each (B, C_k, H_k, W_k).

    As in the library's forward, up to the up blocks.

    Args:
        sample: the network's input, (B, C, H, W). time: its time input, (B,).
        context: (block, B) -> dict of what the block reads besides.
    """
    # gamma goes into the sinusoids in float32, whatever the weights are.
    embedding = unet.time_embedding(unet.time_proj(time).to(unet.dtype))
    sample = unet.conv_in(sample)
    levels = [sample]
    for block in unet.down_blocks:
        sample = _safe_for_norms(sample)
        sample, residuals = block(hidden_states=sample, temb=embedding, **context(block, len(sample)))
        levels += residuals
    sample = _safe_for_norms(sample)
    return [*levels, unet.mid_block(sample, embedding, **context(unet.mid_block, len(sample)))]


def level_sizes(unet, height: int, width: int) -> list[int]:
    """How many values of a picture each of `encoder_levels` has, for an input of height x width."""
    sizes = [unet.conv_in.out_channels * height * width]
    for block in unet.down_blocks:
        sizes += [resnet.out_channels * height * width for resnet in block.resnets]
        if block.downsamplers is not None:
            height, width = height // 2, width // 2
            sizes.append(block.resnets[-1].out_channels * height * width)
    return [*sizes, unet.mid_block.resnets[-1].out_channels * height * width]


def _safe_for_norms(sample):
    """torch 2.13 crashes in the backward pass of a group norm over channels-last values that need no gradient themselves."""
    return sample.contiguous() if torch.is_grad_enabled() and not sample.requires_grad else sample
