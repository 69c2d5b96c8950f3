"""`convert`: published checkpoints as folders that `from_pretrained` reads."""

import argparse
from pathlib import Path

from ..errors import InputError
from ..models.diffusion.conversion import palette_scheduler, palette_to_unet
from ..tensor_files import read_tensors


def _palette_options(parser):
    parser.add_argument("--image_size", type=int, default=256, help="Side of the pictures in pixels.")
    parser.add_argument("--num_head_channels", type=int, default=32, help="Width of one attention head.")
    parser.add_argument("--norm_groups", type=int, default=32, help="Groups of the normalisations.")
    parser.add_argument("--dropout", type=float, default=0.0, help="Dropout, for further training.")


def _palette(tensors, folder, **options):
    palette_to_unet(tensors, **options).save_pretrained(folder)
    if "gammas" in tensors:
        palette_scheduler(tensors["gammas"]).save_pretrained(Path(folder, "scheduler"))


def _mae_options(parser):
    parser.add_argument("--heads", type=int, help="Attention heads of the encoder, where its width does not tell them.")
    parser.add_argument("--decoder_heads", type=int, help="Attention heads of the decoder.")
    parser.add_argument("--norm_pix_loss", action="store_true", help="The model was trained to predict normalised patches.")


def _mae(tensors, folder, **options):
    from ..models.mae.conversion import image_processor, mae_to_vit

    model = mae_to_vit(tensors, **options)
    model.save_pretrained(folder)
    image_processor(model).save_pretrained(folder)


COMMANDS = {  # word: (options, conversion of tensors to a folder, help)
    "mae": (
        _mae_options,
        _mae,
        "the MAE authors' model with its decoder (mae_visualize_vit_base.pth) -> transformers.ViTMAEForPreTraining",
    ),
    "palette": (_palette_options, _palette, "Palette's inpainting U-Net (16_Network.pth) -> diffusers.UNet2DModel"),
}


def main(argv=None):
    """The command line: one word per kind of checkpoint, a file and a folder."""
    parser = argparse.ArgumentParser(prog="python -m hf_i2i_unlearn.conversion", description="Convert published checkpoints.")
    commands = parser.add_subparsers(dest="command", required=True)
    for word, (add_options, _, text) in COMMANDS.items():
        command = commands.add_parser(word, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        command.add_argument("file", help="Checkpoint: .pth, .pt, .ckpt or .safetensors.")
        command.add_argument("folder", help="New folder that from_pretrained will read.")
        add_options(command)
    options = vars(parser.parse_args(argv))
    command, file, folder = (options.pop(name) for name in ("command", "file", "folder"))
    if Path(folder).exists() and (not Path(folder).is_dir() or any(Path(folder).iterdir())):
        raise InputError(f"'{folder}' exists and is no empty folder; choose another one to write to.")
    COMMANDS[command][1](read_tensors(file), folder, **options)
    print(f"Wrote {folder}.")
