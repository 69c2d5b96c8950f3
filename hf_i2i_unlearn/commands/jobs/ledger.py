"""The ledger of patches in commands: who else is on, what is entered, whether every request holds, and training one anew."""

import tempfile
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from ...data.options import SplitArguments
from ...errors import InputError, NotForgotten
from ...models.ledger import FILE, Ledger, now
from ...reporting.run_folder import RunFolder
from ..options import check_required

# What names the pictures of a request. Values and rows may name people: they stand in the ledger with --card_names alone.
NAMING = ("dataset", "dataset_config", "forget_classes", "forget_column", "forget_list", "forget_list_column", "retain_dataset")
WAYS = {"forget_classes", "forget_values", "forget_rows", "forget_list"}
# Options of the run of a patch that are not those of training it anew.
OF_THAT_RUN = {"model", "output_dir", "ledger", "patches", "resume_from_checkpoint", "require_forgotten", "push_to_hub"}


@dataclass
class LedgerArguments:
    """Which ledger, and where the pictures of its requests are, if they have moved or it does not name them."""

    ledger: str = field(default="", metadata={"help": f"The folder with {FILE}, beside the patches."})
    original: str | None = field(default=None, metadata={"help": "The original checkpoint, where it has moved."})
    dataset: list[str] = field(
        default_factory=list, metadata={"help": "Where pictures are now: NAME=FOLDER of a request, or FOLDER of all."}
    )
    forget_list: list[str] = field(
        default_factory=list, metadata={"help": "NAME=FILE: the takedown list of a request, where it has moved."}
    )
    forget_rows: list[str] = field(
        default_factory=list, metadata={"help": "NAME=ROWS of requests by row; a ledger does not name them."}
    )
    forget_values: list[str] = field(
        default_factory=list, metadata={"help": "NAME=VALUE of requests by value; several times for several values."}
    )
    require_forgotten: float = field(
        default=0.95, metadata={"help": "The share of its pictures that must not be completed for a request to hold."}
    )
    generation_steps: int | None = field(
        default=None, metadata={"help": "Steps of generation (diffusion, MAGE); those of the runs if not given."}
    )
    batch_size: int = field(default=64, metadata={"help": "Pictures per pass."})
    use_cpu: bool = field(default=False, metadata={"help": "Use the CPU even where there is a GPU."})

    def __post_init__(self):
        check_required(self.require_forgotten)


def open_ledger(folder: str, original: str | None = None) -> Ledger:
    """The ledger in a folder. Raises InputError if there is none, or its patches are not as they were entered.

    Args:
        original: where its original is, if it has moved.
    """
    ledger = Ledger(folder)
    ledger.original = original or ledger.original
    if not folder or not ledger.requests:
        raise InputError(
            f"'{folder}' has no {FILE}; give --ledger the folder that unlearn --lora true --ledger FOLDER has written to."
        )
    ledger.check_patches()
    return ledger


def given_pictures(args: LedgerArguments, ledger: Ledger) -> dict[str, dict]:
    """{name of an active request: the options that name its pictures}, of the ledger and of the command line.

    Raises:
        InputError: a request that is none, or one whose pictures nobody names.
    """
    found = {}
    for entry in ledger.active:
        found[entry["name"]] = {option: ledger.found(value) for option, value in entry["pictures"].items()}
    for option in ("dataset", "forget_list", "forget_rows", "forget_values"):
        for word in getattr(args, option):
            name, equals, value = word.partition("=")
            if option == "dataset" and not equals:
                for options in found.values():
                    options["dataset"] = word
                continue
            if name not in found or not equals:
                raise InputError(f"--{option} takes NAME=..., NAME one of the requests {ledger.names()}; got '{word}'.")
            if option == "forget_values":
                value = [*found[name].get(option, []), value]
            found[name][option] = value
    return found


def refuse_unnamed(name: str, pictures: dict) -> None:
    """Raise InputError where nothing says which pictures a request is about."""
    if not WAYS & pictures.keys():
        raise InputError(
            f"The ledger does not name the pictures of '{name}', which may be those of people; give them again: "
            f"--forget_rows {name}=3,17 or --forget_values {name}=VALUE."
        )


def others_of(args, splits) -> list[str]:
    """The patches of the ledger that are on beside the one to be trained: those of other requests.

    Args:
        args: `RunArguments`. splits: of the run.

    Raises:
        InputError: the ledger is of another original, or there are patches that are not in it.
    """
    if not args.ledger:
        return []
    if args.patches:
        raise InputError("--ledger brings the patches that are on; leave out --patches, and give the original as --model.")
    from ...data.decoding import picture_hash
    from ...training.accounting import request_hash

    ledger = Ledger(args.ledger)
    if ledger.original and ledger.relative(ledger.original) != ledger.relative(args.model):
        raise InputError(
            f"The ledger '{args.ledger}' is of the original '{ledger.original}', not of '{args.model}'; give patches of "
            "another original a --ledger of their own."
        )
    ledger.check_patches()
    mine = request_hash(map(picture_hash, splits.forget))
    return [ledger.patch(entry) for entry in ledger.active if entry["request"] != mine]


def enter(args, folder: str, request: dict) -> None:
    """Enter the patch in the output folder of a run. args: `RunArguments`. request: the record of the run."""
    ledger = Ledger(args.ledger)
    ledger.original = ledger.original or args.model
    names = {*NAMING, *WAYS} - {*args.private}
    pictures = {option: value for option in sorted(names) if (value := getattr(args, option)) is not None}
    entry = ledger.enter(
        Path(folder).resolve().name, request["identity"]["forget"], folder, pictures, request["asked"], verdict(request, [])
    )
    entry["case"] = args.case_number
    entry["held"]["with"] = [e["name"] for e in ledger.active]
    ledger.write()


def verdict(found: dict, names: list[str]) -> dict:
    """What the ledger keeps of a verdict. names: of the requests whose patches were on."""
    return {"date": now(), "count": found["honoured"]["count"], "of": found["honoured"]["of"], "with": names}


def check(ledger: Ledger, entries: list[dict], pictures: dict[str, dict], args: LedgerArguments, models=None) -> list[str]:
    """Give every picture of these requests its verdict, with the patches of all of them on and no others.

    Each request is told in a line, and its "held" brought up to date; the ledger is not written.

    Args:
        entries: of the ledger. pictures: as `given_pictures` has them. models: the patched model and the original, if they are
            loaded already.

    Returns:
        The names of the requests that do not hold: too few of their pictures are forgotten, or nobody can vouch for it.
    """
    from ...data.reading import ImageReader, load_processor
    from ..verify import VerifyArguments
    from .certificate import verify
    from .pair import Pair

    broken, names = [], [entry["name"] for entry in entries]
    models = models or load_patched(ledger, entries, args)
    known = (
        {f.name for f in fields(SplitArguments)} - {"streaming", "retain_per_class", "proxy_classes", "proxy_dataset"} - WAYS
    )
    for entry in entries:
        folder = ledger.patch(entry)
        refuse_unnamed(entry["name"], pictures[entry["name"]])
        run = RunFolder(folder).options
        options = {k: v for k, v in run.items() if k in known | {"on_corrupt", "never_trained"}} | pictures[entry["name"]]
        asked = VerifyArguments(
            model=folder, original=ledger.original, batch_size=args.batch_size, use_cpu=args.use_cpu, **options
        )
        own = load_processor(folder)
        reader = ImageReader(own, models[0].channels, None, asked.on_corrupt, asked.background)
        found = verify(asked, run, Pair(models[0], models[1], reader, str(ledger.original)))
        entry["held"] = verdict(found, names)
        holds = found["certified"] and (found["honoured"]["share"] or 0) >= args.require_forgotten
        broken += [] if holds else [entry["name"]]
        print(line(entry, holds, found["reason"]), flush=True)
    return broken


def line(entry: dict, holds: bool, reason: str | None) -> str:
    """What is said of a request."""
    held = entry["held"]
    why = f" ({reason})" if reason else ""
    word = "holds" if holds else "does NOT hold"
    return f"{entry['name']} {word}: {held['count']} of {held['of']} pictures can no longer be completed{why}."


def load_patched(ledger: Ledger, entries: list[dict], args: LedgerArguments):
    """(the original with the patches of these requests on it, the original), on the device; of the weights there is one copy.

    Without any requests the two are the same.
    """
    from accelerate import PartialState

    from ...models.auto import DEMOS, family_of, family_options, load_model
    from ...models.patches import AdaptersOff

    run = RunFolder(ledger.patch(ledger.requests[0])).options
    original = str(ledger.original)
    path = DEMOS.get(original, original)
    options = family_options(run, args.generation_steps, family_of(path, run.get("subfolder")))
    model = load_model(path, [ledger.patch(entry) for entry in entries], **options)
    model = model.to(PartialState(cpu=args.use_cpu).device).eval()
    return model, AdaptersOff(model, alone=True) if entries else model


def check_others(args, request: dict) -> None:
    """After a run: do the other requests of its ledger hold with the new patch on? args: `RunArguments`. request: of the run.

    Raises:
        NotForgotten: one does not, and the run was to answer for its request by `require_forgotten`.
    """
    share = args.require_forgotten or 0.95
    asked = LedgerArguments(ledger=args.ledger, require_forgotten=share)
    ledger = open_ledger(args.ledger)
    pictures = given_pictures(asked, ledger)
    unnamed = [name for name, options in pictures.items() if not WAYS & options.keys()]
    if len(ledger.active) < 2:
        return
    if unnamed:
        print(f"\nNot checked with the new patch on: the ledger does not name the pictures of {', '.join(unnamed)}.")
        return
    print("\nThe requests of the ledger, with all patches on:")
    mine = request["identity"]["forget"]
    own = [entry["name"] for entry in ledger.active if entry["request"] == mine]
    broken = [name for name in check(ledger, ledger.active, pictures, asked) if name not in own]
    ledger.write()
    if broken:
        what = (
            f"With this patch on, {' and '.join(broken)} no longer hold; train anew: hf-i2i-unlearn renew --ledger "
            f"{args.ledger} --request {broken[0]}."
        )
        if args.require_forgotten:
            raise NotForgotten(what)
        print(what)


def train_again(args: LedgerArguments, ledger: Ledger, entry: dict, pictures: dict, steps: int | None = None, more=()) -> None:
    """Train a request's patch anew beside those of all others, which are on and off in turn, and enter it.

    The patch goes to a new folder beside the old one, with the options of the old one's run.

    Args:
        pictures: the options that name its pictures. steps: optimisation steps, if not those of the run. more: words of the
            command line, of `unlearn`.

    Raises:
        InputError: options that cannot work.
    """
    from ...models.auto import DEMOS, family_of
    from ..cli import parse
    from ..families import FAMILIES
    from .run import Run, prepare_run, unlearn

    refuse_unnamed(entry["name"], pictures)
    old = Path(ledger.patch(entry))
    run = {k: v for k, v in RunFolder(old).options.items() if k not in OF_THAT_RUN | WAYS and not k.startswith("hub_")}
    original = str(ledger.original)
    kind = FAMILIES[family_of(DEMOS.get(original, original), run.get("subfolder")).family]
    options = run | pictures | {"model": original, "output_dir": str(next_folder(old)), "ledger": str(ledger.folder)}
    options |= {"max_steps": steps} if steps else {}
    options |= {"use_cpu": True} if args.use_cpu else {}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(options | {"save_strategy": "no"}, file)
        file.flush()
        asked, training = parse((kind.arguments, kind.training), "", ["--config", file.name, *more])
    path = prepare_run(asked, training)
    model, processor = kind.load(asked, path)
    unlearn(Run.prepare(asked, training, model, processor, path), f"recipes/unlearn_{model.family}.py", check=False)


def next_folder(folder: Path) -> Path:
    """'one' -> 'one-2' -> 'one-3', the first that is not there."""
    stem, _, number = folder.name.rpartition("-")
    stem, count = (stem, int(number)) if stem and number.isdigit() else (folder.name, 1)
    while (new := folder.with_name(f"{stem}-{count + 1}")).exists():
        count += 1
    return new
