"""`UnlearningTrainer`: eq. 10 on top of `transformers.Trainer`, whose loop it leaves alone."""

import json
import logging
import shutil
from pathlib import Path

import torch
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .config import UnlearningConfig
from .corruptions import Corruption
from .data import EpochSampler, ForgetRetainStream, ImageReader, PairCollator
from .errors import InputError
from .evaluation import Evaluator
from .methods import DISTANCES
from .models.base import I2IModel
from .noise import Noise, StandardNormal

logger = logging.getLogger(__name__)


class I2ITrainer(Trainer):
    """A `Trainer` whose checkpoints load with the model's own library and resume to the same weights.

    The stock Trainer saves a U-Net without its config and resumes a ViTMAE with its layers at their initial values
    (key names differ on disk, and it loads with strict=False). Both go through the model's `save_pretrained` /
    `from_pretrained` here.
    """

    loss_is_scaled_for_ga = False  # compute_loss returns the mean of its own micro-batch

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self._terms: dict[str, torch.Tensor] = {}
        self._terms_count = 0

    @property
    def i2i(self) -> I2IModel:
        """The model being trained, without the wrappers of accelerate or of an objective."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return getattr(model, "i2i", model)

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As `Trainer.train`; True resumes from the last checkpoint that is whole and removes a half-written one."""
        if str(resume_from_checkpoint).lower() == "true":
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def log_terms(self, **terms: torch.Tensor) -> None:
        """Remember detached parts of the loss; the next log line shows their mean since the last one."""
        for name, value in terms.items():
            self._terms[name] = self._terms.get(name, 0) + value.detach()
        self._terms_count += 1

    def log(self, logs, start_time=None):
        if getattr(self, "skipped", 0):
            logs["skipped_pairs"] = self.skipped
        if "loss" in logs and self._terms_count:
            means = torch.stack([self._terms[name].float() for name in self._terms]) / self._terms_count
            means = self.accelerator.reduce(means, "mean").tolist()
            logs.update(zip(self._terms, means))
            self._terms, self._terms_count = {}, 0
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(dataset, torch.utils.data.IterableDataset):
            return None
        return EpochSampler(len(dataset), lambda: int(self.state.epoch or 0))

    def _save(self, output_dir=None, state_dict=None):
        folder = Path(output_dir or self.args.output_dir)
        self.i2i.save_pretrained(folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        # In place of the pickled arguments of the stock Trainer, which nobody should have to unpickle.
        (folder / "training_args.json").write_text(self.args.to_json_string())

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        self.i2i.load_weights(resume_from_checkpoint)

    def _load_best_model(self):
        logger.info("Taking the weights of %s, the best by %s.", self.state.best_model_checkpoint, self.args.metric_for_best_model)
        self.i2i.load_weights(self.state.best_model_checkpoint)


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
    """Tunes the encoder of an image-to-image model so that it completes retain pictures and no forget pictures (eq. 10):

        min over theta of  d(E(T(x_r)), E0(T(x_r))) + alpha * d(E(T(x_f)), E0(T(n))),   n ~ N(0, Sigma)

    with d averaged over its own half of the batch. One draw of T and n is shared by the target and the original encoder.

    Args:
        model: the target model, which starts as the original one. Its encoder is trained in place; everything else is
            frozen and stays bit for bit what it was.
        args: see `UnlearningConfig`.
        train_dataset: `ForgetRetainPairs` or `ForgetRetainStream` (which needs `args.max_steps`).
        processing_class: the model's image processor; it is saved with the model.
        corruption: T during training.
        eval_dataset: {"forget": rows, "retain": rows} of undecoded rows, or None for no evaluation during training.
        eval_corruption: T in evaluation; `corruption` if None.
        noise: the distribution of n; N(0, I) if None.
        original: the original model; a frozen copy of `model` if None.
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
        first = next(iter(train_dataset)) if isinstance(train_dataset, ForgetRetainStream) else train_dataset[0]
        model.check_pixels(PairCollator(ImageReader(processing_class, model.channels))([first])["forget"])
        if eval_dataset is None:
            args.eval_strategy = "no"
        original = original or model.frozen_copy()
        model.train_encoder_only()
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.corruption, self.eval_corruption = corruption, eval_corruption
        self.noise = noise or StandardNormal()
        self.distance = DISTANCES[args.distance]
        # Kept beside the model, never inside it, so that no checkpoint holds it.
        self.original = self.accelerator.prepare_model(original, evaluation_mode=True)
        self.skipped = 0
        self.evaluator = eval_dataset and Evaluator(
            self.original,
            eval_dataset,
            ImageReader(processing_class, model.channels, None, on_corrupt),
            eval_corruption,
            self.distance,
            self.noise,
            args.per_device_eval_batch_size,
            args.seed,
            self.accelerator,
            keep_original=True,
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Eq. 10 on one batch of `PairCollator`: one student pass over [x_r; x_f], one teacher pass over [x_r; n]."""
        retain, forget = self.distances(model, self.corruption, **{k: inputs[k] for k in ("retain", "forget", "seeds")})
        loss = retain + self.args.alpha * forget
        if model.training:
            self.log_terms(retain_distance=retain, forget_distance=forget)
            self.skipped += inputs["skipped"]
        return (loss, None) if return_outputs else loss

    def distances(self, model, corruption, retain, forget, seeds) -> tuple[torch.Tensor, torch.Tensor]:
        """The two terms of eq. 10, each a mean over its half of the batch.

        Args:
            retain, forget: (B, C, H, W) pixel values. seeds: (B, 3), for T of retain, T of forget and n.
        """
        half = len(retain)
        mask = torch.cat([corruption(self.i2i.grid, seeds[:, k]) for k in (0, 1)])  # (2B, rows, cols)
        with torch.no_grad():
            target = self.original(torch.cat([retain, self.noise(forget, seeds[:, 2])]), mask)  # E0(T(x_r)), E0(T(n))
        distance = self.distance(model(torch.cat([retain, forget]), mask), target)  # (2B,)
        return distance[:half].mean(), distance[half:].mean()

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Figures of the current weights on the evaluation pictures; see `Evaluator`.

        Adds `{prefix}_loss`, eq. 10 under the evaluation corruption with draws that are the same at every call: the number
        by which `load_best_model_at_end` chooses.
        """
        if self.evaluator is None:
            raise InputError("The trainer was made without eval_dataset; pass {'forget': rows, 'retain': rows}.")
        result = self.evaluator(self.i2i, progress=not self.args.disable_tqdm)
        metrics = {f"{metric_key_prefix}_{name}_{k}": v for name, split in result.items() for k, v in split.items()}
        metrics[f"{metric_key_prefix}_loss"] = (
            result["retain"]["distance"] + self.args.alpha * result["forget"]["distance"]
        )
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
