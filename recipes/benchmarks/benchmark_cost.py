"""`benchmark.py --part cost`: steps measured on this machine, and what runs at the paper's scale would cost on it.

Random weights of the published sizes and pictures made for it, in fp32 on a CPU and in bf16 on a GPU. Memory is the most that
the process holds in a step: model, original, optimiser and activations, and on a CPU the libraries too.
"""

import gc
import tempfile
from dataclasses import dataclass, replace

import torch
from benchmark_steps import (
    OURS,
    Side,
    crop,
    machine,
    mae,
    make_trainer,
    product_step,
    take_turns,
    timed,
    unet,
    with_lora,
)

from hf_i2i_unlearn import UnlearningConfig


@dataclass(frozen=True)
class Scale:
    """A run of the paper (App. C.2, C.3): pictures in each of the two sets, epochs, and what it took on so many NVIDIA A10G."""

    images: int
    epochs: int
    hours: float
    gpus: int


SCALES = {"mae": Scale(10_000, 5, 1.0, 4), "unet": Scale(250_000, 3, 1.5, 8)}
SETTINGS = {"as in the paper": "b", "both targets precomputed (mean noise target)": "c2", "the same, LoRA of rank 8": "c3"}


@dataclass
class Cost:
    """Of one setting: pairs in a step, its seconds and GB, and seconds spent once before the first step."""

    scale: str
    setting: str
    pairs: int
    seconds: float
    gigabytes: float | None
    once: float = 0.0

    @property
    def images_per_second(self) -> float:
        return 2 * self.pairs / self.seconds

    @property
    def steps(self) -> int:
        """Of the whole run: each retain picture is shown beside one forget picture, and an epoch shows all of them."""
        scale = SCALES[self.scale]
        return scale.epochs * -(-scale.images // self.pairs)

    @property
    def hours(self) -> float:
        """Of the whole run, on one machine such as was measured."""
        return (self.steps * self.seconds + self.once) / 3600


def once(teacher_seconds: float, images: int) -> float:
    """Seconds for precomputed targets: one pass of the original over the retain set, and one over the draws behind the mean."""
    return teacher_seconds * (images + UnlearningConfig.mean_draws)


def measure(args, make, scale: str, setting: str, options: dict, teacher_seconds: float = 0.0) -> tuple[Cost, float]:
    """A setting's cost, and the original's seconds for each picture, measured where it has passes to make."""
    gc.collect()  # models of earlier settings
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(args, folder, make(args), bf16=torch.cuda.is_available(), **options)
        precomputed = bool(options)
        if not precomputed:
            teacher_seconds = pass_of(trainer, args)
        found = take_turns({setting: Side(product_step(trainer))}, {}, args.rounds)[0][setting]
    extra = once(teacher_seconds, SCALES[scale].images) if precomputed else 0.0
    return Cost(scale, setting, args.pairs, found["seconds"], found["peak"], extra), teacher_seconds


@torch.no_grad()
def pass_of(trainer, args) -> float:
    """Seconds of the original's pass for each picture."""
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    model, pixels = trainer.i2i, batch["retain"]
    draw = model.draw(pixels, crop(model)(model.grid, range(len(pixels))), list(range(len(pixels))))
    trainer.original(pixels, draw)
    return timed(lambda: trainer.original(pixels, draw)) / len(pixels)


def table(costs: list[Cost]) -> list[str]:
    """Lines of a Markdown table: each setting, and the paper's own run below those of its scale."""
    lines = ["| model | run | pairs | s / step | images/s | peak GB | at the paper's scale |", "|---|---|---|---|---|---|---|"]
    for kind, scale in SCALES.items():
        rows = [cost for cost in costs if cost.scale == kind]
        for cost in rows:
            held = "-" if cost.gigabytes is None else f"{cost.gigabytes:.1f}"
            lines.append(
                f"| {NAMES[kind]} | {cost.setting} | {cost.pairs} | {cost.seconds:.3g} | "
                f"{cost.images_per_second:.3g} | {held} | {cost.steps:,} steps, {cost.hours:.3g} h |"
            )
        if rows:
            total = scale.hours * scale.gpus
            lines.append(
                f"| {NAMES[kind]} | the paper | - | - | {pictures(scale) / (scale.hours * 3600):.3g} on all | - | "
                f"{scale.hours:g} h on {scale.gpus} A10G, {total:g} GPU hours |"
            )
    return lines


def pictures(scale: Scale) -> int:
    """Shown in a run, retain and forget."""
    return 2 * scale.images * scale.epochs


NAMES = {"mae": "MAE", "unet": "U-Net"}


def assumptions(args, precision: str) -> str:
    parts = [
        f"Measured in {precision} with random weights: the MAE is an encoder of {args.layers} layers x {args.width} over "
        f"{args.size}x{args.size} pictures, the U-Net has {args.unet_width} channels in its first level, over "
        f"{args.unet_size}x{args.unet_size} pictures.",
        *(
            f"The paper's {NAMES[kind]} run shows {s.images:,} retain and {s.images:,} forget pictures, {s.epochs} times."
            for kind, s in SCALES.items()
        ),
        "Steps are pictures of a set x epochs / pairs in a step, and time is steps x seconds of a step, so it grows "
        "linearly with the pictures and does not depend on the batch.",
        "Where targets are precomputed, one pass of the original over the retain set and "
        f"{UnlearningConfig.mean_draws:,} draws of noise is included.",
        "Reading and decoding pictures (benchmark_feed.py: data workers do it beside the step), evaluation and "
        "checkpoints are not.",
        "The paper gives one time for VQ-GAN and MAE together, says 16 pictures (MAE) and 8 (diffusion) in a batch "
        "of each GPU, and names neither precision nor what the time includes.",
    ]
    return "\n".join(f"- {part}" for part in parts)


def cost(args) -> list[str]:
    """Measures what `args.skip` leaves and prints the table. No claim is made, so none is missed."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    costs, teacher_seconds = [], 0.0
    if "mae" not in args.skip:
        for setting, side in SETTINGS.items():
            make = (lambda args: with_lora(mae(args))) if side == "c3" else mae
            found, teacher_seconds = measure(args, make, "mae", setting, OURS[side], teacher_seconds)
            costs.append(found)
            print(f"{setting}: {found.seconds:.3g} s a step", flush=True)
    if "unet" not in args.skip:
        make, arguments = unet, replace(args, pairs=args.unet_pairs)
        costs.append(measure(arguments, make, "unet", "as in the paper", {})[0])
    print(f"\nOn {machine(device)}:\n")
    print("\n".join(table(costs)) + "\n")
    print(assumptions(args, "bf16" if device.type == "cuda" else "fp32"))
    return []
