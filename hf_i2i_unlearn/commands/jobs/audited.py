"""One audit from words: the run that it is about, its pictures, and the models to compare with."""

from dataclasses import fields
from pathlib import Path

import numpy as np
from accelerate import PartialState

from ...audit.attacks import device_of
from ...audit.options import AuditOptions
from ...audit.run import FILE, Audit, Compared, refuse_other_kind
from ...audit.sets import Sets, parted, spread
from ...data.options import SplitArguments
from ...data.reading import ImageReader, load_processor
from ...data.requests import classes_of, classes_request, load_classes, select
from ...data.sources import first_rows, load_source, undecoded_column
from ...data.splits import build_splits, forget_selection
from ...errors import InputError
from ...models.auto import DEMOS, family_options, load_model
from ...models.base import I2IModel
from ...models.patches import merge
from ...places import check_places, portable, without_absolute
from ...reporting.run_folder import OPTIONS, RunFolder
from ..words import parse_corruption

# Options of the audit that, where given, take the place of the run's.
GIVEN = ("dataset", "train_split", "eval_split", "forget_list", "forget_values", "forget_rows")


def run_audit(args, command: str = "", folder: str | None = None) -> dict:
    """Run the parts that are missing in `audit.json`, and write that file after each.

    Args:
        args: `AuditArguments`. command: that asked for it. folder: of audit.json; that of the run if None.

    Returns:
        What the file holds, see `audit_model`.

    Raises:
        InputError: no run.yaml, nonsensical options, or an audit.json of other options, weights or pictures.
    """
    args.check()
    run = read_run(args.model)
    device = PartialState(cpu=args.use_cpu).device
    if not args.original:
        check_places({"original": run["model"], "patches": run.get("patches")}, ("original", "patches"), args.model)
    original_name = args.original or run["model"]
    original_path = DEMOS.get(original_name, original_name)
    family = family_options(run, args.generation_steps)
    model, patch = load_merged(args.model, (), {k: v for k, v in family.items() if k != "subfolder"}, device)
    original, _ = load_merged(original_path, run.get("patches") or (), family, device)
    refuse_other_kind(f"The original '{original_path}'", original, model)
    masks = [parse_corruption(word) for word in args.masks] if args.masks else None
    corruption = parse_corruption(args.corruption or run["corruption"], several=True)
    split_args = split_arguments(args, run)
    sets = build_sets(args, split_args)
    facts = {
        "generation_steps": args.generation_steps,
        "original": portable(original_name, args.model),
        "dataset": portable(split_args.dataset, args.model),
        "train_split": split_args.train_split,
        "eval_split": split_args.eval_split,
        "forget": sets.description["forget"],  # in which the names, that may be those of people, are counted and hashed
    }
    processor = load_processor(args.model if Path(args.model, "preprocessor_config.json").is_file() else original_path)
    reader = ImageReader(processor, model.channels, None, run.get("on_corrupt", "refuse"), run.get("background", "white"))
    compared = compared_with(args, split_args, family, model)
    options = AuditOptions(**{f.name: getattr(args, f.name) for f in fields(AuditOptions)})
    audit = Audit(model, original, sets, reader, corruption, options, masks, None, compared, facts)
    erased = {"erased": True} if RunFolder(args.model).record.get("erasure") else {}
    return audit.run(Path(folder or args.model, FILE), command, patch=patch, **erased)


def read_run(folder: str) -> dict:
    """The options of an unlearning run. Raises InputError if the folder has no run.yaml."""
    run = RunFolder(folder).options if folder else {}
    if not run:
        raise InputError(f"'{folder}' has no {OPTIONS}; give --model the output folder of an unlearning run.")
    if missing := sorted({"model", "dataset", "corruption"} - run.keys()):
        raise InputError(
            f"'{folder}/{OPTIONS}' lacks {', '.join(missing)}; give the output folder of an unlearning run, not of a "
            "comparison."
        )
    return run


def split_arguments(args, run: dict) -> SplitArguments:
    """The selection of the run with what the audit's options change, and every picture of the real retain set available."""
    known = {f.name: run[f.name] for f in fields(SplitArguments) if f.name in run}
    given = {n: v for n in GIVEN if (v := getattr(args, n)) is not None}
    check_places(known, known.keys() - given.keys(), args.model)
    whole = {"retain_per_class": None, "proxy_classes": None, "proxy_dataset": None, "eval_samples": args.membership_samples}
    return SplitArguments(**known | given | whole)


def load_merged(path: str, patches, options: dict, device) -> tuple[I2IModel, bool]:
    """(model, whether it was a patch): patches are merged, for an attacker trains all weights."""
    model = load_model(path, patches, **options).to(device)
    patch = model.patch is not None
    if patch:
        merge(model)
    return model, patch


def compared_with(args, split_args: SplitArguments, family: dict, model: I2IModel) -> Compared:
    """What relearning is compared with."""
    found = Compared()
    if args.never_trained:
        options = {k: v for k, v in family.items() if k != "subfolder"}  # that of the original
        found.never_trained, _ = load_merged(args.never_trained, (), options, device_of(model))
        found.never_trained_name = portable(args.never_trained, args.model)
        refuse_other_kind(f"--never_trained '{args.never_trained}'", found.never_trained, model)
    if args.never_seen_classes:
        source = load_classes(split_args, split_args.train_split, args.never_seen_classes, split_args.streaming)
        rows = rows_of(source, split_args, args.relearn_pictures + args.relearn_samples)
        order = np.random.default_rng([args.seed, 2]).permutation(len(rows))
        cut = min(args.relearn_pictures, len(rows) // 2)
        if not cut:
            raise InputError(f"The never-seen classes hold {len(rows)} picture(s); relearning needs two at least.")
        found.never_seen = [rows[i] for i in order[:cut]], [rows[i] for i in order[cut:]]
        found.never_seen_name = "classes " + ", ".join(args.never_seen_classes)
    return found


def build_sets(args, split_args: SplitArguments) -> Sets:
    """The rows of every purpose. Where single pictures were forgotten they are parted into known and held ones."""
    count, has_eval = args.samples, split_args.eval_split not in (None, "none")
    splits = build_splits(split_args, RunFolder(args.model).request)
    train = _source(split_args, split_args.train_split)
    forget_by = forget_selection(split_args, train)
    forget = select(train, forget_by, True, split_args.image_column)
    single = forget_by.names_pictures
    unseen, unseen_are = None, ""
    if has_eval:
        pool, unseen_are = _unseen(split_args, train, forget_by, forget, single)
        unseen = rows_of(pool, split_args, args.membership_samples) or None
    members = rows_of(forget, split_args, args.membership_samples)
    held_trained = single or unseen is None
    if held_trained:
        known, held = parted(rows_of(forget, split_args, 2 * count), args.seed)
    else:
        known, held = rows_of(forget, split_args, count), spread(unseen or [], count)
    retain = [{"image": row["image"]} for row in first_rows(splits.retain, args.membership_samples)]
    return Sets(
        known, held, members, unseen, unseen_are, retain, splits.eval_retain if has_eval else None,
        without_absolute(splits.description, args.model),
        held_trained,
    )  # fmt: skip


def _unseen(split_args, train, forget_by, forget, single):
    """Pictures of the evaluation split like the forgotten ones, and in what they are like them."""
    pool, image, label = _source(split_args, split_args.eval_split), split_args.image_column, split_args.label_column
    if not single:
        return select(pool, forget_by, True, image), "of the same selection"
    if label not in (train.features or {}):
        return pool, "of any kind"
    by = classes_request(train, classes_of(forget, label), label)  # by name: the split may number or lack some
    return select(pool, by, True, image), "of the same classes"


def _source(split_args, split):
    """The rows of a split."""
    return load_source(split_args.dataset, split, split_args.dataset_config, split_args.streaming)


def rows_of(dataset, split_args: SplitArguments, count: int) -> list[dict]:
    """`count` rows {"image": {"bytes", "path"}, "label"}, evenly spread; all if count is 0."""
    image, label = split_args.image_column, split_args.label_column
    columns = [image] + ([label] if label in (dataset.features or {}) else [])
    rows = first_rows(undecoded_column(dataset, image).select_columns(columns), count)
    return [{"image": row[image], "label": row.get(label)} for row in rows]
