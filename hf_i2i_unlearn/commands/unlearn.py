"""One unlearning run from options to a documented checkpoint: what the recipes of all families share."""

import json
from pathlib import Path

from accelerate import PartialState
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from ..data.augmentation import AUGMENTATIONS
from ..data.reading import ImageReader, pixel_batches
from ..data.splits import build_splits, make_pairs
from ..errors import InputError
from ..evaluation.completions import completions
from ..evaluation.evaluator import Evaluator
from ..evaluation.tables import markdown_table
from ..models.auto import DEMOS, split_patch
from ..models.base import I2IModel
from ..models.patches import add_patch, load_patches, merge, original_of
from ..reporting.hub import check_access
from ..reporting.model_card import inherited_license, write_card
from ..reporting.plots import completion_grid
from ..reporting.run_folder import refuse_full_folder, write_run
from ..training.config import UnlearningConfig, check_options
from ..training.trainer import UnlearningTrainer
from .cli import command_line
from .options import RunArguments
from .words import find_distance, find_method, make_noise, parse_corruption


def prepare_run(training: UnlearningConfig, args: RunArguments | None = None) -> None:
    """Before any model is loaded: refuse what cannot work, seed everything, leave one progress bar.

    Where `args.model` is a patch, its original takes its place, and it and those below it go to the front of `args.patches`.

    Raises:
        InputError: a full output folder, a patch without an original, or no permission to push.
    """
    state = PartialState()
    with state.main_process_first():
        refuse_full_folder(training.output_dir, bool(training.resume_from_checkpoint))
    disable_progress_bar()
    if args is not None:
        original, patches = split_patch(args.model)
        if patches:
            args.model = original
            args.patches = [*patches, *(args.patches or [])]
    if training.push_to_hub and state.is_main_process:
        training.hub_model_id = check_access(
            training.hub_model_id or Path(training.output_dir).resolve().name,
            training.hub_private_repo,
            training.hub_revision,
            training.hub_token,
        )
    set_seed(training.seed)


def unlearn(args: RunArguments, training: UnlearningConfig, model: I2IModel, processor, path: str, recipe: str) -> dict:
    """Unlearn, evaluate, and write checkpoint or patch, processor, card, picture, figures and options to `training.output_dir`.

    With `training.push_to_hub` the finished folder is then pushed.

    Args:
        model: the original model; it is trained in place. processor: its image processor. path: where both came from.
        recipe: the recipe's path in the repository, for the command in the card.

    Returns:
        What `Evaluator` returned.

    Raises:
        InputError: what cannot work, before training starts. PushError: the push failed; the folder is whole.
    """
    folder = Path(training.output_dir)
    method, distance = find_method(args.method, args.variant), find_distance(args.distance)
    check_options(training, method, distance)
    base_model = next((name for name, demo in DEMOS.items() if demo == path), args.model)
    summary = _patch(model, args, base_model)
    original = original_of(model)
    corruption = parse_corruption(args.corruption, several=True)
    eval_corruption = parse_corruption(args.eval_corruption) if args.eval_corruption else corruption.at(0)
    splits = build_splits(args)
    pairs = make_pairs(args, splits, training.seed)
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
        method=method,
        distance=distance,
    )
    if summary and trainer.is_world_process_zero():
        print(summary)
    if args.merge and trainer.is_fsdp_enabled:
        raise InputError("--merge does not go with FSDP; leave it out, and merge the patch afterwards.")
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    model, original = trainer.whole_model(), trainer.original or original  # under FSDP they are others

    result = Evaluator(
        original, rows, reader, eval_corruption, training.per_device_eval_batch_size, training.seed, trainer.accelerator
    )(model)
    bound = trainer.bound_report()
    if args.pictures and trainer.is_world_process_zero():
        models = {"before": original, "after": model}
        grid = {
            name: completions(models, reader, eval_corruption, r[:: max(1, len(r) // args.pictures)][: args.pictures])
            for name, r in rows.items()
        }
        completion_grid(grid, folder / "before_after.png")
    if args.merge:
        merge(model)
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return result
    private = () if args.card_names else ("forget_values", "forget_rows")
    write_run(folder / "run.yaml", args, training, leave_out=private)
    (folder / "figures.json").write_text(json.dumps(result | ({"retain_bound": bound} if bound else {}), indent=1))
    write_card(
        folder,
        model=model,
        base_model=base_model,
        license=inherited_license(path),
        result=result,
        description=splits.description,
        args=training,
        method=method,
        variant=args.variant,
        distance=args.distance,
        corruption=corruption,
        eval_corruption=eval_corruption,
        noise=noise,
        bound=bound,
        patch=summary,
        below=args.patches,
        steps=trainer.state.global_step,
        skipped=trainer.skipped,
        command=command_line(recipe, private),
        picture="before_after.png" if args.pictures else None,
    )
    if bound:
        word = "holds" if bound["holds"] else "is BROKEN"
        print(
            f"\nThe retain bound {word}: distance {bound['retain_distance']:.4g} on evaluation pictures, bound {bound['bound']:g}."
        )
    what = "patch" if model.patch else "checkpoint"
    print(
        f"\n{markdown_table(result)}\n\nIn {folder}: the {what}, its card (README.md){' and before_after.png' if args.pictures else ''}."
    )
    if training.push_to_hub:
        print(f"Pushed: {trainer.push_to_hub()}")
    return result


def _patch(model: I2IModel, args: RunArguments, base_model: str) -> str | None:
    """Put the patches below on the model, and the one to be trained; a line on the latter."""
    if args.patches:
        load_patches(model, args.patches)
        if not args.lora:  # a full run goes on from the patched weights
            merge(model)
    return add_patch(model, base_model, args.lora_rank, args.lora_alpha, args.lora_targets) if args.lora else None
