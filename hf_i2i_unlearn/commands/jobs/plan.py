"""`--plan true`: what a run will take, from a few of its steps on this machine and from counting.

It takes the steps that the run would take (its model, method, pictures, batch, precision and devices), writes one checkpoint
beside the output folder, completes a few pictures, and multiplies. Nothing that it makes is left.
"""

import copy
import itertools
import json
import math
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ...audit.picture_verdicts import other_masks
from ...data.pairs import ForgetRetainPairs, seeds_for
from ...data.sources import first_rows
from .certificate import masks_of, unseen_rows
from .levers import levers
from .measuring import FEW, Cost, Memory, duration, few_denoising_steps, finished, since_start
from .takedown import WATCHED

STEPS = 4  # that are taken; the first one is left out
SHOWN = 100  # evaluation pictures of each set during training, at most (`Run.trainer`)


@dataclass
class Measured:
    """On this machine. seconds: of a step, of a checkpoint, of reading a picture, of the original's encoder a picture, and of
    completing a picture under the evaluation mask and under each mask of the verdicts. GB at the peak of each part."""

    step: float = 0.0
    checkpoint: float = 0.0
    reading: float = 0.0
    encoding: float = 0.0
    completing: float = 0.0
    verdicts: list[float] = field(default_factory=list)
    training_gb: float = 0.0
    evaluation_gb: float = 0.0
    checkpoint_bytes: int = 0
    result_bytes: int = 0
    target_bytes: int = 0  # of one representation
    held_bytes: int = 0  # by the weights of model and original


@dataclass
class Plan:
    """What a run will take.

    Attributes:
        device, devices, precision: what it will run on. trained, weights: numbers of weights. pairs: in a step of all devices.
        steps: the most that it takes. memory: GB a device, at the peak; of_evaluation: whether that is in evaluation.
        seconds: {part of the run: seconds}. disk: {what: bytes}, at the fullest. cheaper: lines on what makes it cheaper.
    """

    device: str
    devices: int
    precision: str
    trained: int
    weights: int
    pairs: int
    steps: int
    memory: float
    of_evaluation: bool
    seconds: dict[str, float]
    disk: dict[str, int]
    cheaper: list[str]
    measured: Measured

    @property
    def hours(self) -> float:
        """Of the whole run."""
        return sum(self.seconds.values()) / 3600

    def text(self) -> str:
        """Lines for people."""
        m = self.measured
        parts = "; ".join(f"{name} {duration(s)}" for name, s in self.seconds.items() if s >= 0.5)
        files = ", ".join(f"{name} {size(b)}" for name, b in self.disk.items() if b)
        other, less = ("training", m.training_gb) if self.of_evaluation else ("evaluation", m.evaluation_gb)
        most = "at most " if self.seconds["looks at the verdicts"] else ""
        where = "evaluation" if self.of_evaluation else "training"
        lines = [
            f"The plan of this run, from {STEPS - 1} measured steps on {self.devices} {self.device} device(s) in "
            f"{self.precision}. Nothing was trained, and nothing is left.",
            "",
            f"weights trained  {self.trained:,} of {self.weights:,} ({self.trained / self.weights:.1%})",
            f"memory a device  {self.memory:.2f} GB in {where} ({other} {less:.2f} GB)",
            f"steps            {most}{self.steps:,} of {self.pairs} pairs, {m.step:.3g} s each",
            f"time             {duration(self.hours * 3600)}: {parts}",
            f"disk             {size(sum(self.disk.values()))}: {files}",
        ]
        if self.seconds["erasing"]:
            lines.append("--erase: counted from the steps of unlearning; what larger batches and the decoder need is not in it")
        return "\n".join([*lines, "", "What makes it cheaper:", *(f"- {line}" for line in self.cheaper)])


def size(count: float) -> str:
    """In words: 3.1 GB, 12.0 MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def plan(run) -> Plan:
    """What `run`, a `Run`, will take. It is of no use for training afterwards.

    Raises:
        InputError: what the run itself refuses before training.
    """
    before = since_start()
    place = Path(run.training.output_dir).resolve().parent
    while not place.is_dir():
        place = place.parent
    with tempfile.TemporaryDirectory(prefix=".plan-", dir=place) as folder:
        trainer, measured = _train(run, Path(folder))
        _complete(run, trainer, measured)
    count = getattr(run.pairs, "__len__", None)
    steps = steps_of(run.training, count() if count else None)
    seconds = {"preparing": before} | _seconds(run, measured, steps)
    evaluated = measured.evaluation_gb > measured.training_gb
    trained = sum(p.numel() for p in trainer._trained().values())
    made = Plan(
        device=trainer.args.device.type,
        devices=trainer.args.world_size,
        precision={"no": "fp32"}.get(trainer.accelerator.mixed_precision, trainer.accelerator.mixed_precision),
        trained=trained,
        weights=sum(p.numel() for p in run.model.model.parameters()),
        pairs=pairs_of(run.training),
        steps=steps,
        memory=max(measured.training_gb, measured.evaluation_gb),
        of_evaluation=evaluated,
        seconds=seconds,
        disk=_disk(run, measured),
        cheaper=[],
        measured=measured,
    )
    made.cheaper = levers(run, made)
    return made


def report(run, form: str) -> None:
    """Plan, and print it for people ("true") or as one line of JSON ("json")."""
    made = plan(run)
    if run.training.process_index == 0:
        print(json.dumps(asdict(made)) if form == "json" else made.text())


def pairs_of(training) -> int:
    """In a step of all devices."""
    return training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size


def steps_of(training, pairs: int | None) -> int:
    """Optimisation steps of the run, as the Trainer counts them; pairs: of an epoch, None for a stream."""
    if training.max_steps > 0 or pairs is None:
        return training.max_steps
    batches = math.ceil(pairs / (training.per_device_train_batch_size * training.world_size))
    an_epoch = max(1, math.ceil(batches / training.gradient_accumulation_steps))
    return math.ceil(training.num_train_epochs * an_epoch)


def times(steps: int, every: float, strategy: str) -> int:
    """How often something happens that is done every so many steps, or at shares of the run below 1."""
    if strategy != "steps":
        return 0 if strategy == "no" else 1
    every = math.ceil(steps * every) if every < 1 else int(every)
    return steps // every


# ---------------------------------------------------------------------------------------------------------------- measuring


class _Saving(TrainerCallback):
    """Seconds of the checkpoint."""

    def __init__(self):
        self.since, self.seconds = 0.0, 0.0

    def on_step_end(self, *args, **kwargs):
        self.since = time.perf_counter()

    def on_save(self, *args, **kwargs):
        self.seconds = time.perf_counter() - self.since


def _short(training, folder: Path):
    """The options of training for a few steps with one checkpoint, all else as it is."""
    short = copy.copy(training)
    short.output_dir, short.max_steps, short.save_steps, short.logging_steps = str(folder / "out"), STEPS, STEPS, 1
    short.eval_strategy, short.save_strategy = IntervalStrategy.NO, SaveStrategy.STEPS
    short.report_to, short.push_to_hub, short.load_best_model_at_end, short.patience = [], False, False, 0
    short.stop_at_forget_distance, short.resume_from_checkpoint, short.disable_tqdm = None, None, True
    short.targets_dir, short.mean_draws = str(folder / "targets"), min(64, training.mean_draws)
    short.noise_bank = min(64, training.noise_bank)
    return short


def _few(run):
    """The training pairs; of a run that keeps targets, with a few retain pictures alone."""
    if not run.training.cache_targets or not isinstance(run.pairs, ForgetRetainPairs):
        return run.pairs
    count = min(len(run.splits.retain), 2 * run.training.per_device_train_batch_size)
    return ForgetRetainPairs(run.splits.forget, run.splits.retain.select(range(count)), run.training.seed)


def _train(run, folder: Path):
    """A few steps and a checkpoint: (the trainer, `Measured` with what they took)."""
    found, saving = Measured(), _Saving()
    trainer = replace(run, training=_short(run.training, folder), pairs=_few(run)).trainer()
    run.training.noise_target = trainer.args.noise_target  # "auto" is settled
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(saving)
    with Memory(trainer.args.device) as memory:
        trainer.train()
        finished(trainer.args.device)
        found.checkpoint_bytes = bytes_below(folder / "out")
        trainer.save_model(str(folder / "result"))
    found.result_bytes = bytes_below(folder / "result")
    found.training_gb, found.checkpoint = memory.peak, saving.seconds
    taken = [log["seconds_per_step"] for log in trainer.state.log_history if "seconds_per_step" in log][1:]
    found.step = sorted(taken)[len(taken) // 2]
    held = {p.data_ptr(): p.nbytes for m in (run.model, run.original) for p in m.parameters()}
    found.held_bytes = sum(held.values())
    return trainer, found


def bytes_below(folder: Path) -> int:
    """Of all files."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


@torch.no_grad()
def _complete(run, trainer, found: Measured) -> None:
    """Reading, encoding and completing a few pictures: seconds, and the memory of a whole batch by its slope."""
    model, device, reader, seed = run.model.eval(), trainer.args.device, run.reader.plain, run.training.seed
    rows = list(itertools.islice(itertools.cycle(run.rows["forget"]), FEW))
    start = time.perf_counter()
    decoded = [picture for row in rows if (picture := reader.decode(row)) is not None]
    pixels = reader.pixels(decoded).to(device)
    found.reading = (time.perf_counter() - start) / len(rows)
    seeds = [seeds_for(seed, i) for i in range(len(pixels))]
    first, second = ([s[i] for s in seeds] for i in (0, 1))

    def encode(count):
        mask = run.eval_corruption(model.grid, first[:count])
        return model(pixels[:count], model.draw(pixels[:count], mask, first[:count]))

    def complete(count, corruption=run.eval_corruption):
        return model.generate(pixels[:count], corruption(model.grid, first[:count]), second[:count])

    found.target_bytes = encode(1).nbytes
    encoding = Cost.of(encode, len(pixels), device)
    trained = masks_of(run.corruption)
    masks = [*trained, *other_masks(model.grid, trained)]
    with few_denoising_steps(model) as scale:
        completing = Cost.of(complete, len(pixels), device)
        if scale:  # of a model that denoises a mask changes nothing
            found.completing = scale(completing.seconds, lambda: Cost.of(complete, 1, device).seconds)
            found.verdicts = [found.completing] * len(masks)
        else:
            found.completing = completing.seconds
            found.verdicts = [Cost.of(lambda n, m=m: complete(n, m), len(pixels), device).seconds for m in masks]
    found.encoding = encoding.seconds
    evaluates = run.training.eval_strategy != "no"
    batch = min(run.training.per_device_eval_batch_size, max(map(len, run.rows.values())))
    kept = sum(min(SHOWN, len(rows)) for rows in run.rows.values()) * 2 * pixels[0].nbytes / 2**30
    pairs = encoding.memory(2 * min(batch, SHOWN)) if evaluates else 0.0
    found.evaluation_gb = max(completing.memory(batch), pairs) + (kept if evaluates and device.type == "cpu" else 0.0)


# ----------------------------------------------------------------------------------------------------------------- counting


def _seconds(run, m: Measured, steps: int) -> dict[str, float]:
    """{part of the run: seconds}."""
    training, shown = run.training, sum(min(SHOWN, len(rows)) for rows in run.rows.values())
    evaluations = times(steps, training.eval_steps or training.logging_steps, training.eval_strategy)
    devices, shown_pairs = training.world_size, min(SHOWN, *map(len, run.rows.values()))
    terms = 4 * shown_pairs * m.encoding
    saves = times(steps, training.save_steps, training.save_strategy) + (training.save_strategy == "steps")
    args = run.args
    forget = len(first_rows(run.splits.forget, args.eval_samples))
    unseen, *_ = unseen_rows(args, run.rows, not args.forget_classes and not args.forget_values)
    judged = sum(m.verdicts) * (2 * forget + len(unseen)) + m.reading * (forget + len(unseen))
    figures = sum(map(len, run.rows.values())) * (2 * m.completing + m.reading)
    pictures = 2 * 2 * args.pictures * m.completing
    first = shown * (m.completing + m.reading)  # the original's completions, which are kept
    unlearns = not args.erase or (args.erase < 1 and not args.erase_from)
    return {
        "targets": _targets_seconds(run, m),
        "steps": steps * m.step * unlearns,
        "erasing": _erasing_seconds(run, m),
        "looks at the verdicts": _looks_seconds(run, m, steps),
        "evaluations": (evaluations * (shown * m.completing + terms) + (first if evaluations else 0)) / devices,
        "checkpoints": saves * m.checkpoint,
        "verdicts": judged,
        "figures": figures / devices + pictures,
    }


def _looks_seconds(run, m: Measured, steps: int) -> float:
    """Of a takedown's, that trains until its verdicts hold; where it takes all its steps."""
    if not run.takedown or not run.takedown.ceiling:
        return 0.0
    masks = len(masks_of(run.corruption))
    forget = len(first_rows(run.splits.forget, run.args.eval_samples))
    seen = sum(min(WATCHED, count) for count in (forget, len(run.rows["retain"])))
    return steps // run.takedown.every(run, masks * seen) * seen * sum(m.verdicts[:masks])


def _erasing_seconds(run, m: Measured) -> float:
    """Of the second stage, by the pairs in its steps."""
    args = run.args
    pairs = args.erase_batch_size / run.training.per_device_train_batch_size
    return args.erase_steps * m.step * pairs if args.erase else 0.0


def _targets_seconds(run, m: Measured) -> float:
    """Of what the original encodes once."""
    training = run.training
    draws = training.noise_bank or (training.mean_draws if training.noise_target == "mean" else 0)
    kept = len(run.splits.retain) if training.cache_targets else 0
    return 0.0 if run.corruption.is_random else (draws + kept) * m.encoding + kept * m.reading


def _disk(run, m: Measured) -> dict[str, int]:
    """{what: bytes}, when it is fullest: one checkpoint more is there while the oldest is removed."""
    training = run.training
    checkpoints = 0 if training.save_strategy == "no" else (training.save_total_limit or 1) + 1
    result = sum(p.nbytes for p in run.model.model.parameters()) if run.args.merge else m.result_bytes
    kept = len(run.splits.retain) * m.target_bytes if training.cache_targets else 0
    return {
        f"{checkpoints} checkpoints": checkpoints * m.checkpoint_bytes,
        "the result": result,
        "kept targets": kept,
    }
