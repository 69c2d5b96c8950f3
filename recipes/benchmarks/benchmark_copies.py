"""Measure what the search for copies costs before a run: pictures per second, and memory.

    python recipes/benchmarks/benchmark_copies.py --rows 100000

JPEGs of noise, made by this script, in parquet; 100 of them are to be forgotten, 10 are copies. Four searches, each in a
process of its own:
`sizes`: exact copies where no size but the forget pictures' own is theirs, so nothing else is decoded: what is read is hashed.
`exact`: exact copies where all pictures have one size, so each is decoded.
`near`: near ones too, by `imagehash`.
`stream`: the same from a stream, which holds the hashes of all pictures until its end.
"""

import io
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, disable_progress_bars
from PIL import Image as Pictures
from transformers import HfArgumentParser

from hf_i2i_unlearn import by_rows, load_source
from hf_i2i_unlearn.data import copy_search

SEARCHES = ("sizes", "exact", "near", "stream")
FORGET, COPIES = 100, 10


@dataclass
class Arguments:
    rows: int = field(default=100_000, metadata={"help": "Pictures in the source."})
    size: int = field(default=64, metadata={"help": "Pixels a side."})
    searches: list[str] = field(default_factory=lambda: list(SEARCHES), metadata={"help": f"Of {', '.join(SEARCHES)}."})
    file: str | None = field(default=None, metadata={"help": "The source; made in a temporary folder if not given."})


def write_source(file: Path, rows: int, size: int, forget_size: int) -> None:
    """`rows` pictures; the first are to be forgotten and have their own size, the last are copies of them."""
    schema = Features({"image": Image()}).arrow_schema
    rng, forget = np.random.default_rng(0), []
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, rows, 1000):
            pictures = []
            for row in range(start, min(rows, start + 1000)):
                side = forget_size if row < FORGET else size
                buffer = io.BytesIO()
                coarse = Pictures.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
                coarse.resize((side, side), Pictures.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
                content = buffer.getvalue()
                if row < FORGET:
                    forget.append(content)
                elif row >= rows - COPIES:
                    content = forget[row - rows]
                pictures.append({"bytes": content, "path": f"{row}.jpg"})
            writer.write_table(pa.table({"image": pictures}, schema=schema))


def search(file: str, how: str) -> None:
    """One search; prints its figures."""
    source = load_source(file, "train", streaming=how == "stream")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    copy_search.can_find_near = lambda: how in ("near", "stream")
    start = time.perf_counter()
    copies = copy_search.look_for_copies({"dataset": source}, by_rows(f"0-{FORGET - 1}"), "image", "keep")
    seconds = time.perf_counter() - start
    assert copies is not None and len(copies.all("bytes")) == COPIES
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    speed = copies.pictures / seconds
    print(f"| {how} | {speed:,.0f} | {grown:,.0f} | {1e6 / speed / 60:.1f} |", flush=True)


def main(args: Arguments) -> None:
    print(
        "| search | pictures/s | memory grown by, MB | 1,000,000 such pictures would take, min |\n|---|---|---|---|", flush=True
    )
    with tempfile.TemporaryDirectory() as folder:
        for how in args.searches:
            file = Path(folder) / ("sizes.parquet" if how == "sizes" else "same.parquet")
            if not file.exists():
                write_source(file, args.rows, args.size, args.size + 2 * (how == "sizes"))
            subprocess.run([sys.executable, __file__, "--file", file, "--searches", how], check=True)


if __name__ == "__main__":
    given = HfArgumentParser(Arguments).parse_args_into_dataclasses()[0]
    disable_progress_bars()
    search(given.file, given.searches[0]) if given.file else main(given)
