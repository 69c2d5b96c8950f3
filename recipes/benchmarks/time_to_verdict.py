"""How long until pictures are forgotten: ours against the pattern of the released code, each at its own best learning rate.

    python recipes/benchmarks/time_to_verdict.py
    python recipes/benchmarks/time_to_verdict.py --model model_cards/photos-mae --dataset photos-32 ...

An arm is a way of training and a learning rate. All arms start at one original, and see the same pictures in the same order.
They take turns, a few steps each, so that a machine that changes its speed changes it for all. After its turn an arm is
measured, which does not count. It is through at the first measurement where the forget error has risen by --factor and the
retain error by no more than --tolerance. An arm that has taken longer than the best of its kind so far is given up.

What ours computes once counts: the mean of the noise, and targets of retain pictures as they come by. Reading does not count.
"""

import functools
import math
import sys
import time
from dataclasses import dataclass, field

import benchmark_steps
import numpy as np
import torch
from benchmark_steps import reference_step, timed
from transformers import HfArgumentParser

from hf_i2i_unlearn import (
    DISTANCES,
    METHODS,
    ForgetRetainPairs,
    ImageReader,
    StandardNormal,
    add_patch,
    load_model,
    load_processor,
)
from hf_i2i_unlearn.commands.words import parse_corruption
from hf_i2i_unlearn.data.options import SplitArguments
from hf_i2i_unlearn.data.pairs import seeds_for
from hf_i2i_unlearn.data.splits import build_splits
from hf_i2i_unlearn.evaluation.metrics import hole_mse
from hf_i2i_unlearn.training.objective import Objective

KINDS = {
    "released": "the released code: student on both, teacher on both and on noise for both",
    "ours": "ours, mean of the noise, cached targets",
    "lora": "the same with adapters of rank 8",
}


@dataclass
class Arguments(SplitArguments):
    """What to forget, from which original, and when it counts as forgotten."""

    model: str = field(default="mnist-demo", metadata={"help": "The original: a masked autoencoder."})
    corruption: str = field(default="center:3", metadata={"help": "T, a fixed one."})
    factor: float = field(default=2.0, metadata={"help": "The forget error that is wanted, times the original's."})
    tolerance: float = field(default=0.05, metadata={"help": "The rise of the retain error that is allowed, as a share."})
    arms: list[str] = field(
        default_factory=lambda: [f"{kind}@{rate}" for kind in KINDS for rate in ("1e-3", "2e-3", "4e-3")],
        metadata={"help": f"What takes part, as KIND@RATE; kinds: {', '.join(KINDS)}."},
    )
    pairs: int = field(default=16, metadata={"help": "Pairs in a step."})
    every: int = field(default=5, metadata={"help": "Steps of a turn."})
    max_steps: int = field(default=400, metadata={"help": "An arm that is not through by then is given up."})
    alpha: float = field(default=0.25, metadata={"help": "Weight of the forget term."})
    mean_draws: int = field(default=256, metadata={"help": "Draws behind the mean of the noise."})
    wanted: float = field(default=0.25, metadata={"help": "--check: the most of the released code's time that ours may take."})
    threads: int = field(default=1, metadata={"help": "Threads of torch."})
    cpu_time: bool = field(default=False, metadata={"help": "Count CPU seconds, on a machine with other work."})
    check: bool = field(default=False, metadata={"help": "Fail where ours takes longer than is wanted."})
    seed: int = field(default=0, metadata={"help": "Order of the pictures, and draws of the noise."})

    def __post_init__(self):
        if self.dataset == "mnist-demo" and not (self.forget_classes or self.forget_rows or self.forget_list):
            self.forget_classes = ["5", "6", "7", "8", "9"]


class Sets:
    """The pictures, each decoded once, and the order in which all arms see them."""

    def __init__(self, args, model):
        splits = build_splits(args)
        self.pairs, self.size = ForgetRetainPairs(splits.forget, splits.retain, args.seed), args.pairs
        self.reader, self.decoded = ImageReader(load_processor(args.model), model.channels), {}
        self.evaluation = {"forget": self._pixels(splits.eval_forget), "retain": self._pixels(splits.eval_retain)}

    def _pixels(self, rows):
        return torch.cat(
            [self.reader.pixels([self.reader.decode(r) for r in rows[i : i + 64]]) for i in range(0, len(rows), 64)]
        )

    def batch(self, step: int) -> tuple[dict[str, torch.Tensor], list[int], np.ndarray]:
        """{"retain": (B, C, H, W), "forget": the same}, numbers of the retain pictures, and seeds (B, 3) of a step."""
        numbers = range(step * self.size, (step + 1) * self.size)
        batch, rows = {}, {}
        for name, cycle in {"retain": self.pairs.retain, "forget": self.pairs.forget}.items():
            rows[name] = [int(cycle.row(t)) for t in numbers]
            for row in rows[name]:
                if (name, row) not in self.decoded:
                    self.decoded[name, row] = self._pixels([cycle.dataset[row]])
            batch[name] = torch.cat([self.decoded[name, row] for row in rows[name]])
        return batch, rows["retain"], np.array([seeds_for(self.pairs.seed, t) for t in numbers])


class Arm:
    """A way of training at a learning rate. `advance` trains and counts the time; `measure` does not count."""

    def __init__(self, word: str, args, sets: Sets, original, corruption):
        self.word, self.args, self.sets, self.original, self.corruption = word, args, sets, original, corruption
        self.kind, _, rate = word.partition("@")
        if self.kind not in KINDS:
            sys.exit(f"'{word}' is no arm; write KIND@RATE, with one of {', '.join(KINDS)}.")
        self.model = load_model(args.model)
        if self.kind == "lora":
            torch.manual_seed(args.seed)  # an adapter starts at random
            add_patch(self.model, args.model)
        else:
            self.model.train_encoder_only()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        fused = {} if self.kind == "released" else {"fused": True}  # as the Trainer has it
        self.optimizer = torch.optim.AdamW(self.trained, float(rate), betas=(0.9, 0.95), weight_decay=0.0, **fused)
        self.objective = Objective(
            METHODS["ours"], original, DISTANCES["mse"], StandardNormal(), "mean", args.mean_draws, args.seed
        )
        self.known: dict[int, torch.Tensor] = {}  # E0(T(x_r)) of the retain pictures that have come by
        self.seconds, self.steps, self.through, self.errors = 0.0, 0, False, {}

    def advance(self) -> None:
        """A turn."""
        self.model.train()
        for _ in range(self.args.every):
            batch, rows, seeds = self.sets.batch(self.steps)
            if self.kind == "released":
                step = reference_step(
                    self.model, self.original, batch, self.optimizer, self.args.alpha, corruption=self.corruption
                )
            else:
                step = functools.partial(self._ours, batch, rows, seeds)
            self.seconds += timed(step)
            self.steps += 1

    def _ours(self, batch, rows, seeds):
        retain, forget, _ = self.objective(
            self.model, self.model, self.corruption, batch["retain"], batch["forget"], seeds, self.steps,
            self._targets(batch["retain"], rows),
        )  # fmt: skip
        (retain.mean() + self.args.alpha * forget.mean()).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def _targets(self, pixels, rows):
        new = [i for i, row in enumerate(rows) if row not in self.known]
        if new:
            mask = self.corruption(self.original.grid, [0] * len(new))
            self.known |= zip([rows[i] for i in new], self.original(pixels[new], mask))
        return torch.stack([self.known[row] for row in rows])

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """The hole error of each set, in normalised units."""
        self.model.eval()
        self.errors = {name: hole_error(self.model, self.corruption, x) for name, x in self.sets.evaluation.items()}
        return self.errors


def hole_error(model, corruption, pixels) -> float:
    mask = corruption(model.grid, [0] * len(pixels))
    return hole_mse(model.generate(pixels, mask), pixels, model.hole(mask)).mean().item()


def race(arms: list[Arm], before: dict[str, float], args) -> dict[str, Arm]:
    """{kind: the arm that was through first}. Prints a line for each arm that ends."""
    best: dict[str, Arm] = {}
    running = list(arms)
    while running:
        for arm in list(running):
            arm.advance()
            rise = {name: error / before[name] for name, error in arm.measure().items()}
            arm.through = rise["forget"] >= args.factor and rise["retain"] <= 1 + args.tolerance
            if arm.through and (arm.kind not in best or arm.seconds < best[arm.kind].seconds):
                best[arm.kind] = arm
            beaten = arm.kind in best and best[arm.kind] is not arm and arm.seconds >= best[arm.kind].seconds
            if arm.through or beaten or arm.steps >= args.max_steps or not math.isfinite(rise["retain"]):
                running.remove(arm)
                end = "forgotten" if arm.through else "slower than another" if beaten else "not forgotten"
                print(
                    f"| {arm.word} | {end} | {arm.steps} | {arm.seconds:.1f} | x{rise['retain']:.3f} | x{rise['forget']:.2f} |",
                    flush=True,
                )
    return best


def main():
    (args,) = HfArgumentParser(Arguments, description=__doc__).parse_args_into_dataclasses()
    if args.cpu_time:
        benchmark_steps.clock = time.process_time
    torch.set_num_threads(args.threads)
    original, corruption = load_model(args.model).eval().requires_grad_(False), parse_corruption(args.corruption)
    sets = Sets(args, original)
    arms = [Arm(word, args, sets, original, corruption) for word in args.arms]
    with torch.no_grad():
        before = {name: hole_error(original, corruption, x) for name, x in sets.evaluation.items()}
    kind = f"{args.threads} threads, {'CPU seconds' if args.cpu_time else 'seconds'}"
    print(f"{args.model}: retain error {before['retain']:.3f}, forget error {before['forget']:.3f}; {kind}")
    print("\n| arm | end | steps | s | retain | forget |\n|---|---|---|---|---|---|", flush=True)
    best = race(arms, before, args)
    print("\n| kind | what | best rate | s | of the released code's |\n|---|---|---|---|---|")
    for name, arm in sorted(best.items(), key=lambda item: list(KINDS).index(item[0])):
        share = f"{arm.seconds / best['released'].seconds:.2f}" if "released" in best else "-"
        print(f"| {name} | {KINDS[name]} | {arm.word.partition('@')[2]} | {arm.seconds:.1f} | {share} |")
    ours = [arm.seconds for name, arm in best.items() if name != "released"]
    if args.check and not (ours and "released" in best and min(ours) <= args.wanted * best["released"].seconds):
        sys.exit(f"Missed: ours was to take at most {args.wanted:g} of the released code's time.")


if __name__ == "__main__":
    main()
