"""One run that trains a classifier: from options to a folder with a card."""

import numpy as np
import torch
from accelerate import PartialState
from huggingface_hub import ModelCard, ModelCardData
from transformers import ResNetConfig, ResNetForImageClassification, set_seed
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.utils.logging import disable_progress_bar

from ..data.reading import ImageReader
from ..data.requests import load_classes
from ..reporting.run_folder import RunFolder, refuse_full_folder
from .classifier import ClassifierTrainer, LabelledPictures, ViewCollator
from .config import PretrainingConfig

CARD = """---
{data}
---

# {name}

A small classifier (`{kind}`, {weights:,} weights) of {size}x{size} pictures, to measure completed pictures by its features. It
is trained on whole pictures and on parts of them, for it judges the hole of a completion alone too.

| | |
|---|---|
| trained on | `{dataset}`, split `{split}`: {count:,} pictures, {classes} classes |
| steps | {steps:,} of {batch} |
| accuracy on `{eval_split}` ({eval_count:,} pictures), whole pictures | {whole:.1%} |
| the same, seeing only the central {hole:.0%} of the sides | {part:.1%} |

```bash
{command}
```
"""


def train_classifier(args, training: PretrainingConfig, command: str) -> dict:
    """Train, evaluate, and write checkpoint, processor, card, options and figures to `training.output_dir`.

    Args:
        args: the options of `commands.train_classifier.Arguments`. command: the one that is running, for the card.

    Returns:
        {"count", "whole", "hole", "hole_side"}: accuracy on whole held-out pictures, and seeing their centre alone.

    Raises:
        InputError: what cannot work, before training starts.
    """
    with PartialState().main_process_first():
        refuse_full_folder(training.output_dir, bool(training.resume_from_checkpoint))
    disable_progress_bar()
    set_seed(training.seed)
    size = {"height": args.image_size, "width": args.image_size}
    processor = ViTImageProcessorPil(size=size, resample=3, do_normalize=False)
    reader = ImageReader(processor, args.channels, None, args.on_corrupt, args.background)

    def pictures(split, seed=None):
        source = load_classes(args, split, args.classes)
        return LabelledPictures(source, reader, args.image_size, args.image_column, args.label_column, seed)

    train = pictures(args.train_split, training.seed)
    held_out = pictures(args.eval_split) if args.eval_split not in (None, "none") else None
    sample = train.pictures[:: len(train) // 5000 + 1].float() / 255
    processor.do_normalize = True
    processor.image_mean = [round(v, 4) for v in sample.mean((0, 2, 3)).tolist()]
    processor.image_std = [round(v, 4) for v in sample.std((0, 2, 3)).tolist()]
    trainer = make_trainer(args, training, train, held_out, processor)
    count = f"{len(train):,} pictures, {len(train.names)} classes"
    print(f"{_weights(trainer.model):,} weights, {count}, {trainer.args.world_size} process(es)", flush=True)
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)

    if args.half:
        trainer.model.to(torch.float16).to(torch.float32)  # the figures are those of the weights that are saved
    figures = measure(args, trainer, held_out)
    if trainer.is_world_process_zero():
        if args.half:
            trainer.model.to(torch.float16)
        trainer.save_model()
        folder = RunFolder(training.output_dir)
        folder.write_figures(figures)
        folder.write_options(args, training)
        write_card(folder, args, trainer, train, figures, command)
    return figures


def make_trainer(args, training, train, held_out, processor) -> ClassifierTrainer:
    """A fresh network of the classes of `train`, and what trains it."""
    names = train.names
    config = ResNetConfig(
        num_channels=args.channels,
        id2label=dict(enumerate(names)),
        label2id={n: i for i, n in enumerate(names)},
        **args.network,
    )
    config.image_size = args.image_size
    mean, std = processor.image_mean, processor.image_std
    return ClassifierTrainer(
        model=ResNetForImageClassification(config),
        args=training,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=processor,
        data_collator=ViewCollator(mean, std, args.min_view, args.flip, rotation=args.rotation, whole=args.whole),
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        compute_metrics=lambda result: {"accuracy": float(np.mean(result.predictions == result.label_ids))},
    )


def measure(args, trainer, held_out) -> dict:
    """Accuracy on the held-out pictures; not a number where there are none."""
    figures = {"count": 0, "whole": float("nan"), "hole": float("nan"), "hole_side": args.hole}
    if held_out:
        figures["count"] = len(held_out)
        figures["whole"] = trainer.evaluate(held_out)["eval_accuracy"]
        figures["hole"] = trainer.evaluate(held_out.central(args.hole))["eval_accuracy"]
        found = f"{figures['whole']:.2%}, centre alone {figures['hole']:.2%}"
        print(f"accuracy on {len(held_out):,} {args.eval_split} pictures: {found}")
    return figures


def write_card(folder: RunFolder, args, trainer, train, figures: dict, command: str) -> None:
    """The README.md of the classifier."""
    data = ModelCardData(library_name="transformers", pipeline_tag="image-classification", tags=["machine-unlearning"])
    text = CARD.format(
        data=data.to_yaml(),
        name=folder.name,
        kind=ResNetForImageClassification.__name__,
        weights=_weights(trainer.model),
        size=args.image_size,
        dataset=args.dataset,
        split=args.train_split,
        count=len(train),
        classes=len(train.names),
        steps=trainer.state.global_step,
        batch=trainer.args.train_batch_size * trainer.args.world_size,
        eval_split=args.eval_split,
        eval_count=figures["count"],
        whole=figures["whole"],
        part=figures["hole"],
        hole=args.hole,
        command=command,
    )
    ModelCard(text).save(folder.card)


def _weights(model) -> int:
    return sum(p.numel() for p in model.parameters())
