"""Which levels of a U-Net's encoder does its decoder rely on? What can be unlearned is in those.

    hf-i2i-unlearn unet-levels --model model_cards/photos-unet --dataset photos-32 --corruption center:4 --patch_size 4 \
        --generation_steps 8 --eval_samples 200 --features classifier:model_cards/photos-classifier

Eq. 10 moves the representation of forget pictures to that of noise. This puts noise's own representation E0(T(n)) in its place,
in all levels or from one down block on, and completes pictures with it: the most that unlearning can do where the levels before
stay as they are (`--frozen_conv_in`, `--frozen_levels` of `unlearn`). Without options it looks at the embedded U-Net of digits.
"""

from dataclasses import dataclass, field

from ..data.options import SourceArguments
from ..evaluation.words import FEATURES_HELP
from .cli import parse
from .words import CORRUPTION_HELP, parse_corruption


@dataclass
class Arguments(SourceArguments):
    """The U-Net, and the pictures to complete."""

    model: str = field(default="mnist-demo-unet", metadata={"help": "Folder or Hub id of a U-Net over pixels."})
    corruption: str = field(default="center:8", metadata={"help": f"T(x): {CORRUPTION_HELP}."})
    patch_size: int | None = field(default=None, metadata={"help": "Pixels a side of the patches T hides [the model's own]."})
    generation_steps: int = field(default=50, metadata={"help": "Steps of generation."})
    features: list[str] = field(
        default_factory=list, metadata={"help": f"Networks to measure by besides the error, several of: {FEATURES_HELP}."}
    )
    eval_samples: int = field(default=100, metadata={"help": "Pictures of --eval_split, evenly spread; 0 = all."})
    seed: int = field(default=0, metadata={"help": "Of T, of generation and of n."})


def main() -> None:
    (args,) = parse((Arguments,), __doc__, demo="unet_levels_mnist")

    from ..data.reading import ImageReader, load_processor
    from ..data.requests import load_classes
    from ..data.sources import first_rows, undecoded
    from ..errors import InputError
    from ..evaluation.evaluator import Evaluator
    from ..evaluation.feature_loaders import load_features
    from ..experiments.unet_levels import levels_of, with_noise
    from ..markdown import table
    from ..models.auto import DEMOS
    from ..models.diffusion.modeling import I2IUNet
    from ..originals.quality import original_table

    path = DEMOS.get(args.model, args.model)
    model = I2IUNet.from_pretrained(path, patch_size=args.patch_size, steps=args.generation_steps).eval()
    if hasattr(model, "vae"):
        raise InputError(f"'{args.model}' works on latents; this looks at U-Nets over pixels.")
    corruption = parse_corruption(args.corruption)
    corruption.check(model.grid)
    source = load_classes(args, args.eval_split)
    rows = first_rows(undecoded(source, args.image_column), args.eval_samples)
    evaluator = Evaluator(
        model,
        {args.eval_split: rows},
        ImageReader(load_processor(path), model.channels, background=args.background),
        corruption,
        seed=args.seed,
        features=load_features(args.features),
        keep_original=True,
    )
    results = {"no level": evaluator(model)}
    for name in levels_of(model.model):
        results[name] = evaluator(with_noise(model, name, args.seed))
    how = f"{args.corruption}, {args.generation_steps} steps, seed {args.seed}"
    print(f"{len(rows)} pictures of split '{args.eval_split}', {how}\n")
    lines = []
    for name, result in results.items():
        figures = result[args.eval_split]
        lines.append([name, f"{figures['mse']:.3f}", "" if name == "no level" else f"{figures['drift']:.4f}"])
    print(table(["noise's representation in", "hole error", "moved by"], lines))
    if args.features:
        print("\n" + original_table(results, args.eval_split))
