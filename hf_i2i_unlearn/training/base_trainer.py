"""`I2ITrainer`: `transformers.Trainer` with checkpoints, averaging and faults as a run on somebody's machine needs them."""

import contextlib
import copy
import difflib
import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from ..data.pairs import EpochSampler
from ..data.streams import Stream
from ..errors import InputError, RunError
from ..models.base import I2IModel
from ..reporting.hub import check_access, push
from .checkpoints import (
    ASIDE,
    faults_of_feeding,
    faults_of_peers,
    faults_of_saving,
    last_good,
    last_whole_checkpoint,
    publish_checkpoint,
    publish_files,
    remove_aside,
)
from .interruption import Deaf, EndOnSignal, StepClock
from .optimizers import with_muon

logger = logging.getLogger(__name__)


EMA_FILE = "ema.safetensors"


TRAINING_ONLY_FILE = "training_only.safetensors"


NEVER = 2**62  # a step that no run reaches


class I2ITrainer(Trainer):
    """A `Trainer` whose checkpoints load with the model's own library and resume to the same weights.

    The stock Trainer saves a U-Net without its config and resumes a ViTMAE with its layers at their initial values
    (key names differ on disk, and it loads with strict=False). Both go through the model's `save_pretrained` /
    `from_pretrained` here; of a model with a patch, the patch alone is saved and loaded.

    Checkpoints and results are written aside and renamed, so a killed run leaves no half of one. SIGTERM ends training with a
    checkpoint. A loss or weights that are not finite stop the run before anything is saved.

    `push_to_hub` uploads the finished output folder, once, and never a checkpoint.

    Raises:
        RunError: in `train` and `save_model`, for faults of the disk, of data workers, of other processes and of the loss.
        Preempted: in `train`, after SIGTERM.
    """

    optimizer: torch.optim.Optimizer | None
    loss_is_scaled_for_ga = False  # compute_loss returns the mean of its own micro-batch

    def __init__(self, *args, **kwargs):
        check_trackers(getattr(kwargs.get("args"), "report_to", None) or [])
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
        # Made from the weights that training starts with; the released diffusion code averages from a random start.
        self.ema: Any = None
        if self.args.ema_decay:
            from diffusers.training_utils import EMAModel  # here, for it takes seconds to import

            self.ema = EMAModel(self._trained().values(), decay=self.args.ema_decay)
            self.ema.to(self.args.device)
            self.add_callback(_StepEMA(self))
        self._logged: dict[str, torch.Tensor] = {}
        self._logged_count = 0
        self._aside = False  # whether a checkpoint is being written
        self._broken_step = torch.tensor(NEVER, device=self.args.device)  # the first step whose loss was not finite
        self.add_callback(_StopAtBrokenLoss(self))
        self.ending, self.clock = EndOnSignal(self.accelerator), StepClock()
        self.add_callback(self.ending)
        self.add_callback(self.clock)
        for name in ("ema_decay", "load_best_model_at_end"):
            if self.is_fsdp_enabled and getattr(self.args, name, None):
                raise InputError(f"{name} does not go with FSDP; leave one of them out.")
        self._whole = copy.deepcopy(self.i2i) if self.is_fsdp_enabled else None  # made before the weights are cut into shards

    @property
    def i2i(self) -> I2IModel:
        """The model being trained, without the wrappers of accelerate or of an objective."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return getattr(model, "i2i", model)

    def whole_model(self) -> I2IModel:
        """The model being trained; under FSDP a copy with the weights of all shards. All processes must call it."""
        if self._whole is None:
            return self.i2i
        state = {name: w.full_tensor() if isinstance(w, DTensor) else w for name, w in self.i2i.state_dict().items()}
        self._whole.load_state_dict(state)
        return self._whole.to(self.args.device)

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
        with self.accelerator.main_process_first():
            remove_aside(self.args.output_dir)
            if str(resume_from_checkpoint).lower() == "true":
                resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
        folder = self.args.output_dir
        with faults_of_peers(folder), faults_of_feeding(folder), self.ending.listening(folder):
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _run_epoch(self, *args, **kwargs):
        # Overrides Trainer: resumed from its last checkpoint, a finished run would take one more step.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def create_optimizer(self, model=None):
        if self.optimizer is None and getattr(self.args, "muon_learning_rate", 0) > 0:
            self.optimizer = with_muon(self.model, self.i2i.family, self.args)
        return super().create_optimizer(model)

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        # Kept on the device: looking at every loss would make a GPU wait.
        broken = torch.where(loss.isfinite().all(), NEVER, self.state.global_step + 1)
        self._broken_step = torch.minimum(self._broken_step, broken)
        return loss

    def refuse_broken_loss(self) -> None:
        """Raise RunError if the loss of a step so far was not a finite number on any process."""
        step = int(self.accelerator.gather(self._broken_step.view(1)).min())
        if step < NEVER:
            self._stop(f"The loss of step {step} is not a finite number")

    def _refuse_broken_weights(self):
        shards = (
            p.to_local() if isinstance(p, DTensor) else p for p in self._trained().values()
        )  # FSDP: those of this process
        if not all(shard.isfinite().all() for shard in shards):
            self._stop(f"The weights are not finite numbers after step {self.state.global_step}")

    def _stop(self, what):
        args = self.args
        precision = self.accelerator.mixed_precision
        fp32 = f", or in fp32 (this was {precision})" if precision in ("bf16", "fp16") else ""
        raise RunError(
            f"{what}, so the run stops and saves nothing more; {last_good(args.output_dir)}. Start again with a "
            f"--learning_rate below {args.learning_rate:g}{fp32}."
        )

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
        if "loss" in logs and (seconds := self.clock.mean()) is not None:
            logs["seconds_per_step"] = round(seconds, 4)
        super().log(logs, start_time)

    def get_train_dataloader(self):
        if isinstance(self.train_dataset, Stream):
            # What the Trainer found when it sought a batch size that fits (auto_find_batch_size), not what was asked for.
            self.train_dataset.rows_per_batch = self._train_batch_size * self.args.world_size
        loader: Any = super().get_train_dataloader()
        workers = getattr(loader, "base_dataloader", loader)  # accelerate wraps it
        if workers.num_workers:
            workers.worker_init_fn = Deaf(workers.worker_init_fn)
        return loader

    def _init_training_state(self, *args, **kwargs):
        # Overrides Trainer: on resuming it makes the batches it has seen, to pass over them; a stream reads no picture there.
        epochs, batches = super()._init_training_state(*args, **kwargs)
        if isinstance(self.train_dataset, Stream):
            self.train_dataset.start = batches * self.train_dataset.rows_per_batch
        return epochs, batches

    def _get_train_sampler(self, train_dataset=None):
        # Overrides Trainer: it forgets its order on resuming; here item t is a function of t and of the seed.
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(dataset, torch.utils.data.IterableDataset):
            return None
        return EpochSampler(len(dataset), lambda: int(self.state.epoch or 0))

    def _get_output_dir(self, trial):
        # Overrides Trainer: there is no other way to have a checkpoint written aside.
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, ASIDE) if self._aside else folder

    def _save_checkpoint(self, model, trial):
        # Overrides Trainer: a run that is killed while it saves leaves no half checkpoint, and broken weights are not saved.
        self._refuse_broken_weights()
        folder, name = Path(self._get_output_dir(trial)), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with faults_of_saving(name, folder, self.args.output_dir):
            self._aside = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._aside = False
            if self.state.best_model_checkpoint == str(folder / ASIDE / name):
                self.state.best_model_checkpoint = str(folder / name)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                publish_checkpoint(folder / ASIDE / name, folder / name, self.state)
            self.accelerator.wait_for_everyone()
        if self.args.should_save:
            rotate_checkpoints(folder, self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True)

    def _save(self, output_dir=None, state_dict=None):
        # Overrides Trainer: a model is saved by its own library (a U-Net with its config), a patch alone, an EMA beside it.
        model = self.whole_model()  # by all processes
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        (model.patch or model).save_pretrained(folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        # In place of the pickled arguments of the stock Trainer, which nobody should have to unpickle.
        (folder / "training_args.json").write_text(self.args.to_json_string())
        if self._aside and model.training_only is not None:
            save_file(model.training_only.state_dict(), folder / TRAINING_ONLY_FILE)
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
        # _internal_call: the card is not written yet, so nothing is pushed.
        if self._aside:
            super().save_model(output_dir, _internal_call=True)
            return
        self._refuse_broken_weights()
        folder = Path(output_dir or self.args.output_dir)
        with faults_of_saving("the model", folder, self.args.output_dir):
            super().save_model(str(folder / ASIDE), _internal_call=True)
            if self.args.should_save:
                publish_files(folder / ASIDE, folder)
                remove_aside(folder)

    def _push_from_checkpoint(self, checkpoint_folder):
        # Overrides Trainer: only a finished run is uploaded, once (`push_to_hub`).
        pass

    def push_to_hub(self, **kwargs) -> str | None:
        """Upload the output folder as it is (`hub.push`), by the main process. Returns its address."""
        if self.is_world_process_zero():
            args = self.args
            return push(args.output_dir, args.hub_model_id, args.hub_private_repo, args.hub_revision, args.hub_token)
        return None

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        # Overrides Trainer: it loads with strict=False, and a ViTMAE resumes with its layers at their initial values.
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # accelerate's own shards
            return
        (self.i2i.patch or self.i2i).load_weights(resume_from_checkpoint)
        if self.i2i.training_only is not None:
            file = Path(resume_from_checkpoint) / TRAINING_ONLY_FILE
            if not file.exists():
                raise InputError(
                    f"'{resume_from_checkpoint}' has no {TRAINING_ONLY_FILE}, for that run trained without it; resume with "
                    "that run's options, or start a new run from its model."
                )
            self.i2i.training_only.load_state_dict(load_file(file))
        self._load_ema(resume_from_checkpoint)

    def _load_ema(self, folder):
        if self.ema:
            with safe_open(Path(folder) / EMA_FILE, "pt") as file:
                self.ema.shadow_params = [file.get_tensor(name).to(self.args.device) for name in self._trained()]
                self.ema.optimization_step = int(file.metadata()["step"])

    def _load_best_model(self):
        # Overrides Trainer: as for _load_from_checkpoint, and the averaged weights go with the best ones.
        logger.info(
            "Taking the weights of %s, the best by %s.", self.state.best_model_checkpoint, self.args.metric_for_best_model
        )
        (self.i2i.patch or self.i2i).load_weights(self.state.best_model_checkpoint)
        self._load_ema(self.state.best_model_checkpoint)


def check_trackers(names: list[str]) -> None:
    """Raise InputError for a tracker that the Trainer does not know, or that is not installed."""
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            near = difflib.get_close_matches(name, INTEGRATION_TO_CALLBACK, 1)
            known = f"did you mean {near[0]}?" if near else f"known are {', '.join(INTEGRATION_TO_CALLBACK)}."
            raise InputError(f"'{name}' is no tracker for report_to; {known}")
        if name not in get_available_reporting_integrations():
            raise InputError(f"The tracker '{name}' is not installed; install it (pip install {name}), or leave out report_to.")


class _StepEMA(TrainerCallback):
    """Averages after each step; at the end of training the average becomes the model."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.ema.step(self.trainer._trained().values())

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.ema.copy_to(self.trainer._trained().values())


class _StopAtBrokenLoss(TrainerCallback):
    """Looks at the loss before anything is logged, measured or saved; on a CPU, where it costs nothing, after each step."""

    def __init__(self, trainer):
        self.trainer, self.every_step = trainer, trainer.args.device.type == "cpu"

    def on_step_end(self, args, state, control, **kwargs):
        looks = control.should_log or control.should_evaluate or control.should_save or control.should_training_stop
        if looks or self.every_step:
            self.trainer.refuse_broken_loss()
