"""What it costs to look at pictures with a feature network: a batch at once, and in the pieces that `FeatureNetwork` takes.

    python recipes/benchmarks/benchmark_features.py --features efficientnet_lite0

Both sides see the same random pictures, in turns, in one process.
"""

import json
import time
from dataclasses import dataclass, field
from statistics import median

import torch
from transformers import HfArgumentParser

from hf_i2i_unlearn.evaluation.feature_loaders import load_features


@dataclass
class Arguments:
    features: str = field(default="efficientnet_lite0", metadata={"help": "The network, as in `evaluate`."})
    pictures: int = field(default=64, metadata={"help": "Pictures of a batch, 32x32, random."})
    rounds: int = field(default=5, metadata={"help": "Each side is measured so often, in turns."})
    seed: int = 0


def main() -> None:
    args = HfArgumentParser(Arguments).parse_args_into_dataclasses()[0]
    (network,) = load_features([args.features])
    images = torch.rand(args.pictures, 3, 32, 32, generator=torch.Generator().manual_seed(args.seed))
    sides = {"at once": network.at_once, "in pieces": network}
    seconds = {name: [] for name in sides}
    results = {}
    for turn in range(args.rounds + 1):  # the first is to warm up
        for name, side in sides.items():
            started = time.perf_counter()
            results[name] = side(images)[0]
            if turn:
                seconds[name].append(time.perf_counter() - started)
    whole, pieces = (results[name] for name in sides)
    each = {name: round(1000 * median(times) / args.pictures, 1) for name, times in seconds.items()}
    far = float((whole - pieces).abs().max() / whole.abs().max())
    ratio = median(b / a for a, b in zip(*seconds.values()))
    print(json.dumps({"milliseconds a picture": each, "ratio": round(ratio, 2), "largest difference": f"{far:.1e}"}, indent=1))


if __name__ == "__main__":
    main()
