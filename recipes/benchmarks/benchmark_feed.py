"""Measure how pictures are fed: images per second against what the step needs, and memory over a long stream.

    python recipes/benchmarks/benchmark_feed.py --part speed
    python recipes/benchmarks/benchmark_feed.py --part memory --check

`speed`: JPEGs made by this script, in parquet, as pairs of batches of 16 + 16 through decoding and the image processor, from a
map-style dataset and from a stream; and one step of eq. 10 at ViT-Base size (random weights) on this machine's device, once.
`memory`: a stream of 8x8 PNGs, read again and again from parquet files that are split into forget and retain by class, as a run
reads them: shuffle buffer, pairs, decoding and image processor, without a model. The resident memory of the process is printed
at intervals; it may not grow by more than `--bound` MB after the first of them. `--check` exits with status 1 if it does.
"""

import io
import itertools
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import psutil
import torch
from PIL import Image
from transformers import HfArgumentParser, ViTMAEConfig
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_i2i_unlearn import (
    DISTANCES,
    I2IMAE,
    METHODS,
    CenterCrop,
    ForgetRetainPairs,
    ForgetRetainStream,
    ImageReader,
    StandardNormal,
    by_classes,
    load_source,
    select,
    undecoded,
)
from hf_i2i_unlearn.data.reading import PairCollator
from hf_i2i_unlearn.training.objective import Objective

PAIRS = 16  # in a batch


@dataclass
class Arguments:
    part: str = field(default="speed", metadata={"choices": ["speed", "memory"], "help": "What to measure."})
    rows: int = field(default=1_000_000, metadata={"help": "memory: rows of the stream."})
    bound: float = field(default=50.0, metadata={"help": "memory: MB by which the process may grow after the first interval."})
    pictures: int = field(default=2000, metadata={"help": "speed: pictures in the set."})
    size: int = field(default=224, metadata={"help": "speed: pixels a side."})
    seconds: float = field(default=10.0, metadata={"help": "speed: how long each loader is measured."})
    workers: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "speed: numbers of loader workers."})
    check: bool = field(default=False, metadata={"help": "Fail where memory grows."})


def write_pictures(folder, count: int, size: int, format: str) -> str:
    """A parquet file of pictures of two classes, 0 and 1: smooth colour noise, each another."""
    rng = np.random.default_rng(0)

    def rows():
        for i in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            buffer = io.BytesIO()
            coarse.resize((size, size), Image.Resampling.BICUBIC).save(buffer, format)
            yield {"image": {"bytes": buffer.getvalue(), "path": f"{i}.{format.lower()}"}, "label": i % 2}

    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["0", "1"]))
    file = Path(folder) / "train.parquet"
    datasets.Dataset.from_list(list(rows()), features=features).to_parquet(file)
    return str(file)


def read(file: str, streaming: bool):
    """Forget and retain set of a file, as a run takes them."""
    source = load_source(file, "train", streaming=streaming)
    forget = by_classes(source, ["0"])
    return undecoded(select(source, forget)), undecoded(select(source, forget, False))


def collator(size: int) -> PairCollator:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return PairCollator(
        ImageReader(ViTImageProcessorPil(size={"height": size, "width": size}, image_mean=mean, image_std=std), 3)
    )


def images_per_second(pairs, workers: int, size: int, seconds: float) -> float:
    """Of a loader that nothing waits for, from its second batch on."""
    if isinstance(pairs, ForgetRetainStream):
        pairs.rows_per_batch = PAIRS
    options = {"sampler": itertools.cycle(range(len(pairs)))} if isinstance(pairs, ForgetRetainPairs) else {}
    batches = iter(torch.utils.data.DataLoader(pairs, PAIRS, num_workers=workers, collate_fn=collator(size), **options))
    next(batches)
    images, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        batch = next(batches)
        images += len(batch["forget"]) + len(batch["retain"])
    return images / (time.perf_counter() - start)


def step_of_vit_base() -> float:
    """Seconds of a step of eq. 10 on PAIRS pairs of 224x224 pictures, forward and backward."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = ViTMAEConfig(hidden_size=768, num_hidden_layers=12, layer_norm_eps=1e-6)
    model = I2IMAE.from_config(config).train_encoder_only().to(device)
    objective = Objective(METHODS["ours"], model.frozen_copy(), DISTANCES["mse"], StandardNormal())
    pixels = torch.randn(PAIRS, 3, 224, 224, device=device)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        retain, forget, _ = objective(
            model, model, CenterCrop(8), pixels, pixels, torch.arange(3 * PAIRS).view(PAIRS, 3).numpy()
        )
        (retain.mean() + 0.25 * forget.mean()).backward()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times[-1]


def speed(pictures, size, seconds, workers, folder, step_images=2 * PAIRS, step_seconds=None) -> None:
    file = write_pictures(folder, pictures, size, "JPEG")
    step_seconds = step_seconds or step_of_vit_base()
    need = step_images / step_seconds
    print(f"the step needs {need:.1f} images/s ({step_images} pictures in {step_seconds:.2f} s)")
    for streaming in (False, True):
        for count in workers:
            pairs = (ForgetRetainStream if streaming else ForgetRetainPairs)(*read(file, streaming))
            rate = images_per_second(pairs, count, size, seconds)
            kind = "stream" if streaming else "map-style"
            print(f"{kind}, {count} workers: {rate:.0f} images/s of {size}x{size}, {rate / need:.1f} times the need")


def growth(samples: list[float]) -> float:
    """By how much memory grew after the first interval, which fills buffers."""
    return max(samples[1:]) - samples[1]


def memory(rows: int, bound: float, folder, shard: int = 10_000, every: int = 50_000) -> bool:
    """Whether the resident memory of this process stays flat while `rows` rows of a stream of `shard` rows are read."""
    file = write_pictures(folder, shard, 8, "PNG")
    process, collate = psutil.Process(), collator(8)
    samples, start, done = [process.memory_info().rss / 1e6], time.perf_counter(), 0
    pairs = iter(ForgetRetainStream(*read(file, True)))
    print(f"{done:>12,} rows {samples[-1]:8.1f} MB", flush=True)
    while done < rows:
        done += 2 * len(collate([next(pairs) for _ in range(min(100, every // 2))])["forget"])
        if done % every == 0:
            samples.append(process.memory_info().rss / 1e6)
            print(f"{done:>12,} rows {samples[-1]:8.1f} MB {time.perf_counter() - start:8.0f} s", flush=True)
    grown = growth(samples)
    print(f"after the first {every:,} rows memory grew by {grown:.1f} MB over {rows:,} rows ({bound:g} MB allowed)")
    return grown <= bound


def main():
    (args,) = HfArgumentParser(Arguments, description=__doc__).parse_args_into_dataclasses()
    with tempfile.TemporaryDirectory() as folder:
        if args.part == "memory":
            flat = memory(args.rows, args.bound, folder)
            sys.exit(0 if flat or not args.check else 1)
        speed(args.pictures, args.size, args.seconds, args.workers, folder)


if __name__ == "__main__":
    main()
