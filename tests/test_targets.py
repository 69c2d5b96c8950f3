"""Targets that are kept: the same loss, gradients and weights as without, and never those of something else."""

import os

import numpy as np
import pytest
import torch
from conftest import make_dataset, make_mae, png
from helpers.close import assert_close
from helpers.words import objects
from safetensors.torch import load_file
from test_mage import make_mage
from test_unet import make_unet
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_i2i_unlearn import (
    CenterCrop,
    ForgetRetainPairs,
    ForgetRetainStream,
    I2IMage,
    ImageReader,
    InputError,
    RandomMask,
    StandardNormal,
    UnlearningConfig,
    UnlearningTrainer,
    add_patch,
    undecoded,
)
from hf_i2i_unlearn.data.pairs import seeds_for
from hf_i2i_unlearn.errors import RunError
from hf_i2i_unlearn.methods.noise import BatchMatched
from hf_i2i_unlearn.models.patches import original_of
from hf_i2i_unlearn.training import targets
from hf_i2i_unlearn.training.targets import TargetStore

DATA = undecoded(make_dataset(24))
FORGET, RETAIN = DATA.select(range(8)), DATA.select(range(8, 24))
CROP = CenterCrop(2)
MASK = CROP((4, 4), [0])


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(targets, "SHARD", 5)


def make_trainer(
    tmp_path,
    processor,
    model=None,
    corruption=CROP,
    pairs=None,
    augment=None,
    noise=None,
    evaluate=False,
    on_corrupt="refuse",
    **options,
):
    options = {
        "per_device_train_batch_size": 4, "learning_rate": 0.1, "optim": "sgd", "num_train_epochs": 2, "save_strategy": "no",
        "logging_steps": 1, "seed": 5, "targets_dir": str(tmp_path / "targets"), "mean_draws": 70,
    } | options  # fmt: skip
    how = objects(options)
    return UnlearningTrainer(
        model or make_mae(1),
        UnlearningConfig(str(tmp_path / "run"), use_cpu=True, disable_tqdm=True, **options),
        pairs or ForgetRetainPairs(FORGET, RETAIN, 5),
        processor,
        corruption,
        eval_dataset={"forget": list(FORGET)[:4], "retain": list(RETAIN)[:4]} if evaluate else None,
        noise=noise,
        augment=augment,
        on_corrupt=on_corrupt,
        **how,
    )


def trained(trainer):
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return losses, {n: p.detach() for n, p in trainer.i2i.named_parameters()}


def patched():
    model = make_mae(1)
    torch.manual_seed(3)
    add_patch(model, "tiny", rank=2)
    return model


def mage():
    return I2IMage(make_mage(0))


@pytest.fixture
def passes():
    """The number of pictures in each pass of an original encoder, whichever trainer has it."""
    return []


def count_passes(trainer, passes):
    trainer.original.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))


@pytest.mark.parametrize(
    "options, make",
    [
        ({}, lambda: make_mae(1)),
        ({"noise_target": "mean"}, lambda: make_mae(1)),
        ({"noise_bank": 6, "evaluate": True}, lambda: make_mae(1)),
        ({"method": "random_encoder", "dataloader_num_workers": 1}, lambda: make_mae(1)),
        ({"method": "random_encoder", "variant": "reference"}, lambda: make_mae(1)),
        ({"noise_target": "mean"}, patched),
        ({"noise_target": "mean"}, mage),
    ],
    ids=["fresh", "mean", "bank, evaluated", "random_encoder, a worker", "random_encoder, reference", "lora", "mage"],
)
def test_same_trajectory_with_and_without(tmp_path, processor, options, make):
    if make is mage:
        processor = ViTImageProcessorPil(size={"height": 16, "width": 16}, do_normalize=False)
    options = {"evaluate": False} | options
    plain, losses_plain = make(), None
    losses_plain, weights_plain = trained(make_trainer(tmp_path, processor, plain, **options))
    for _ in range(2):  # computed, then found
        losses, weights = trained(make_trainer(tmp_path, processor, make(), cache_targets=True, **options))
        assert len(losses) == 4
        assert_close(losses, losses_plain, 1e-4)
        assert_close(weights, weights_plain)
    assert any(not torch.equal(p, q) for p, q in zip(weights_plain.values(), make().parameters()))


@pytest.mark.parametrize(
    "options, a_step",
    [
        ({}, [4]),
        ({"noise_target": "mean"}, []),
        ({"noise_bank": 6}, []),
        ({"method": "random_encoder"}, []),
        ({"method": "random_encoder", "variant": "reference"}, [4]),
    ],
)
def test_teacher_passes_in_a_step(tmp_path, processor, passes, options, a_step):
    trainer = make_trainer(tmp_path, processor, cache_targets=True, max_steps=3, **options)
    count_passes(trainer, passes)
    trainer.prepare_targets()
    forget = [64, 6] if "noise_target" in options else [6] if "noise_bank" in options else []
    assert passes == [*forget, 5, 5, 5, 1]  # 70 or 6 draws of n, and 16 retain pictures in files of 5
    assert (trainer.original is None) == (not a_step)  # its memory is free where nothing needs it
    passes.clear()
    trainer.train()
    assert passes == 3 * a_step


def test_each_picture_has_its_own_target(tmp_path, processor):
    trainer = make_trainer(tmp_path, processor, cache_targets=True)
    teacher, reader = trainer.original, trainer.data_collator.reader
    trainer.prepare_targets()
    for t, batch in zip(range(0, 8, 4), trainer.get_train_dataloader()):
        for k, target in enumerate(batch["retain_target"]):
            pixels = reader.pixels([reader.decode(trainer.train_dataset[t + k]["retain"])])
            assert_close(pixels[0], batch["retain"][k])
            assert_close(target, teacher(pixels, MASK)[0])


def test_targets_are_read_through_a_memory_map(tmp_path, processor):
    if not targets.Path("/proc/self/maps").is_file():
        pytest.skip("This system does not list its memory maps.")
    trainer = make_trainer(tmp_path, processor, cache_targets=True)
    trainer.prepare_targets()
    found = trainer.data_collator.targets
    assert found[np.array([7])].shape == (1, 13, 16)
    assert [str(file) in targets.Path("/proc/self/maps").read_text() for file in found.files] == [False, True, False, False]


class Fixture:
    """A store with one thing changed."""

    def __init__(self, folder, processor):
        self.folder, self.processor = folder, processor

    def __call__(self, model=None, mask=MASK, rows=RETAIN, precision="no", **processor):
        original = original_of(model or make_mae(1))
        calls = []
        original.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
        options = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3} | processor
        reader = ImageReader(ViTImageProcessorPil(**options), 3)
        found = TargetStore(self.folder, original, mask, precision).retain(rows, reader, progress=False)
        return found, sum(calls)


@pytest.fixture
def store(tmp_path, processor):
    return Fixture(tmp_path / "targets", processor)


def changed(rows, k, **changes):
    rows = [dict(row) for row in rows]
    rows[k] = {"image": rows[k]["image"] | changes}
    return rows


def test_other_weights_pictures_or_t_are_never_taken_for_the_same(store):
    first, computed = store()
    assert computed == len(RETAIN)
    same = [{}, {"rows": list(RETAIN)}, {"model": patched()}, {"rows": changed(RETAIN, 3, path="elsewhere.png")}]
    for options in same:
        found, computed = store(**options)
        assert found.files == first.files and not computed
    slightly = make_mae(1)
    with torch.no_grad():
        slightly.model.vit.layernorm.bias[0] += 1e-6
    other = [
        {"model": slightly},
        {"model": make_mae(1, layer_norm_eps=1e-5)},
        {"mask": CenterCrop(1)((4, 4), [0])},
        {"rows": changed(RETAIN, 3, bytes=png(99))},
        {"rows": list(RETAIN)[::-1]},
        {"rows": list(RETAIN)[:-1]},
        {"image_std": [0.5] * 3},
        {"precision": "bf16"},
    ]
    for options in other:
        found, computed = store(**options)
        assert found.files[0] not in first.files and computed == len(options.get("rows", RETAIN))


def test_pictures_that_are_files_are_known_by_their_bytes(store, tmp_path):
    def rows():
        return [{"image": {"bytes": None, "path": str(tmp_path / f"{k}.png")}} for k in range(3)]

    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(png(k))
    first = store(rows=rows())[0]
    assert store(rows=rows())[1] == 0
    (tmp_path / "1.png").write_bytes(png(50))
    second, computed = store(rows=rows())
    assert computed == 3 and second.files != first.files
    assert not torch.equal(second[[1]], first[[1]]) and torch.equal(second[[0, 2]], first[[0, 2]])


def test_what_an_interrupted_computation_made_is_kept(store, tmp_path, monkeypatch):
    save = targets.save

    def dies(encoded, file):
        if file.name == "2.safetensors":
            raise KeyboardInterrupt
        save(encoded, file)

    monkeypatch.setattr(targets, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        store()
    monkeypatch.setattr(targets, "save", save)
    found, computed = store()
    assert computed == 6  # files of 5, 5, 5 and 1
    whole = found[range(16)]
    found.files[1].write_bytes(found.files[1].read_bytes()[:-7])  # a damaged file is made again
    found, computed = store()
    assert computed == 5 and torch.equal(found[range(16)], whole)
    assert not list(tmp_path.rglob("*.part"))
    old, new = (found.files[0].with_name(f"{name}.part") for name in ("old", "new"))
    for file in (old, new):  # left by a run that was killed, and of one that goes on
        file.touch()
    os.utime(old, (0, 0))
    store()
    assert new.exists() and not old.exists()


def test_the_disk(store, tmp_path, monkeypatch):
    usage = targets.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(targets.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"need 1.66e-05 GB more, and '.*' has 1e-06 GB left; set --targets_dir"):
        store()  # four files of 5 x 13 x 16 float32
    monkeypatch.undo()
    monkeypatch.setattr(targets, "save_file", lambda tensors, file: (file.write_bytes(b"half"), os.stat("/nowhere")))
    with pytest.raises(RunError, match="Cannot keep targets in .*No such file.* Set --targets_dir to a disk with room"):
        store()
    assert not [file for file in (tmp_path / "targets").rglob("*") if file.is_file()]


def test_the_bank(tmp_path, processor):
    trainer = make_trainer(tmp_path, processor, noise_bank=3)
    seeds = np.array([[1, 2, 10], [3, 4, 11], [5, 6, 12], [7, 8, 13]])
    forget = torch.randn(4, 3, 16, 16)
    _, distance, _ = trainer.objective(trainer.i2i, trainer.i2i, CROP, forget, forget, seeds)
    for k, number in enumerate([1, 2, 0, 1]):  # 10, 11, 12 and 13 modulo 3
        generator = torch.Generator().manual_seed(seeds_for(5, number, 1)[0])
        target = trainer.original(torch.randn(3, 16, 16, generator=generator)[None], MASK)
        expected = (trainer.i2i(forget[k : k + 1], MASK) - target).square().mean()
        assert_close(distance[k], expected)


def test_fixed_forget_targets_of_other_noise_are_not_taken(tmp_path):
    def kept(noise=StandardNormal(), count=4, kind="mean", seed=0):
        value = torch.rand(1, 3)
        return torch.equal(store.forget(noise, count, kind, seed, lambda: value), value)

    store = TargetStore(tmp_path, make_mae(1), MASK)
    assert kept() and not kept()
    black, white = torch.zeros(1), torch.ones(1)
    for options in ({"count": 5}, {"kind": "bank"}, {"seed": 1}, {"noise": BatchMatched(black, white)}):
        assert kept(**options) and not kept(**options)
    assert kept(noise=BatchMatched(black, white * 2))


def test_unreadable_pictures_that_are_skipped(tmp_path, processor):
    bad = ForgetRetainPairs(FORGET, RETAIN, 5).retain.row(9)
    pairs = ForgetRetainPairs(FORGET, changed(RETAIN, bad, bytes=b"no picture"), 5)
    with pytest.raises(InputError, match="Cannot read .* or skip such pictures"):
        make_trainer(tmp_path, processor, pairs=pairs, cache_targets=True).train()
    trainer = make_trainer(tmp_path, processor, pairs=pairs, on_corrupt="skip", cache_targets=True)
    trainer.train()
    assert trainer.skipped == 1  # of 16 pairs, in which each retain picture is shown once
    first = trainer.state.log_history[0]
    assert first["retain_distance"] < 1e-8 * first["forget_distance"]  # at theta_0, with every picture's own target


@pytest.mark.parametrize(
    "options, words",
    [
        ({"corruption": RandomMask(0.5)}, "the corruption 'random:0.5' hides other patches each time; choose a fixed one"),
        ({"augment": lambda picture, rng: picture}, "augmentation changes the pictures each time; train without"),
        (
            {"pairs": ForgetRetainStream(FORGET.to_iterable_dataset(), RETAIN.to_iterable_dataset()), "max_steps": 2},
            "the pictures of a stream have no numbers to find them by; train without streaming",
        ),
        ({"method": "max_loss"}, "method 'max_loss' does not train on"),
    ],
)
def test_targets_that_change_are_refused(tmp_path, processor, options, words):
    with pytest.raises(InputError, match=words):
        make_trainer(tmp_path, processor, cache_targets=True, **options)
    assert not (tmp_path / "targets").exists()


def test_draws_beside_t_are_refused(tmp_path, processor):
    with pytest.raises(InputError, match="of the family 'diffusion' draws more than T"):
        make_trainer(tmp_path, processor, make_unet(), cache_targets=True)
    with pytest.raises(InputError, match="of the family 'mage' draws more than T"):
        make_trainer(tmp_path, processor, I2IMage(make_mage(0), mask_rate="mage"), cache_targets=True)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"noise_bank": -1}, "noise_bank is a number of draws of n, or 0 for no bank; got -1"),
        ({"noise_bank": 4, "noise_target": "mean"}, "noise_target 'mean' needs none"),
        ({"noise_bank": 4, "method": "random_encoder"}, "a method such as 'ours', not 'random_encoder'"),
        (
            {"noise_bank": 4, "corruption": RandomMask(0.5)},
            "under one fixed T alone, but the corruption 'random:0.5' is random",
        ),
        ({"noise_bank": 4, "model": make_unet()}, "but the family is 'diffusion'"),
        (
            {"noise_bank": 4, "noise": BatchMatched(torch.zeros(1), torch.ones(1))},
            "is another one for each batch, so the forget target cannot be fixed",
        ),
    ],
)
def test_a_bank_that_cannot_be(tmp_path, processor, options, words):
    with pytest.raises(InputError, match=words):
        make_trainer(tmp_path, processor, **options)


def test_files_hold_nothing_but_the_targets(store):
    found, _ = store()
    shapes = [{k: tuple(v.shape) for k, v in load_file(file).items()} for file in found.files]
    assert shapes == [{"targets": (n, 13, 16)} for n in (5, 5, 5, 1)]
