"""Look at a model: original and unlearned side by side, on a page of this machine.

    pip install "hf_i2i_unlearn[show]"
    hf-i2i-unlearn show unlearned

A picture is uploaded or chosen, a mask chosen or painted; the page shows what both models make of it, and the verdict of the
request beside it. Nothing leaves the machine. --space FOLDER writes the same page as a folder that can be pushed as a Space:

    hf-i2i-unlearn show unlearned --space space
    hf upload me/unlearned space . --repo-type space --private

It holds both models, the record and the package, and no picture of the forget set; others only where --pictures asks for them.
The original in it still completes what the other has forgotten: keep the Space private where nobody may see that.
"""

import sys
from dataclasses import dataclass, field

from ..errors import InputError
from .cli import parse


@dataclass
class Arguments:
    """What to show. The folder may stand first, without its option."""

    model: str = field(default="", metadata={"help": "The output folder of an unlearning run, or a Hub id."})
    record: str | None = field(
        default=None, metadata={"help": "The output folder of the run, where the model is another, such as a merged one."}
    )
    original: str | None = field(default=None, metadata={"help": "The original checkpoint, where it has moved."})
    dataset: str | None = field(default=None, metadata={"help": "Pictures to choose from; those of the run if not given."})
    pictures: int | None = field(
        default=None, metadata={"help": "How many there are to choose from: [12], and none in a Space."}
    )
    show_forgotten: bool = field(
        default=False, metadata={"help": "Let pictures of the forget set be among them, in a Space too."}
    )
    forget_values: list[str] | None = field(
        default=None, metadata={"help": "The values that were forgotten, where run.yaml does not name them."}
    )
    forget_rows: str | None = field(default=None, metadata={"help": "The rows that were, where run.yaml does not name them."})
    forget_list: str | None = field(default=None, metadata={"help": "The request, where it has moved."})
    space: str | None = field(default=None, metadata={"help": "Write a folder for a Space in place of opening the page."})
    port: int | None = field(default=None, metadata={"help": "Port of the page on this machine; a free one if not given."})
    use_cpu: bool = field(default=False, metadata={"help": "Use the CPU even where there is a GPU."})


def main() -> None:
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        words = ["--model", *words]
    (args,) = parse((Arguments,), __doc__, words)
    if not args.model:
        raise InputError("Name the folder of the run: hf-i2i-unlearn show FOLDER.")
    from .jobs.shown import gradio
    from .jobs.space import choose_pictures, write_space

    gradio()  # before anything is loaded
    count = args.pictures if args.pictures is not None else 0 if args.space else 12
    pictures = choose_pictures(args, count) if count else []
    if args.space:
        write_space(args, pictures)
        print(f"In {args.space}: app.py, requirements.txt, README.md, both models and the package; {len(pictures)} pictures.")
        print("The original in it still completes the forgotten pictures: keep the Space private where nobody may see that.")
        return
    from accelerate import PartialState
    from transformers.utils.logging import disable_progress_bar

    from .jobs.shown import Shown, launch, page

    disable_progress_bar()  # of loading
    shown = Shown.load(args.model, args.record, args.original, PartialState(cpu=args.use_cpu).device)
    launch(page(shown, pictures), server_name="127.0.0.1", server_port=args.port, share=False)
