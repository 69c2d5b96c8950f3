"""`UnlearningTrainer`: the methods of the paper on top of `transformers.Trainer`, whose loop it leaves alone."""

import contextlib
import itertools
import json
import logging
import math
import shutil
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .config import UnlearningConfig
from .control import RetainBound, StopAtForgetDistance
from .corruptions import Corruption
from .data import (
    EpochSampler,
    ForgetRetainPairs,
    ForgetRetainStream,
    ImageReader,
    PairCollator,
)
from .errors import InputError
from .evaluation import Evaluator
from .hub import check_access, push
from .lora import original_of
from .methods import DISTANCES, METHODS
from .models.base import I2IModel, TrainingLoss
from .noise import Noise, StandardNormal
from .objective import Objective

logger = logging.getLogger(__name__)

BOUND_FILE, EMA_FILE = "retain_bound.json", "ema.safetensors"


class I2ITrainer(Trainer):
    """A `Trainer` whose checkpoints load with the model's own library and resume to the same weights.

    The stock Trainer saves a U-Net without its config and resumes a ViTMAE with its layers at their initial values
    (key names differ on disk, and it loads with strict=False). Both go through the model's `save_pretrained` /
    `from_pretrained` here; of a model with a patch, the patch alone is saved and loaded.

    `push_to_hub` uploads the finished output folder, once, and never a checkpoint.
    """

    loss_is_scaled_for_ga = False  # compute_loss returns the mean of its own micro-batch

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
        # Made from the weights that training starts with; the released diffusion code averages from a random start.
        self.ema = EMAModel(self._trained().values(), decay=self.args.ema_decay) if self.args.ema_decay else None
        if self.ema:
            self.ema.to(self.args.device)
            self.add_callback(_StepEMA(self))
        self._logged: dict[str, torch.Tensor] = {}
        self._logged_count = 0

    @property
    def i2i(self) -> I2IModel:
        """The model being trained, without the wrappers of accelerate or of an objective."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return getattr(model, "i2i", model)

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.i2i.named_parameters() if p.requires_grad}

    @contextlib.contextmanager
    def averaged(self):
        """Within it, during training, the model has its averaged weights if the run keeps an EMA."""
        if not self.ema or not self.is_in_train:
            yield
            return
        parameters = self._trained().values()
        self.ema.store(parameters)
        self.ema.copy_to(parameters)
        try:
            yield
        finally:
            self.ema.restore(parameters)

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As `Trainer.train`; True resumes from the last checkpoint that is whole and removes a half-written one."""
        if str(resume_from_checkpoint).lower() == "true":
            with self.accelerator.main_process_first():
                resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def log_terms(self, **terms: torch.Tensor) -> None:
        """Remember detached parts of the loss; the next log line shows their mean since the last one."""
        for name, value in terms.items():
            self._logged[name] = self._logged.get(name, 0) + value.detach()
        self._logged_count += 1

    def log(self, logs, start_time=None):
        if getattr(self, "skipped", 0):
            logs["skipped_pairs"] = self.skipped
        if "loss" in logs and self._logged_count:
            means = torch.stack([self._logged[name].float() for name in self._logged]) / self._logged_count
            means = self.accelerator.reduce(means, "mean").tolist()
            logs.update(zip(self._logged, means))
            self._logged, self._logged_count = {}, 0
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(dataset, torch.utils.data.IterableDataset):
            return None
        return EpochSampler(len(dataset), lambda: int(self.state.epoch or 0))

    def _save(self, output_dir=None, state_dict=None):
        folder = Path(output_dir or self.args.output_dir)
        (self.i2i.patch or self.i2i).save_pretrained(folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        # In place of the pickled arguments of the stock Trainer, which nobody should have to unpickle.
        (folder / "training_args.json").write_text(self.args.to_json_string())
        if self.ema and self.is_in_train:
            weights = {name: p.contiguous() for name, p in zip(self._trained(), self.ema.shadow_params)}
            save_file(weights, folder / EMA_FILE, metadata={"step": str(self.ema.optimization_step)})

    def init_hf_repo(self, token=None, private=None):
        if self.is_world_process_zero():
            args = self.args
            args.hub_model_id = check_access(
                args.hub_model_id or Path(args.output_dir).resolve().name,
                args.hub_private_repo,
                args.hub_revision,
                args.hub_token,
            )

    def save_model(self, output_dir=None, _internal_call=False):
        super().save_model(output_dir, _internal_call=True)  # the card is not written yet, so nothing is pushed

    def _push_from_checkpoint(self, checkpoint_folder):
        pass

    def push_to_hub(self, **kwargs) -> str | None:
        """Upload the output folder as it is (`hub.push`), by the main process. Returns its address."""
        if self.is_world_process_zero():
            args = self.args
            return push(args.output_dir, args.hub_model_id, args.hub_private_repo, args.hub_revision, args.hub_token)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        (self.i2i.patch or self.i2i).load_weights(resume_from_checkpoint)
        self._load_ema(resume_from_checkpoint)

    def _load_ema(self, folder):
        if self.ema:
            with safe_open(Path(folder) / EMA_FILE, "pt") as file:
                self.ema.shadow_params = [file.get_tensor(name).to(self.args.device) for name in self._trained()]
                self.ema.optimization_step = int(file.metadata()["step"])

    def _load_best_model(self):
        logger.info(
            "Taking the weights of %s, the best by %s.", self.state.best_model_checkpoint, self.args.metric_for_best_model
        )
        (self.i2i.patch or self.i2i).load_weights(self.state.best_model_checkpoint)
        self._load_ema(self.state.best_model_checkpoint)


class _StepEMA(TrainerCallback):
    """Averages after each step; at the end of training the average becomes the model."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.ema.step(self.trainer._trained().values())

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.ema.copy_to(self.trainer._trained().values())


def last_whole_checkpoint(output_dir) -> str:
    """The newest checkpoint folder that was written to its end; half-written ones (a killed run) are removed.

    Raises:
        InputError: there is none.
    """
    folders = sorted(Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda f: int(f.name.rsplit("-", 1)[1]))
    while folders:
        # The Trainer writes its state last.
        try:
            json.loads((folders[-1] / "trainer_state.json").read_text())
            return str(folders[-1])
        except (OSError, json.JSONDecodeError):
            logger.warning("Removing %s, which an interrupted run left half-written.", folders[-1])
            shutil.rmtree(folders.pop())
    raise InputError(f"There is no checkpoint in '{output_dir}' to resume from; start without resume_from_checkpoint.")


class UnlearningTrainer(I2ITrainer):
    """Tunes an image-to-image model so that it completes retain pictures and no forget pictures; by default (eq. 10):

        min over theta of  d(E(T(x_r)), E0(T(x_r))) + alpha * d(E(T(x_f)), E0(T(n))),   n ~ N(0, Sigma)

    with d averaged over its own half of the batch. One draw of T is shared by the target and the original encoder. The other
    methods (`args.method`) are the rows of `METHODS`.

    Args:
        model: the target model, which starts as the original one and is trained in place. Methods in the encoder space train
            its encoder alone: everything else is frozen and stays bit for bit what it was.
        args: see `UnlearningConfig`.
        train_dataset: `ForgetRetainPairs` or `ForgetRetainStream` (which needs `args.max_steps`).
        processing_class: the model's image processor; it is saved with the model.
        corruption: T during training.
        eval_dataset: {"forget": rows, "retain": rows} of undecoded rows, or None for no evaluation during training.
        eval_corruption: T in evaluation; `corruption` if None.
        noise: the distribution of n; N(0, I) if None.
        original: the original model; a frozen copy of `model` if None, or `model` itself with its fresh patch off.
        augment, on_corrupt: see `ImageReader`.

    Raises:
        InputError: a corruption that hides nothing or all, a stream without max_steps, or pictures that the model does not
            take; all before any training starts.
    """

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
        **kwargs,
    ):
        if not isinstance(model, I2IModel):
            raise InputError(f"UnlearningTrainer takes an I2IModel such as I2IMAE, got {type(model).__name__}.")
        if isinstance(train_dataset, ForgetRetainStream) and args.max_steps <= 0:
            raise InputError(
                "A stream has no length, so the run needs max_steps (the number of optimisation steps), larger than 0; "
                f"got max_steps={args.max_steps}."
            )
        eval_corruption = eval_corruption or corruption
        corruption.check(model.grid)
        eval_corruption.check(model.grid)
        reader = ImageReader(processing_class, model.channels, augment, on_corrupt)
        collator = PairCollator(reader)
        model.check_pixels(collator([_first_readable(train_dataset, reader)])["forget"])
        if eval_dataset is None:
            _refuse_evaluation_options(args)
            args.eval_strategy = "no"
        self.method = METHODS[args.method]
        if args.noise_target == "mean" and not model.noise_target_is_shared:
            raise InputError(
                f"noise_target 'mean' needs a target that all pictures share; that of the family '{model.family}' depends on the "
                "visible part of each. Use 'fresh'."
            )
        # Kept beside the model, never inside it, so that no checkpoint holds it.
        if original is model:
            raise InputError("The original model is the very object to be trained; leave it out, or pass model.frozen_copy().")
        original = original or original_of(model)
        if self.method.space == "encoder":
            model.train_encoder_only()
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise InputError(
                "The model has nothing to train: put a new adapter on it (add_patch), or merge its patches (merge)."
            )
        super().__init__(
            model=model if self.method.space == "encoder" else TrainingLoss(model),
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.corruption, self.eval_corruption, self.skipped = corruption, eval_corruption, 0
        self.original = self.accelerator.prepare_model(original, evaluation_mode=True)
        self.noise = noise or StandardNormal()
        self.objective = Objective(
            self.method, self.original, DISTANCES[args.distance], self.noise, args.variant, args.noise_target,
            args.mean_draws, args.seed,
        )  # fmt: skip
        self.bound = RetainBound(args.retain_bound, 1 / args.alpha) if args.retain_bound else None
        if self.bound:
            self.add_callback(_StepBound(self))
        if args.patience:
            self.add_callback(EarlyStoppingCallback(args.patience, args.patience_threshold))
        if args.stop_at_forget_distance is not None:
            self.add_callback(StopAtForgetDistance(args.stop_at_forget_distance, rising=self.method.sign < 0))
        self.evaluator = None
        if eval_dataset is not None:
            reader = ImageReader(processing_class, model.channels, None, on_corrupt)
            self.eval_pairs = torch.utils.data.DataLoader(
                _Share(ForgetRetainPairs(eval_dataset["forget"], eval_dataset["retain"], args.seed), self.accelerator),
                args.per_device_eval_batch_size,
                collate_fn=PairCollator(reader),
            )
            self.evaluator = Evaluator(
                self.original, eval_dataset, reader, eval_corruption, args.per_device_eval_batch_size, args.seed,
                self.accelerator, keep_original=True,
            )  # fmt: skip

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The method's loss on one batch of `PairCollator`; for `ours`, eq. 10."""
        retain, forget, diagnostics = self._terms(model, inputs, self.corruption)
        self.log_terms(retain_distance=retain, **({} if forget is None else {"forget_distance": forget}), **diagnostics)
        self.skipped += inputs["skipped"]
        if self.bound:
            loss = self.bound.weigh(retain, forget)
        else:
            loss = retain if forget is None else retain + self.method.sign * self.args.alpha * forget
        return (loss, None) if return_outputs else loss

    def _terms(self, model, batch, corruption):
        """Retain and forget distance, each the mean over its half of the batch, and the diagnostics."""
        retain, forget, diagnostics = self.objective(
            model, self.i2i, corruption, batch["retain"], batch["forget"], batch["seeds"], self.state.global_step
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
            result = self.evaluator(self.i2i, progress=not self.args.disable_tqdm)
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
            retain, forget, _ = self._terms(model, self._prepare_inputs(batch), self.eval_corruption)
            means = torch.stack([torch.ones_like(retain), retain, torch.zeros_like(retain) if forget is None else forget])
            sums += means.double().cpu() * len(batch["retain"])
        model.train(training)
        count, retain, forget = self.accelerator.reduce(sums.to(self.accelerator.device), "sum").tolist()
        return retain / count, forget / count

    def bound_report(self) -> dict | None:
        """Whether the retain bound holds on the evaluation pictures now: {"bound", "retain_distance", "holds", "multiplier"}."""
        if not self.bound:
            return None
        retain = self._eval_terms()[0]
        return {
            "bound": self.bound.bound,
            "retain_distance": retain,
            "holds": retain <= self.bound.bound,
            "multiplier": math.exp(self.bound.log_multiplier),
        }

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.bound and self.is_in_train:
            (Path(output_dir or self.args.output_dir) / BOUND_FILE).write_text(json.dumps(self.bound.state()))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
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


def _refuse_evaluation_options(args):
    needing = [name for name in ("patience", "stop_at_forget_distance", "load_best_model_at_end") if getattr(args, name)]
    if needing:
        raise InputError(
            f"{' and '.join(needing)} need evaluation pictures; pass eval_dataset={{'forget': rows, 'retain': rows}}."
        )


def _first_readable(pairs, reader, limit: int = 100):
    """The first pair whose pictures can both be read; if pictures are refused and not skipped, the first one that cannot raises."""
    stream = iter(pairs) if isinstance(pairs, ForgetRetainStream) else (pairs[t] for t in range(len(pairs)))
    for pair in itertools.islice(stream, limit):
        if all(reader.decode(pair[name]) is not None for name in ("forget", "retain")):
            return pair
    raise InputError(f"None of the first {limit} pairs of pictures can be read; check the image column and the files.")
