"""Which levels of a U-Net's encoder does its decoder rely on? What can be unlearned is in those.

    python recipes/unet_levels.py --model model_cards/photos-unet --dataset photos-32 --corruption center:4 --patch_size 4 \
        --denoising_steps 8 --eval_samples 200 --features classifier:model_cards/photos-classifier

Eq. 10 moves the representation of forget pictures to that of noise. This puts noise's own representation E0(T(n)) in its place, in all
levels or from one down block on, and completes pictures with it: the most that unlearning can do where the levels before stay as they
are (`--frozen_conv_in`, `--frozen_levels` of recipes/unlearn_diffusion.py). Without options it looks at the embedded U-Net of digits.
"""

import contextlib
from dataclasses import dataclass, field

import torch

from hf_i2i_unlearn import Evaluator, I2IUNet, ImageReader, InputError, load_processor, load_source, undecoded
from hf_i2i_unlearn.commands.cli import parse, run
from hf_i2i_unlearn.commands.words import CORRUPTION_HELP, parse_corruption
from hf_i2i_unlearn.data.options import SourceArguments
from hf_i2i_unlearn.data.sources import first_rows
from hf_i2i_unlearn.evaluation.feature_loaders import FEATURES_HELP, load_features
from hf_i2i_unlearn.models.auto import DEMOS
from hf_i2i_unlearn.originals.quality import original_table

DEMO = "unet_levels_mnist"


@dataclass
class Arguments(SourceArguments):
    """The U-Net, and the pictures to complete."""

    model: str = field(default="mnist-demo-unet", metadata={"help": "Folder or Hub id of a U-Net over pixels."})
    corruption: str = field(default="center:8", metadata={"help": f"T(x): {CORRUPTION_HELP}."})
    patch_size: int | None = field(default=None, metadata={"help": "Pixels a side of the patches T hides [the model's own]."})
    denoising_steps: int = field(default=50, metadata={"help": "Steps of generation."})
    features: list[str] = field(
        default_factory=list, metadata={"help": f"Networks to measure by besides the error, several of: {FEATURES_HELP}."}
    )
    eval_samples: int = field(default=100, metadata={"help": "Pictures of --eval_split, evenly spread; 0 = all."})
    seed: int = field(default=0, metadata={"help": "Of T, of generation and of n."})


def levels_of(unet: torch.nn.Module) -> dict[str, list[torch.nn.Module]]:
    """{name: modules of the encoder, from all to the middle block alone}."""
    blocks, middle = list(unet.down_blocks), unet.mid_block
    found = {"all levels": [unet.conv_in, *blocks, middle]}
    found |= {f"down block {k + 1} and after": [*blocks[k:], middle] for k in range(len(blocks))}
    return found | {"the middle block": [middle]}


@contextlib.contextmanager
def noise_from(unet: torch.nn.Module, modules: list[torch.nn.Module], noise: torch.Tensor):
    """Within it the up blocks read E0(T(n)) in place of what these modules of the encoder give.

    noise: n, (B, C, H, W); stands for condition and noisy picture both. The time is that of the pass.
    """
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


def with_noise(model: I2IUNet, name: str, seed: int) -> I2IUNet:
    """A copy that completes pictures with noise's representation in the levels of that name; n of each picture is its own."""
    copy, generator = model.frozen_copy(), torch.Generator().manual_seed(seed)
    modules = levels_of(copy.model)[name]

    def generate(pixels, mask, seeds=None):
        with noise_from(copy.model, modules, torch.randn(pixels.shape, generator=generator)):
            return model.__class__.generate(copy, pixels, mask, seeds)

    copy.generate = generate
    return copy


def main():
    (args,) = parse((Arguments,), __doc__, demo=DEMO)
    path = DEMOS.get(args.model, args.model)
    model = I2IUNet.from_pretrained(path, patch_size=args.patch_size, steps=args.denoising_steps).eval()
    if hasattr(model, "vae"):
        raise InputError(f"'{args.model}' works on latents; this looks at U-Nets over pixels.")
    corruption = parse_corruption(args.corruption)
    corruption.check(model.grid)
    source = load_source(args.dataset, args.eval_split, args.dataset_config)
    rows = first_rows(undecoded(source, args.image_column), args.eval_samples)
    evaluator = Evaluator(
        model,
        {args.eval_split: rows},
        ImageReader(load_processor(path), model.channels),
        corruption,
        seed=args.seed,
        features=load_features(args.features),
        keep_original=True,
    )
    results = {"no level": evaluator(model)}
    for name in levels_of(model.model):
        results[name] = evaluator(with_noise(model, name, args.seed))
    print(
        f"{len(rows)} pictures of split '{args.eval_split}', {args.corruption}, {args.denoising_steps} steps, seed {args.seed}\n"
    )
    print("| noise's representation in | hole MSE | moved by |\n|---|---|---|")
    for name, result in results.items():
        figures = result[args.eval_split]
        print(f"| {name} | {figures['mse']:.3f} | {'' if name == 'no level' else format(figures['drift'], '.4f')} |")
    if args.features:
        print("\n" + original_table(results, args.eval_split))


if __name__ == "__main__":
    run(main)
