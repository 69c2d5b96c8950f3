"""`UnlearningTrainer`: the methods of the paper on top of `transformers.Trainer`, whose loop it leaves alone."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl

from ..data.pairs import ForgetRetainPairs
from ..data.reading import ImageReader, PairCollator
from ..data.streams import ForgetRetainStream
from ..errors import InputError
from ..evaluation.evaluator import Evaluator
from ..methods.corruptions import Corruption
from ..methods.distances import MSE, Distance
from ..methods.method import OURS, Method
from ..methods.noise import Noise, StandardNormal
from ..models.base import I2IModel, TrainingLoss
from ..models.patches import AdaptersOff, original_of
from .accounting import Accounting, check_steps, refuse_unmoved, weights_hash
from .base_trainer import I2ITrainer
from .config import UnlearningConfig, check_options
from .control import RetainBound, StopAtForgetDistance
from .objective import Objective, settled_noise_target
from .patch_turns import PatchTurns
from .targets import TargetStore, check_cacheable

BOUND_FILE = "retain_bound.json"


class UnlearningTrainer(I2ITrainer):
    """Tunes an image-to-image model so that it completes retain pictures and no forget pictures; by default (eq. 10):

        min over theta of  d(E(T(x_r)), E0(T(x_r))) + alpha * d(E(T(x_f)), E0(T(n))),   n ~ N(0, Sigma)

    with d averaged over its own half of the batch. One draw of T is shared by the target and the original encoder.

    Args:
        model: the target model, which starts as the original one and is trained in place. Methods in the encoder space train
            its encoder alone: everything else is frozen and stays bit for bit what it was.
        args: see `UnlearningConfig`.
        train_dataset: `ForgetRetainPairs` or `ForgetRetainStream` (which needs `args.max_steps`).
        processing_class: the model's image processor; it is saved with the model.
        corruption: T during training; of `Turns`, each step takes the next.
        eval_dataset: {"forget": rows, "retain": rows} of undecoded rows, or None for no evaluation during training.
        eval_corruption: T in evaluation, one; `corruption`, or its first one, if None.
        noise: the distribution of n; N(0, I) if None.
        original: the original model; a frozen copy of `model` if None, or `model` itself with its fresh patch off. Patches
            below that one take turns: each step some of them act, in model and original alike.
        augment, on_corrupt: see `ImageReader`; reader: one that is there already, in their place.
        method: one of `METHODS`, or your own `Method`. distance: one of `DISTANCES`, or your own `Distance`.
        metrics: `Metric`s that evaluation adds to its figures.

    Raises:
        InputError: a corruption that hides nothing or all, a stream without max_steps, targets that change each time where they
            are to be kept, or pictures that the model does not take; all before any training starts.
    """

    control: TrainerControl

    def __init__(
        self,
        model: I2IModel,
        args: UnlearningConfig,
        train_dataset,
        processing_class,
        corruption: Corruption,
        eval_dataset: dict | None = None,
        eval_corruption: Corruption | None = None,
        noise: Noise | None = None,
        original: I2IModel | None = None,
        augment=None,
        on_corrupt: str = "refuse",
        *,
        method: Method = OURS,
        distance: Distance = MSE,
        metrics=(),
        reader: ImageReader | None = None,
        **kwargs,
    ):
        eval_corruption = eval_corruption or (corruption.at(0) if isinstance(corruption, Corruption) else None)
        _check_objects(model, train_dataset, corruption, eval_corruption, noise, original)
        noise = noise or StandardNormal()
        check_options(args, method, distance)
        args.noise_target = settled_noise_target(args.noise_target, method, distance, corruption, model, noise, args.noise_bank)
        reader = reader or ImageReader(processing_class, model.channels, augment, on_corrupt)
        check_steps(args, train_dataset)
        _check_run(model, args, method, train_dataset, corruption, eval_corruption, reader.augment)
        collator = PairCollator(reader)
        model.check_pixels(collator([_first_readable(train_dataset, reader)])["forget"])
        if eval_dataset is None:
            _refuse_evaluation_options(args)
            args.eval_strategy = "no"
        original = original or original_of(model)  # kept beside the model, never inside it, so that no checkpoint holds it
        super().__init__(
            model=self.trained_module(model, original, args, method),
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.method, self.corruption, self.eval_corruption, self.skipped = method, corruption, eval_corruption, 0
        if self.is_fsdp_enabled and isinstance(original, AdaptersOff):
            original = model.frozen_copy()  # of its own, for what the model shares with its adapters is cut into shards
        self.original: Any = self.accelerator.prepare_model(original, device_placement=True, evaluation_mode=True)
        self.noise = noise
        self.objective = Objective(
            method, self.original, distance, self.noise, args.noise_target, args.mean_draws, args.seed, args.noise_bank
        )
        self._add_control()
        self.accounting: Accounting | None = None  # from the start of training
        self.evaluator: Evaluator | None = None
        if eval_dataset is not None:
            self._add_evaluation(eval_dataset, reader.plain, metrics)

    def trained_module(self, model: I2IModel, original: I2IModel, args: UnlearningConfig, method: Method) -> torch.nn.Module:
        """What is trained, with all that is not frozen. Raises InputError if that is nothing."""
        prepare_weights(model, original, args, method)
        return model if method.trains_encoder_alone else TrainingLoss(model)

    def _add_control(self):
        """The bound on retain, and what ends a run early."""
        args = self.args
        self.bound = RetainBound(args.retain_bound, 1 / args.alpha) if args.retain_bound else None
        if self.bound:
            self.add_callback(_StepBound(self))
        if args.patience:
            self.add_callback(EarlyStoppingCallback(args.patience, args.patience_threshold))
        if self.i2i.patch and self.i2i.patch.below:
            if self.is_fsdp_enabled:
                raise InputError(
                    "Patches that take turns do not go with FSDP; train this one alone, by --patch_training alone."
                )
            self.add_callback(PatchTurns(self.i2i.patch))
        if args.stop_at_forget_distance is not None:
            self.add_callback(StopAtForgetDistance(args.stop_at_forget_distance, rising=self.method.sign < 0))

    def _add_evaluation(self, rows, reader, metrics):
        """Figures, and the method's own terms, on {"forget": rows, "retain": rows}."""
        args = self.args
        self.eval_pairs = torch.utils.data.DataLoader(
            _Share(ForgetRetainPairs(rows["forget"], rows["retain"], args.seed), self.accelerator),
            args.per_device_eval_batch_size,
            collate_fn=PairCollator(reader),
        )
        more = {"metrics": metrics} if metrics else {}
        self.evaluator = Evaluator(
            self.original, rows, reader, self.eval_corruption, args.per_device_eval_batch_size, args.seed,
            self.accelerator, keep_original=True, **more,
        )  # fmt: skip

    def train(self, *args, **kwargs):
        self.prepare_targets()
        self.accounting, before = Accounting(self.train_dataset, self.corruption, self.method), weights_hash(self._trained())
        output = super().train(*args, **kwargs)
        self.accounting.gather()
        refuse_unmoved(before, weights_hash(self._trained()), self.state.global_step, self.args.learning_rate)
        return output

    def prepare_targets(self) -> None:
        """With `cache_targets`, compute or find the targets that stay the same. `train` calls this.

        Where they are all that the original encoder is for, `original` becomes None, and its memory is free if nobody else
        holds it.
        """
        if not self.args.cache_targets or self.data_collator.targets is not None:
            return
        args, collator, retain = self.args, self.data_collator, self.train_dataset.retain.dataset
        mask = self.corruption(self.i2i.grid, [0])  # (1, rows, cols)
        store = TargetStore(args.targets_dir, self.original, mask, args.mixed_precision)
        fixed = self.objective.is_fixed(self.corruption)
        if fixed:
            shape = (1, self.i2i.channels, *self.i2i.image_size)
            self.objective.fix(torch.zeros(shape, device=args.device), mask, self.corruption, store)
        collator.targets = store.retain(
            retain, collator.reader, args.per_device_eval_batch_size, self.accelerator, not args.disable_tqdm
        )
        if self.evaluator is None and (fixed or not self.method.target.encodes):
            self.original = self.objective.original = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The method's loss on one batch of `PairCollator`; for `ours`, eq. 10."""
        retain, forget, diagnostics = self._terms(model, inputs, self.corruption.at(self.state.global_step))
        self.log_terms(retain_distance=retain, **({} if forget is None else {"forget_distance": forget}), **diagnostics)
        self.skipped += inputs["skipped"]
        if self.accounting:
            self.accounting.saw(inputs.get("forget_hashes", []))
        if self.bound:
            loss = self.bound.weigh(retain, forget)
        else:
            loss = retain if forget is None else retain + self.method.sign * self.args.alpha * forget
        return (loss, None) if return_outputs else loss

    def loss_aside(self, model, inputs) -> torch.Tensor:
        """What a step computes, for measuring what it takes: nothing is logged, counted or weighed."""
        retain, forget, _ = self._terms(model, inputs, self.corruption.at(0))
        return retain if forget is None else retain + forget

    def _terms(self, model, batch, corruption):
        """Retain and forget distance, each the mean over its half of the batch, and the diagnostics."""
        retain, forget, diagnostics = self.objective(
            model,
            self.i2i,
            corruption,
            batch["retain"],
            batch["forget"],
            batch["seeds"],
            self.state.global_step,
            batch.get("retain_target"),
        )
        return retain.mean(), None if forget is None else forget.mean(), diagnostics

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Figures of the current weights on the evaluation pictures; see `Evaluator`.

        Adds the method's own terms under the evaluation corruption, with draws that are the same at every call:
        `{prefix}_retain_distance`, `{prefix}_forget_distance`, and `{prefix}_loss`, the number by which
        `load_best_model_at_end` chooses.
        """
        if self.evaluator is None:
            raise InputError("The trainer was made without eval_dataset; pass {'forget': rows, 'retain': rows}.")
        with self.averaged():
            result = self.evaluator(self.whole_model(), progress=not self.args.disable_tqdm)
            retain, forget = self._eval_terms()
        if self.bound and self.is_in_train:
            self.bound.calibrate(retain)
        metrics = {f"{metric_key_prefix}_{name}_{k}": v for name, split in result.items() for k, v in split.items()}
        metrics[f"{metric_key_prefix}_retain_distance"] = retain
        metrics[f"{metric_key_prefix}_loss"] = retain
        if self.method.sign:
            metrics[f"{metric_key_prefix}_forget_distance"] = forget
            metrics[f"{metric_key_prefix}_loss"] = retain + self.method.sign * self.args.alpha * forget
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _eval_terms(self) -> tuple[float, float]:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        sums = torch.zeros(3, dtype=torch.float64)
        training = model.training
        model.eval()
        for batch in self.eval_pairs:
            # Trainer's own way of moving a batch to the device.
            retain, forget, _ = self._terms(model, self._prepare_inputs(batch), self.eval_corruption)
            means = torch.stack([torch.ones_like(retain), retain, torch.zeros_like(retain) if forget is None else forget])
            sums += means.double().cpu() * len(batch["retain"])
        model.train(training)
        count, retain, forget = self.accelerator.reduce(sums.to(self.accelerator.device), "sum").tolist()
        return retain / count, forget / count

    def bound_report(self) -> dict | None:
        """Whether the retain bound holds on evaluation pictures now: {"bound", "retain_distance", "holds", "multiplier"}."""
        if not self.bound:
            return None
        retain = self._eval_terms()[0]
        return {
            "bound": self.bound.bound,
            "retain_distance": retain,
            "holds": retain <= self.bound.bound,
            "multiplier": math.exp(self.bound.log_multiplier),
        }

    def _save_checkpoint(self, model, trial):
        # Overrides Trainer: all processes come by here, and only here.
        if self.accounting:
            self.accounting.gather()
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir=None, state_dict=None):
        # Overrides Trainer: the bound's multiplier is part of a checkpoint, so that a resumed run goes on with it.
        super()._save(output_dir, state_dict)
        if self.accounting and self.is_in_train and self.args.should_save:
            self.accounting.save(output_dir or self.args.output_dir)
        if self.bound and self.is_in_train and self.args.should_save:
            (Path(output_dir or self.args.output_dir) / BOUND_FILE).write_text(json.dumps(self.bound.state()))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        # Overrides Trainer: the counterpart of _save.
        if self.accounting:
            self.accounting.load(resume_from_checkpoint, self.is_world_process_zero())
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.bound:
            self.bound.load_state(json.loads((Path(resume_from_checkpoint) / BOUND_FILE).read_text()))


class _StepBound(TrainerCallback):
    """Moves the multiplier of a `RetainBound` after each optimisation step."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.bound.step(self.trainer.accelerator)


class _Share(torch.utils.data.Dataset):
    """Every n-th item of a dataset: the share of one of n processes."""

    def __init__(self, dataset, accelerator):
        self.dataset = dataset
        self.indices = range(len(dataset))[accelerator.process_index :: accelerator.num_processes]

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, i):
        return self.dataset[self.indices[i]]


def _check_objects(model, train_dataset, corruption, eval_corruption, noise, original):
    """Raise InputError for an argument of the wrong kind, such as a word where an object is wanted."""
    if not isinstance(model, I2IModel):
        raise InputError(f"UnlearningTrainer takes an I2IModel such as I2IMAE, got {type(model).__name__}.")
    for name, value, kind, example in (
        ("corruption", corruption, Corruption, "CenterCrop(8)"),
        ("eval_corruption", eval_corruption, Corruption, "CenterCrop(8)"),
        ("noise", noise or StandardNormal(), Noise, "StandardNormal()"),
    ):
        if not isinstance(value, kind):
            raise InputError(f"{name} is a {kind.__name__} object, such as {example}, got {value!r}.")
    if original is model:
        raise InputError("The original model is the very object to be trained; leave it out, or pass model.frozen_copy().")


def _check_run(model, args, method, train_dataset, corruption, eval_corruption, augment):
    """Raise InputError where model, method, T and options do not go together."""
    if isinstance(train_dataset, ForgetRetainStream) and args.max_steps <= 0:
        raise InputError(
            "A stream has no length, so the run needs max_steps (the number of optimisation steps), larger than 0; "
            f"got max_steps={args.max_steps}."
        )
    corruption.check(model.grid)
    eval_corruption.check(model.grid)
    if args.cache_targets:
        check_cacheable(model, corruption, augment, train_dataset)
    if args.noise_bank and (corruption.is_random or not model.noise_target_is_shared):
        reason = f"the corruption '{corruption}' is random" if corruption.is_random else f"the family is '{model.family}'"
        raise InputError(f"A noise_bank holds E0(T(n)) under one fixed T alone, but {reason}; leave it at 0.")
    if args.noise_target == "mean" and not model.noise_target_is_shared:
        raise InputError(
            f"noise_target 'mean' needs a target that all pictures share; that of the family '{model.family}' depends on the "
            "visible part of each. Use 'fresh'."
        )


def prepare_weights(model, original, args, method):
    """Freeze what the method does not train. Raises InputError if that is everything."""
    if args.channels_last:
        for one in (model, original):
            one.to(memory_format=torch.channels_last)
    if method.trains_encoder_alone:
        model.train_encoder_only()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("The model has nothing to train: put a new adapter on it (add_patch), or merge its patches (merge).")


def _refuse_evaluation_options(args):
    needing = [name for name in ("patience", "stop_at_forget_distance", "load_best_model_at_end") if getattr(args, name)]
    if needing:
        raise InputError(
            f"{' and '.join(needing)} need evaluation pictures; pass eval_dataset={{'forget': rows, 'retain': rows}}."
        )


def _first_readable(pairs, reader, limit: int = 100):
    """The first pair whose pictures can both be read. If pictures are refused, not skipped, the first that cannot raises."""
    stream = iter(pairs) if isinstance(pairs, ForgetRetainStream) else (pairs[t] for t in range(len(pairs)))
    for pair in itertools.islice(stream, limit):
        if pair is not None and all(reader.decode(pair[name]) is not None for name in ("forget", "retain")):
            return pair
    raise InputError(f"None of the first {limit} pairs of pictures can be read; check the image column and the files.")
