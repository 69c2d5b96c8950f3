"""Ways of pictures into a run.

Tar shards, loader workers, resumed streams, sources without rows; and what is decoded for it.
"""

import importlib.util
import io
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, make_dataset, png
from test_trainer import FORGET, RETAIN, StopAt, assert_same, make_trainer, weights

from hf_i2i_unlearn import ForgetRetainStream, InputError, RandomMask, load_source
from hf_i2i_unlearn.data.decoding import Decoder
from hf_i2i_unlearn.data.options import SplitArguments
from hf_i2i_unlearn.data.splits import build_splits

ROOT = Path(__file__).parents[1]


@pytest.fixture
def decodes(monkeypatch):
    """Paths of the pictures that were decoded."""
    seen, decode = [], Decoder.__call__
    monkeypatch.setattr(Decoder, "__call__", lambda self, image: seen.append(image["path"]) or decode(self, image))
    return seen


# ---------------------------------------------------------------------------------------------------------------- tar shards


def write_shards(folder, split, count, shards):
    """`count` pictures of four classes in turn as webdataset packs them: 00007.png and 00007.cls beside each other in a tar."""
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{split}-{shard:03d}.tar", "w") as tar:
            for i in range(shard, count, shards):
                for name, content in ((f"{i:05d}.png", png(i, i % 4)), (f"{i:05d}.cls", str(i % 4).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def tars(tmp_path):
    write_shards(tmp_path / "shards", "train", 24, 3)
    write_shards(tmp_path / "shards", "validation", 8, 1)
    return tmp_path / "shards"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("source", ["{split}-*.tar", ""])
def test_tar_shards(tars, streaming, source, decodes):
    args = SplitArguments(
        dataset=str(tars / source),
        forget_classes=["2", "3"],
        streaming=streaming,
        image_column="png",
        label_column="cls",
        copies="skip",
    )
    splits = build_splits(args)
    for rows, classes in ((splits.forget, (2, 3)), (splits.retain, (0, 1))):
        found = {row["image"]["path"]: row["image"]["bytes"] for row in rows}
        assert found == {f"{i:05d}.png": png(i, i % 4) for i in range(24) if i % 4 in classes}
    assert sorted(row["image"]["path"] for row in splits.eval_forget) == [f"{i:05d}.png" for i in (2, 3, 6, 7)]
    assert not decodes


def test_a_takedown_list_of_tar_shards(tars, tmp_path):
    (tmp_path / "request.txt").write_text("00005.png\n00010.png\n")
    args = SplitArguments(
        dataset=str(tars / "train-*.tar"), eval_split="none", forget_list=str(tmp_path / "request.txt"), image_column="png"
    )
    splits = build_splits(args)
    assert sorted(row["image"]["path"] for row in splits.forget) == ["00005.png", "00010.png"] and len(splits.retain) == 22


def test_what_is_no_tar_shard_is_refused(tars, tmp_path):
    with pytest.raises(InputError, match=r"holds 4 tar files but none of the split 'test'"):
        load_source(str(tars), "test")
    with pytest.raises(InputError, match=r"No webdataset file matches '.*/test-\*.tar' for the split 'test'"):
        load_source(str(tars / "test-*.tar"), "test")
    with pytest.raises(InputError, match=r"no column 'image'; it has \['__key__', '__url__', 'cls', 'png'\]"):
        build_splits(SplitArguments(dataset=str(tars), forget_classes=["1"], label_column="cls"))
    (tmp_path / "broken.tar").write_bytes(b"no archive")
    tarfile.open(tmp_path / "empty.tar", "w").close()
    for streaming in (False, True):
        for name in ("broken", "empty"):
            with pytest.raises(InputError, match=f"Cannot read '.*{name}.tar' as webdataset: "):
                load_source(str(tmp_path / f"{name}.tar"), "train", streaming=streaming)


def test_training_on_tar_shards_decodes_what_it_uses(tars, tmp_path, processor, decodes):
    args = SplitArguments(
        dataset=str(tars),
        forget_classes=["2"],
        streaming=True,
        image_column="png",
        label_column="cls",
        eval_split="none",
        copies="skip",
    )
    splits = build_splits(args)
    trainer = make_trainer(tmp_path / "out", processor, pairs=ForgetRetainStream(splits.forget, splits.retain, 5), max_steps=3)
    trainer.train()
    # 3 steps of 4 pairs, the first pair in the check before training, and the batch that accelerate reads ahead.
    assert len(decodes) <= 2 * (3 * 4 + 1 + 1 + 4)
    assert sum(int(path[:5]) % 4 == 2 for path in decodes) == len(decodes) / 2


# --------------------------------------------------------------------------------------------------- sources without any rows


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("pattern", ["", "train-*.parquet", "train-0.parquet"])
def test_parquet_without_rows(tmp_path, streaming, pattern):
    for name in ("train-0", "train-1"):
        make_dataset(4).select([]).to_parquet(tmp_path / f"{name}.parquet")
    source = str(tmp_path / pattern)
    with pytest.raises(InputError, match=f"'{source.replace('*', '[*]')}' holds no rows for the split 'train'; choose another"):
        load_source(source, "train", streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_an_empty_file_among_others_is_no_fault(tmp_path, streaming):
    make_dataset(4).select([]).to_parquet(tmp_path / "train-0.parquet")
    make_dataset(4).to_parquet(tmp_path / "train-1.parquet")
    assert len(list(load_source(str(tmp_path), "train", streaming=streaming))) == 4
    make_dataset(4).select([]).to_parquet(tmp_path / "validation-0.parquet")
    with pytest.raises(InputError, match="holds no rows for the split 'validation'"):
        build_splits(SplitArguments(dataset=str(tmp_path), forget_classes=[CLASSES[0]], streaming=streaming))


def test_a_file_that_is_no_parquet(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(InputError, match="Cannot read '.*train.parquet' as parquet: "):
        load_source(str(tmp_path / "train.parquet"), "train")


# -------------------------------------------------------------------------------------------------------------- loader workers


def stream():
    return ForgetRetainStream(FORGET.to_iterable_dataset(2), RETAIN.to_iterable_dataset(2), seed=5, shuffle_buffer=4)


@pytest.mark.parametrize("source", ["pairs", "stream"])
def test_any_number_of_workers_ends_with_the_same_weights(tmp_path, processor, source):
    """Straight without workers, straight with two, and cut off and resumed with two."""
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "corruption": RandomMask(0.5)}

    def run(folder, workers, **more):
        return make_trainer(
            tmp_path / folder,
            processor,
            pairs=stream() if source == "stream" else None,
            dataloader_num_workers=workers,
            **options | more,
        )

    runs = {n: run(str(n), n) for n in (0, 2)}
    for trainer in runs.values():
        trainer.train()
    assert_same(weights(runs[0]), weights(runs[2]))
    with pytest.raises(KeyboardInterrupt):
        run("cut", 2, callbacks=[StopAt(5)]).train()
    resumed = run("cut", 2)
    resumed.train("true")
    assert_same(weights(runs[0]), weights(resumed))


def test_a_resumed_stream_decodes_nothing_that_it_passes_over(tmp_path, processor, decodes):
    options = {"max_steps": 9, "save_strategy": "steps", "save_steps": 8, "corruption": RandomMask(0.5)}
    straight = make_trainer(tmp_path, processor, pairs=stream(), **options)
    straight.train()
    shutil.rmtree(tmp_path / "checkpoint-9")
    decodes.clear()
    resumed = make_trainer(tmp_path, processor, pairs=stream(), **options)
    resumed.train("true")
    assert_same(weights(straight), weights(resumed))
    assert 2 * 4 <= len(decodes) <= 2 * (1 + 1 + 2 * 4)  # the check, one step and the batch read ahead, of 9 steps


# ---------------------------------------------------------------------------------------------------------- the benchmark of it


@pytest.fixture(scope="module")
def benchmark_feed():
    spec = importlib.util.spec_from_file_location("benchmark_feed", ROOT / "recipes" / "benchmarks" / "benchmark_feed.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_sees_memory_that_grows(benchmark_feed):
    assert benchmark_feed.growth([100, 300, 301, 300, 302]) == 2
    assert benchmark_feed.growth([100, 300, 350, 420, 500]) == 200


def test_the_benchmark_runs(benchmark_feed, tmp_path, capsys):
    assert benchmark_feed.memory(rows=3000, shard=500, every=500, bound=50, folder=tmp_path)
    assert "3,000 rows" in capsys.readouterr().out
    benchmark_feed.speed(pictures=64, size=32, seconds=0.2, workers=(0, 1), step_images=2, step_seconds=1.0, folder=tmp_path)
    said = capsys.readouterr().out
    assert said.count("images/s") >= 2 and "the step needs 2.0" in said
    assert torch.get_num_threads() == 1
