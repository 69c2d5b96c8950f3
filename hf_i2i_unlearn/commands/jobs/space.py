"""The folder of a Space that shows a model, and which pictures a visitor of the page may choose from."""

import shutil
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

from PIL import Image

from ...data.decoding import Decoder, Unreadable, picture_hash
from ...data.options import SplitArguments
from ...data.requests import select
from ...data.sources import first_rows, load_source, undecoded
from ...data.splits import forget_selection
from ...errors import InputError
from ...models.auto import DEMOS, split_patch
from ...places import check_places
from ...reporting.hub import PUSHED
from ...reporting.request import headline
from ...reporting.run_folder import OPTIONS, RECORD, REQUEST, RunFolder
from ...storage import write_text

PACKAGE = Path(__file__).parents[2]
MODEL, ORIGINAL, PICTURES = "unlearned", "original", "pictures"  # folders of a Space
# What the page needs; the package itself travels with it.
NEEDS = ("accelerate", "datasets", "diffusers", "huggingface_hub", "jinja2", "matplotlib", "numpy", "peft", "pillow", "pyarrow",
         "pyyaml", "safetensors", "torch", "tqdm", "transformers")  # fmt: skip

APP = '''"""Original and unlearned model side by side; written by `hf-i2i-unlearn show --space`."""

from pathlib import Path

from PIL import Image

from hf_i2i_unlearn.commands.jobs.shown import Shown, launch, page

HERE = Path(__file__).parent
pictures = [Image.open(file).convert("RGB") for file in sorted((HERE / "pictures").glob("*.png"))]
launch(page(Shown.load(str(HERE / "unlearned"), original={original}), pictures))
'''

README = """---
title: {title}
sdk: gradio
sdk_version: {gradio}
app_file: app.py
pinned: false
---

# {name}: before and after unlearning

{verdict}

The page completes a picture with the original model and with the unlearned one. {pictures}
"""


def choose_pictures(args, count: int) -> list[Image.Image]:
    """Pictures of the run's training split to choose from, evenly spread; of the forget set only with `--show_forgotten true`.

    What the record knows as a picture of the request, or as a copy of one, is left out under any name.

    Args:
        args: `Arguments` of `show`. count: at most so many.

    Raises:
        InputError: pictures that were asked for by --pictures and cannot be had.
    """
    folder = RunFolder(args.record or args.model)
    try:
        rows = _rows(args, folder, count)
    except InputError as error:
        if args.pictures:
            raise
        print(f"No pictures to choose from: {error}")
        return []
    decode, found = Decoder(None, folder.options.get("background", "white"), 512), []
    for row in rows:
        try:
            found.append(decode(row["image"]).convert("RGB"))
        except Unreadable:
            continue
    return found


def _rows(args, folder: RunFolder, count: int) -> list[dict]:
    run = folder.options
    known = {f.name: run[f.name] for f in fields(SplitArguments) if f.name in run}
    given = {name: getattr(args, name) for name in ("dataset", "forget_values", "forget_rows", "forget_list")}
    given = {name: value for name, value in given.items() if value is not None}
    check_places(known, known.keys() - given.keys(), folder.path)
    split = SplitArguments(**known | given)
    train = load_source(split.dataset, split.train_split, split.dataset_config, split.streaming)
    by, hashes = forget_selection(split, train), hashes_of(folder.request)
    if not args.show_forgotten:
        retain = first_rows(undecoded(select(train, by, False, split.image_column), split.image_column), count)
        return [row for row in retain if picture_hash(row) not in hashes]
    sets = [undecoded(select(train, by, keep, split.image_column), split.image_column) for keep in (True, False)]
    return [row for some in sets for row in first_rows(some, max(1, count // 2))]


def hashes_of(request: dict) -> set[str]:
    """Hashes of the pictures that a record knows as those of the request, and of their copies."""
    found = {picture["sha256"] for picture in request.get("pictures", ())}
    found |= {*request.get("missed", ()), *request.get("unreadable", ())}
    return found | {copy["sha256"] for some in request.get("copies", {}).get("of", {}).values() for copy in some}


def write_space(args, pictures: list[Image.Image]) -> None:
    """Write app.py, requirements.txt, README.md, both models, the package and the pictures into the folder `args.space`.

    Raises:
        InputError: the folder is not empty, or the models are not in folders that can be taken along.
    """
    from .shown import gradio

    space, folder = Path(args.space), RunFolder(args.record or args.model)
    if space.exists() and (space.is_file() or any(space.iterdir())):
        raise InputError(f"The folder '{space}' is not empty; choose another --space, or empty it.")
    if not Path(args.model).is_dir():
        raise InputError(f"A Space is written from a folder, and '{args.model}' is none; download the model first.")
    original = args.original or folder.options.get("model") or ""
    if not args.original:
        check_places({"original": original}, ("original",), folder.path)
    if len(split_patch(args.model)[1]) > 1 or folder.options.get("patches"):
        raise InputError("A Space takes one patch on its original, and this one lies on others; write it with --merge true.")
    original = DEMOS.get(original, original)
    _copy(Path(args.model), space / MODEL)
    for name in (OPTIONS, RECORD, REQUEST):
        if not (space / MODEL / name).is_file() and (folder.path / name).is_file():
            shutil.copy(folder.path / name, space / MODEL / name)
    if Path(original).is_dir():
        _copy(Path(original), space / ORIGINAL)
        original_words = f'str(HERE / "{ORIGINAL}")'
    else:
        original_words = repr(original)
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")  # the weights of the demos
    shutil.copytree(PACKAGE, space / PACKAGE.name, ignore=ignored)
    for number, picture in enumerate(pictures):
        (space / PICTURES).mkdir(exist_ok=True)
        picture.save(space / PICTURES / f"{number:03d}.png")
    write_text(space / "app.py", APP.format(original=original_words))
    write_text(space / "requirements.txt", "".join(f"{name}=={version(name).partition('+')[0]}\n" for name in NEEDS))
    words = {
        "title": f"{folder.name} before and after unlearning"[:60],
        "gradio": gradio().__version__,
        "name": folder.name,
        "verdict": headline(folder.request) if folder.request else "There is no record of a request.",
        "pictures": "Pictures of the forget set are among those to choose from."
        if args.show_forgotten and pictures
        else "No picture of the forget set is in this repository.",
    }
    write_text(space / "README.md", README.format(**words))


def _copy(source: Path, target: Path) -> None:
    """What a push would upload, without pictures and cards."""
    target.mkdir(parents=True)
    for pattern in PUSHED:
        for file in source.rglob(pattern) if pattern.startswith("*.") else source.glob(pattern):
            place = file.relative_to(source)
            skipped = place.parts[0].startswith(("checkpoint-", ".")) or file.suffix in (".png", ".md")
            if not skipped and place.name != "training_args.json":
                (target / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target / place)
