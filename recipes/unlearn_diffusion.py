"""Make an inpainting U-Net in the Palette layout forget pictures (eq. C.25 of the paper).

It needs --model (a folder or Hub id that `diffusers.UNet2DModel` loads, with its image processor), --dataset, and one of
--forget_classes, --forget_list, --forget_rows, --forget_values. A published Palette checkpoint is converted first:
`python -m hf_i2i_unlearn.conversion palette FILE FOLDER`. The output folder is as for masked autoencoders, and loads with plain
`diffusers`. Defaults follow App. C.3: learning rate 1e-5, 3 epochs, 8 pairs per device.
"""

from dataclasses import dataclass, field

from diffusers import DDIMScheduler, DDPMScheduler

from hf_i2i_unlearn import (
    I2IUNet,
    InputError,
    RunArguments,
    UnlearningConfig,
    load_processor,
    parse,
    prepare_run,
    run,
    unlearn,
)

SAMPLERS = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}


@dataclass
class Arguments(RunArguments):
    """What to unlearn, and how pictures are generated for the figures."""

    model: str | None = field(default=None, metadata={"help": "The original checkpoint: Hub id or folder of a UNet2DModel."})
    subfolder: str | None = field(default=None, metadata={"help": "Folder of the U-Net in it, 'unet' for a pipeline."})
    image_size: int | None = field(default=None, metadata={"help": "Pixels a side, if the checkpoint does not say."})
    patch_size: int | None = field(
        default=None, metadata={"help": "Pixels a side of the patches T hides; a 16x16 grid if not given."}
    )
    denoising_steps: int = field(default=50, metadata={"help": "Steps of generation. The reference takes the full schedule."})
    sampler: str = field(default="ddim", metadata={"choices": list(SAMPLERS), "help": "ddpm at full steps is the reference."})
    combine: str = field(
        default="concat",
        metadata={
            "choices": ["concat", "mean"],
            "help": "Levels as one vector (the paper) or each with the same weight (the code).",
        },
    )
    train_time_embedding: bool = field(
        default=False,
        metadata={"help": "Train it too, as the released code does; the decoder reads it, so that changes as well."},
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


def main():
    args, training = parse((Arguments, DiffusionConfig), __doc__)
    if args.model is None:
        raise InputError("--model is missing: a folder or Hub id of a UNet2DModel in the Palette layout.")
    prepare_run(training)
    model = I2IUNet.from_pretrained(
        args.model, subfolder=args.subfolder, steps=args.denoising_steps, image_size=args.image_size,
        patch_size=args.patch_size, combine=args.combine, train_time_embedding=args.train_time_embedding,
    )  # fmt: skip
    if args.sampler == "ddpm":
        model.sampler = DDPMScheduler.from_config(dict(model.scheduler.config))
    unlearn(args, training, model, load_processor(args.model), args.model, "recipes/unlearn_diffusion.py")


if __name__ == "__main__":
    run(main)
