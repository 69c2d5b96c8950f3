"""Train an original model from nothing, so that there is something to unlearn.

    python recipes/pretrain.py --config recipes/configs/pretrain_mnist_mae.yaml

made the weights of the embedded demo. MAGE takes two runs: `--family mage --stage tokenizer`, then `--stage transformer --init`
with the folder of the first. `accelerate launch` runs it on several devices; a killed run goes on with
`--resume_from_checkpoint true`. The result is a folder that `transformers` or `diffusers` loads.
"""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import DDPMScheduler
from transformers import ViTMAEConfig, set_seed
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_i2i_unlearn import (
    I2IMAE,
    Evaluator,
    I2IMage,
    I2IUNet,
    ImageReader,
    InputError,
    MageConfig,
    MageModel,
    PretrainingConfig,
    PretrainingTrainer,
    by_classes,
    load_source,
    select,
    undecoded,
)
from hf_i2i_unlearn.commands.cli import JsonDict, parse, run
from hf_i2i_unlearn.commands.words import parse_corruption
from hf_i2i_unlearn.data.augmentation import AUGMENTATIONS
from hf_i2i_unlearn.data.options import SourceArguments
from hf_i2i_unlearn.data.pairs import SingleImages
from hf_i2i_unlearn.data.reading import pixel_batches
from hf_i2i_unlearn.data.sources import first_rows
from hf_i2i_unlearn.data.streams import SingleImageStream
from hf_i2i_unlearn.models.diffusion.layout import palette_config, with_encoder_attention
from hf_i2i_unlearn.models.mae.pretraining import MAEAdversarialTraining
from hf_i2i_unlearn.models.mage.pretraining import (
    MageDecoderTraining,
    MageTokenizerTraining,
    MageTransformerTraining,
    informed_start,
)
from hf_i2i_unlearn.reporting.plots import loss_curve
from hf_i2i_unlearn.reporting.run_folder import refuse_full_folder, write_run


@dataclass
class Arguments(SourceArguments):
    """The model and what it sees."""

    family: str = field(default="mae", metadata={"choices": ["mae", "diffusion", "mage"], "help": "What to train."})
    model: JsonDict = field(
        default_factory=JsonDict,
        metadata={
            "help": "Fields of ViTMAEConfig or MageConfig, or arguments of palette_config, as JSON or in the YAML file. With "
            "--init: fields to change; of a U-Net encoder_attention alone, levels of its encoder that get attention."
        },
    )
    stage: str = field(
        default="tokenizer",
        metadata={
            "choices": ["tokenizer", "transformer", "decoder"],
            "help": "MAGE: what to train; transformer and decoder (the way from tokens to pixels, by --adversarial_weight) need --init.",
        },
    )
    init: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id. MAE, U-Net, and MAGE's decoder: the model to go on with. MAGE: whose tokenizer the transformer learns."
        },
    )
    adversarial_weight: float = field(
        default=0.0,
        metadata={
            "help": "MAE, and MAGE's decoder: weight of a discriminator's verdict on the completion, beside the squared error; 0 = none."
        },
    )
    informed_start: bool = field(
        default=False,
        metadata={
            "help": "MAGE's transformer: start words half as the tokenizer's codes, and positions as sines and cosines, not all at random."
        },
    )
    dropout: float = field(default=0.1, metadata={"help": "MAGE: dropout of the transformer in pretraining."})
    generation: JsonDict = field(
        default_factory=JsonDict,
        metadata={
            "help": "MAGE: steps, temperature, code_temperature, toward_mean and margin of the decoding, for samples and figures, as JSON or in YAML."
        },
    )
    patch_size: int | None = field(default=None, metadata={"help": "Diffusion: side in pixels of the patches that T hides."})
    denoising_steps: int = field(default=20, metadata={"help": "Diffusion: steps of generation, for samples and figures."})
    prediction_type: str = field(
        default="epsilon",
        metadata={"choices": ["epsilon", "v_prediction", "sample"], "help": "Diffusion: what a fresh U-Net learns to predict."},
    )
    classes: list[str] | None = field(default=None, metadata={"help": "Train on these classes only; all if not given."})
    image_mean: list[float] = field(
        default_factory=lambda: [0.485, 0.456, 0.406], metadata={"help": "Channel means in [0, 1]; MAGE does not normalise."}
    )
    image_std: list[float] = field(
        default_factory=lambda: [0.229, 0.224, 0.225], metadata={"help": "Channel deviations; MAGE does not normalise."}
    )
    corruptions: JsonDict = field(
        default_factory=lambda: JsonDict({"random:0.75": 1.0}),
        metadata={"help": 'Corruptions and their shares of the steps, e.g. {"center:8": 0.7, "random:0.5": 0.3}.'},
    )
    augment: str = field(default="flip_and_crop", metadata={"choices": list(AUGMENTATIONS), "help": "Augmentation."})
    on_corrupt: str = field(
        default="refuse", metadata={"choices": ["refuse", "skip"], "help": "What an unreadable picture does."}
    )
    eval_samples: int = field(default=0, metadata={"help": "Pictures for the figures, evenly spread; 0 = all."})
    samples: int = field(
        default=8, metadata={"help": "Pictures to complete at every checkpoint, in samples/step-N.png; 0 = none."}
    )
    half: bool = field(default=False, metadata={"help": "Save the result in half precision."})


def make_model(args: Arguments):
    """A fresh model of the family. Raises InputError for options that it does not have or that do not fit each other."""
    if args.adversarial_weight and not (args.family == "mae" or (args.family == "mage" and args.stage == "decoder")):
        stage = f" --stage {args.stage}" if args.family == "mage" else ""
        raise InputError(
            f"--adversarial_weight is for MAE and for MAGE's --stage decoder, not for --family {args.family}{stage}; leave it out."
        )
    if args.informed_start and (args.family, args.stage) != ("mage", "transformer"):
        raise InputError("--informed_start is for --family mage --stage transformer; leave it out.")
    try:
        if args.family == "mae":
            return make_mae(args)
        if args.family == "diffusion":
            return make_unet(args)
        return make_mage(args)
    except (TypeError, ValueError) as error:
        raise InputError(f"The options of the {args.family} model do not fit: {error}") from error


def make_mae(args: Arguments):
    """A fresh MAE, or that of `args.init`, with a discriminator where its loss is asked for."""
    if args.init and args.model:
        raise InputError("--init brings a whole model, of which --model can change nothing; give one of them.")
    made = (
        I2IMAE.from_pretrained(args.init)
        if args.init
        else I2IMAE.from_config(ViTMAEConfig(**known_fields(args.model, ViTMAEConfig)))
    )
    return MAEAdversarialTraining(made.model, args.adversarial_weight) if args.adversarial_weight else made


def make_unet(args: Arguments):
    """A fresh Palette U-Net, or that of `args.init`, its encoder with more attention where `args.model` says so."""
    options = {"patch_size": args.patch_size, "steps": args.denoising_steps}
    if not args.init:
        # Palette's schedule; Palette itself predicts the noise.
        scheduler = DDPMScheduler(2000, beta_start=1e-6, beta_end=0.01, prediction_type=args.prediction_type)
        return I2IUNet.from_config(palette_config(**args.model), scheduler=scheduler, **options)
    if others := sorted(set(args.model) - {"encoder_attention"}):
        raise InputError(
            f"--init brings a whole U-Net, to which --model can add encoder_attention alone; leave out {', '.join(others)}."
        )
    made = I2IUNet.from_pretrained(args.init, **options)
    made.model = with_encoder_attention(made.model, args.model.get("encoder_attention", []))
    return made


def make_mage(args: Arguments):
    """A fresh MAGE; for its second stage with the tokenizer and, but for `args.model`, the configuration of `args.init`; for its third
    that of `args.init`."""
    changes = known_fields(args.model, MageConfig)
    if args.stage == "tokenizer":
        if args.init:
            raise InputError("--init goes with --stage transformer or decoder; a tokenizer is trained from nothing.")
        return MageTokenizerTraining(MageModel(MageConfig(**changes)), **args.generation)
    if args.init is None:
        wrote = "tokenizer" if args.stage == "transformer" else "transformer"
        raise InputError(f"--stage {args.stage} needs --init: the folder that --stage {wrote} wrote.")
    trained = I2IMage.from_pretrained(args.init).model
    if args.stage == "decoder":
        if changes:
            raise InputError("--init brings a whole model, of which --model can change nothing; give one of them.")
        return MageDecoderTraining(trained, args.adversarial_weight, **args.generation)
    shared = {
        name for name in changes if name.startswith(("tokenizer_", "codebook_")) or name in ("image_size", "num_channels")
    }
    if differing := sorted(name for name in shared if changes[name] != getattr(trained.config, name)):
        raise InputError(
            f"--model changes {', '.join(differing)}, which the tokenizer of --init was not trained with; leave it out."
        )
    model = MageModel(MageConfig(**trained.config.to_dict() | {"dtype": None} | changes))
    model.vqgan.load_state_dict(trained.vqgan.state_dict())
    if args.informed_start:
        informed_start(model)
    return MageTransformerTraining(model, args.dropout, **args.generation)


def known_fields(options: dict, config) -> dict:
    """The options, all of which must be fields of a configuration class."""
    known = {option.name for option in fields(config)} | {"attn_implementation"}
    for name in options:
        if name not in known:
            raise InputError(f"--model names '{name}', which {config.__name__} does not have.")
    return dict(options)


def main():
    args, training = parse((Arguments, PretrainingConfig), __doc__)
    with PartialState().main_process_first():
        refuse_full_folder(training.output_dir, bool(training.resume_from_checkpoint))

    set_seed(training.seed)
    model = make_model(args)
    height, width = model.image_size
    processor = ViTImageProcessorPil(
        size={"height": height, "width": width},
        resample=3,
        **{"do_normalize": False} if args.family == "mage" else {"image_mean": args.image_mean, "image_std": args.image_std},
    )

    def pictures(split, streaming=False):
        source = load_source(args.dataset, split, args.dataset_config, streaming)
        if args.classes:
            source = select(source, by_classes(source, args.classes, args.label_column), True, args.image_column)
        return undecoded(source, args.image_column)

    dataset = pictures(args.train_split, args.streaming)
    evaluating = args.eval_split not in (None, "none")
    rows = first_rows(pictures(args.eval_split), args.eval_samples) if evaluating else []
    corruptions = {parse_corruption(text): share for text, share in args.corruptions.items()}
    trainer = PretrainingTrainer(
        model,
        training,
        SingleImageStream(dataset, training.seed, attempts=args.stream_attempts, source=f"The dataset '{args.dataset}'")
        if args.streaming
        else SingleImages(dataset, training.seed),
        processor,
        corruptions,
        AUGMENTATIONS[args.augment],
        args.on_corrupt,
        (rows or first_rows(dataset, args.samples))[:: max(1, len(rows) // max(1, args.samples))][: args.samples],
    )
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    count = "a stream of" if args.streaming else f"{len(dataset):,}"
    print(f"{weights:,} weights to train, {count} pictures, {trainer.args.world_size} process(es)")
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)

    if args.half:
        model.to(torch.float16).float()  # the figures are those of the rounded weights
    figures = evaluate(model, rows, corruptions, processor, args, trainer) if evaluating else {}
    if args.half:
        model.to(torch.float16)
    trainer.save_model()
    if trainer.is_world_process_zero():
        folder = Path(training.output_dir)
        write_run(folder / "run.yaml", args, training)
        loss_curve(trainer.state.log_history, folder / "loss.png")
        (folder / "figures.json").write_text(json.dumps(figures, indent=1))


def evaluate(model, rows, corruptions, processor, args, trainer) -> dict:
    """Figures of the result on pictures that it was not trained on: of the reconstruction, or of the completion by T."""
    reader = ImageReader(processor, model.channels, None, args.on_corrupt)
    if isinstance(model, MageTokenizerTraining):
        result = model.eval().figures(pixel_batches(rows, reader))
        print(
            f"reconstruction: PSNR {result['psnr']:.1f} dB, {result['codes_used']} codes used, perplexity "
            f"{result['perplexity']:.0f}, on {result['count']} {args.eval_split} pictures"
        )
        return {"reconstruction": result}
    figures = {}
    for corruption in corruptions:
        evaluator = Evaluator(
            model, {args.eval_split: rows}, reader, corruption, seed=trainer.args.seed, accelerator=trainer.accelerator
        )
        result = evaluator(model)[args.eval_split]
        figures[str(corruption)] = {k: result[k] for k in ("count", "mse", "psnr")}
        print(
            f"{corruption}: hole MSE {result['mse']:.3f}, PSNR {result['psnr']:.1f} dB on {result['count']} {args.eval_split} pictures"
        )
    return figures


if __name__ == "__main__":
    run(main)
