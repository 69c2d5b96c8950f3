"""`convert mage`: the command line of MAGE's conversion."""

import argparse
import sys

from ..errors import InputError
from ..models.mage.conversion import from_original, write_original


def main(argv=None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m hf_i2i_unlearn.conversion_mage", description=__doc__.splitlines()[0])
    parser.add_argument("source", help="published checkpoint, or the folder with --back")
    parser.add_argument("target", help="folder to write, or the file with --back")
    parser.add_argument("--vqgan", help="tokenizer file, where the checkpoint lacks it")
    parser.add_argument("--heads", type=int, help="attention heads of the encoder")
    parser.add_argument("--decoder-heads", type=int, help="attention heads of the decoder")
    parser.add_argument("--back", action="store_true", help="from a folder to the original layout")
    args = parser.parse_args(argv)
    try:
        if args.back:
            write_original(args.source, args.target)
        else:
            from_original(args.source, args.target, args.vqgan, args.heads, args.decoder_heads)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {args.target}")
    return 0
