"""Make an inpainting diffusion model of `diffusers` forget pictures (eq. C.25 of the paper).

Without options it runs the embedded demo: a small U-Net forgets the digits 5-9 of MNIST, offline, in about two minutes. With your
own: --model, --dataset, and one of --forget_classes, --forget_list, --forget_rows, --forget_values. The model is a folder or Hub
id of a U-Net or of a whole pipeline; its config tells the layout: Palette (6 input channels), unconditional (3), or latent
inpainting as Stable Diffusion's (9). A published Palette checkpoint is converted first:
`python -m hf_i2i_unlearn.conversion palette FILE FOLDER`. The output folder is as for masked autoencoders, loads with plain
`diffusers`, and is a whole pipeline where the input was one. Defaults follow App. C.3: learning rate 1e-5, 3 epochs, 8 pairs per
device.
"""

from dataclasses import dataclass, field

from diffusers import DDIMScheduler, DDPMScheduler
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_i2i_unlearn import I2IUNet, InputError, UnlearningConfig, load_processor
from hf_i2i_unlearn.commands.cli import parse, run
from hf_i2i_unlearn.commands.options import RunArguments
from hf_i2i_unlearn.commands.unlearn import prepare_run, unlearn
from hf_i2i_unlearn.models.auto import DEMOS

DEMO = "unlearn_mnist_diffusion"
SAMPLERS = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}


@dataclass
class Arguments(RunArguments):
    """What to unlearn, and how pictures are generated. What is not given is as the model was saved, else the default in brackets."""

    model: str = field(
        default="mnist-demo-unet",
        metadata={"help": "The original: Hub id or folder of a pipeline or U-Net, or mnist-demo-unet."},
    )
    subfolder: str | None = field(default=None, metadata={"help": "Folder in it of a U-Net to be taken without its pipeline."})
    image_size: int | None = field(default=None, metadata={"help": "Pixels a side [what the U-Net's config says]."})
    patch_size: int | None = field(default=None, metadata={"help": "Pixels a side of the patches T hides [a 16x16 grid]."})
    denoising_steps: int | None = field(
        default=None, metadata={"help": "Steps of generation [50]. The reference takes the full schedule."}
    )
    sampler: str | None = field(
        default=None, metadata={"choices": list(SAMPLERS), "help": "[ddim]; ddpm at full steps is the reference."}
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
            "help": "The visible part that the original sees with n: the forget picture's (C.25), or n's too (eq. 10) [picture].",
        },
    )
    frozen_levels: int | None = field(
        default=None,
        metadata={
            "help": "Down blocks, from the first, that stay as they are with conv_in; they see too few pixels to tell sets apart [0]."
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


def processor_of(path, model):
    """The image processor saved with the model; pipelines have none, and diffusion's pictures are in [-1, 1]."""
    try:
        return load_processor(path)
    except InputError:
        (height, width), half = model.image_size, [0.5] * model.channels
        return ViTImageProcessorPil(size={"height": height, "width": width}, image_mean=half, image_std=half, resample=3)


def main():
    args, training = parse((Arguments, DiffusionConfig), __doc__, demo=DEMO)
    prepare_run(training, args)
    path = DEMOS.get(args.model, args.model)
    model = I2IUNet.from_pretrained(
        path, subfolder=args.subfolder, steps=args.denoising_steps, image_size=args.image_size, patch_size=args.patch_size,
        combine=args.combine, teacher_condition=args.teacher_condition, frozen_levels=args.frozen_levels, frozen_conv_in=args.frozen_conv_in,
        train_time_embedding=args.train_time_embedding, prompt=args.prompt,
    )  # fmt: skip
    if args.sampler:
        model.sample_with(SAMPLERS[args.sampler])
    unlearn(args, training, model, processor_of(path, model), path, "recipes/unlearn_diffusion.py")


if __name__ == "__main__":
    run(main)
