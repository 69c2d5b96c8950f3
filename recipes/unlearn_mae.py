"""Make a masked autoencoder forget pictures (eq. 10 of "Machine Unlearning for Image-to-Image Generative Models").

Without options it runs the embedded demo: a small MAE forgets the digits 5-9 of MNIST, offline, in about a minute. With
your own: --model (Hub id or folder), --dataset, and one of --forget_classes, --forget_list, --forget_rows, --forget_values.
The output folder holds the checkpoint, its card, a before/after picture, the figures and the options of the run.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from hf_i2i_unlearn import (
    AUGMENTATIONS,
    CORRUPTION_HELP,
    I2IMAE,
    NOISE_HELP,
    Evaluator,
    ForgetRetainPairs,
    ForgetRetainStream,
    ImageReader,
    InputError,
    SplitArguments,
    UnlearningConfig,
    UnlearningTrainer,
    build_splits,
    command_line,
    completion_grid,
    completions,
    demo,
    inherited_license,
    load_processor,
    make_noise,
    markdown_table,
    parse,
    parse_corruption,
    pixel_batches,
    refuse_full_folder,
    run,
    write_card,
    write_run,
)

DEMO = Path(__file__).parent / "configs" / "unlearn_mnist_mae.yaml"


@dataclass
class Arguments(SplitArguments):
    """What to unlearn."""

    model: str = field(default="mnist-demo", metadata={"help": "A ViTMAE checkpoint: Hub id, folder, or mnist-demo."})
    corruption: str = field(default="center:8", metadata={"help": f"T(x) in training: {CORRUPTION_HELP}."})
    eval_corruption: str | None = field(default=None, metadata={"help": "T(x) in evaluation; as in training if not given."})
    noise: str = field(default="normal", metadata={"help": f"The noise n. {NOISE_HELP}."})
    noise_rank: int = field(default=64, metadata={"help": "Directions of --noise low_rank."})
    augment: str = field(default="none", metadata={"choices": list(AUGMENTATIONS), "help": "Augmentation in training."})
    on_corrupt: str = field(
        default="refuse", metadata={"choices": ["refuse", "skip"], "help": "What an unreadable picture does."}
    )
    pictures: int = field(default=4, metadata={"help": "Pictures per set in the before/after grid."})


def main():
    args, training = parse((Arguments, UnlearningConfig), __doc__, demo=DEMO)
    if training.push_to_hub:
        raise InputError(
            "--push_to_hub is not there yet; upload the finished folder: hf upload <repo> <folder> --exclude 'checkpoint-*'."
        )
    folder = Path(training.output_dir)
    with PartialState().main_process_first():
        refuse_full_folder(folder, bool(training.resume_from_checkpoint))
    disable_progress_bar()
    set_seed(training.seed)

    path = demo.MAE if args.model == "mnist-demo" else args.model
    model = I2IMAE.from_pretrained(path)
    original = model.frozen_copy()
    processor = load_processor(path)
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
        return
    models = {"before": original, "after": model}
    grid = {
        n: completions(models, reader, eval_corruption, r[:: max(1, len(r) // args.pictures)][: args.pictures])
        for n, r in rows.items()
    }
    completion_grid(grid, folder / "before_after.png")
    write_run(folder / "run.yaml", args, training)
    (folder / "figures.json").write_text(json.dumps(result | ({"retain_bound": bound} if bound else {}), indent=1))
    write_card(
        folder,
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
        command=command_line("recipes/unlearn_mae.py"),
        picture="before_after.png",
    )
    if bound:
        word = "holds" if bound["holds"] else "is BROKEN"
        print(
            f"\nThe retain bound {word}: distance {bound['retain_distance']:.4g} on evaluation pictures, bound {bound['bound']:g}."
        )
    print(f"\n{markdown_table(result)}\n\nIn {folder}: the checkpoint, its card (README.md) and before_after.png.")


if __name__ == "__main__":
    run(main)
