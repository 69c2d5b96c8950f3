"""Which levels of a U-Net's encoder does its decoder rely on? What can be unlearned is in those.

    python recipes/unet_levels.py --model model_cards/photos-unet --dataset photos-32 --corruption center:4 --patch_size 4 \
        --denoising_steps 8 --eval_samples 200

Eq. 10 moves the representation of forget pictures to that of noise. This puts noise's own representation E0(T(n)) in its place, in all
levels or from one down block on, and completes pictures with it: the most that unlearning can do where the levels before stay as they
are (`--frozen_levels` of recipes/unlearn_diffusion.py). Without options it looks at the embedded U-Net of digits.
"""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hf_i2i_unlearn import (
    CORRUPTION_HELP,
    DEMOS,
    I2IUNet,
    ImageReader,
    InputError,
    SourceArguments,
    first_rows,
    load_processor,
    load_source,
    parse,
    parse_corruption,
    pixel_batches,
    run,
    undecoded,
)

DEMO = Path(__file__).parent / "configs" / "unet_levels_mnist.yaml"


@dataclass
class Arguments(SourceArguments):
    """The U-Net, and the pictures to complete."""

    model: str = field(default="mnist-demo-unet", metadata={"help": "Folder or Hub id of a U-Net over pixels."})
    corruption: str = field(default="center:8", metadata={"help": f"T(x): {CORRUPTION_HELP}."})
    patch_size: int | None = field(default=None, metadata={"help": "Pixels a side of the patches T hides [the model's own]."})
    denoising_steps: int = field(default=50, metadata={"help": "Steps of generation."})
    eval_samples: int = field(default=100, metadata={"help": "Pictures of --eval_split, evenly spread; 0 = all."})
    seed: int = field(default=0, metadata={"help": "Of T, of generation and of n."})


@contextlib.contextmanager
def noise_from(unet: torch.nn.Module, level: int, noise: torch.Tensor):
    """Within it the up blocks read E0(T(n)) in place of the levels that `frozen_levels=level` would train.

    noise: n, (B, C, H, W); stands for condition and noisy picture both. The time is that of the pass.
    """
    modules = [*([unet.conv_in] if level == 0 else []), *unet.down_blocks[level:], unet.mid_block]
    seen, forward = {}, unet.forward

    def replaced(sample, time, **options):
        count = sample.shape[1] // noise.shape[1]
        with hooks(lambda module, args, output: seen.__setitem__(module, output)):
            forward(noise.to(sample).repeat(1, count, 1, 1), time, **options)
        with hooks(lambda module, args, output: seen[module]):
            return forward(sample, time, **options)

    @contextlib.contextmanager
    def hooks(hook):
        handles = [module.register_forward_hook(hook) for module in modules]
        yield
        for handle in handles:
            handle.remove()

    unet.forward = replaced
    try:
        yield
    finally:
        del unet.forward


def main():
    (args,) = parse((Arguments,), __doc__, demo=DEMO)
    path = DEMOS.get(args.model, args.model)
    model = I2IUNet.from_pretrained(path, patch_size=args.patch_size, steps=args.denoising_steps).eval()
    if hasattr(model, "vae"):
        raise InputError(f"'{args.model}' works on latents; this looks at U-Nets over pixels.")
    source = load_source(args.dataset, args.eval_split, args.dataset_config)
    rows = first_rows(undecoded(source, args.image_column), args.eval_samples)
    pixels = torch.cat(list(pixel_batches(rows, ImageReader(load_processor(path), model.channels))))  # (B, C, H, W)
    seeds = [args.seed + number for number in range(len(pixels))]
    corruption = parse_corruption(args.corruption)
    corruption.check(model.grid)
    mask = corruption(model.grid, torch.tensor(seeds))
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(args.seed))
    hole = model.hole(mask).expand_as(pixels)
    original = model.generate(pixels, mask, seeds)
    print(
        f"{len(pixels)} pictures of split '{args.eval_split}', {args.corruption}, {args.denoising_steps} steps, seed {args.seed}\n"
    )
    print("| noise's representation in | hole MSE | moved by |\n|---|---|---|")
    print(f"| no level | {(original - pixels)[hole].square().mean():.3f} | |")
    names = ["all levels", *(f"down block {number} and after" for number in range(2, len(model.model.down_blocks) + 1))]
    for level, name in enumerate([*names, "the middle block"]):
        with noise_from(model.model, level, noise):
            completed = model.generate(pixels, mask, seeds)
        error, moved = ((completed - other)[hole].square().mean() for other in (pixels, original))
        print(f"| {name} | {error:.3f} | {moved:.4f} |")


if __name__ == "__main__":
    run(main)
