"""One audit from a folder to `audit.json`: which pictures, which parts, and what of it is already there."""

import json
import os
import time
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import datasets
import numpy as np
import yaml
from accelerate import PartialState

from ..corruptions import CORRUPTION_HELP, Corruption, parse_corruption
from ..data import ImageReader, load_processor, undecoded_column
from ..errors import InputError
from ..features import hash_weights
from ..loading import DEMOS, family_options, load_model
from ..lora import merge
from ..models.base import I2IModel
from ..selection import (
    FILE_NAME,
    ROW_NUMBER,
    by_classes,
    by_values,
    first_rows,
    load_source,
    select,
)
from ..splits import SplitArguments, build_splits, forget_selection
from .attacks import (
    Setting,
    best_relearning,
    blank_errors,
    device_of,
    features,
    hole_errors,
    probe,
    relearn,
    scrambled,
    visible_pixels,
)
from .statistics import auc, ratio
from .verdicts import SUPPRESSED, overall, verdicts

PARTS = ("relearning", "membership", "probe", "leakage")
FILE = "audit.json"


@dataclass
class AuditArguments:
    """What to audit, and how hard. What is not given is as in the run (run.yaml of the folder)."""

    model: str = field(default="", metadata={"help": "The output folder of an unlearning run."})
    original: str | None = field(default=None, metadata={"help": "The original checkpoint; that of the run."})
    dataset: str | None = field(default=None, metadata={"help": "Pictures; those of the run."})
    train_split: str | None = field(default=None, metadata={"help": "Split that was trained on; that of the run."})
    eval_split: str | None = field(
        default=None, metadata={"help": "Split that no model was trained on, 'none' if there is none; that of the run."}
    )
    forget_list: str | None = field(default=None, metadata={"help": "The takedown request, if it has moved since the run."})
    forget_values: list[str] | None = field(
        default=None, metadata={"help": "The values that were forgotten, where run.yaml does not name them."}
    )
    forget_rows: str | None = field(default=None, metadata={"help": "The rows that were, where run.yaml does not name them."})
    corruption: str | None = field(
        default=None, metadata={"help": f"T of training, if not that of the run: {CORRUPTION_HELP}."}
    )
    parts: list[str] = field(default_factory=lambda: list(PARTS), metadata={"help": f"What to run, of {', '.join(PARTS)}."})
    samples: int = field(default=300, metadata={"help": "Pictures per set and purpose, evenly spread; 0 = all."})
    membership_samples: int = field(
        default=1000, metadata={"help": "The same for membership inference, whose interval is wide with few; 0 = all."}
    )
    relearn_pictures: int = field(default=50, metadata={"help": "k: forget pictures that the relearning attacker has."})
    relearn_samples: int = field(default=100, metadata={"help": "Held-out forget pictures that relearning is measured on."})
    relearn_steps: int = field(default=200, metadata={"help": "Steps of relearning at most."})
    relearn_learning_rates: list[float] = field(
        default_factory=lambda: [1e-5, 1e-4, 1e-3], metadata={"help": "Learning rates tried; the attacker's best one counts."}
    )
    relearn_batch_size: int = field(default=32, metadata={"help": "Pictures per step of relearning."})
    tolerance: float = field(
        default=0.25, metadata={"help": "Within this share of the original's hole error a picture counts as completed again."}
    )
    never_trained: str | None = field(
        default=None,
        metadata={"help": "A checkpoint trained like the original but without the forget pictures, to compare with."},
    )
    never_seen_classes: list[str] | None = field(
        default=None, metadata={"help": "Classes of the dataset that the original never saw, to compare with."}
    )
    relearn_scrambled: bool = field(
        default=True, metadata={"help": "Compare with the original whose encoder weights are shuffled: one that knows nothing."}
    )
    masks: list[str] | None = field(
        default=None, metadata={"help": "Other T to complete pictures from; a list that suits the model's grid if not given."}
    )
    probe_features: int = field(
        default=2048, metadata={"help": "Longest representation a probe reads; longer ones are projected."}
    )
    generation_steps: int | None = field(
        default=None, metadata={"help": "Steps of generation (diffusion, MAGE); those of the run if not given."}
    )
    batch_size: int = field(default=64, metadata={"help": "Pictures per pass when nothing is trained."})
    seed: int = field(default=0, metadata={"help": "Fixes every draw."})
    use_cpu: bool = field(default=False, metadata={"help": "Use the CPU even where there is a GPU."})

    def check(self) -> None:
        """Raise InputError for a value that makes no sense."""
        for part in self.parts:
            if part not in PARTS:
                raise InputError(f"'{part}' is no part of an audit; choose from {', '.join(PARTS)}.")
        for name, least in {
            "relearn_pictures": 1, "relearn_samples": 1, "relearn_steps": 1, "relearn_batch_size": 1, "probe_features": 1,
            "batch_size": 1, "samples": 0, "membership_samples": 0,
        }.items():  # fmt: skip
            if getattr(self, name) < least:
                raise InputError(f"{name} must be {least} or more, got {getattr(self, name)}.")
        if not self.tolerance > 0:
            raise InputError(f"tolerance is a share larger than 0, such as 0.25; got {self.tolerance}.")
        if not self.relearn_learning_rates or min(self.relearn_learning_rates) <= 0:
            raise InputError(f"relearn_learning_rates must be one or more numbers above 0, got {self.relearn_learning_rates}.")


# Options under which a finished part stays valid: they choose parts, or say how fast, and not what a figure means.
GIVEN = ("dataset", "train_split", "eval_split", "forget_list", "forget_values", "forget_rows")
NAMES = {"forget_list", "forget_values", "forget_rows"}  # may name people: the description has their count and hash
FREE = {"model", "parts", "masks", "never_trained", "never_seen_classes", "relearn_scrambled", "batch_size", "use_cpu"}


@dataclass
class Sets:
    """Rows of an audit: {"image": {"bytes", "path"}, "label"}.

    known: forget pictures that the attacker has. held: others that the attacks are tested on. members: forget pictures that were
    trained on; unseen: pictures of the same classes that were not, None if there are none; the same for retain.
    """

    known: list
    held: list
    members: list
    unseen: list | None
    unseen_are: str
    retain: list
    retain_unseen: list | None
    description: dict


def run_audit(args: AuditArguments, command: str = "") -> dict:
    """Run the parts that are missing in `audit.json` of the folder, and write that file after each.

    Returns:
        What the file holds: options, sets, parts, verdicts, overall, made_with.

    Raises:
        InputError: no run.yaml, nonsensical options, or an audit.json of other options, weights or pictures.
    """
    args.check()
    run = read_run(args.model)
    state = PartialState(cpu=args.use_cpu)
    original_name = args.original or run["model"]
    original_path = DEMOS.get(original_name, original_name)
    family = family_options(run, args.generation_steps)
    model, patch = _load(args.model, (), _without(family, "subfolder"), state.device)
    original, _ = _load(original_path, run.get("patches") or (), family, state.device)
    _refuse_other_kind(f"The original '{original_path}'", original, model)
    split_args = split_arguments(args, run)
    corruption = parse_corruption(args.corruption or run["corruption"])
    corruption.check(model.grid)
    masks = [corruption, *(parse_corruption(m) for m in args.masks or default_masks(model.grid))]
    masks = {str(m): m for m in masks}
    for mask in masks.values():
        mask.check(model.grid)
    processor = load_processor(args.model if Path(args.model, "preprocessor_config.json").is_file() else original_path)
    setting = Setting(ImageReader(processor, model.channels, None, run.get("on_corrupt", "refuse")), args.batch_size, args.seed)
    sets = readable(build_sets(args, split_args), setting.reader)
    options = {k: v for k, v in asdict(args).items() if k not in FREE | NAMES} | {
        "original": original_name, "dataset": split_args.dataset, "train_split": split_args.train_split,
        "eval_split": split_args.eval_split, "forget": sets.description["forget"], "corruption": str(corruption),
        "weights": hash_weights(model), "original_weights": hash_weights(original),
    }  # fmt: skip
    book = Book(Path(args.model, FILE), options)
    others = compared_with(args, split_args, family, model)
    book.content["sets"] = sets.description | {"patch": patch}
    work = _Work(args, family, model, original, corruption, setting, sets, book, others)
    if "relearning" in args.parts:
        work.relearning()
    if "membership" in args.parts:
        work.membership()
    if "probe" in args.parts:
        work.probe()
    if "leakage" in args.parts:
        work.leakage(masks)
    book.close(command)
    return book.content


def read_run(folder: str) -> dict:
    """The options of an unlearning run. Raises InputError if the folder has no run.yaml."""
    file = Path(folder, "run.yaml")
    if not folder or not file.is_file():
        raise InputError(f"'{folder}' has no run.yaml; give --model the output folder of an unlearning run.")
    run = yaml.safe_load(file.read_text()) or {}
    if missing := sorted({"model", "dataset", "corruption"} - run.keys()):
        raise InputError(
            f"'{file}' lacks {', '.join(missing)}; give the output folder of an unlearning run, not of a comparison."
        )
    return run


def split_arguments(args: AuditArguments, run: dict) -> SplitArguments:
    """The selection of the run with what the audit's options change, and every picture of the real retain set available."""
    known = {f.name: run[f.name] for f in fields(SplitArguments) if f.name in run}
    given = {n: v for n in GIVEN if (v := getattr(args, n)) is not None}
    whole = {"retain_per_class": None, "proxy_classes": None, "proxy_dataset": None, "eval_samples": args.membership_samples}
    return SplitArguments(**known | given | whole)


def default_masks(grid: tuple[int, int]) -> list[str]:
    """Masks of every kind that fit the grid: random ones, a smaller and a larger centre, each side, and all but the centre."""
    side = min(grid)
    small, large, third = max(1, side // 4), max(1, side * 3 // 4), max(1, side // 3)
    return [
        "random:0.25", "random:0.5", "random:0.75", f"center:{small}", f"center:{large}", f"left:{third}", f"right:{third}",
        f"up:{third}", f"down:{third}", f"outpaint:{third}",
    ]  # fmt: skip


def build_sets(args: AuditArguments, split_args: SplitArguments) -> Sets:
    """The rows of every purpose. Where single pictures were forgotten they are parted into known and held ones."""
    count, has_eval = args.samples, split_args.eval_split not in (None, "none")
    splits = build_splits(split_args)
    train = _source(split_args, split_args.train_split)
    forget_by = forget_selection(split_args, train)
    forget = select(train, forget_by, True, split_args.image_column)
    single = forget_by.column in (ROW_NUMBER, FILE_NAME)
    unseen, unseen_are = None, ""
    if has_eval:
        pool = _source(split_args, split_args.eval_split)
        unseen_are = "of the same selection"
        if not single:
            pool = select(pool, forget_by, True, split_args.image_column)
        elif split_args.label_column in (train.features or {}):
            labels = sorted({row["label"] for row in _rows(forget, split_args, 0)}, key=str)
            feature = train.features[split_args.label_column]
            by = by_classes if isinstance(feature, datasets.ClassLabel) else by_values
            words = [feature.int2str(x) if by is by_classes else x for x in labels]
            by = by(pool, words, split_args.label_column) if by is by_classes else by(pool, split_args.label_column, words)
            pool, unseen_are = select(pool, by, True, split_args.image_column), "of the same classes"
        else:
            unseen_are = "of any kind"
        unseen = _rows(pool, split_args, args.membership_samples) or None
    members = _rows(forget, split_args, args.membership_samples)
    if single or unseen is None:
        rows = _rows(forget, split_args, 2 * count)
        order = np.random.default_rng(args.seed).permutation(len(rows))
        known, held = [rows[i] for i in order[::2]], [rows[i] for i in order[1::2]]
    else:
        known, held = _rows(forget, split_args, count), _spread(unseen, count)
    retain = [{"image": row["image"]} for row in first_rows(splits.retain, args.membership_samples)]
    return Sets(
        known, held, members, unseen, unseen_are, retain, splits.eval_retain if has_eval else None, dict(splits.description)
    )


def readable(sets: Sets, reader: ImageReader) -> Sets:
    """Without the unreadable pictures, where those are to be skipped, so that pictures and labels stay together."""
    if reader.on_corrupt == "refuse":
        return sets
    lists = {f.name: rows for f in fields(sets) if isinstance(rows := getattr(sets, f.name), list)}
    return replace(sets, **{name: [row for row in rows if reader.decode(row) is not None] for name, rows in lists.items()})


def compared_with(args: AuditArguments, split_args: SplitArguments, family: dict, model: I2IModel) -> dict:
    """What relearning is compared with: {"never_trained": model, "never_seen": (rows to train on, rows to test on)}."""
    found = {}
    if args.never_trained:
        fresh, _ = _load(args.never_trained, (), _without(family, "subfolder"), device_of(model))
        _refuse_other_kind(f"--never_trained '{args.never_trained}'", fresh, model)
        found["never_trained"] = fresh
    if args.never_seen_classes:
        source = _source(split_args, split_args.train_split)
        chosen = by_classes(source, args.never_seen_classes, split_args.label_column)
        need = args.relearn_pictures + args.relearn_samples
        rows = _rows(select(source, chosen, True, split_args.image_column), split_args, need)
        order = np.random.default_rng([args.seed, 2]).permutation(len(rows))
        cut = min(args.relearn_pictures, len(rows) // 2)
        if not cut:
            raise InputError(f"The never-seen classes hold {len(rows)} picture(s); relearning needs two at least.")
        found["never_seen"] = [rows[i] for i in order[:cut]], [rows[i] for i in order[cut:]]
    return found


def _load(path, patches, options, device):
    """(model, whether it was a patch): patches are merged, for an attacker trains all weights."""
    model = load_model(path, patches, **options).to(device)
    patch = model.patch is not None
    if patch:
        merge(model)
    return model, patch


def _refuse_other_kind(name, other, model):
    if (type(other), other.grid, other.image_size, other.channels) != (
        type(model),
        model.grid,
        model.image_size,
        model.channels,
    ):
        raise InputError(f"{name} is a model of another kind or size than the one to audit; give one that is like it.")


def _source(split_args, split):
    return load_source(split_args.dataset, split, split_args.dataset_config, split_args.streaming)


def _rows(dataset, split_args, count):
    image, label = split_args.image_column, split_args.label_column
    columns = [image] + ([label] if label in (dataset.features or {}) else [])
    rows = first_rows(undecoded_column(dataset, image).select_columns(columns), count)
    return [{"image": row[image], "label": row.get(label)} for row in rows]


def _without(options, name):
    return {k: v for k, v in options.items() if k != name}


class Book:
    """`audit.json`: finished parts, written at once, and the options that they hold for.

    Raises:
        InputError: the file holds parts of other options.
    """

    def __init__(self, file: Path, options: dict):
        self.file, options = file, json.loads(json.dumps(options))
        self.content = {"options": options, "sets": {}, "parts": {}}
        if file.is_file():
            old = json.loads(file.read_text())
            changed = sorted(k for k in old["options"].keys() | options.keys() if old["options"].get(k) != options.get(k))
            if changed:
                raise InputError(
                    f"'{file}' holds an audit under other options ({', '.join(changed)}); give them again, or move the file away."
                )
            self.content["parts"] = old["parts"]

    def part(self, name: str, measure, source: str | None = None) -> dict:
        """What `measure()` returns, from the file if it is there; `source` is what the part depends on beside the options."""
        parts = self.content["parts"]
        if name not in parts or parts[name].get("source") != source:
            print(f"audit: {name}", flush=True)
            started = time.perf_counter()
            found = measure() | {"seconds": round(time.perf_counter() - started, 1)}
            parts[name] = found | ({"source": source} if source else {})
            self.write()
        return parts[name]

    def close(self, command: str) -> None:
        """Add verdicts and what made them."""
        lines = verdicts(self.content)
        self.content |= {
            "suppression": SUPPRESSED, "overall": overall(lines), "verdicts": lines, "command": command,
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "made_with": {p: version(p) for p in ("torch", "transformers", "diffusers", "datasets")},
        }  # fmt: skip
        self.write()

    def write(self) -> None:
        new = self.file.with_suffix(".json.new")
        new.write_text(json.dumps(self.content, indent=1))
        os.replace(new, self.file)


@dataclass
class _Work:
    """The four parts on one pair of models."""

    args: AuditArguments
    family: dict
    model: I2IModel
    original: I2IModel
    corruption: Corruption
    setting: Setting
    sets: Sets
    book: Book
    others: dict

    def relearning(self):
        args, sets = self.args, self.sets
        rng = np.random.default_rng([args.seed, 1])
        known = [sets.known[i] for i in rng.permutation(len(sets.known))[: args.relearn_pictures]]
        held = _spread(sets.held, args.relearn_samples)
        if not known or not held:
            few = f"Only {len(sets.known) + len(sets.held)} forget picture(s): none is left to measure on."
            self.book.part("relearning/unlearned", lambda: {"skipped": few})
            return
        before = float(hole_errors(self.original, held, self.corruption, self.setting, "the original").mean())
        target = (1 + args.tolerance) * before
        common = {"target": target, "steps": args.relearn_steps, "batch_size": args.relearn_batch_size}
        facts = {"target": target, "pictures": len(known), "held": len(held), "original_error": before}
        facts["blank"] = float(blank_errors(self.original, held, self.corruption, self.setting).mean())

        def subject(name, model, rows=known, test=held, source=None):
            def measure():
                rates = args.relearn_learning_rates
                return best_relearning(
                    model(), rows, test, self.corruption, self.setting, learning_rates=rates, title=name, **common
                ) | facts  # fmt: skip

            return self.book.part(f"relearning/{name}", measure, source)

        rate = subject("unlearned", lambda: self.model)["learning_rate"]
        self.book.part(
            "relearning/original",
            lambda: relearn(
                self.original, known, held, self.corruption, self.setting, learning_rate=rate, title="original", to_the_end=True,
                **common,
            ) | facts,
        )  # fmt: skip
        if fresh := self.others.get("never_trained"):
            subject("never_trained", lambda: fresh, source=f"{args.never_trained} {hash_weights(fresh)[:16]}")
        if seen := self.others.get("never_seen"):
            subject("never_seen", lambda: self.original, *seen, "classes " + ", ".join(args.never_seen_classes))
        if args.relearn_scrambled:
            subject("scrambled", lambda: scrambled(self.original, args.seed))

    def membership(self):
        for name, members, others, kind in (
            ("forget", self.sets.members, self.sets.unseen, self.sets.unseen_are),
            ("retain", self.sets.retain, self.sets.retain_unseen, "of the retain set"),
        ):
            self.book.part(f"membership/{name}", lambda: self._membership(members, others, kind))

    def _membership(self, members, others, kind):
        if not others:
            return {"skipped": "No unseen pictures to compare with: the run has no evaluation split with such pictures."}
        found = {"members": len(members), "others": len(others), "unseen": kind}
        for when, model in (("before", self.original), ("after", self.model)):
            # An attacker takes a low error for membership.
            scores = [-hole_errors(model, rows, self.corruption, self.setting) for rows in (members, others)]
            found[when] = auc(*scores) | {"member_error": float(-scores[0].mean()), "other_error": float(-scores[1].mean())}
        return found

    def probe(self):
        sets = self.sets
        fit, test = [r for r in sets.known if r["label"] is not None], [r for r in sets.held if r["label"] is not None]
        self.book.part("probe/classes", lambda: self._probe(fit, test, [r["label"] for r in fit], [r["label"] for r in test]))
        retain, others = sets.retain, sets.retain_unseen
        if others is None:
            retain, others = retain[::2], retain[1::2]
        sides = [_balanced(sets.known, retain), _balanced(sets.held, others)]
        self.book.part("probe/forget_retain", lambda: self._probe(*(s[0] for s in sides), *(s[1] for s in sides)))

    def _probe(self, fit, test, fit_y, test_y):
        if len(set(fit_y)) < 2 or not set(fit_y) & set(test_y) or len(fit) < 8:
            return {"skipped": "It needs two kinds of pictures, and some of each to fit and to test on."}
        size, found = self.args.probe_features, {"fitted": len(fit)}
        for when, read, model in (
            ("before", features, self.original),
            ("after", features, self.model),
            ("pixels", visible_pixels, self.original),
        ):
            x = [read(model, rows, self.corruption, self.setting, size) for rows in (fit, test)]
            found[when] = probe(x[0], fit_y, x[1], test_y, self.args.seed)
        return found

    def leakage(self, masks: dict[str, Corruption]):
        for name, mask in masks.items():
            self.book.part(f"leakage/{name}", lambda: self._leakage(mask))

    def _leakage(self, mask):
        rows = self.sets.held or self.sets.known
        before, after = (hole_errors(m, rows, mask, self.setting, str(mask)) for m in (self.original, self.model))
        blank = blank_errors(self.original, rows, mask, self.setting)
        means = {"before": float(before.mean()), "after": float(after.mean()), "blank": float(blank.mean())}
        lead = means["blank"] - means["before"]  # what the original is better by than a fill that knows nothing
        left = (means["blank"] - means["after"]) / lead if lead > 0 else None
        return {"count": len(after)} | means | {"lead_left": left, "change": ratio(after, before, self.args.seed)}


def _spread(rows, count):
    """`count` rows, evenly spread; all if there are fewer, or if count is 0."""
    return [rows[i] for i in np.linspace(0, len(rows) - 1, count).astype(int)] if 0 < count < len(rows) else rows


def _balanced(forget, retain):
    """(rows, labels) of as many forget as retain rows."""
    count = min(len(forget), len(retain))
    return _spread(forget, count) + _spread(retain, count), ["forget"] * count + ["retain"] * count
