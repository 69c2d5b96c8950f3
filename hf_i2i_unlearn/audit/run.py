"""An audit of one unlearned model: the parts, each made once, and their verdicts. Words and folders are the command's."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..data.reading import ImageReader
from ..errors import InputError
from ..evaluation.features import hash_weights
from ..evaluation.metrics import BUILT_IN, HoleError, Metric, check_metrics
from ..methods.corruptions import CenterCrop, Corruption, Extend, Outpaint, RandomMask, Turns
from ..models.base import I2IModel
from .attacks import (
    Setting,
    best_relearning,
    blank_errors,
    features,
    hole_errors,
    probe,
    relearn,
    scrambled,
    visible_pixels,
)
from .book import Book
from .memory import attack
from .options import FREE, AuditOptions
from .sets import Sets, readable, sets_of, spread
from .statistics import auc, ratio, share

FILE = "audit.json"
WHOLE_CLASSES = (
    "Whole classes were forgotten, and the attacks are tested on pictures that no model was trained on. What comes back there "
    "is inferred from other pictures of the class. It is no memory, and no unlearning of pictures takes it away."
)


def audit_model(
    model: I2IModel,
    original: I2IModel,
    rows: dict[str, list],
    reader: ImageReader,
    corruption: Corruption,
    *,
    unseen: dict[str, list] | None = None,
    masks: list[Corruption] | None = None,
    options: AuditOptions | None = None,
    metric: Metric | None = None,
    never_trained: I2IModel | None = None,
    folder=None,
) -> dict:
    """Does it stay forgotten? Relearning, membership inference, a linear probe, and other masks than the trained one.

    Args:
        model, original: `I2IModel`s of one kind, without patches on them, on the device where they are to work.
        rows: {"forget": rows, "retain": rows} that the original was trained on: {"image", and perhaps "label"}, undecoded.
        reader: reads them, with the model's processor. corruption: T in training; several took turns as `Turns`.
        unseen: pictures of the same kinds that were never trained on, for membership inference, and to test the attacks on.
        masks: other T to complete pictures from; a list that suits the model's grid if None.
        options: how hard to try. metric: the error that all is judged by; `HoleError` if None. Lower must be better.
        never_trained: a model trained like the original but without the forget pictures, to compare relearning with.
        folder: where `audit.json` is kept, in which an audit goes on; None keeps nothing.

    Returns:
        {"options", "sets", "parts": {name: figures}, "verdicts": [{"title", "status", "finding", "caveat"}], "overall", ...}

    Raises:
        InputError: models of different kinds, a T that does not fit, no pictures, a metric where higher is better, or a folder
            that holds an audit of other options, weights or pictures.
    """
    options = options or AuditOptions()
    options.check()
    sets = sets_of(rows, unseen, options)
    compared = Compared(never_trained, "a model")
    facts = {"forget": sets.description["forget"]}
    audit = Audit(model, original, sets, reader, corruption, options, masks, metric, compared, facts)
    return audit.run(Path(folder, FILE) if folder else None)


def default_masks(grid: tuple[int, int]) -> list[Corruption]:
    """Masks of every kind that fit the grid: random ones, a smaller and a larger centre, each side, and all but the centre."""
    side = min(grid)
    small, large, third = max(1, side // 4), max(1, side * 3 // 4), max(1, side // 3)
    random = [RandomMask(share) for share in (0.25, 0.5, 0.75)]
    sides = [Extend(where, third) for where in ("left", "right", "up", "down")]
    return [*random, CenterCrop(small), CenterCrop(large), *sides, Outpaint(third)]


def refuse_other_kind(name: str, other: I2IModel, model: I2IModel) -> None:
    """Raise InputError unless both are models of one kind and size."""
    kinds = [(type(m), m.grid, m.image_size, m.channels) for m in (other, model)]
    if kinds[0] != kinds[1]:
        raise InputError(f"{name} is a model of another kind or size than the one to audit; give one that is like it.")


@dataclass
class Compared:
    """What relearning is compared with, and the names under which that is kept.

    never_trained: a model. never_seen: (rows to train on, rows to test on) of pictures that the original never saw.
    """

    never_trained: I2IModel | None = None
    never_trained_name: str = ""
    never_seen: tuple[list, list] | None = None
    never_seen_name: str = ""


class Audit:
    """The four parts on one pair of models.

    Args:
        model, original, reader, corruption, options, masks, metric: as in `audit_model`. sets: the rows, by purpose.
        compared: what relearning is compared with. facts: what a finished part depends on beside the options and the weights.

    Raises:
        InputError: see `audit_model`; before anything is measured.
    """

    def __init__(
        self,
        model: I2IModel,
        original: I2IModel,
        sets: Sets,
        reader: ImageReader,
        corruption: Corruption,
        options: AuditOptions,
        masks: list[Corruption] | None = None,
        metric: Metric | None = None,
        compared: Compared | None = None,
        facts: dict | None = None,
    ):
        refuse_other_kind("The original", original, model)
        if model.patch or original.patch:
            raise InputError("An attacker trains all weights, so patches have to be merged first: merge(model).")
        if metric is not None:
            _check_error(metric)
        self.compared = compared or Compared()
        if self.compared.never_trained is not None:
            refuse_other_kind("The never-trained model", self.compared.never_trained, model)
        trained = list(corruption.parts) if isinstance(corruption, Turns) else [corruption]  # the attacks use the first one
        masks = default_masks(model.grid) if masks is None else masks
        self.masks = {str(mask): mask for mask in (*trained, *masks)}
        for mask in self.masks.values():
            mask.check(model.grid)
        self.model, self.original, self.corruption, self.options = model, original, trained[0], options
        self.setting = Setting(reader, options.batch_size, options.seed, metric=metric or HoleError())
        self.sets = readable(sets, reader)
        known = {k: v for k, v in asdict(options).items() if k not in FREE}
        self.key = known | {"corruption": ",".join(dict.fromkeys(map(str, trained)))} | (facts or {})
        self.key |= {"weights": hash_weights(model), "original_weights": hash_weights(original)}
        if metric is not None and metric.name != HoleError.name:
            self.key["metric"] = metric.title or metric.name

    def run(self, file: Path | None = None, command: str = "", **facts) -> dict:
        """Run the parts that are missing in `file`, writing it after each; see `audit_model` for what it holds.

        Args:
            facts: kept beside the description of the sets.
        """
        self.book = Book(file, self.key)
        self.book.content["sets"] = self.sets.description | facts
        parts = {
            "relearning": self._relearning,
            "memory": self._memory,
            "membership": self._memberships,
            "probe": self._probes,
            "leakage": self._leakages,
        }
        for name, measure in parts.items():
            if name in self.options.parts:
                measure()
        self.book.close(command)
        return self.book.content

    def _relearning(self):
        args, sets = self.options, self.sets
        rng = np.random.default_rng([args.seed, 1])
        known = [sets.known[i] for i in rng.permutation(len(sets.known))[: args.relearn_pictures]]
        held = spread(sets.held, args.relearn_samples)
        if not known or not held:
            few = f"Only {len(sets.known) + len(sets.held)} forget picture(s): none is left to measure on."
            self.book.part("relearning/unlearned", lambda: {"skipped": few})
            return
        before = float(hole_errors(self.original, held, self.corruption, self.setting, "the original").mean())
        target = (1 + args.tolerance) * before
        common: dict[str, Any] = {"target": target, "steps": args.relearn_steps, "batch_size": args.relearn_batch_size}
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
        whole = {"learning_rate": rate, "title": "original", "to_the_end": True} | common
        curve = partial(relearn, self.original, known, held, self.corruption, self.setting, **whole)
        self.book.part("relearning/original", lambda: curve() | facts)
        if fresh := self.compared.never_trained:
            name = f"{self.compared.never_trained_name} {hash_weights(fresh)[:16]}"
            subject("never_trained", lambda: fresh, source=name)
        if seen := self.compared.never_seen:
            subject("never_seen", lambda: self.original, *seen, self.compared.never_seen_name)
        if args.relearn_scrambled:
            subject("scrambled", lambda: scrambled(self.original, args.seed))

    def _memory(self):
        """What an attacker with half of the forgotten pictures brings back of the other half."""
        args, sets = self.options, self.sets
        if not sets.held_trained or len(sets.known) < 2 or not sets.held:
            self.book.part(
                "memory/unlearned", lambda: {"skipped": WHOLE_CLASSES if sets.known else "There are too few pictures."}
            )
            return
        known, held = spread(sets.known, args.relearn_pictures), spread(sets.held, args.relearn_samples)
        retain = spread(sets.retain, args.relearn_pictures)

        how = f"{args.memory_weights} {args.memory_learning_rates} {args.memory_steps}"

        def attacked(name, model, source=""):
            found = partial(
                attack, model, known, held, retain, self.corruption, self.setting, weights=args.memory_weights, title=name,
                learning_rates=args.memory_learning_rates, steps=args.memory_steps, batch_size=args.relearn_batch_size,
            )  # fmt: skip
            return self.book.part(f"memory/{name}", lambda: found() | {"pictures": len(known), "held": len(held)}, how + source)

        def remembered():
            before = float(hole_errors(self.original, held, self.corruption, self.setting, "the original").mean())
            return {"error": before, "blank": float(blank_errors(self.original, held, self.corruption, self.setting).mean())}

        self.book.part("memory/original", remembered)
        attacked("unlearned", self.model)
        if twin := self.compared.never_trained:
            attacked("never_trained", twin, f" {self.compared.never_trained_name} {hash_weights(twin)[:16]}")
        if sets.unseen:
            self.book.part("memory/extraction", lambda: self._extraction(held, spread(sets.unseen, args.samples)))

    def _extraction(self, held, unseen):
        """How many of the pictures are completed better than 95 of 100 that no model was trained on."""
        measure = partial(hole_errors, corruption=self.corruption, setting=self.setting)
        bound = float(np.percentile(measure(self.original, unseen), 5))
        flags = {when: measure(m, held) < bound for when, m in (("before", self.original), ("after", self.model))}
        return {"bound": bound, "unseen": len(unseen)} | {k: share(int(v.sum()), len(v)) for k, v in flags.items()}

    def _memberships(self):
        for name, members, others, kind in (
            ("forget", self.sets.members, self.sets.unseen, self.sets.unseen_are),
            ("retain", self.sets.retain, self.sets.retain_unseen, "of the retain set"),
        ):
            self.book.part(f"membership/{name}", partial(self._membership, members, others, kind))

    def _membership(self, members, others, kind):
        if not others:
            return {
                "skipped": "No unseen pictures to compare with: the run has no evaluation split with such pictures. "
                "--eval_split names one."
            }
        found = {"members": len(members), "others": len(others), "unseen": kind}
        for when, model in (("before", self.original), ("after", self.model)):
            # An attacker takes a low error for membership.
            scores = [-hole_errors(model, rows, self.corruption, self.setting) for rows in (members, others)]
            found[when] = auc(*scores) | {"member_error": float(-scores[0].mean()), "other_error": float(-scores[1].mean())}
        return found

    def _probes(self):
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
        size = self.options.probe_features
        found: dict[str, Any] = {"fitted": len(fit)}
        for when, read, model in (
            ("before", features, self.original),
            ("after", features, self.model),
            ("pixels", visible_pixels, self.original),
        ):
            x = [read(model, rows, self.corruption, self.setting, size) for rows in (fit, test)]
            found[when] = probe(x[0], fit_y, x[1], test_y, self.options.seed)
        return found

    def _leakages(self):
        for name, mask in self.masks.items():
            self.book.part(f"leakage/{name}", partial(self._leakage, mask))

    def _leakage(self, mask):
        rows = self.sets.held or self.sets.known
        before, after = (hole_errors(m, rows, mask, self.setting, str(mask)) for m in (self.original, self.model))
        blank = blank_errors(self.original, rows, mask, self.setting)
        means = {"before": float(before.mean()), "after": float(after.mean()), "blank": float(blank.mean())}
        lead = means["blank"] - means["before"]  # what the original is better by than a fill that knows nothing
        left = (means["blank"] - means["after"]) / lead if lead > 0 else None
        return {"count": len(after)} | means | {"lead_left": left, "change": ratio(after, before, self.options.seed)}


def _balanced(forget, retain):
    """(rows, labels) of as many forget as retain rows."""
    count = min(len(forget), len(retain))
    return spread(forget, count) + spread(retain, count), ["forget"] * count + ["retain"] * count


def _check_error(metric):
    """Raise InputError unless the metric is an error, whose ratio to another one says something."""
    if type(metric) not in map(type, BUILT_IN):
        check_metrics([metric])
    if metric.higher_is_better:
        raise InputError(
            f"An audit is judged by an error, and the metric '{metric.name}' is higher where a completion is better; give one "
            "that is lower, such as 1 - similarity."
        )
