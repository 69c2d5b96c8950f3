"""Measure what the package claims about cost. Each part measures both of its sides in one run, on this machine.

    python recipes/benchmark.py --part noise
    python recipes/benchmark.py --part lora

`noise`: fitting N(mu, L L^T + sigma^2 I) at rank 256 on 5,000 pictures of 256x256x3 (made on the fly, never held together): peak
memory and seconds; then the time to draw its noise for a batch of 16 beside one training step of eq. 10 at ViT-Base size.
`lora`: optimisation steps of eq. 10 at ViT-Base size (224x224 pictures, random weights), all encoder weights with a frozen copy
for the original, and LoRA with the model's own adapters off for it: peak memory, CPU seconds a step, size of what is saved.
`--check` exits with status 1 where a claim is missed.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser, ViTMAEConfig

from hf_i2i_unlearn import (
    DISTANCES,
    I2IMAE,
    METHODS,
    CenterCrop,
    LowRankNormal,
    StandardNormal,
    add_patch,
)
from hf_i2i_unlearn.lora import original_of
from hf_i2i_unlearn.objective import Objective

PARTS = ("noise", "lora", "lora_full_side", "lora_lora_side")  # the last two: what a process of `lora` runs


@dataclass
class Arguments:
    part: str = field(default="noise", metadata={"choices": list(PARTS), "help": "What to measure."})
    pairs: int = field(default=2, metadata={"help": "lora: pairs in a step."})
    steps: int = field(default=3, metadata={"help": "lora: steps."})
    pictures: int = field(default=5000, metadata={"help": "Pictures in the set."})
    size: int = field(default=256, metadata={"help": "Pixels a side."})
    rank: int = field(default=256, metadata={"help": "Directions of the covariance."})
    check: bool = field(default=False, metadata={"help": "Fail where a claim is missed."})


def peak_gigabytes() -> float:
    """The most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def made_pictures(count, size, batch=32):
    """Batches of smooth random pictures: noise at an eighth of the size, enlarged, plus a little of its own."""
    for start in range(0, count, batch):
        generator = torch.Generator().manual_seed(start)
        coarse = torch.randn(min(batch, count - start), 3, size // 8, size // 8, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
        yield smooth + 0.1 * torch.randn(smooth.shape, generator=generator)


def seconds(function, repeats):
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def noise(args) -> bool:
    before = peak_gigabytes()
    start = time.perf_counter()
    fitted = LowRankNormal.fit(lambda: made_pictures(args.pictures, args.size), args.rank)
    fit_seconds, peak = time.perf_counter() - start, peak_gigabytes()
    dimensions = 3 * args.size**2
    print(f"fit: {args.pictures} pictures of {dimensions:,} values at rank {args.rank} in {fit_seconds:.0f} s")
    print(
        f"peak memory of the process {peak:.2f} GB ({before:.2f} GB before); the full covariance would take {dimensions**2 * 4 / 1e9:.0f} GB"
    )

    config = ViTMAEConfig(image_size=args.size, hidden_size=768, num_hidden_layers=12, layer_norm_eps=1e-6)
    model = I2IMAE.from_config(config).train_encoder_only()
    original = model.frozen_copy()
    pictures = next(made_pictures(16, args.size, 16))
    seeds = torch.arange(48).view(16, 3).numpy()
    objective = Objective(METHODS["ours"], original, DISTANCES["mse"], StandardNormal())

    def step():
        retain, forget, _ = objective(model, model, CenterCrop(8), pictures, pictures, seeds)
        (retain.mean() + 0.25 * forget.mean()).backward()

    step_seconds = seconds(step, 1)
    draw_seconds, plain_seconds = (seconds(lambda n=n: n(pictures, seeds[:, 2]), 5) for n in (fitted, StandardNormal()))
    share = draw_seconds / step_seconds
    print(
        f"16 noise pictures: low rank {draw_seconds * 1e3:.0f} ms, N(0, I) {plain_seconds * 1e3:.0f} ms; a training step {step_seconds:.1f} s"
    )
    print(f"low-rank noise costs {share:.1%} of a step")
    return peak < 2 and share < 0.05


def side(args, with_lora: bool) -> bool:
    """One side of `lora`, in a process of its own, whose last line is what it measured."""
    model = I2IMAE.from_config(ViTMAEConfig(norm_pix_loss=False))
    if with_lora:
        print(add_patch(model, "vit-base"))
    else:
        model.train_encoder_only()
    original = original_of(model)
    objective = Objective(METHODS["ours"], original, DISTANCES["mse"], StandardNormal())
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0)
    pictures = next(made_pictures(args.pairs, 224, args.pairs))
    start = time.process_time()
    for step in range(args.steps):
        seeds = torch.arange(3 * args.pairs).view(args.pairs, 3).numpy() + step
        retain, forget, _ = objective(model, model, CenterCrop(8), pictures, pictures, seeds)
        (retain.mean() + 0.25 * forget.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    cpu_seconds, peak = (time.process_time() - start) / args.steps, peak_gigabytes()
    with tempfile.TemporaryDirectory() as folder:
        (model.patch or model).save_pretrained(folder)
        saved = sum(file.stat().st_size for file in Path(folder).iterdir())
    print(json.dumps({"peak": peak, "cpu_seconds": cpu_seconds, "trained": sum(p.numel() for p in trained), "saved": saved}))
    return True


def lora(args) -> bool:
    found = {}
    for name in ("full", "lora"):
        argv = [sys.executable, __file__, "--part", f"lora_{name}_side", "--pairs", str(args.pairs), "--steps", str(args.steps)]
        found[name] = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        f = found[name]
        print(
            f"{name}: peak memory of the process {f['peak']:.2f} GB, {f['cpu_seconds']:.1f} CPU s a step of {args.pairs} pairs, "
            f"{f['trained']:,} weights trained, {f['saved'] / 2**20:.1f} MB saved"
        )
    less = found["full"]["peak"] - found["lora"]["peak"]
    print(f"LoRA needs {less:.2f} GB less; one copy of the weights is {found['full']['saved'] / 2**30:.2f} GB")
    return less > found["full"]["saved"] / 2**30 and found["lora"]["saved"] < 0.03 * found["full"]["saved"]


def main():
    args = HfArgumentParser(Arguments, description=__doc__).parse_args_into_dataclasses()[0]
    parts = (noise, lora, lambda args: side(args, False), lambda args: side(args, True))
    met = dict(zip(PARTS, parts))[args.part](args)
    if args.check and not met:
        sys.exit("A claim was missed.")


if __name__ == "__main__":
    main()
