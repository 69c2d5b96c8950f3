"""One unlearning run from options to a documented checkpoint: what the recipes of all families share."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from .cli import command_line, refuse_full_folder, write_run
from .config import UnlearningConfig
from .corruptions import CORRUPTION_HELP, parse_corruption
from .data import (
    AUGMENTATIONS,
    ForgetRetainPairs,
    ForgetRetainStream,
    ImageReader,
    pixel_batches,
)
from .errors import InputError
from .evaluation import Evaluator, completions, markdown_table
from .model_card import inherited_license, write_card
from .models.base import I2IModel
from .noise import NOISE_HELP, make_noise
from .plots import completion_grid
from .splits import SplitArguments, build_splits
from .trainer import UnlearningTrainer


@dataclass
class RunArguments(SplitArguments):
    """What to unlearn."""

    model: str = field(default="mnist-demo", metadata={"help": "The original checkpoint: Hub id, folder, or mnist-demo."})
    corruption: str = field(default="center:8", metadata={"help": f"T(x) in training: {CORRUPTION_HELP}."})
    eval_corruption: str | None = field(default=None, metadata={"help": "T(x) in evaluation; as in training if not given."})
    noise: str = field(default="normal", metadata={"help": f"The noise n. {NOISE_HELP}."})
    noise_rank: int = field(default=64, metadata={"help": "Directions of --noise low_rank."})
    augment: str = field(default="none", metadata={"choices": list(AUGMENTATIONS), "help": "Augmentation in training."})
    on_corrupt: str = field(
        default="refuse", metadata={"choices": ["refuse", "skip"], "help": "What an unreadable picture does."}
    )
    pictures: int = field(default=4, metadata={"help": "Pictures per set in the before/after grid."})


def prepare_run(training: UnlearningConfig) -> None:
    """Before any model is loaded: refuse what cannot work, seed everything, leave one progress bar.

    Raises:
        InputError: a full output folder, or the wish to push.
    """
    if training.push_to_hub:
        raise InputError(
            "--push_to_hub is not there yet; upload the finished folder: hf upload <repo> <folder> --exclude 'checkpoint-*'."
        )
    with PartialState().main_process_first():
        refuse_full_folder(training.output_dir, bool(training.resume_from_checkpoint))
    disable_progress_bar()
    set_seed(training.seed)


def unlearn(args: RunArguments, training: UnlearningConfig, model: I2IModel, processor, path: str, recipe: str) -> dict:
    """Unlearn, evaluate, and write checkpoint, processor, card, picture, figures and options to `training.output_dir`.

    Args:
        model: the original model; it is trained in place. processor: its image processor. path: where both came from.
        recipe: the recipe's path in the repository, for the command in the card.

    Returns:
        What `Evaluator` returned.
    """
    folder, original = Path(training.output_dir), model.frozen_copy()
    corruption = parse_corruption(args.corruption)
    eval_corruption = parse_corruption(args.eval_corruption or args.corruption)
    splits = build_splits(args)
    pairs = (ForgetRetainStream if args.streaming else ForgetRetainPairs)(splits.forget, splits.retain, training.seed)
    rows = {"retain": splits.eval_retain, "forget": splits.eval_forget}
    reader = ImageReader(processor, model.channels, None, args.on_corrupt)
    noise = make_noise(
        args.noise, lambda: pixel_batches(splits.forget, reader), *reader.black_and_white(), args.noise_rank, training.seed
    )
    trainer = UnlearningTrainer(
        model,
        training,
        pairs,
        processor,
        corruption,
        eval_dataset={name: all_rows[:: len(all_rows) // 100 + 1] for name, all_rows in rows.items()},
        eval_corruption=eval_corruption,
        noise=noise,
        original=original,
        augment=AUGMENTATIONS[args.augment],
        on_corrupt=args.on_corrupt,
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)

    result = Evaluator(
        original, rows, reader, eval_corruption, training.per_device_eval_batch_size, training.seed, trainer.accelerator
    )(model)
    bound = trainer.bound_report()
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return result
    models = {"before": original, "after": model}
    grid = {
        name: completions(models, reader, eval_corruption, r[:: max(1, len(r) // args.pictures)][: args.pictures])
        for name, r in rows.items()
    }
    completion_grid(grid, folder / "before_after.png")
    write_run(folder / "run.yaml", args, training)
    (folder / "figures.json").write_text(json.dumps(result | ({"retain_bound": bound} if bound else {}), indent=1))
    write_card(
        folder,
        model=model,
        base_model=args.model,
        license=inherited_license(path),
        result=result,
        description=splits.description,
        args=training,
        corruption=corruption,
        eval_corruption=eval_corruption,
        noise=noise,
        bound=bound,
        steps=trainer.state.global_step,
        skipped=trainer.skipped,
        command=command_line(recipe),
        picture="before_after.png",
    )
    if bound:
        word = "holds" if bound["holds"] else "is BROKEN"
        print(
            f"\nThe retain bound {word}: distance {bound['retain_distance']:.4g} on evaluation pictures, bound {bound['bound']:g}."
        )
    print(f"\n{markdown_table(result)}\n\nIn {folder}: the checkpoint, its card (README.md) and before_after.png.")
    return result
