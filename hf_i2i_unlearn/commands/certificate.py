"""What a run vouches for: verdicts picture by picture, put into a record that is data."""

from datetime import UTC, datetime

from ..audit.picture_verdicts import Judge, other_masks
from ..data.reading import ImageReader
from ..data.sources import first_rows
from ..errors import NotForgotten
from ..methods.corruptions import Corruption, Turns
from ..models.base import I2IModel
from ..reporting.run_folder import RunFolder
from ..storage import content_hash
from ..training.targets import identity


def masks_of(corruption: Corruption) -> list[Corruption]:
    """The masks of training: one, or those that take turns."""
    return list(corruption.parts) if isinstance(corruption, Turns) else [corruption]


def judge(
    model: I2IModel, original: I2IModel, reader: ImageReader, corruption: Corruption, forget: list, unseen: list, batch: int, seed: int,
    progress: bool = True,
) -> dict:  # fmt: skip
    """The verdicts of `Judge` under the masks of training and three others. forget, unseen: undecoded rows."""
    trained = masks_of(corruption)
    judged = Judge(original, reader, trained, other_masks(original.grid, trained), batch, seed, progress)
    return judged(model, forget, unseen)


def unseen_rows(args, rows: dict[str, list], names_pictures: bool) -> tuple[list, str, bool]:
    """Pictures to compare with: the rows, what they are, and whether the original may have been trained on them.

    Args:
        rows: the evaluation pictures. names_pictures: whether the request names single ones, which then are among them.
    """
    if args.eval_split in (None, "none"):
        return rows["retain"], "retain pictures", True
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
        not run.training.disable_tqdm,
    )  # fmt: skip
    counts = accounting.counts
    for picture in verdicts["pictures"]:
        picture["trained"] = counts.get(picture["sha256"], 0)
    unreadable = set(verdicts["unreadable"])
    missed = sorted((set(accounting.missed) | {p["sha256"] for p in verdicts["pictures"] if not p["trained"]}) - unreadable)
    total = len(run.splits.forget) if hasattr(run.splits.forget, "__len__") else None
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "dataset": args.dataset,
        "asked": run.splits.description["forget"],
        "identity": accounting.identity,
        "total": total,
        "trained": {"pictures": len(counts), "least": min(counts.values(), default=0), "most": max(counts.values(), default=0)},
        "missed": missed,
        "unseen": what,
        "seen": seen,
        "seed": run.training.seed,
        "weights": {"before": content_hash(identity(run.original)), "after": {}},
        "certified": not missed,
        "reason": f"{len(missed)} forget pictures were never trained on; give the run more steps" if missed else None,
    } | verdicts


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
            f"{why} certified as forgotten, and --require_forgotten asks for a share of {share:g}. The folder is kept; give the run more "
            "steps, or more masks, and look at its pictures."
        )
