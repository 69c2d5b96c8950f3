"""Unlearning runs from one original under one budget, measured on the way. What a run has shown is kept, and not made again."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, set_seed

from ..data.options import SplitArguments
from ..data.pairs import ForgetRetainPairs
from ..data.reading import ImageReader
from ..data.splits import Splits, build_splits, make_pairs
from ..errors import InputError, RunError
from ..evaluation.features import hash_weights
from ..methods.corruptions import Corruption
from ..methods.distances import MSE, Distance
from ..methods.method import Method
from ..methods.noise import Noise, StandardNormal
from ..models.base import I2IModel
from ..models.patches import add_patch
from ..storage import read_kept, write_kept
from ..training.config import UnlearningConfig
from ..training.trainer import UnlearningTrainer

NOISES = {"normal": StandardNormal()}  # label: n, where nothing else is given
FAILED = "weights or completions that are no finite numbers"


@dataclass(frozen=True)
class Setting:
    """What one run differs in from the others. seed: None for that of the options. lora: the rank of its adapters, 0 for none.

    noise: its label. retain_per_class, proxy: which retain pictures it may train on; `proxy` takes the proxies that the options
    name.
    """

    method: Method
    learning_rate: float
    alpha: float
    seed: int | None = None
    noise: str = "normal"
    retain_per_class: int | None = None
    proxy: bool = False
    lora: int = 0
    retain_bound: float | None = None

    @property
    def name(self) -> str:
        """Its file."""
        parts = [self.method.name, f"lr{self.learning_rate:g}"]
        parts.append(f"alpha{self.alpha:g}" if self.retain_bound is None else f"bound{self.retain_bound:g}")
        parts += [] if self.noise == "normal" else [self.noise]
        parts += [] if self.retain_per_class is None else [f"retain{self.retain_per_class}"]
        parts += (["proxy"] if self.proxy else []) + ([f"lora{self.lora}"] if self.lora else [])
        return "-".join(parts + ([] if self.seed is None else [f"seed{self.seed}"]))


class Pictures:
    """The pictures of all runs, the same for every setting.

    Args:
        train: {"forget": dataset, "retain": dataset} of undecoded rows. rows: {"forget": rows, "retain": rows} to evaluate on.
    """

    def __init__(self, train: dict, rows: dict[str, list]):
        self.train, self.rows = train, rows

    @property
    def forget(self):
        """The forget set of training."""
        return self.train["forget"]

    def pairs(self, setting: Setting, seed: int):
        """The training pairs of a setting.

        Raises:
            InputError: it asks for fewer retain pictures or proxies, which only pictures that options name have.
        """
        if setting.proxy or setting.retain_per_class is not None:
            raise InputError(f"The setting '{setting.name}' limits the retain pictures; name the pictures by options for that.")
        return ForgetRetainPairs(self.train["forget"], self.train["retain"], seed)


class NamedPictures(Pictures):
    """Those that options name. Limits to the retain pictures and proxies apply to the settings that ask for them."""

    def __init__(self, args: SplitArguments):
        self.args, self._splits = args, {}
        whole = self.splits()
        super().__init__(
            {"forget": whole.forget, "retain": whole.retain}, {"retain": whole.eval_retain, "forget": whole.eval_forget}
        )

    def splits(self, setting: Setting | None = None) -> Splits:
        """The sets of a setting; without one those with all retain pictures, whose evaluation pictures all runs share."""
        count, proxy = (None, False) if setting is None else (setting.retain_per_class, setting.proxy)
        if (count, proxy) not in self._splits:
            names: dict[str, Any] = {} if proxy else {"proxy_classes": None, "proxy_dataset": None}
            self._splits[count, proxy] = build_splits(replace(self.args, retain_per_class=count, **names))
        return self._splits[count, proxy]

    def pairs(self, setting, seed):
        return make_pairs(self.args, self.splits(setting), seed)


class Comparison:
    """Makes runs and keeps what was measured, one file a run in `folder`/runs.

    Args:
        folder: see above; None keeps it in memory. load: a fresh original at every call. original: one that stays as it is.
        processor: its image processor. pictures: to train and to evaluate on.
        training: options of all runs; steps, learning rate, alpha and seed are those of the setting.
        corruption: T in training. max_steps: length of the schedule; a run ends at the last step that is asked for.
        measure: (model, setting, step, what) -> figures, any JSON. None: who makes it sets `measure` before the first run.
        noise: label -> the noise n, asked for once. distance: of the representations.
        augment (in training), on_corrupt, background: see `ImageReader`.

    Raises:
        InputError: an average of weights is asked for, which exists only at the end of a run.
    """

    def __init__(
        self,
        folder,
        load: Callable[[], I2IModel],
        original: I2IModel,
        processor,
        pictures: Pictures,
        training: UnlearningConfig,
        corruption: Corruption,
        max_steps: int,
        measure: Callable | None,
        noise: Callable[[str], Noise] = NOISES.__getitem__,
        distance: Distance = MSE,
        on_corrupt: str = "refuse",
        augment: Callable | None = None,
        background: str = "white",
    ):
        if training.ema_decay:
            raise InputError(
                "ema_decay averages the weights at the end of a run, but runs are measured on the way; leave it at 0."
            )
        self.folder, self.load, self.original, self.processor = folder and Path(folder), load, original, processor
        self.pictures, self.training, self.corruption, self.max_steps = pictures, training, corruption, max_steps
        self.measure: Any = measure
        self.make_noise, self.distance = noise, distance
        self.key = {"original": hash_weights(original)}
        self.training_reader = ImageReader(processor, original.channels, augment, on_corrupt, background)
        self.reader = self.training_reader.plain
        self._noises, self._known = {}, {}

    def noise(self, label: str) -> Noise:
        """The noise n of that label, fitted once."""
        if label not in self._noises:
            self._noises[label] = self.make_noise(label)
        return self._noises[label]

    def missing(self, setting: Setting, steps, whats) -> dict[int, list[str]]:
        """{step: what is not measured there yet}."""
        known = self.known(setting)
        found = {}
        for step in steps:
            point = known.get(str(step), {"figures": {}})
            found[step] = [w for w in whats if w not in point["figures"] and "failed" not in point]
        return {step: left for step, left in found.items() if left}

    def known(self, setting: Setting) -> dict:
        """What is known of a setting: {step: {"seconds", "figures": {what: figures}}}."""
        if self.folder is None:
            return self._known.get(setting.name, {})
        return read_kept(self.file(setting), self.key) or {}

    def file(self, setting: Setting) -> Path:
        return self.folder / "runs" / f"{setting.name}.json"

    def run(self, setting: Setting, steps: list[int], whats: list[str], label: str = "", save: Path | None = None) -> dict:
        """What a run shows at these steps; it is made if any of it is not known.

        Args:
            whats: names that `measure` understands, such as T's. label: printed before a run. save: a folder for the weights at
                the last of the steps; the run is made if it does not exist.

        Returns:
            {step: {"seconds", "figures": {what: figures}}}, and at the last step of a run with a retain bound "bound". Once
            weights or completions are no finite numbers, there is "failed" and no figures.
        """
        missing = self.missing(setting, steps, whats)
        if save is not None and not Path(save).exists() and "failed" not in self.known(setting).get(str(max(steps)), {}):
            missing.setdefault(max(steps), [])
        if missing:
            print(f"{label}{setting.name}", flush=True)
            points = self.known(setting)
            for step, point in self._train(setting, missing, save).items():
                old = points.setdefault(str(step), {"seconds": point["seconds"], "figures": {}})
                old["figures"] |= point["figures"]
                old |= {key: point[key] for key in ("bound", "failed") if key in point}
            self._known[setting.name] = points
            if self.folder is not None:
                write_kept(self.file(setting), self.key, points)
        points = self.known(setting)
        return {step: points[str(step)] for step in steps}

    def _train(self, setting, missing, save):
        """{step: what was measured there}."""
        seed = self.training.seed if setting.seed is None else setting.seed
        set_seed(seed)
        model = self.load()
        if setting.lora:
            add_patch(model, "the original", setting.lora)
        callback = _Measure(model, missing, lambda step, what: self.measure(model, setting, step, what))
        trainer = self._trainer(setting, seed, model, callback)
        try:
            trainer.train()
        except RunError:
            if is_finite(model):
                raise  # no fault of the setting
        for step in missing:  # those that it did not get to
            callback.points.setdefault(step, {"seconds": round(callback.seconds, 1), "figures": {}, "failed": FAILED})
        if "failed" in callback.points[max(missing)]:
            return callback.points
        if setting.retain_bound:
            callback.points[max(missing)]["bound"] = trainer.bound_report()
        if save is not None:
            (model.patch or model).save_pretrained(save)
            self.processor.save_pretrained(save)
        return callback.points

    def _trainer(self, setting, seed, model, callback):
        method = setting.method
        options = self.training.to_dict() | {
            "learning_rate": setting.learning_rate,
            "alpha": setting.alpha,
            "seed": seed,
            "max_steps": self.max_steps,
            "retain_bound": setting.retain_bound,
            "save_strategy": "no",
            "eval_strategy": "no",
            "logging_strategy": "no",
            "output_dir": str(self.folder / "runs") if self.folder else self.training.output_dir,
            "noise_target": self.training.noise_target if method.shared_target else "fresh",
            "noise_bank": self.training.noise_bank if method.shared_target else 0,
            "cache_targets": self.training.cache_targets and method.trains_encoder_alone,
        }
        return UnlearningTrainer(
            model,
            UnlearningConfig(**options),
            self.pictures.pairs(setting, seed),
            self.processor,
            self.corruption,
            eval_dataset=self.pictures.rows if setting.retain_bound else None,  # a report on the bound needs them
            noise=self.noise(setting.noise),
            original=self.original,
            reader=self.training_reader,
            callbacks=[callback],
            method=method,
            distance=self.distance,
        )


class _Measure(TrainerCallback):
    """Measures the model at the wanted steps, and ends the run at the last; the time that measuring takes is not counted."""

    def __init__(self, model, wanted: dict[int, list[str]], measure):
        self.model, self.wanted, self.measure, self.seconds, self.points = model, wanted, measure, 0.0, {}

    def on_step_begin(self, args, state, control, **kwargs):
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds += time.perf_counter() - self.started
        step = state.global_step
        try:
            if step in self.wanted and is_finite(self.model):
                figures = {what: self.measure(step, what) for what in self.wanted[step]}
                self.points[step] = {"seconds": round(self.seconds, 1), "figures": figures}
        except RunError:  # weights so large that their completions are no numbers
            control.should_training_stop = True
        if step >= max(self.wanted):
            control.should_training_stop = True


def is_finite(model) -> bool:
    """Whether all weights are finite numbers."""
    return all(bool(p.isfinite().all()) for p in model.parameters())
