"""One run that trains an original: from options to a folder that its library loads."""

import torch
from accelerate import PartialState
from transformers import set_seed
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from ..data.pairs import SingleImages
from ..data.reading import ImageReader, pixel_batches
from ..data.requests import load_classes
from ..data.sources import first_rows, undecoded
from ..data.streams import SingleImageStream
from ..errors import InputError
from ..evaluation.evaluator import Evaluator
from ..methods.corruptions import Corruption
from ..models.mage.pretraining import MageTokenizerTraining
from ..reporting.plots import loss_curve
from ..reporting.run_folder import RunFolder, refuse_full_folder
from .config import PretrainingConfig
from .making import make_model
from .memorise import KnownAmongOthers, canaries, write_known
from .pretraining import PretrainingTrainer


def pretrain(args, training: PretrainingConfig, corruptions: dict[Corruption, float], augment=None) -> dict:
    """Train, evaluate, and write checkpoint, processor, options, figures and the curve of the loss to `training.output_dir`.

    Args:
        args: the options of `commands.pretrain.Arguments`. corruptions: {T: share of the steps}. augment: as in `ImageReader`.

    Returns:
        {T or "reconstruction": figures}; {} without an evaluation split.

    Raises:
        InputError: what cannot work, before training starts.
    """
    folder = RunFolder(training.output_dir)
    with PartialState().main_process_first():
        refuse_full_folder(training.output_dir, bool(training.resume_from_checkpoint))
    set_seed(training.seed)
    model = make_model(args)
    processor = make_processor(args, model)
    dataset = undecoded(load_classes(args, args.train_split, args.classes, args.streaming), args.image_column)
    evaluating = args.eval_split not in (None, "none")
    rows = []
    if evaluating:
        held_out = undecoded(load_classes(args, args.eval_split, args.classes), args.image_column)
        rows = first_rows(held_out, args.eval_samples)
    pictures = make_pictures(args, dataset, training.seed)
    canary: list[list] = []
    if args.canaries:
        canary = make_canaries(args, model, processor, corruptions, dataset, held_out, training.seed)
        pictures = KnownAmongOthers(canary[0], dataset, args.canary_share, training.seed)
    trainer = PretrainingTrainer(
        model,
        training,
        pictures,
        processor,
        corruptions,
        augment,
        args.on_corrupt,
        (rows or first_rows(dataset, args.samples))[:: max(1, len(rows) // max(1, args.samples))][: args.samples],
        args.background,
    )
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    count = "a stream of" if args.streaming else f"{len(dataset):,}"
    print(f"{weights:,} weights to train, {count} pictures, {trainer.args.world_size} process(es)")
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)

    if args.half:
        model.to(torch.float16).float()  # the figures are those of the rounded weights
    figures = measure(model, rows, corruptions, processor, args, trainer) if evaluating else {}
    if args.half:
        model.to(torch.float16)
    trainer.save_model()
    if trainer.is_world_process_zero():
        folder.write_options(args, training)
        loss_curve(trainer.state.log_history, folder.path / "loss.png")
        folder.write_figures(figures)
        if canary:
            write_known(folder.path, *canary)
    return figures


def make_canaries(args, model, processor, corruptions: dict[Corruption, float], dataset, held_out, seed: int) -> list[list]:
    """[those to be known by heart, some like them that nobody sees], under the T that is trained with most.

    Raises:
        InputError: too few pictures, a T that is not fixed, or a stage that hides nothing.
    """
    if isinstance(model, MageTokenizerTraining):
        raise InputError(
            "--canaries go with what completes pictures, which MAGE's tokenizer does not; leave them to its transformer."
        )
    corruption = max(corruptions, key=corruptions.__getitem__)
    reader = ImageReader(processor, model.channels, None, args.on_corrupt, args.background)
    return [
        canaries(first_rows(rows, 4 * args.canaries), args.canaries, corruption, model.grid, reader, model.image_size, seed + i)
        for i, rows in enumerate((dataset, held_out))
    ]


def make_processor(args, model) -> ViTImageProcessorPil:
    """Of the model's size; MAGE takes pictures in [0, 1], the others normalised by `args.image_mean` and `args.image_std`."""
    height, width = model.image_size
    values = {"do_normalize": False} if args.family == "mage" else {"image_mean": args.image_mean, "image_std": args.image_std}
    return ViTImageProcessorPil(size={"height": height, "width": width}, resample=3, **values)


def make_pictures(args, dataset, seed: int) -> SingleImages | SingleImageStream:
    """The training pictures of a source of undecoded rows."""
    if not args.streaming:
        return SingleImages(dataset, seed)
    return SingleImageStream(dataset, seed, attempts=args.stream_attempts, source=f"The dataset '{args.dataset}'")


def measure(model, rows, corruptions, processor, args, trainer) -> dict:
    """Figures of the result on pictures that it was not trained on: of the reconstruction, or of the completion by T."""
    reader = ImageReader(processor, model.channels, None, args.on_corrupt, args.background)
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
        found = f"hole error {result['mse']:.3f}, PSNR {result['psnr']:.1f} dB"
        print(f"{corruption}: {found} on {result['count']} {args.eval_split} pictures")
    return figures
