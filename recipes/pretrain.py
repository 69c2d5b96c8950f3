"""Train an original model from nothing, so that there is something to unlearn.

    python recipes/pretrain.py --config recipes/configs/pretrain_mnist_mae.yaml

made the weights of the embedded demo. `accelerate launch` runs it on several devices; a killed run goes on with
`--resume_from_checkpoint true`. The result is a folder that `transformers` loads.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import ViTMAEConfig, set_seed
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_i2i_unlearn import (
    AUGMENTATIONS,
    I2IMAE,
    Evaluator,
    I2IUNet,
    ImageReader,
    JsonDict,
    PretrainingConfig,
    PretrainingTrainer,
    SingleImages,
    SourceArguments,
    by_classes,
    first_rows,
    load_source,
    palette_config,
    parse,
    parse_corruption,
    refuse_full_folder,
    run,
    select,
    undecoded,
)


@dataclass
class Arguments(SourceArguments):
    """The model and what it sees."""

    family: str = field(default="mae", metadata={"choices": ["mae", "diffusion"], "help": "What to train."})
    model: JsonDict = field(
        default_factory=JsonDict,
        metadata={"help": "Fields of ViTMAEConfig, or arguments of palette_config, as JSON or in the YAML file."},
    )
    patch_size: int | None = field(default=None, metadata={"help": "Diffusion: side in pixels of the patches that T hides."})
    denoising_steps: int = field(default=20, metadata={"help": "Diffusion: steps of generation, for the figures."})
    classes: list[str] | None = field(default=None, metadata={"help": "Train on these classes only; all if not given."})
    image_mean: list[float] = field(
        default_factory=lambda: [0.485, 0.456, 0.406], metadata={"help": "Channel means in [0, 1]."}
    )
    image_std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225], metadata={"help": "Channel deviations."})
    corruptions: JsonDict = field(
        default_factory=lambda: JsonDict({"random:0.75": 1.0}),
        metadata={"help": 'Corruptions and their shares of the steps, e.g. {"center:8": 0.7, "random:0.5": 0.3}.'},
    )
    augment: str = field(default="flip_and_crop", metadata={"choices": list(AUGMENTATIONS), "help": "Augmentation."})
    on_corrupt: str = field(
        default="refuse", metadata={"choices": ["refuse", "skip"], "help": "What an unreadable picture does."}
    )
    eval_samples: int = field(default=0, metadata={"help": "Pictures for the figures, evenly spread; 0 = all."})
    half: bool = field(default=False, metadata={"help": "Save the result in half precision."})


def main():
    args, training = parse((Arguments, PretrainingConfig), __doc__)
    resuming = bool(training.resume_from_checkpoint)
    with PartialState().main_process_first():
        refuse_full_folder(training.output_dir, resuming)

    set_seed(training.seed)
    if args.family == "mae":
        model = I2IMAE.from_config(ViTMAEConfig(**args.model))
    else:
        config = palette_config(**args.model)
        model = I2IUNet.from_config(config, patch_size=args.patch_size, steps=args.denoising_steps)
    height, width = model.image_size
    processor = ViTImageProcessorPil(
        size={"height": height, "width": width}, image_mean=args.image_mean, image_std=args.image_std, resample=3
    )

    def pictures(split):
        source = load_source(args.dataset, split, args.dataset_config)
        if args.classes:
            source = select(source, by_classes(source, args.classes, args.label_column), True, args.image_column)
        return undecoded(source, args.image_column)

    dataset = pictures(args.train_split)
    corruptions = {parse_corruption(text): share for text, share in args.corruptions.items()}
    trainer = PretrainingTrainer(
        model,
        training,
        SingleImages(dataset, training.seed),
        processor,
        corruptions,
        AUGMENTATIONS[args.augment],
        args.on_corrupt,
    )
    weights = sum(p.numel() for p in model.parameters())
    print(f"{weights:,} weights, {len(dataset):,} pictures, {trainer.args.world_size} process(es)")
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)

    figures = {}
    if args.eval_split not in (None, "none"):
        rows = first_rows(pictures(args.eval_split), args.eval_samples)
        reader = ImageReader(processor, model.channels, None, args.on_corrupt)
        for corruption in corruptions:
            evaluator = Evaluator(
                model, {args.eval_split: rows}, reader, corruption, seed=training.seed, accelerator=trainer.accelerator
            )
            result = evaluator(model)[args.eval_split]
            figures[str(corruption)] = {k: result[k] for k in ("count", "mse", "psnr")}
            print(
                f"{corruption}: hole MSE {result['mse']:.3f}, PSNR {result['psnr']:.1f} dB on {result['count']} {args.eval_split} pictures"
            )
    if trainer.is_world_process_zero():
        if args.half:
            model.to(torch.float16)
        trainer.save_model()
        (Path(training.output_dir) / "figures.json").write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    run(main)
