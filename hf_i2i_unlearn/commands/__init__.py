"""The commands: `hf-i2i-unlearn COMMAND ...`, `python -m hf_i2i_unlearn COMMAND ...`, or a recipe each.

A command is a module here with a docstring (its description) and `main()`. Only the module of the command that was asked for is
imported, and it imports what its work needs after the options are read: `--help` is quick.
"""

import difflib
import importlib
import sys

PROGRAM = "hf-i2i-unlearn"

COMMANDS = {  # word: what it does, in one line. Its module has the same name, with underscores.
    "unlearn": "Make a model forget pictures; without options the embedded demo.",
    "erase": "Take what a finished run has suppressed out of the weights.",
    "evaluate": "Measure unlearned checkpoints, before and after.",
    "verify": "Check, months later, that a model still cannot complete the pictures of a request.",
    "withdraw": "Take one request's patch off; all others must still hold.",
    "renew": "Train one request's patch anew, beside those of all others.",
    "merge": "One plain checkpoint of the original with all patches in it.",
    "audit": "Find out whether what was forgotten stays forgotten.",
    "compare": "All methods on one model: the frontier of forgetting against its cost.",
    "tables": "The paper's tables for one model.",
    "show": "A page on this machine: original and unlearned side by side, on a picture of yours.",
    "report": "One page for whoever asked, from what is in a run's folder.",
    "pretrain": "Train an original model from nothing.",
    "rehearse": "Rehearse a big job with a model of its size: what it takes, whether it resumes and loads.",
    "erasure-study": "What erasing is worth: forgotten, attacked, erased, attacked again.",
    "evidence": "Studies of several families in one chart and one table.",
    "memorise": "Train an original until it knows given pictures by heart.",
    "convert": "Published checkpoints as folders that from_pretrained reads: convert mae, palette or mage.",
    "pack": "Pack pictures small, for training.",
    "evaluate-original": "Measure original models against completions that nothing has learnt.",
    "train-classifier": "Train a small classifier, whose features then measure completions.",
    "choose-classes": "Classes to forget and to retain: far from each other, or near.",
    "unet-levels": "Which levels of a U-Net's encoder its decoder relies on.",
}


def main() -> None:
    """The console script: the first word chooses the command, which reads the rest as a program of its own would."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(_help())
    elif words[0] == "--version":
        from .. import __version__

        print(f"{PROGRAM} {__version__}")
    elif words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, 3, 0.5)
        meant = f"did you mean {' or '.join(near)}?" if near else f"{PROGRAM} --help lists them."
        print(f"error: '{words[0]}' is no command; {meant}", file=sys.stderr)
        sys.exit(2)
    else:
        sys.argv = [f"{PROGRAM} {words[0]}", *words[1:]]  # what usage lines and the commands in cards show
        module = importlib.import_module(f".{words[0].replace('-', '_')}", __name__)
        from .cli import run

        run(module.main)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {word:<{width}}  {what}" for word, what in COMMANDS.items()]
    return "\n".join(
        [f"usage: {PROGRAM} COMMAND [options]", "", "Machine unlearning of image-to-image models.", "", "commands:", *lines, "",
         f"{PROGRAM} COMMAND --help explains the options of a command."]
    )  # fmt: skip
