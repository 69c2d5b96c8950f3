"""Train a small classifier of your own pictures, whose features then measure completions offline.

    python recipes/train_classifier.py --config recipes/configs/classifier_mnist.yaml

made the feature network of the embedded demo. All pictures are decoded once and held in memory as bytes, so it is meant for
small ones. A killed run goes on with `--resume_from_checkpoint true`. The result is a folder that
`transformers.AutoModelForImageClassification` loads, with its accuracy in the card; `recipes/evaluate.py --features
classifier:FOLDER` uses it.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from huggingface_hub import ModelCard, ModelCardData
from transformers import ResNetConfig, ResNetForImageClassification, set_seed
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.utils.logging import disable_progress_bar

from hf_i2i_unlearn import ImageReader, PretrainingConfig, by_classes, load_source, select
from hf_i2i_unlearn.commands.cli import JsonDict, command_line, parse, run
from hf_i2i_unlearn.data.options import SourceArguments
from hf_i2i_unlearn.originals.classifier import ClassifierTrainer, LabelledPictures, ViewCollator
from hf_i2i_unlearn.reporting.run_folder import refuse_full_folder, write_run

CARD = """---
{data}
---

# {name}

A small classifier (`{kind}`, {weights:,} weights) of {size}x{size} pictures, to measure completed pictures by its features. It is
trained on whole pictures and on parts of them, for it judges the hole of a completion alone too.

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


@dataclass
class Arguments(SourceArguments):
    """The network and what it sees."""

    image_size: int = field(default=64, metadata={"help": "Side in pixels to which pictures are brought."})
    channels: int = field(default=3, metadata={"choices": [1, 3], "help": "1 reads pictures as grey."})
    network: JsonDict = field(
        default_factory=JsonDict, metadata={"help": "Fields of ResNetConfig, as JSON or in the YAML file."}
    )
    classes: list[str] | None = field(default=None, metadata={"help": "Train on these classes only; all if not given."})
    min_view: float = field(default=0.35, metadata={"help": "Smallest part of a picture seen in training, of the sides."})
    whole: float = field(default=0.5, metadata={"help": "Share of the pictures that are seen whole."})
    hole: float = field(default=0.5, metadata={"help": "Central part for the second accuracy, of the sides."})
    flip: bool = field(default=False, metadata={"help": "Mirror half of the pictures."})
    rotation: float = field(default=0.0, metadata={"help": "Largest rotation in degrees."})
    on_corrupt: str = field(
        default="refuse", metadata={"choices": ["refuse", "skip"], "help": "What an unreadable picture does."}
    )
    half: bool = field(default=False, metadata={"help": "Save the result in half precision."})


def main():
    args, training = parse((Arguments, PretrainingConfig), __doc__)
    resuming = bool(training.resume_from_checkpoint)
    with PartialState().main_process_first():
        refuse_full_folder(training.output_dir, resuming)
    disable_progress_bar()
    set_seed(training.seed)
    size = {"height": args.image_size, "width": args.image_size}
    processor = ViTImageProcessorPil(size=size, resample=3, do_normalize=False)
    reader = ImageReader(processor, args.channels, None, args.on_corrupt)

    def pictures(split, seed=None):
        source = load_source(args.dataset, split, args.dataset_config)
        if args.classes:
            source = select(source, by_classes(source, args.classes, args.label_column), True, args.image_column)
        return LabelledPictures(source, reader, args.image_size, args.image_column, args.label_column, seed)

    train = pictures(args.train_split, training.seed)
    held_out = pictures(args.eval_split) if args.eval_split not in (None, "none") else None
    names = train.names
    sample = train.pictures[:: len(train) // 5000 + 1].float() / 255
    processor.do_normalize = True
    processor.image_mean = [round(v, 4) for v in sample.mean((0, 2, 3)).tolist()]
    processor.image_std = [round(v, 4) for v in sample.std((0, 2, 3)).tolist()]
    config = ResNetConfig(
        num_channels=args.channels,
        id2label=dict(enumerate(names)),
        label2id={n: i for i, n in enumerate(names)},
        **args.network,
    )
    config.image_size = args.image_size
    trainer = ClassifierTrainer(
        model=ResNetForImageClassification(config),
        args=training,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=processor,
        data_collator=ViewCollator(
            processor.image_mean, processor.image_std, args.min_view, args.flip, rotation=args.rotation, whole=args.whole
        ),
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        compute_metrics=lambda result: {"accuracy": float(np.mean(result.predictions == result.label_ids))},
    )
    weights = sum(p.numel() for p in trainer.model.parameters())
    print(
        f"{weights:,} weights, {len(train):,} pictures, {len(names)} classes, {trainer.args.world_size} process(es)", flush=True
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)

    if args.half:
        trainer.model.to(torch.float16).to(torch.float32)  # the figures are those of the weights that are saved
    figures = {"count": 0, "whole": float("nan"), "hole": float("nan"), "hole_side": args.hole}
    if held_out:
        figures["count"] = len(held_out)
        figures["whole"] = trainer.evaluate(held_out)["eval_accuracy"]
        figures["hole"] = trainer.evaluate(held_out.central(args.hole))["eval_accuracy"]
        print(
            f"accuracy on {len(held_out):,} {args.eval_split} pictures: {figures['whole']:.2%}, centre alone {figures['hole']:.2%}"
        )
    if trainer.is_world_process_zero():
        folder = Path(training.output_dir)
        if args.half:
            trainer.model.to(torch.float16)
        trainer.save_model()
        (folder / "figures.json").write_text(json.dumps(figures, indent=1))
        write_run(folder / "run.yaml", args, training)
        data = ModelCardData(library_name="transformers", pipeline_tag="image-classification", tags=["machine-unlearning"])
        text = CARD.format(
            data=data.to_yaml(), name=folder.resolve().name, kind=ResNetForImageClassification.__name__, weights=weights,
            size=args.image_size, dataset=args.dataset, split=args.train_split, count=len(train), classes=len(names),
            steps=trainer.state.global_step, batch=training.train_batch_size * training.world_size,
            eval_split=args.eval_split, eval_count=figures["count"], whole=figures["whole"], part=figures["hole"], hole=args.hole,
            command=command_line("recipes/train_classifier.py"),
        )  # fmt: skip
        ModelCard(text).save(folder / "README.md")


if __name__ == "__main__":
    run(main)
