"""Published checkpoints as folders that `from_pretrained` reads.

hf-i2i-unlearn convert mae mae_visualize_vit_base.pth mae/
hf-i2i-unlearn convert palette 16_Network.pth palette/
hf-i2i-unlearn convert mage mage-vitb-1600.pth mage/ --vqgan vqgan_jax_strongaug.ckpt
"""

import argparse
from pathlib import Path

from ..errors import InputError
from . import PROGRAM


def main(argv=None) -> None:
    """The command line: one word per kind of checkpoint, then what to read and what to write.

    Args:
        argv: the words; those of the process if None.

    Raises:
        InputError: what cannot be read, or a folder that holds something.
    """
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} convert", description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    for word, (add_options, convert, what) in KINDS.items():
        kind = kinds.add_parser(word, help=what, description=what, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        add_options(kind)
        kind.set_defaults(convert=convert)
    args = parser.parse_args(argv)
    args.convert(args)
    print(f"Wrote {args.target}")


def _mae_options(parser):
    _file_and_folder(parser)
    parser.add_argument("--heads", type=int, help="Attention heads of the encoder, where its width does not tell them.")
    parser.add_argument("--decoder_heads", type=int, help="Attention heads of the decoder.")
    parser.add_argument("--norm_pix_loss", action="store_true", help="The model was trained to predict normalised patches.")


def _mae(args):
    from ..models.mae.conversion import image_processor, mae_to_vit
    from ..tensor_files import read_tensors

    folder = _new_folder(args.target)
    model = mae_to_vit(read_tensors(args.file), args.heads, args.decoder_heads, args.norm_pix_loss)
    model.save_pretrained(folder)
    image_processor(model).save_pretrained(folder)


def _palette_options(parser):
    _file_and_folder(parser)
    parser.add_argument("--image_size", type=int, default=256, help="Side of the pictures in pixels.")
    parser.add_argument("--num_head_channels", type=int, default=32, help="Width of one attention head.")
    parser.add_argument("--norm_groups", type=int, default=32, help="Groups of the normalisations.")
    parser.add_argument("--dropout", type=float, default=0.0, help="Dropout, for further training.")


def _palette(args):
    from ..models.diffusion.conversion import palette_scheduler, palette_to_unet
    from ..tensor_files import read_tensors

    folder = _new_folder(args.target)
    tensors = read_tensors(args.file)
    palette_to_unet(tensors, args.image_size, args.num_head_channels, args.norm_groups, args.dropout).save_pretrained(folder)
    if "gammas" in tensors:
        palette_scheduler(tensors["gammas"]).save_pretrained(folder / "scheduler")


def _file_and_folder(parser):
    parser.add_argument("file", help="Checkpoint: .pth, .pt, .ckpt or .safetensors.")
    parser.add_argument("target", metavar="folder", help="New folder that from_pretrained will read.")


def _new_folder(path) -> Path:
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"'{folder}' exists and is no empty folder; choose another one to write to.")
    return folder


def _mage_options(parser):
    parser.add_argument("source", help="Published checkpoint, or the folder with --back.")
    parser.add_argument("target", help="Folder to write, or the file with --back.")
    parser.add_argument("--vqgan", help="Tokenizer file, where the checkpoint lacks it.")
    parser.add_argument("--heads", type=int, help="Attention heads of the encoder.")
    parser.add_argument("--decoder-heads", type=int, help="Attention heads of the decoder.")
    parser.add_argument("--back", action="store_true", help="From a folder to the original layout.")


def _mage(args):
    from ..models.mage.conversion import from_original, write_original

    if args.back:
        write_original(args.source, args.target)
    else:
        from_original(args.source, args.target, args.vqgan, args.heads, args.decoder_heads)


KINDS = {  # word: (options, conversion, help)
    "mae": (
        _mae_options,
        _mae,
        "the MAE authors' model with its decoder (mae_visualize_vit_base.pth) -> transformers.ViTMAEForPreTraining",
    ),
    "palette": (_palette_options, _palette, "Palette's inpainting U-Net (16_Network.pth) -> diffusers.UNet2DModel"),
    "mage": (_mage_options, _mage, "MAGE (mage-vitb-1600.pth) -> MageModel, or back"),
}
