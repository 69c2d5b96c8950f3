"""What a run vouches for: verdicts picture by picture, put into a record that is data."""

from datetime import UTC, datetime
from pathlib import Path

from accelerate import PartialState

from ...audit.picture_verdicts import FEWEST, Judge, other_masks
from ...data.decoding import picture_hash
from ...data.reading import ImageReader
from ...data.sources import first_rows
from ...data.splits import build_splits
from ...errors import InputError, NotForgotten
from ...methods.corruptions import Corruption, Turns
from ...models.auto import family_options, load_model
from ...models.base import I2IModel
from ...places import without_absolute
from ...reporting.report import verification_page
from ...reporting.run_folder import RunFolder
from ...storage import content_hash, differences, write_json, write_text
from ...training.targets import identity
from ..words import parse_corruption
from .pair import Pair


def masks_of(corruption: Corruption) -> list[Corruption]:
    """The masks of training: one, or those that take turns."""
    return list(corruption.parts) if isinstance(corruption, Turns) else [corruption]


def judge(
    model: I2IModel,
    original: I2IModel,
    reader: ImageReader,
    corruption: Corruption,
    forget: list,
    unseen: list,
    batch: int,
    seed: int,
    progress: bool = True,
    twin: I2IModel | None = None,
) -> dict:
    """The verdicts of `Judge` under the masks of training and three others.

    forget, unseen: undecoded rows. twin: a model that never saw the forget pictures.
    """
    trained = masks_of(corruption)
    judged = Judge(original, reader, trained, other_masks(original.grid, trained), batch, seed, progress, twin)
    return judged(model, forget, unseen)


def load_twin(path: str | None, original: I2IModel, options: dict) -> I2IModel | None:
    """The model of --never_trained, on the device of the original; None without, or for "none".

    Raises:
        InputError: it is of another kind or size.
    """
    if path in (None, "none"):
        return None
    twin = load_model(path, **{k: v for k, v in options.items() if k != "subfolder"})
    if type(twin) is not type(getattr(original, "patched", original)) or twin.grid != original.grid:
        raise InputError(
            f"--never_trained '{path}' is a model of another kind or size than the original; give one that is like it."
        )
    return twin.to(next(original.parameters()).device).eval()


def twin_of(run) -> I2IModel | None:
    """The model of a run's --never_trained."""
    options = family_options(vars(run.args), family=type(getattr(run.original, "patched", run.original)))
    return load_twin(run.args.never_trained, run.original, options)


def unseen_rows(args, rows: dict[str, list], names_pictures: bool) -> tuple[list, str, bool]:
    """Pictures to compare with: the rows, what they are, and whether the original may have been trained on them.

    Args:
        rows: the evaluation pictures. names_pictures: whether the request names single ones, which then are among them.
    """
    if args.eval_split in (None, "none"):
        return rows["retain"], f"retain pictures{' that were held out of training' if args.hold_out else ''}", True
    kinds = ["retain"] if names_pictures else ["retain", "forget"]
    return [row for kind in kinds for row in rows[kind]], f"pictures of the split '{args.eval_split}'", False


def certify(run, trainer) -> dict:
    """The record of a finished run, see `reporting.request`. One process does it.

    Args:
        run: a `Run`. trainer: that has trained it.
    """
    args, accounting = run.args, trainer.accounting
    forget = first_rows(run.splits.forget, args.eval_samples)
    unseen, what, seen = unseen_rows(args, run.rows, not args.forget_classes and not args.forget_values)
    size = run.training.per_device_eval_batch_size
    verdicts = judge(
        run.model, run.original, run.reader.plain, run.corruption, forget, unseen, size, run.training.seed,
        not run.training.disable_tqdm, twin_of(run),
    )  # fmt: skip
    counts = accounting.counts
    for picture in verdicts["pictures"]:
        picture["trained"] = counts.get(picture["sha256"], 0)
    unreadable = set(verdicts["unreadable"])
    missed = sorted((set(accounting.missed) | {p["sha256"] for p in verdicts["pictures"] if not p["trained"]}) - unreadable)
    total = len(run.splits.forget) if hasattr(run.splits.forget, "__len__") else None
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "case": args.case_number,
        "erasure": run.erasure,
        "dataset": args.dataset,
        "asked": run.splits.description["forget"],
        "items": items_of(run.splits.found, bool(args.card_names or args.forget_classes)),
        "copies": copies_of(run.splits.copies),
        "notes": run.splits.notes,
        "identity": accounting.identity,
        "total": total,
        "trained": {"pictures": len(counts), "least": min(counts.values(), default=0), "most": max(counts.values(), default=0)},
        "missed": missed,
        "unseen": what,
        "seen": seen,
        "ended": {"steps": trainer.state.global_step, "why": run.takedown.ended if run.takedown else ""},
        "seed": run.training.seed,
        "weights": {"before": content_hash(identity(run.original)), "after": {}},
    } | vouched(verdicts, missed)


def vouched(verdicts: dict, missed: list[str], other: str | None = None) -> dict:
    """The verdicts with "certified", and "reason" where nobody can vouch for them. other: a reason that comes first."""
    few = min(mask["unseen"]["count"] for mask in verdicts["masks"].values())
    reason = other
    if reason is None and missed:
        reason = f"{len(missed)} forget pictures were never trained on; give the run more steps"
    if reason is None and few < FEWEST:
        reason = f"there are {few} unseen pictures to compare with, and {FEWEST} are needed; give a larger evaluation split"
    return verdicts | {"certified": reason is None, "reason": reason}


def items_of(found, named: bool) -> list[dict]:
    """{"item": as it was written, None where it may not be named, "pictures": how many it names} of a request, each."""
    return [{"item": item if named else None, "pictures": len(rows)} for item, rows in found.rows.items()] if found else []


def copies_of(copies) -> dict:
    """{sha256 of a forget picture: its copies, by how they are copies and their own sha256}, without names."""
    if copies is None:
        return {"looked_for": [], "of": {}}
    of = {sha: [{"how": c.how, "source": c.source, "sha256": c.sha256} for c in some] for sha, some in copies.of.items()}
    return {"looked_for": list(copies.looked_for), "of": of}


def write_record(folder: RunFolder, record: dict) -> None:
    """Keep the record, with the hashes of the weights that are in the folder."""
    folder.write_request(record | {"weights": record["weights"] | {"after": folder.weight_files()}})


def require(request: dict, share: float | None) -> None:
    """Raise NotForgotten where a smaller share of the pictures was forgotten, or where nobody can vouch for it."""
    found = request["honoured"]
    if share is not None and (not request["certified"] or (found["share"] or 0) < share):
        why = (
            f"{found['count']} of {found['of']} forget pictures are"
            if request["certified"]
            else f"{request['reason']}, so none is"
        )
        raise NotForgotten(
            f"{why} certified as forgotten, and --require_forgotten asks for a share of {share:g}. The folder is kept; give "
            "the run more steps, or more masks, and look at its pictures."
        )


def verify(args, run: dict, pair: Pair | None = None) -> dict:
    """The record of a verification, as `reporting.request` describes it, and "checks": sentences on pictures and weights.

    Args:
        args: `VerifyArguments`. run: the options of the run that was certified. pair: the models, where they are loaded
            already.

    Raises:
        InputError: models or pictures that cannot be had.
    """
    folder = RunFolder(args.record or args.model)
    certified, device = folder.request, PartialState(cpu=args.use_cpu).device
    pair = pair or Pair.load(args.model, folder, device, args.original, args.on_corrupt, args.background, args.generation_steps)
    splits = build_splits(args, certified)
    rows = {"retain": splits.eval_retain, "forget": splits.eval_forget}
    forget = first_rows(splits.forget, args.eval_samples)
    unseen, what, seen = unseen_rows(args, rows, not args.forget_classes and not args.forget_values)
    corruption = parse_corruption(certified["identity"]["corruption"], several=True)
    options = family_options(folder.options, family=type(pair.model))
    twin = load_twin(args.never_trained, pair.original, options)
    size, seed = args.batch_size, certified["seed"]
    verdicts = judge(pair.model, pair.original, pair.reader, corruption, forget, unseen, size, seed, twin=twin)
    same, checks = _checks(splits, RunFolder(args.model), certified)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "model": args.model,
        "certified_on": certified["date"],
        "case": certified.get("case"),
        "erasure": certified.get("erasure"),
        "dataset": args.dataset,
        "asked": splits.description["forget"],
        "identity": certified["identity"],
        "total": len(splits.forget) if hasattr(splits.forget, "__len__") else None,
        "missed": [],
        "unseen": what,
        "seen": seen,
        "checks": checks,
    } | vouched(verdicts, [], None if same else "the pictures are not those of the request")


def _checks(splits, model: RunFolder, certified: dict) -> tuple[bool, list[str]]:
    """Whether the pictures are those that were certified; sentences on them and on the weights."""
    wanted = certified["identity"]["forget"]
    same = wanted is None or not hasattr(splits.forget, "__len__")
    lines = []
    if same:
        lines.append("Of a stream nobody knows whether the pictures are those of the request.")
    else:
        same = content_hash(sorted(map(picture_hash, splits.forget))) == wanted
        lines.append(f"The pictures are {'' if same else 'NOT '}those of the request, by their hash.")
    if not model.path.is_dir():
        lines.append("The weights are on the Hub; their files were not compared with the certified ones.")
    else:
        changed = differences(certified["weights"]["after"], model.weight_files())
        lines.append(
            "The weights are those that were certified."
            if not changed
            else f"The weights are not those that were certified ({', '.join(changed)} differ); the verdicts are of these."
        )
    return same, lines


def write_verified(folder: Path, found: dict) -> None:
    """verified.json, and verified.html: one page."""
    write_json(folder / "verified.json", without_absolute(found, folder))
    write_text(folder / "verified.html", verification_page(found))
