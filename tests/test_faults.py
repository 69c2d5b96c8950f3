"""What may happen to a run on somebody's machine: killed, full disk, dead worker, no source, a loss of NaN."""

import errno
import json
import math
import os
import resource
import signal
import sys
from pathlib import Path

import datasets
import pytest
import torch
from conftest import make_mae
from safetensors import safe_open
from safetensors.torch import load_file
from test_trainer import FORGET, RETAIN, assert_same, make_trainer, weights
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

from hf_i2i_unlearn import ForgetRetainPairs, ForgetRetainStream, InputError, RandomMask, RunError, add_patch
from hf_i2i_unlearn.commands.cli import run
from hf_i2i_unlearn.data import streams as data_module
from hf_i2i_unlearn.data.streams import SingleImageStream
from hf_i2i_unlearn.training.base_trainer import _StopAtBrokenLoss
from hf_i2i_unlearn.training.checkpoints import ASIDE, checkpoints, is_whole, last_whole_checkpoint

EVERY_2 = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
FILES = {
    "unlearning.json",
    "optimizer.pt",
    "preprocessor_config.json",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
    "training_args.json",
}
WEIGHTS = {"full": {"config.json", "model.safetensors"}, "lora": {"adapter_config.json", "adapter_model.safetensors"}}


def trainer_of(kind, folder, processor, **options):
    model = make_mae()
    if kind == "lora":
        add_patch(model, "original", rank=2)
    return make_trainer(folder, processor, model, corruption=RandomMask(0.5), **EVERY_2 | options)


def assert_nothing_half_written(folder, kind="full"):
    for checkpoint in checkpoints(folder):
        assert {f.name for f in checkpoint.iterdir()} == FILES | WEIGHTS[kind] | (
            {"README.md"} if (checkpoint / "README.md").exists() else set()
        )
        assert is_whole(checkpoint)
        with safe_open(next(checkpoint.glob("*.safetensors")), "pt") as file:
            assert file.keys()


# ------------------------------------------------------------------------------------------------------------------ kill -9


def in_a_child(function):
    """Exit status of `function` in a forked process; minus the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def count_writes(folder, act, count):
    """Call act(n) at the n-th thing that this process does to a file below the folder, as Python sees it."""

    def hook(event, args):
        if event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") or not args or isinstance(args[0], int):
            return
        writes = event != "open" or (args[2] is not None and args[2] & (os.O_WRONLY | os.O_RDWR))
        if writes and count[0] is not None and os.fsdecode(args[0]).startswith(str(folder)):
            count[0] += 1
            act(count[0])

    sys.addaudithook(hook)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_killed_anywhere_and_resumed_to_the_same_weights(tmp_path, processor, kind):
    straight = trainer_of(kind, tmp_path / "straight", processor)
    count = [0]
    count_writes(tmp_path / "straight", lambda n: None, count)
    straight.train()
    straight.save_model()
    total, count[0] = count[0], None
    assert total > 30
    name = next(n for n in WEIGHTS[kind] if n.endswith(".safetensors"))
    expected = load_file(tmp_path / "straight" / name)

    without_checkpoint = 0
    for n in range(1, total + 1, 11 if kind == "lora" else 7):
        folder = tmp_path / str(n)

        def killed():
            count_writes(folder, lambda number: number == n and os.kill(os.getpid(), signal.SIGKILL), [0])
            trainer = trainer_of(kind, folder, processor)
            trainer.train()
            trainer.save_model()

        assert in_a_child(killed) == -signal.SIGKILL, n
        assert_nothing_half_written(folder, kind)
        if (folder / name).exists():
            assert_same(expected, load_file(folder / name))
        resumed = trainer_of(kind, folder, processor)
        try:
            resumed.train("true")
        except InputError:  # before there was any
            without_checkpoint += 1
            resumed.train()
        resumed.save_model()
        assert not (folder / ASIDE).exists()
        assert_same(expected, load_file(folder / name))
        assert {f.name for f in folder.iterdir()} == {f.name for f in (tmp_path / "straight").iterdir()}
    assert 0 < without_checkpoint < 8


def test_killed_in_the_middle_of_the_weights(tmp_path, processor):
    def killed():
        trainer = trainer_of("full", tmp_path, processor)
        model, save = trainer.i2i, trainer.i2i.save_pretrained

        def save_half(folder):
            save(folder)
            file = Path(folder) / "model.safetensors"
            if trainer.state.global_step == 4:
                os.truncate(file, file.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        model.save_pretrained = save_half
        trainer.train()

    assert in_a_child(killed) == -signal.SIGKILL
    assert (tmp_path / ASIDE / "checkpoint-4" / "model.safetensors").exists()
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert not (tmp_path / ASIDE).exists()


@pytest.mark.parametrize("source", ["pairs", "stream"])
def test_a_run_killed_after_its_last_checkpoint_takes_no_step_more(tmp_path, processor, source):
    """3 steps, one and a half epochs."""
    pairs = Source().stream, Source().stream

    def make():
        return ForgetRetainStream(*(p() for p in pairs), 5, 4) if source == "stream" else None

    straight = make_trainer(tmp_path, processor, pairs=make(), **EVERY_2 | {"max_steps": 3})
    straight.train()
    resumed = make_trainer(tmp_path, processor, pairs=make(), **EVERY_2 | {"max_steps": 3})
    resumed.train("true")
    assert resumed.state.global_step == 3
    assert_same(weights(straight), weights(resumed))
    longer = make_trainer(tmp_path, processor, pairs=make(), **EVERY_2 | {"max_steps": 5})
    longer.train("true")
    assert longer.state.global_step == 5


def test_the_best_checkpoint_is_named_by_where_it_is(tmp_path, processor):
    trainer = make_trainer(
        tmp_path, processor, evaluate=True, save_strategy="steps", save_steps=1, eval_steps=1, max_steps=3, save_total_limit=1,
        load_best_model_at_end=True, learning_rate=1e-4,
    )  # fmt: skip
    trainer.train()
    best = tmp_path / "checkpoint-3"  # small steps: it gets better each time
    assert trainer.state.best_model_checkpoint == str(best)
    assert json.loads((best / "trainer_state.json").read_text())["best_model_checkpoint"] == str(best)
    assert checkpoints(tmp_path) == [best]


def test_a_checkpoint_takes_the_place_of_one_of_its_name(tmp_path, processor):
    trainer_of("full", tmp_path, processor).train()
    before = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    again = trainer_of("full", tmp_path, processor, learning_rate=0.1, save_steps=4)
    again.train()
    assert not torch.equal(
        before["vit.layernorm.bias"], load_file(tmp_path / "checkpoint-4" / "model.safetensors")["vit.layernorm.bias"]
    )
    assert_nothing_half_written(tmp_path)
    assert not (tmp_path / ASIDE).exists()


# ---------------------------------------------------------------------------------------------------------------- full disk


class At(TrainerCallback):
    """Calls a function at the begin of a step, from 1."""

    def __init__(self, step, act, event="on_step_begin"):
        def call(args, state, control, **kwargs):
            if state.global_step == step - 1:
                act()

        setattr(self, event, call)


class LimitedFiles:
    """No file of this process can grow beyond so many bytes: what libraries write then fails for real, as on a full disk."""

    def __init__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(self, size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, self.before[1]))

    def free(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@pytest.fixture
def disk():
    disk = LimitedFiles()
    yield disk
    disk.free()


@pytest.mark.parametrize(
    "kind, size, reason",
    [
        ("full", 5000, "File too large"),
        ("full", 60000, "the file could not be written to its end"),
        ("lora", 3000, "File too large"),
    ],
)
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, processor, disk, kind, size, reason):
    """The weights do not fit, or they fit and the optimizer's state does not."""
    straight = trainer_of(kind, tmp_path / "straight", processor)
    straight.train()
    weights_file = next((tmp_path / "straight" / "checkpoint-2").glob("*.safetensors"))
    assert weights_file.stat().st_size > size or (tmp_path / "straight" / "checkpoint-2" / "optimizer.pt").stat().st_size > size
    folder = tmp_path / "full"
    trainer = trainer_of(kind, folder, processor, callbacks=[At(3, lambda: disk.limit(size))])
    with pytest.raises(RunError) as error:
        trainer.train()
    disk.free()
    said = str(error.value)
    assert f"Cannot save checkpoint-4 to '{folder}': {reason}" in said and "GB free there" in said
    assert f"the last good checkpoint is '{folder / 'checkpoint-2'}'" in said and "--resume_from_checkpoint true" in said
    assert [f.name for f in folder.iterdir()] == ["checkpoint-2"]
    assert_nothing_half_written(folder, kind)
    resumed = trainer_of(kind, folder, processor)
    resumed.train("true")
    assert_same(weights(straight), weights(resumed))


def test_no_space_at_any_other_write(tmp_path, processor, monkeypatch):
    save = TrainerState.save_to_json

    def full(self, path):
        if self.global_step == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        save(self, path)

    monkeypatch.setattr(TrainerState, "save_to_json", full)
    with pytest.raises(RunError, match="Cannot save checkpoint-4 .*: No space left on device .*checkpoint-2'. Make room"):
        trainer_of("full", tmp_path, processor).train()
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoint-2"]
    monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))))
    with pytest.raises(RunError, match="Disk quota exceeded .*there is no checkpoint yet.*then start again"):
        trainer_of("full", tmp_path / "quota", processor).train()
    assert not any((tmp_path / "quota").iterdir())


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_full_disk_at_the_end_leaves_the_former_result(tmp_path, processor, disk, kind):
    trainer = trainer_of(kind, tmp_path, processor, save_strategy="no")
    trainer.save_model()
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    trainer.train()
    disk.limit(2000)
    with pytest.raises(RunError, match="Cannot save the model .*File too large"):
        trainer.save_model()
    disk.free()
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before
    trainer.save_model()
    assert {f.name for f in tmp_path.iterdir()} == before.keys()
    name = next(n for n in WEIGHTS[kind] if n.endswith(".safetensors"))
    assert (tmp_path / name).read_bytes() != before[name]


def test_other_errors_of_saving_keep_their_name(tmp_path, processor):
    trainer = trainer_of("full", tmp_path, processor)
    trainer.i2i.save_pretrained = lambda folder: (_ for _ in ()).throw(RuntimeError("some bug"))
    with pytest.raises(RuntimeError, match="^some bug$"):
        trainer.train()
    assert not any(tmp_path.iterdir())


def test_the_recipes_end_in_one_sentence(capsys):
    def fails(error):
        with pytest.raises(SystemExit) as status:
            run(lambda: (_ for _ in ()).throw(error))
        return status.value.code, capsys.readouterr().err

    assert fails(RunError("The loss of step 3.")) == (1, "error: The loss of step 3.\n")
    code, said = fails(OSError(errno.ENOSPC, "No space left on device", "out/run.yaml"))
    assert (code, said) == (
        1,
        "error: Cannot write 'out/run.yaml': No space left on device. Make room there, and start again.\n",
    )
    with pytest.raises(PermissionError):
        run(lambda: (_ for _ in ()).throw(PermissionError("no")))


# ------------------------------------------------------------------------------------------------------------- data workers


class DyingPairs(ForgetRetainPairs):
    def __getitem__(self, t):
        if t == 8 and torch.utils.data.get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(t)


def test_a_data_worker_that_dies(tmp_path, processor):
    options = {"save_steps": 1, "corruption": RandomMask(0.5)}
    straight = make_trainer(tmp_path / "straight", processor, **EVERY_2 | options)
    straight.train()
    killed = make_trainer(
        tmp_path / "killed",
        processor,
        pairs=DyingPairs(FORGET, RETAIN, seed=5),
        dataloader_num_workers=1,
        dataloader_prefetch_factor=1,
        **EVERY_2 | options,
    )
    with pytest.raises(RunError, match="A data worker died.*last good checkpoint is .*Set --dataloader_num_workers lower"):
        killed.train()
    resumed = make_trainer(tmp_path / "killed", processor, **EVERY_2 | options)
    resumed.train("true")
    assert_same(weights(straight), weights(resumed))


def test_bad_input_in_a_worker_is_one_sentence(tmp_path, processor):
    rows = [{"image": {"bytes": b"broken", "path": "broken.png"}} if i == 5 else row for i, row in enumerate(FORGET)]
    order = [row["forget"]["image"]["path"] for row in map(ForgetRetainPairs(rows, RETAIN, seed=5).__getitem__, range(8))]
    assert order[0] != "broken.png", "the first one is read by the trainer itself"
    trainer = make_trainer(tmp_path, processor, pairs=ForgetRetainPairs(rows, RETAIN, seed=5), dataloader_num_workers=1)
    with pytest.raises(InputError) as error:
        trainer.train()
    assert str(error.value).startswith("Cannot read broken.png: ") and "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------- sources that do not answer


class Source:
    """Rows from two shards; at the reads named, the source is away. Reads are counted over all passes and attempts."""

    def __init__(self, away=(), error=ConnectionError("Server Disconnected")):
        self.reads, self.away, self.error = 0, set(away), error

    def stream(self, start=0, count=8):
        def rows(shards):
            for shard in shards:
                for i in range(shard, shard + count // 2):
                    self.reads += 1
                    if self.reads in self.away or "always" in self.away and self.reads > 3:
                        raise self.error
                    yield dict(FORGET[i % 8])

        features = datasets.Features(image=datasets.Image(decode=False))
        return datasets.IterableDataset.from_generator(rows, features, gen_kwargs={"shards": [start, start + count // 2]})


@pytest.fixture
def waits(monkeypatch):
    waits = []
    monkeypatch.setattr(data_module.time, "sleep", waits.append)
    return waits


def paths(stream, count):
    return [row["image"]["image"]["path"] for row, _ in zip(stream, range(count))]


@pytest.mark.parametrize("shuffle", [0, 3])
def test_a_source_that_is_away_for_a_while_loses_and_doubles_nothing(waits, caplog, shuffle):
    expected = paths(SingleImageStream(Source().stream(), 1, shuffle), 24)  # three passes of 8
    assert sorted(expected[:8]) == sorted(expected[8:16]) == sorted(row["image"]["path"] for row in FORGET)
    # In the middle of a pass, while it is read again, at its first row, and in another pass.
    source = Source(away={1, 4, 6, 7, 30})
    assert paths(SingleImageStream(source.stream(), 1, shuffle, source="The dataset 'x'"), 24) == expected
    assert len(waits) == 5 and waits[0] == 1 and max(waits) <= 8  # doubled until a new row comes
    assert (
        "The dataset 'x' does not answer (ConnectionError: Server Disconnected); attempt 2 of 8 at row 0 of the training"
        in caplog.text
    )


def test_both_streams_of_a_run(tmp_path, processor, waits):
    def train(folder, **away):
        pairs = ForgetRetainStream(Source(away.get("forget", ())).stream(), Source(away.get("retain", ())).stream(2, 6), 5, 4)
        trainer = make_trainer(tmp_path / folder, processor, pairs=pairs, max_steps=5, corruption=RandomMask(0.5))
        trainer.train()
        return weights(trainer)

    assert_same(train("calm"), train("stormy", forget={9, 20}, retain={5, 6, 7, 40}))
    assert len(waits) >= 5


def test_a_source_that_stays_away_ends_the_run(tmp_path, processor, waits):
    source = Source({"always"}, OSError(errno.ESTALE, "Stale file handle"))
    stream = SingleImageStream(source.stream(), 0, 0, attempts=5, source="The dataset 'shards/*.tar'")
    with pytest.raises(
        RunError,
        match=r"^The dataset 'shards/\*.tar' does not answer after 5 attempts, at row 0 of the training "
        r"set \(OSError: \[Errno 116\] Stale file handle\). When it is there again, go on",
    ):
        paths(stream, 24)
    assert waits == [1, 2, 4, 8]
    monday = SingleImageStream(Source({"always"}).stream(), 0, 0, attempts=10)
    with pytest.raises(RunError, match="after 10 attempts"):
        paths(monday, 24)
    assert waits[4:] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    with pytest.raises(InputError, match="tried once at least; set stream_attempts to 1 or more, not 0"):
        SingleImageStream(source.stream(), attempts=0)


def test_a_source_that_stays_away_in_a_worker_keeps_the_checkpoint(tmp_path, processor):
    """In the second pass; the run goes on when it is back."""

    def pairs(away=()):
        return ForgetRetainStream(Source(away).stream(), Source().stream(2, 6), 5, 0, attempts=1, source="The dataset 'x'")

    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2}
    straight = make_trainer(tmp_path / "straight", processor, pairs=pairs(), **options)
    straight.train()
    cut = make_trainer(
        tmp_path / "cut", processor, pairs=pairs({20}), dataloader_num_workers=1, dataloader_prefetch_factor=1, **options
    )
    with pytest.raises(
        RunError, match="^The dataset 'x' does not answer after 1 attempts, at row \\d of the forget set [^\n]*$"
    ):
        cut.train()
    assert 0 < len(checkpoints(tmp_path / "cut")) < 6
    resumed = make_trainer(tmp_path / "cut", processor, pairs=pairs(), **options)
    resumed.train("true")
    assert_same(weights(straight), weights(resumed))


# ----------------------------------------------------------------------------------------------------------- losses that break


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_loss_stops_the_run_and_names_the_step(tmp_path, processor, value):
    poison = At(4, lambda: trainer.i2i.model.vit.layernorm.bias.data.fill_(value))
    trainer = trainer_of("full", tmp_path, processor, save_steps=2, callbacks=[poison], learning_rate=0.25)
    with pytest.raises(RunError) as error:
        trainer.train()
    assert str(error.value) == (
        f"The loss of step 4 is not a finite number, so the run stops and saves nothing more; the last good checkpoint is "
        f"'{tmp_path / 'checkpoint-2'}'. Start again with a --learning_rate below 0.25."
    )
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoint-2"]
    assert_nothing_half_written(tmp_path)
    with pytest.raises(RunError, match="weights are not finite"):
        trainer.save_model()


def test_a_broken_loss_between_two_looks_is_named_too(tmp_path, processor):
    """As on a GPU, where the loss is looked at when something is logged, measured or saved."""
    poison = At(3, lambda: trainer.i2i.model.vit.layernorm.bias.data.fill_(math.nan))
    trainer = trainer_of(
        "full", tmp_path, processor, max_steps=6, save_steps=5, logging_steps=100, callbacks=[poison], bf16=True
    )
    next(c for c in trainer.callback_handler.callbacks if isinstance(c, _StopAtBrokenLoss)).every_step = False
    with pytest.raises(RunError, match=r"step 3 .*there is no checkpoint yet.* below 0.01, or in fp32 \(this was bf16\)\.$"):
        trainer.train()
    assert trainer.state.global_step == 5 and not any(tmp_path.iterdir())


def test_weights_that_break_after_a_sound_loss_are_not_saved(tmp_path, processor):
    trainer = trainer_of("full", tmp_path, processor)
    optimizer_step = At(4, lambda: trainer.i2i.model.vit.layernorm.bias.data.fill_(math.nan), "on_optimizer_step")
    trainer.add_callback(optimizer_step)
    with pytest.raises(RunError, match="The weights are not finite numbers after step 4, .*checkpoint-2'"):
        trainer.train()
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoint-2"]
