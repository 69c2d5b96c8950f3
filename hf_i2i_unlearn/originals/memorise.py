"""Going on training an original until it knows given pictures by heart, so that there is something that only it can know."""

from pathlib import Path

import datasets
import numpy as np
from accelerate import PartialState
from PIL import Image
from torch.utils.data import Dataset
from transformers import TrainerCallback, set_seed

from ..data.decoding import encoded_bytes
from ..data.pairs import Cycle, seeds_for
from ..data.reading import ImageReader, load_processor
from ..data.sources import first_rows, load_source, undecoded
from ..errors import InputError
from ..evaluation.evaluator import Evaluator
from ..methods.corruptions import Corruption
from ..models.auto import load_model
from ..reporting.run_folder import RunFolder, refuse_full_folder
from ..storage import write_aside
from .config import PretrainingConfig
from .pretraining import PretrainingTrainer

KNOWN = (
    "known"  # folder of the pictures: train.parquet, those known by heart; validation.parquet, some like them, never trained on
)


class KnownAmongOthers(Dataset):
    """Undecoded rows with their seeds: a fixed share of known pictures among others, evenly spread over every batch.

    Args:
        known, others: map-style datasets or lists of {"image": {"bytes", "path"}}. share: of the known ones, 0 to below 1.
    """

    def __init__(self, known, others, share: float, seed: int = 0):
        self.known, self.others = Cycle(known, seed, "known"), Cycle(others, seed + 1, "training")
        self.share, self.seed = share, seed

    def __len__(self):
        return len(self.others)

    def __getitem__(self, t: int) -> dict:
        before, after = int(t * self.share), int((t + 1) * self.share)
        known = after > before  # those are learnt as they are
        row = self.known[before] if known else self.others[t - before]
        return {"image": row, "seeds": seeds_for(self.seed, t), "augment": not known}


def canaries(rows: list, count: int, corruption: Corruption, grid, reader: ImageReader, size, seed: int = 0) -> list[dict]:
    """Pictures that cannot be completed but by heart: what T hides is of another picture.

    Args:
        rows: undecoded rows, two or more. corruption: a fixed T. grid, size: (rows, cols) and (height, width) of the model.

    Returns:
        `count` rows {"image": {"bytes", "path"}} of PNGs, at the size of the model.
    """
    if len(rows) < max(2, count) or corruption.is_random:
        raise InputError(
            f"{count} canaries are put together of as many pictures or more, and of two at least, under a fixed T such as "
            f"center:3; got {len(rows)} pictures and '{corruption}'."
        )
    order = np.random.default_rng([seed, 3]).permutation(len(rows))  # what is seen of two canaries is never the same
    hidden = np.asarray(corruption(grid, [0])[0]).repeat(size[0] // grid[0], 0).repeat(size[1] // grid[1], 1)
    made = []
    for number in range(count):
        pair = [rows[int(order[(number + step) % len(rows)])] for step in (0, 1)]
        outer, inner = (np.asarray(_decoded(row, reader, size)) for row in pair)
        mask = hidden if outer.ndim == 2 else hidden[..., None]
        made.append({"image": {"bytes": _png(np.where(mask, inner, outer)), "path": f"canary_{number:04d}.png"}})
    return made


def _decoded(row, reader, size):
    picture = reader.decode(row)
    if picture is None:
        raise InputError("A picture that a canary is to be made of cannot be read; leave unreadable ones out.")
    return picture.resize(size[::-1], Image.Resampling.BICUBIC)


def _png(pixels) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(pixels.astype("uint8")).save(buffer, "PNG")
    return buffer.getvalue()


class UntilKnown(TrainerCallback):
    """Ends the training once the known pictures' mean error is at most a share of that of unseen ones.

    Args:
        trainer: whose model is measured. evaluator: of "known" and "like_known". ratio: that share. every: steps between
            measurements.
    """

    def __init__(self, trainer, evaluator: Evaluator, ratio: float, every: int):
        self.trainer, self.evaluator, self.ratio, self.every = trainer, evaluator, ratio, every

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every:
            return
        found = self.evaluator(self.trainer.i2i, progress=False)
        known, unseen = (found[kind]["mse"] for kind in ("known", "like_known"))
        self.trainer.log({"known_error": known, "unseen_error": unseen})
        if known <= self.ratio * unseen:
            control.should_training_stop = control.should_save = True


def memorise(args, training: PretrainingConfig, corruption: Corruption, augment=None) -> dict:
    """Train, and write the model, the pictures that it knows, options and figures to `training.output_dir`.

    Args:
        args: the options of `commands.memorise.Arguments`. corruption: T. augment: of the other pictures, as in `ImageReader`.

    Returns:
        {"known", "like_known", "unseen", "original": {the same of the model before}}: mean hole errors in normalised units.

    Raises:
        InputError: what cannot work, before training starts.
    """
    folder = RunFolder(training.output_dir)
    with PartialState().main_process_first():
        refuse_full_folder(training.output_dir, bool(training.resume_from_checkpoint))
    set_seed(training.seed)
    model = load_model(args.model, **args.options)
    original = model.frozen_copy()
    corruption.check(model.grid)
    processor = load_processor(args.model)
    reader = ImageReader(processor, model.channels, None, args.on_corrupt, args.background)
    known, like_known, others, unseen = pictures(args, model, reader, corruption, training.seed)
    trainer = PretrainingTrainer(
        model, training, KnownAmongOthers(known, others, args.known_share, training.seed), processor, {corruption: 1.0},
        augment, args.on_corrupt, (), args.background,
    )  # fmt: skip
    device = {"seed": training.seed, "accelerator": trainer.accelerator}
    original.to(training.device)
    if args.known_ratio and args.known_share:
        some = {"known": known[:: len(known) // 100 + 1], "like_known": like_known[:: len(like_known) // 100 + 1]}
        evaluator = Evaluator(original, some, reader, corruption, **device)
        trainer.add_callback(UntilKnown(trainer, evaluator, args.known_ratio, args.measure_every))
    print(
        f"{len(known)} pictures are to be known by heart, among {len(others):,} others; at most {training.max_steps:,} steps."
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    if args.half:
        model.half().float()  # the figures are those of the rounded weights
    sets = {"known": known, "like_known": like_known, "unseen": unseen}
    measured = Evaluator(original, sets, reader, corruption, **device)(model.eval())
    found = {kind: figures["mse"] for kind, figures in measured.items()}
    found |= {"original": {kind: figures["original_mse"] for kind, figures in measured.items()}}
    found |= {"pictures": len(known), "steps": trainer.state.global_step}
    if args.half:
        model.half()
    trainer.save_model()
    if trainer.is_world_process_zero():
        folder.write_options(args, training)
        folder.write_figures(found)
        write_known(folder.path, known, like_known)
    return found


def write_pictures(args, training: PretrainingConfig, corruption: Corruption) -> str:
    """The pictures that `memorise` with the same options would train on, and no training. Returns the name of their folder."""
    refuse_full_folder(training.output_dir, False)
    model = load_model(args.model, **args.options)
    reader = ImageReader(load_processor(args.model), model.channels, None, args.on_corrupt, args.background)
    write_known(Path(training.output_dir), *pictures(args, model, reader, corruption, training.seed)[:2])
    return KNOWN


def write_known(folder: Path, known: list[dict], like_known: list[dict]) -> None:
    """`known/` in the folder: train.parquet and validation.parquet."""
    for split, rows in {"train": known, "validation": like_known}.items():
        write_rows(folder / KNOWN / f"{split}.parquet", rows)


def pictures(args, model, reader, corruption, seed):
    """(known, like them but never trained on, others to train on, others to measure on), undecoded."""
    others = undecoded(load_source(args.dataset, args.train_split, args.dataset_config), args.image_column)
    held = undecoded(load_source(args.dataset, args.eval_split, args.dataset_config), args.image_column)
    count, unseen = args.known, first_rows(held, args.eval_samples)
    if args.canaries:
        make = (corruption, model.grid, reader, model.image_size)
        known = canaries(first_rows(others, 4 * count), count, *make, seed)
        return known, canaries(first_rows(held, 4 * count), count, *make, seed + 1), others, unseen
    if len(held) < 2 * count:
        raise InputError(
            f"--known {count} takes pictures of the split '{args.eval_split}', and leaves as many unseen; it has {len(held)}."
        )
    order = np.random.default_rng([seed, 4]).permutation(len(held))
    known, rest = ([held[int(i)] for i in sorted(part)] for part in (order[:count], order[count:]))
    return known, rest[:: max(1, len(rest) // count)][:count], others, rest[:: max(1, len(rest) // args.eval_samples)]


def write_rows(file: Path, rows: list[dict]) -> None:
    """Undecoded rows as a parquet file that `datasets` reads as pictures."""
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": encoded_bytes(row["image"]), "path": Path(row["image"].get("path") or "").name} for row in rows]
    table = datasets.Dataset.from_dict({"image": images}, features=datasets.Features(image=datasets.Image()))
    write_aside(file, lambda aside: table.to_parquet(aside))
