"""What `unlearn` has for each family: its options and their defaults, the embedded demo, and how an original is loaded.

The docstring of a family's options is the description in its `--help`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import InputError
from ..training.config import UnlearningConfig
from .options import RunArguments


@dataclass
class MAEArguments(RunArguments):
    """Make a masked autoencoder forget pictures (eq. 10 of "Machine Unlearning for Image-to-Image Generative Models").

    Without options it runs the embedded demo: a small MAE forgets the digits 5-9 of MNIST, offline, in about a minute. With
    your own: --model (Hub id or folder), --dataset, and one of --forget_classes, --forget_list, --forget_rows, --forget_values.
    The output folder holds the checkpoint, its card, a before/after picture, the figures and the options of the run.
    """


def load_mae(args: MAEArguments, path: str):
    """(model, image processor) from a folder or Hub id."""
    from ..data.reading import load_processor
    from ..models.mae.modeling import I2IMAE

    return I2IMAE.from_pretrained(path), load_processor(path)


@dataclass
class DiffusionArguments(RunArguments):
    """Make an inpainting diffusion model of `diffusers` forget pictures (eq. 10; --teacher_condition picture is eq. C.25).

    Without options it runs the embedded demo: a small U-Net forgets the digits 5-9 of MNIST, offline, in about two minutes.
    With your own: --model, --dataset, and one of --forget_classes, --forget_list, --forget_rows, --forget_values. The model
    is a folder or Hub id of a U-Net or of a whole pipeline; its config tells the layout: Palette (6 input channels),
    unconditional (3), or latent inpainting as Stable Diffusion's (9). A published Palette checkpoint is converted first:
    `hf-i2i-unlearn convert palette FILE FOLDER`. The output folder is as for masked autoencoders, loads with plain
    `diffusers`, and is a whole pipeline where the input was one. Defaults follow App. C.3: learning rate 1e-5, 3 epochs, 8
    pairs per device. What is not given of the options with a default in brackets is as the model was saved, else that
    default.
    """

    model: str = field(
        default="mnist-demo-unet",
        metadata={"help": "The original: Hub id or folder of a pipeline or U-Net, or mnist-demo-unet."},
    )
    subfolder: str | None = field(default=None, metadata={"help": "Folder in it of a U-Net to be taken without its pipeline."})
    image_size: int | None = field(default=None, metadata={"help": "Pixels a side [what the U-Net's config says]."})
    patch_size: int | None = field(default=None, metadata={"help": "Pixels a side of the patches T hides [a 16x16 grid]."})
    generation_steps: int | None = field(
        default=None, metadata={"help": "Steps of generation [50]. The reference takes the full schedule."}
    )
    sampler: str | None = field(
        default=None, metadata={"choices": ["ddim", "ddpm"], "help": "[ddim]; ddpm at full steps is the reference."}
    )
    combine: str | None = field(
        default=None,
        metadata={
            "choices": ["concat", "mean"],
            "help": "Levels as one vector (the paper) or each with the same weight (the code) [concat].",
        },
    )
    teacher_condition: str | None = field(
        default=None,
        metadata={
            "choices": ["picture", "noise"],
            "help": "The visible part that the original sees with n. noise: n's too (eq. 10). picture: the forget picture's "
            "(eq. C.25, the paper's for diffusion), which forgets little or nothing [noise; in latent space picture].",
        },
    )
    frozen_levels: int | None = field(
        default=None,
        metadata={
            "help": "Down blocks, from the first, that stay as they are with conv_in; they see too few pixels to "
            "tell sets apart [0]."
        },
    )
    frozen_conv_in: bool | None = field(
        default=None,
        metadata={
            "help": "conv_in alone stays as it is, which sees 3x3 pixels even where the first down block has attention [false]."
        },
    )
    train_time_embedding: bool | None = field(
        default=None,
        metadata={"help": "Train it too, as the released code does; the decoder reads it, so that changes as well [false]."},
    )
    prompt: str | None = field(
        default=None, metadata={"help": "Caption of all pictures, for latent inpainting [the empty prompt]."}
    )


@dataclass
class DiffusionConfig(UnlearningConfig):
    """The paper's values for diffusion models where they differ from those for MAE and VQ-GAN (App. C.3)."""

    learning_rate: float = field(default=1e-5, metadata={"help": "Learning rate (App. C.3)."})
    adam_beta2: float = field(default=0.999, metadata={"help": "Adam's beta2 (App. C.3 names Adam alone)."})
    num_train_epochs: float = field(default=3, metadata={"help": "Passes over the forget set (App. C.3)."})
    per_device_train_batch_size: int = field(
        default=8, metadata={"help": "PAIRS of one forget and one retain picture per device and step (App. C.3)."}
    )


def load_diffusion(args: DiffusionArguments, path: str):
    """(model, image processor) from a folder or Hub id."""
    from diffusers import DDIMScheduler, DDPMScheduler

    from ..models.diffusion.modeling import I2IUNet

    model = I2IUNet.from_pretrained(
        path, subfolder=args.subfolder, steps=args.generation_steps, image_size=args.image_size, patch_size=args.patch_size,
        combine=args.combine, teacher_condition=args.teacher_condition, frozen_levels=args.frozen_levels,
        frozen_conv_in=args.frozen_conv_in, train_time_embedding=args.train_time_embedding, prompt=args.prompt,
    )  # fmt: skip
    if args.sampler:
        model.sample_with({"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[args.sampler])
    return model, _processor_of(path, model)


def _processor_of(path, model):
    """The image processor saved with the model; pipelines have none, and diffusion's pictures are in [-1, 1]."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    from ..data.reading import load_processor

    try:
        return load_processor(path)
    except InputError:
        (height, width), half = model.image_size, [0.5] * model.channels
        return ViTImageProcessorPil(size={"height": height, "width": width}, image_mean=half, image_std=half, resample=3)


@dataclass
class MageArguments(RunArguments):
    """Make a MAGE model (VQ-GAN tokens) forget pictures (eq. 10 of "Machine Unlearning for Image-to-Image Generative Models").

    Without options it runs the embedded demo: a small MAGE forgets the digits 5-9 of MNIST, offline, in two minutes. With your
    own: --model (a folder or Hub id with a `MageModel` and its image processor, which must not normalise), --dataset, and one
    of --forget_classes, --forget_list, --forget_rows, --forget_values. A published checkpoint is converted first:
    `hf-i2i-unlearn convert mage --help`. The output folder is as for masked autoencoders; it loads with
    `transformers.AutoModel` and trust_remote_code. Output methods train with the token cross-entropy, for no discriminator
    was released. The released code's training is --corruption random:0.5 --mask_rate mage --blank_hole false --noise batch
    --train_word_embeddings.
    """

    model: str = field(
        default="mnist-demo-mage", metadata={"help": "The original: Hub id or folder of a MageModel, or mnist-demo-mage."}
    )
    generation_steps: int = field(default=20, metadata={"help": "Steps of generation, by iterative decoding."})
    temperature: float = field(default=6.0, metadata={"help": "Temperature of its confidence noise."})
    code_temperature: float = field(
        default=1.0, metadata={"help": "Of sampling the codes: below 1 likelier ones and less variety, 0 the likeliest."}
    )
    toward_mean: float = field(
        default=0.0,
        metadata={"help": "Move each drawn code this share of the way to the mean of all: less error, less texture; 0 to 1."},
    )
    margin: int = field(default=1, metadata={"help": "Tokens around the hole that generation predicts too."})
    mask_rate: str = field(
        default="none",
        metadata={
            "choices": ["none", "mage"],
            "help": "mage: hide a random share of the tokens beside those that T drops, as MAGE trains.",
        },
    )
    blank_hole: bool = field(
        default=True,
        metadata={
            "help": "Fill the hole with the mean colour before tokenization (the paper: T comes before E). false: tokenize "
            "the whole picture, then drop (the released code); the kept tokens then tell of hidden pixels."
        },
    )
    train_word_embeddings: bool = field(
        default=False, metadata={"help": "Train them too, as the released code does; the head reads them, so it changes too."}
    )
    feather: bool = field(default=False, metadata={"help": "Paste completions softly, as the released code does."})


def load_mage(args: MageArguments, path: str):
    """(model, image processor) from a folder or Hub id."""
    from ..data.reading import load_processor
    from ..models.mage.modeling import I2IMage

    model = I2IMage.from_pretrained(
        path, steps=args.generation_steps, temperature=args.temperature, margin=args.margin, blank_hole=args.blank_hole,
        mask_rate=None if args.mask_rate == "none" else args.mask_rate, train_word_embeddings=args.train_word_embeddings,
        feather=args.feather, code_temperature=args.code_temperature, toward_mean=args.toward_mean,
    )  # fmt: skip
    processor = load_processor(path)
    model.check_processor(processor)
    return model, processor


@dataclass(frozen=True)
class Family:
    """Options of a run, those of its training, the configuration of the demo, and `load(args, path) -> (model, processor)`."""

    arguments: type[RunArguments]
    training: type[UnlearningConfig]
    demo: str
    load: Callable


FAMILIES = {  # by `I2IModel.family`; recipes/unlearn_WORD.py runs one of them
    "mae": Family(MAEArguments, UnlearningConfig, "unlearn_mnist_mae", load_mae),
    "diffusion": Family(DiffusionArguments, DiffusionConfig, "unlearn_mnist_diffusion", load_diffusion),
    "mage": Family(MageArguments, UnlearningConfig, "unlearn_mnist_mage", load_mage),
}
