"""Measure what the package claims about cost. Each part measures all of its sides in one run, on this machine.

    python recipes/benchmarks/benchmark.py --check
    python recipes/benchmarks/benchmark.py --part options
    python recipes/benchmarks/benchmark.py --part cost

`step`: one optimisation step of eq. 10 at ViT-Base size (random weights, 224x224 pictures, center:8, 8 + 8 pictures), in
fp32, and on a GPU in bf16 too. (a) is the pattern of the released code, the others are what `UnlearningTrainer` does. The
sides take turns in one process, and ratios are medians over the rounds. (a) computes attention as the released code does,
(a2) with the kernel that the other sides have. The floor of a side is the matrix products that nobody can leave out (3 x
student forward + 1 x teacher forward over the visible tokens, less what is computed before), and its share of the peak is
floor / time / the rate of a matrix product of the model's shape in the same round. Memory is what a step takes beyond what
was held before.
`options`: each option that should make a step cheaper, on and off in turns.
`cost`: what runs at the paper's scale would cost on this machine; see benchmark_cost.py. `--skip unet` leaves the slower part
out.
`noise`: fitting N(mu, L L^T + sigma^2 I) at rank 256 on 5,000 pictures of 256x256x3 (made on the fly, never held together):
peak memory and seconds; then the time to draw its noise for a batch of 16 beside one training step of eq. 10 at ViT-Base
size.
`lora`: optimisation steps of eq. 10 at ViT-Base size (224x224 pictures, random weights), all encoder weights with a frozen copy
for the original, and LoRA with the model's own adapters off for it: peak memory, CPU seconds a step, size of what is saved.
`--check` exits with status 1 where a claim is missed, and names it.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import benchmark_steps
import torch
from benchmark_cost import SCALES, cost
from benchmark_steps import (
    OURS,
    Gemm,
    Side,
    floors,
    machine,
    made_pictures,
    mae,
    make_trainer,
    product_step,
    reference_step,
    released_optimizer,
    take_turns,
    unet,
    with_lora,
)
from transformers import HfArgumentParser, ViTMAEConfig

from hf_i2i_unlearn import DISTANCES, I2IMAE, METHODS, CenterCrop, StandardNormal, add_patch
from hf_i2i_unlearn.methods.noise import LowRankNormal
from hf_i2i_unlearn.models.patches import original_of
from hf_i2i_unlearn.training.objective import Objective

_SIDES_OF_LORA = ("lora_full_side", "lora_lora_side")  # what a process of `lora` runs
PARTS = ("step", "options", "cost", "noise", "lora", *_SIDES_OF_LORA)
SIDES = {  # name: what it is, the most of (a)'s time it may take on a CPU, the least share of the peak
    "a": ("the released code: student on both, teacher on both and on noise for both", None, None),
    "a2": ("the same with ours' attention kernel", None, None),
    "b": ("ours: student on [x_r; x_f], teacher on [x_r; n]", 0.82, 0.85),
    "c1": ("ours, retain targets cached", 0.70, 0.85),
    "c2": ("ours, both targets precomputed (mean noise target)", 0.60, 0.85),
    "c3": ("ours, both targets precomputed, LoRA of rank 8", 0.42, None),
}
ON_A_GPU = (0.35, 0.5)  # the same two bounds for (b) in bf16
OPTIONS = {  # name: options of a run with it off, and on
    "bf16": ({}, {"bf16": True}),
    "torch.compile": ({}, {"torch_compile": True}),
    "activation checkpointing": ({}, {"activation_checkpointing": True}),
    "fused AdamW": ({"optim": "adamw_torch"}, {"optim": "adamw_torch_fused"}),
    "noise bank": ({}, {"noise_bank": 8}),
    "channels last (U-Net)": ({}, {"channels_last": True}),
}


@dataclass
class Arguments:
    part: str = field(default="step", metadata={"choices": list(PARTS), "help": "What to measure."})
    pairs: int | None = field(default=None, metadata={"help": "Pairs in a step: 8, of lora 2."})
    rounds: int | None = field(
        default=None, metadata={"help": "step, options, cost: steps of each side that are timed: 5, of cost 2."}
    )
    cpu_time: bool = field(
        default=False,
        metadata={"help": "step, options, cost: count CPU seconds, on a machine with other work; with --threads 1."},
    )
    threads: int | None = field(default=None, metadata={"help": "Threads of torch; its own choice if not given."})
    width: int = field(default=768, metadata={"help": "step, options, cost: width of the encoder."})
    layers: int = field(default=12, metadata={"help": "step, options, cost: layers of the encoder."})
    unet_size: int | None = field(default=None, metadata={"help": "Pixels a side of the U-Net's pictures: 64, of cost 256."})
    unet_width: int = field(default=64, metadata={"help": "options, cost: channels of the U-Net's first level."})
    unet_pairs: int = field(default=1, metadata={"help": "cost: pairs in a step of the U-Net."})
    skip: list[str] = field(default_factory=list, metadata={"choices": list(SCALES), "help": "cost: what to leave out."})
    only: list[str] | None = field(
        default=None, metadata={"choices": list(OPTIONS), "help": "options: which; all if not given."}
    )
    steps: int = field(default=3, metadata={"help": "lora: steps."})
    pictures: int = field(default=5000, metadata={"help": "noise: pictures in the set."})
    size: int | None = field(default=None, metadata={"help": "Pixels a side: 224, of noise 256."})
    rank: int = field(default=256, metadata={"help": "noise: directions of the covariance."})
    check: bool = field(default=False, metadata={"help": "Fail where a claim is missed."})

    def __post_init__(self):
        self.pairs = self.pairs or (2 if self.part.startswith("lora") else 8)
        self.rounds = self.rounds or (2 if self.part == "cost" else 5)
        self.unet_size = self.unet_size or (256 if self.part == "cost" else 64)
        self.size = self.size or (256 if self.part == "noise" else 224)


def peak_gigabytes() -> float:
    """The most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def seconds(function, repeats):
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def noise(args) -> list[str]:
    before = peak_gigabytes()
    start = time.perf_counter()
    fitted = LowRankNormal.fit(lambda: made_pictures(args.pictures, args.size), args.rank)
    fit_seconds, peak = time.perf_counter() - start, peak_gigabytes()
    dimensions = 3 * args.size**2
    print(f"fit: {args.pictures} pictures of {dimensions:,} values at rank {args.rank} in {fit_seconds:.0f} s")
    print(
        f"peak memory of the process {peak:.2f} GB ({before:.2f} GB before); the full covariance would take "
        f"{dimensions**2 * 4 / 1e9:.0f} GB"
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
        f"16 noise pictures: low rank {draw_seconds * 1e3:.0f} ms, N(0, I) {plain_seconds * 1e3:.0f} ms; a training "
        f"step {step_seconds:.1f} s"
    )
    print(f"low-rank noise costs {share:.1%} of a step")
    missed = [f"noise: peak memory {peak:.2f} GB, wanted below 2"] if peak >= 2 else []
    return missed + ([f"noise: {share:.1%} of a step, wanted below 5%"] if share >= 0.05 else [])


def side(args, with_lora: bool) -> list[str]:
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
    return []


def lora(args) -> list[str]:
    found = {}
    for name in ("full", "lora"):
        argv = [sys.executable, __file__, "--part", f"lora_{name}_side", "--pairs", str(args.pairs), "--steps", str(args.steps)]
        found[name] = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        f = found[name]
        print(
            f"{name}: peak memory of the process {f['peak']:.2f} GB, {f['cpu_seconds']:.1f} CPU s a step of "
            f"{args.pairs} pairs, {f['trained']:,} weights trained, {f['saved'] / 2**20:.1f} MB saved"
        )
    less = found["full"]["peak"] - found["lora"]["peak"]
    print(f"LoRA needs {less:.2f} GB less; one copy of the weights is {found['full']['saved'] / 2**30:.2f} GB")
    missed = [] if less > found["full"]["saved"] / 2**30 else ["lora: saves less memory than one copy of the weights"]
    return missed + (
        [] if found["lora"]["saved"] < 0.03 * found["full"]["saved"] else ["lora: the patch is above 3% of the model"]
    )


# One optimisation step


def step(args) -> list[str]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        sides, wanted, config = step_sides(args, folder), {}, mae(args).model.config
        tokens = round(args.pairs * 2 * (visible_patches(args) + 1))
        shape = (tokens, args.width, 4 * args.width)
        kinds = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if device.type == "cuda" else {})
        gemms = {name: Gemm(*shape, dtype, device) for name, dtype in kinds.items()}
        print(
            f"{args.pairs} + {args.pairs} pictures of {args.size}x{args.size}, encoder {config.num_hidden_layers} x "
            f"{args.width}, {visible_patches(args)} of {(args.size // 16) ** 2} patches visible; {machine(device)}"
        )
        result, peaks = take_turns(sides, gemms, args.rounds)
    for name in sides:
        _, ratio, share = SIDES[name.removesuffix(" bf16")]
        if name.endswith(" bf16"):
            ratio, share = ON_A_GPU if name == "b bf16" else (None, None)
        elif device.type == "cuda":
            ratio, share = None, None
        wanted[name] = (ratio, share)
    for name, rate in peaks.items():
        print(f"matrix product of {' x '.join(map(str, shape))} in {name}: {rate / 1e9:,.0f} GFLOP/s")
    print(
        "\n| side | s / step | of (a) | wanted | of the peak | wanted | memory of a step, GB |\n|---|---|---|---|---|---|---|"
    )
    for name, found in result.items():
        what, (ratio, share) = SIDES[name.removesuffix(" bf16")][0], wanted[name]
        memory = "-" if found["memory"] is None else f"{found['memory']:.2f}"
        print(
            f"| ({name}) {what} | {found['seconds']:.3g} | {found['ratio']:.3f} | {ratio or '-'} | {found['share']:.1%} | "
            f"{f'{share:.0%}' if share else '-'} | {memory} |"
        )
    return missed_bounds(result, wanted)


def missed_bounds(result: dict[str, dict], wanted: dict[str, tuple]) -> list[str]:
    """One line for each bound (ratio to (a), share of the peak) of `wanted` that a side of `result` misses."""
    missed = []
    for name, (ratio, share) in wanted.items():
        found = result[name]
        if ratio and not found["ratio"] <= ratio:
            missed.append(f"({name}) takes {found['ratio']:.3f} of (a)'s time, wanted {ratio}")
        if share and not found["share"] >= share:
            missed.append(f"({name}) runs at {found['share']:.1%} of the matrix-product peak, wanted {share:.0%}")
    return missed


def visible_patches(args) -> int:
    rows = args.size // 16
    return rows**2 - max(1, rows * 8 // 14) ** 2


def step_sides(args, folder) -> dict[str, Side]:
    """All sides. In fp32, (a) to (c2) train one and the same model, which does not change their work."""
    model = mae(args)
    floor = floors(model.model.config, visible_patches(args), args.pairs)
    original = model.frozen_copy()
    trainers, sides, optimizer = {}, {}, None
    for name in ("b", "c1", "c2"):
        trainers[name] = make_trainer(args, folder, model, original, **OURS[name])
        optimizer = optimizer or trainers[name].create_optimizer()
    batch = trainers["b"]._prepare_inputs(next(iter(trainers["b"].get_train_dataloader())))
    plain = released_optimizer(model)
    sides["a"] = Side(reference_step(model, original, batch, plain), floor["a"])
    sides["a2"] = Side(reference_step(model, original, batch, plain, attention="sdpa"), floor["a"])
    for name, trainer in trainers.items():
        sides[name] = Side(product_step(trainer, optimizer), floor[name])
    sides["c3"] = Side(product_step(make_trainer(args, folder, with_lora(mae(args)), **OURS["c3"])), floor["c3"])
    if torch.cuda.is_available():
        for name, options in OURS.items():
            other = with_lora(mae(args)) if name == "c3" else mae(args)
            trainer = make_trainer(args, folder, other, bf16=True, **options)
            sides[f"{name} bf16"] = Side(product_step(trainer), floor[name], "bf16")
    return sides


def options(args) -> list[str]:
    """Each option of `OPTIONS`, off and on in turns. No claim is made, so none is missed."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{args.pairs} + {args.pairs} pictures, encoder {args.layers} x {args.width}; {machine(device)}")
    print("\n| option | s / step without | with | ratio | GB without | with |\n|---|---|---|---|---|---|", flush=True)
    for name in args.only or OPTIONS:
        if name == "bf16":
            rates = [Gemm(512, 256, 1024, dtype, device, 0.1)() for dtype in (torch.float32, torch.bfloat16)]
            if rates[1] < 0.2 * rates[0]:
                print(
                    f"| {name} | not measured: matrix products run at {rates[1] / rates[0]:.1%} of their fp32 rate "
                    "here | | | | |"
                )
                continue
        with tempfile.TemporaryDirectory() as folder:
            sides = {}
            for which, chosen in zip(("without", "with"), OPTIONS[name]):
                model = unet(args) if "U-Net" in name else mae(args)
                sides[which] = Side(product_step(make_trainer(args, folder, model, **chosen)))
            result, _ = take_turns(sides, {}, args.rounds)
        seconds, memory = ([result[which][key] for which in sides] for key in ("seconds", "memory"))
        held = "- | -" if None in memory else f"{memory[0]:.2f} | {memory[1]:.2f}"
        print(f"| {name} | {seconds[0]:.3g} | {seconds[1]:.3g} | {result['with']['ratio']:.3f} | {held} |", flush=True)
    return []


def main():
    args = HfArgumentParser(Arguments, description=__doc__).parse_args_into_dataclasses()[0]
    if args.cpu_time:
        benchmark_steps.clock = time.process_time
    if args.threads:
        torch.set_num_threads(args.threads)
    parts = (step, options, cost, noise, lora, lambda args: side(args, False), lambda args: side(args, True))
    missed = dict(zip(PARTS, parts))[args.part](args)
    if args.check and missed:
        sys.exit("Missed:\n" + "\n".join(missed))


if __name__ == "__main__":
    main()
