"""One audit from a folder to `audit.json`: models, sets and parts."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from accelerate import PartialState

from ..commands.words import parse_corruption
from ..data.options import SplitArguments
from ..data.reading import ImageReader, load_processor
from ..data.requests import by_classes, select
from ..errors import InputError
from ..evaluation.features import hash_weights
from ..methods.corruptions import Corruption
from ..models.auto import DEMOS, family_options, load_model
from ..models.base import I2IModel
from ..models.patches import merge
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
from .book import Book
from .options import AuditArguments, default_masks, read_run, split_arguments
from .sets import Sets, build_sets, readable, rows_of, source_of, spread
from .statistics import auc, ratio

FILE = "audit.json"
# Options under which a finished part stays valid: they choose parts, or say how fast, and not what a figure means. The names
# may be those of people: the description of the sets has their count and hash.
NAMES = {"forget_list", "forget_values", "forget_rows"}  # may name people: the description has their count and hash
FREE = {"model", "parts", "masks", "never_trained", "never_seen_classes", "relearn_scrambled", "batch_size", "use_cpu"}


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
    trained = (args.corruption or run["corruption"]).split(",")  # several took turns; the attacks use the first one
    masks = [*map(parse_corruption, trained), *(parse_corruption(m) for m in args.masks or default_masks(model.grid))]
    corruption, masks = masks[0], {str(m): m for m in masks}
    for mask in masks.values():
        mask.check(model.grid)
    processor = load_processor(args.model if Path(args.model, "preprocessor_config.json").is_file() else original_path)
    setting = Setting(ImageReader(processor, model.channels, None, run.get("on_corrupt", "refuse")), args.batch_size, args.seed)
    sets = readable(build_sets(args, split_args), setting.reader)
    options = {k: v for k, v in asdict(args).items() if k not in FREE | NAMES} | {
        "original": original_name,
        "dataset": split_args.dataset,
        "train_split": split_args.train_split,
        "eval_split": split_args.eval_split,
        "forget": sets.description["forget"],
        "corruption": ",".join(list(masks)[: len(trained)]),
        "weights": hash_weights(model),
        "original_weights": hash_weights(original),
    }
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


def compared_with(args: AuditArguments, split_args: SplitArguments, family: dict, model: I2IModel) -> dict:
    """What relearning is compared with: {"never_trained": model, "never_seen": (rows to train on, rows to test on)}."""
    found = {}
    if args.never_trained:
        fresh, _ = _load(args.never_trained, (), _without(family, "subfolder"), device_of(model))
        _refuse_other_kind(f"--never_trained '{args.never_trained}'", fresh, model)
        found["never_trained"] = fresh
    if args.never_seen_classes:
        source = source_of(split_args, split_args.train_split)
        chosen = by_classes(source, args.never_seen_classes, split_args.label_column)
        need = args.relearn_pictures + args.relearn_samples
        rows = rows_of(select(source, chosen, True, split_args.image_column), split_args, need)
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


def _without(options, name):
    return {k: v for k, v in options.items() if k != name}


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
        held = spread(sets.held, args.relearn_samples)
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
                return (
                    best_relearning(
                        model(), rows, test, self.corruption, self.setting, learning_rates=rates, title=name, **common
                    )
                    | facts
                )

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
            return {
                "skipped": "No unseen pictures to compare with: the run has no evaluation split with such pictures. --eval_split names one."
            }
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


def _balanced(forget, retain):
    """(rows, labels) of as many forget as retain rows."""
    count = min(len(forget), len(retain))
    return spread(forget, count) + spread(retain, count), ["forget"] * count + ["retain"] * count
