"""What erasing is worth: a model that knows pictures by heart is made to forget, attacked, erased, and attacked again."""

import copy
import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import SchedulerType, set_seed

from ..audit.attacks import Setting, hole_errors, relearn
from ..audit.memory import attack, came_back
from ..audit.picture_verdicts import Judge
from ..data.decoding import picture_hash
from ..data.pairs import ForgetRetainPairs
from ..data.reading import ImageReader
from ..data.sources import first_rows
from ..evaluation.completions import completions
from ..evaluation.evaluator import Evaluator
from ..evaluation.features import FeatureNetwork, hash_weights
from ..evaluation.scores import SCORES
from ..methods.corruptions import Corruption
from ..methods.method import OURS, Method
from ..methods.noise import Noise, StandardNormal
from ..models.base import I2IModel
from ..models.erasure import move_to_fresh
from ..storage import read_kept, write_kept
from ..training.config import UnlearningConfig
from ..training.erasure import ErasureTrainer
from ..training.trainer import UnlearningTrainer

NEVER_SAW, KNOWS = "never saw them", "knows them by heart"  # the rows of the models before any stage
TOLERANCE = 0.03  # the rise of the retain error within which a learning rate is chosen


@dataclass(frozen=True)
class Stage:
    """One way of unlearning.

    learning_rates: several are tried, and the one that forgets most counts of those that raise the retain error by at most
    `TOLERANCE`, on a half of the retain pictures that nothing is reported on.
    share: of the way to a fresh initialisation that the weights are moved before they are trained; 0 is unlearning alone.
    decoder: the decoder's too. after: the name of the stage whose model it starts from; None is the original.
    scheduler: of its learning rate; an erasure's is always a cosine. noise: the distribution of n.
    proxy: its retain pictures are the study's `proxies`, for where those of training are no longer at hand.
    """

    name: str
    steps: int
    learning_rates: tuple[float, ...] = (1e-3,)
    method: Method = OURS
    muon_learning_rate: float = 0.0
    batch_size: int = 16
    share: float = 0.0
    decoder: bool = False
    after: str | None = None
    alpha: float = 0.25
    proxy: bool = False
    scheduler: str = "constant"
    noise: Noise = StandardNormal()


@dataclass
class Study:
    """A memorised model, its pictures, and what attackers get back after each stage.

    Args:
        original: knows `known` by heart. twin: a model that never saw them, None if there is none. reader: reads the pictures,
            and augments retain pictures in training. known: undecoded rows. train: undecoded retain rows, map-style. unseen:
            rows that nobody saw. corruption: T. seed: of everything. weights, rates, steps: of the attackers.
        proxies: rows like `train` for stages that take them. features: networks that completions are measured by besides.
        folder: where figures and weights are kept, so that it goes on there; None keeps nothing.
        options: what the models were loaded with; of what is kept, only what was made with the same counts.
    """

    original: I2IModel
    twin: I2IModel | None
    reader: ImageReader
    known: list
    train: Any
    unseen: list
    corruption: Corruption
    seed: int = 0
    weights: tuple[str, ...] = ("all",)
    rates: tuple[float, ...] = (3e-4, 1e-3)
    steps: int = 48
    batch_size: int = 32
    folder: Path | None = None
    proxies: Any = ()
    features: tuple[FeatureNetwork, ...] = ()
    options: dict = field(default_factory=dict)
    models: dict = field(default_factory=dict)

    def __post_init__(self):
        self.setting = Setting(self.reader.plain, seed=self.seed, progress=False)
        order = np.random.default_rng([self.seed, 5]).permutation(len(self.known))
        self.attackers = [self.known[int(i)] for i in order[::2]]
        self.others = [self.known[int(i)] for i in order[1::2]]
        some = first_rows(self.train, 100)
        augment = getattr(self.reader.augment, "__name__", str(self.reader.augment))
        self.trained_on = [hash_rows(self.known), len(self.train), hash_rows(some), augment]
        self.measured_on = hash_rows(self.unseen)
        self.unseen, self.chosen_by = self.unseen[1::2], self.unseen[::2]
        self.trained = {name: p.requires_grad for name, p in self.original.named_parameters()}
        self.reference = completed(self.original, self.unseen, self.corruption, self.setting)
        self.evaluator: Evaluator | None = None

    def run(self, stages: list[Stage]) -> list[dict]:
        """A row per model: the twin, the original, and each stage.

        Returns:
            [{"name", "learning_rate", "seconds": of training, "retain": hole error on unseen ones, "drift": from the original's
            completions there, "known": hole error on the known ones, "honoured": {"count", "of", ...} of `Judge`, "start",
            "lowest": on the half that the attacker has not, before the attack and at its best, "attacker", "came_back",
            "scores": by the feature networks, see `of_model`}]
        """
        rows = [self._row(NEVER_SAW, lambda: (self.twin, 0.0, None))] if self.twin is not None else []
        rows.append(self._row(KNOWS, lambda: (self.original, 0.0, None)))
        rows += [self._row(stage.name, lambda stage=stage: self._trained(stage), self._facts(stage)) for stage in stages]
        memorised = next(row["start"] for row in rows if row["name"] == KNOWS)
        twin = next((row["lowest"] for row in rows if row["name"] == NEVER_SAW), None)
        for row in rows:
            reference = row["start"] if twin is None else twin
            row["came_back"] = came_back(row["lowest"], reference, memorised)
        return rows

    def _facts(self, stage: Stage) -> dict:
        """What the weights of a stage depend on, as it is read again."""
        words = {"method": stage.method.name, "noise": str(stage.noise)}
        key = {"stage": asdict(stage) | words, "seed": self.seed, "corruption": str(self.corruption)}
        if stage.decoder and self.original.distils != "completions":  # older studies of completions keep what they have
            key["distils"] = self.original.distils
        key["data"] = self.trained_on + ([len(self.proxies), hash_rows(first_rows(self.proxies, 100))] if stage.proxy else [])
        return json.loads(json.dumps(key | {"original": hash_weights(self.original)[:16], "options": self.options}))

    def _row(self, name, make, facts=None):
        """What is measured of the model that `make` gives, with the seconds and the rate of its training."""
        file = self.folder / f"{name}.json" if self.folder else None
        twin = hash_weights(self.twin)[:16] if self.twin is not None else None
        attackers = [list(self.weights), list(self.rates), self.steps]
        key = {"facts": facts, "attackers": attackers, "twin": twin, "original": hash_weights(self.original)[:16]}
        key |= {"unseen": self.measured_on, "options": self.options}
        scores_file = self.folder / f"{name}-scores.json" if self.folder else None
        scores_key = key | {"networks": [hash_weights(network)[:16] for network in self.features]}
        known = read_kept(file, key) if file is not None else None
        scores = [] if not self.features else read_kept(scores_file, scores_key) if scores_file else None
        if known and scores is not None and not facts:
            return known | {"scores": scores}
        model, seconds, rate = make()
        self.models[name] = model
        if not known:
            print(f"study: {name}", flush=True)
            known = {"name": name, "seconds": round(seconds, 1), "learning_rate": rate} | self._measure(model)
            if file is not None:
                write_kept(file, key, known)
        if scores is None:
            print(f"study: features of {name}", flush=True)
            scores = self._scores(model)
            if scores_file is not None:
                write_kept(scores_file, scores_key, scores)
        return known | {"scores": scores}

    def _scores(self, model) -> list[dict]:
        """What the networks say of its completions: a dict per set, network and region."""
        if self.evaluator is None:  # what it keeps of the original and of true pictures serves every model
            sets = {"retain": self.unseen, "known": self.known}
            self.evaluator = Evaluator(
                self.original, sets, self.reader.plain, self.corruption, seed=self.seed, keep_original=True,
                features=self.features,
            )  # fmt: skip
        found = self.evaluator(model, progress=False)
        return [{"set": kind} | of_model(seen) for kind, figures in found.items() for seen in figures["features"]]

    def _trained(self, stage: Stage):
        """(the model, seconds of training, learning rate), from the folder if it is there."""
        place = self.folder / stage.name if self.folder else None
        known = read_kept(place / "stage.json", self._facts(stage)) if place else None
        if place and known:
            model = self._trainable(self.original).eval()
            model.load_weights(place)
            return model, known["seconds"], known["rate"]
        print(f"study: training {stage.name}", flush=True)
        model, seconds, rate = self._tuned(stage)
        if place:
            model.save_pretrained(place)
            write_kept(place / "stage.json", self._facts(stage), {"seconds": seconds, "rate": rate})
        return model, seconds, rate

    def _measure(self, model):
        sets = {"retain": self.unseen, "known": self.known}
        errors = {kind: self._error(model, rows) for kind, rows in sets.items()}
        now = completed(model, self.unseen, self.corruption, self.setting)
        found = attack(
            self._trainable(model), self.attackers, self.others, list(self.unseen), self.corruption, self.setting,
            weights=list(self.weights), learning_rates=list(self.rates), steps=self.steps, batch_size=self.batch_size,
        )  # fmt: skip
        best = {k: v for k, v in found["attackers"][0].items() if k != "curve"}
        drift = float((now - self.reference).square().sum() / hole_size(model, self.corruption, now))
        curve = found["attackers"][0]["curve"]
        judge = Judge(self.original, self.reader.plain, [self.corruption], [], seed=self.seed, progress=False, twin=self.twin)
        honoured = judge(model, self.known, [*self.unseen, *self.chosen_by])["honoured"]
        return errors | {
            "drift": drift,
            "honoured": honoured,
            "start": found["start"],
            "lowest": found["lowest"],
            "attacker": best,
            "curve": curve,
        }

    def _trainable(self, model):
        """A copy of which everything that the family trains can be trained again, whatever was frozen since."""
        made = copy.deepcopy(model)
        for name, weight in made.named_parameters():
            weight.requires_grad_(self.trained[name])
        return made

    def _tuned(self, stage: Stage):
        """(the model, seconds of training, learning rate) of the best rate."""
        tried = [(*self._train(stage, rate), rate) for rate in stage.learning_rates]
        if len(tried) == 1:
            return tried[0]
        before = self._error(self.original, self.chosen_by)
        costs = [self._error(model, self.chosen_by) / before - 1 for model, *_ in tried]
        gains = [self._error(model, self.known) for model, *_ in tried]
        within = [i for i, cost in enumerate(costs) if cost <= TOLERANCE]
        return tried[max(within, key=gains.__getitem__) if within else int(np.argmin(costs))]

    def _error(self, model, rows) -> float:
        return float(hole_errors(model, rows, self.corruption, self.setting).mean())

    def _train(self, stage: Stage, rate: float):
        """(the model, seconds of training)."""
        set_seed(self.seed)
        model = self._trainable(self.original if stage.after is None else self.models[stage.after])
        args = UnlearningConfig(
            str(self.folder or "study"), max_steps=stage.steps, learning_rate=rate, alpha=stage.alpha,
            muon_learning_rate=stage.muon_learning_rate, lr_scheduler_type=stage.scheduler,
            per_device_train_batch_size=stage.batch_size,
            noise_target="mean" if stage.method.shared_target and model.noise_target_is_shared else "fresh",
            save_strategy="no", logging_strategy="no", seed=self.seed, use_cpu=next(model.parameters()).device.type == "cpu",
        )  # fmt: skip
        pairs = ForgetRetainPairs(self.known, self.proxies if stage.proxy else self.train, self.seed)
        kind: Any = UnlearningTrainer
        more: dict[str, Any] = {}
        if stage.share:
            move_to_fresh(model, stage.share, self.seed, stage.decoder)
            args.lr_scheduler_type = SchedulerType.COSINE
            kind, more = ErasureTrainer, {"distil_decoder": 1.0 if stage.decoder else 0.0}
        rest = {"original": self.original, "reader": self.reader, "method": stage.method, "noise": stage.noise} | more
        trainer = kind(model, args, pairs, self.reader.processor, self.corruption, **rest)
        trainer.data_collator.augment_forget = False
        started = time.perf_counter()
        trainer.train()
        return model.eval(), time.perf_counter() - started

    @torch.no_grad()
    def pictures(self, rows: list[dict], stages: list[str], count: int = 6) -> dict:
        """Columns for `plots.completion_grid`: what the attacker has not, completed before and after his attack."""
        models: dict[str, I2IModel] = {"knew it": self.original}
        for name in stages:
            row = next(r for r in rows if r["name"] == name)
            title = name.replace(", ", ",\n")  # columns are narrow
            models |= {title: self.models[name], f"{title},\nattacked": self._attacked(self.models[name], row)}
        return completions(models, self.reader.plain, self.corruption, self.others[:count], self.seed)

    def _attacked(self, model, row):
        kept: list[I2IModel] = []
        best = row["attacker"]
        with torch.enable_grad():
            relearn(
                self._trainable(model), self.attackers, self.others[:1], self.corruption, self.setting, target=-np.inf,
                learning_rate=best["learning_rate"], steps=max(1, best["step"]), batch_size=self.batch_size, to_the_end=True,
                weights=best["weights"], beside=list(self.unseen) if best["retain"] else None, at_end=kept.append,
            )  # fmt: skip
        return kept[0].eval()


def hash_rows(rows: list) -> str:
    """One short hash of the pictures of undecoded rows, in their order."""
    return hashlib.sha256("".join(map(picture_hash, rows)).encode()).hexdigest()[:16]


def never_seen(held, known: list):
    """`held` without the pictures of `known`, by their hashes; both undecoded, `held` a map-style dataset."""
    taken = set(map(picture_hash, known))
    return held.select([i for i, row in enumerate(held) if picture_hash(row) not in taken])


@torch.no_grad()
def completed(model: I2IModel, rows: list, corruption: Corruption, setting: Setting) -> torch.Tensor:
    """(N, C, H, W), normalised."""
    found = []
    for pixels, seeds in setting.batches(rows, "completing", next(model.parameters()).device):
        found.append(model.eval().generate(pixels, corruption(model.grid, seeds[:, 0]), seeds[:, 1]).cpu())
    return torch.cat(found)


def hole_size(model: I2IModel, corruption: Corruption, pictures: torch.Tensor) -> float:
    """How many values are hidden in all pictures together."""
    rows, cols = model.grid
    return pictures.numel() * corruption.hidden(model.grid) / (rows * cols)


def of_model(seen: dict) -> dict:
    """What `Scores.compute` gives of the model alone: network and kind, region, whether pictures are too few, scores."""
    return {name: seen[name] for name in ("network", "kind", "region", "few_samples", *SCORES) if name in seen}
