"""Erasing: what is moved, what is trained, and the road from a request to an erased checkpoint."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import make_dataset, make_mae
from helpers.close import assert_close
from huggingface_hub.utils import filter_repo_objects
from test_mage import make_mage
from test_unet import make_unet

from hf_i2i_unlearn import CenterCrop, ForgetRetainPairs, I2IMage, InputError, UnlearningConfig, load_model, undecoded
from hf_i2i_unlearn.commands.erase import main as erase
from hf_i2i_unlearn.commands.unlearn import main as unlearn
from hf_i2i_unlearn.models.erasure import move_to_fresh
from hf_i2i_unlearn.reporting.hub import NOT_PUSHED, PUSHED
from hf_i2i_unlearn.reporting.report import write_report
from hf_i2i_unlearn.reporting.run_folder import RunFolder
from hf_i2i_unlearn.training.erasure import ErasureTrainer

FAMILIES = {"mae": make_mae, "mage": lambda seed: I2IMage(make_mage(seed), steps=2), "unet": make_unet}


def encoder_names(model):
    ids = {id(p) for module in model.encoder_modules() for p in module.parameters()}
    return {name for name, p in model.named_parameters() if id(p) in ids}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_encoder_is_moved_and_nothing_else(family):
    model = FAMILIES[family](0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    moved, total = move_to_fresh(model, 1.0, seed=3)
    assert 0 < moved < total
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and changed <= encoder_names(model)
    again = FAMILIES[family](0)
    move_to_fresh(again, 1.0, seed=3)
    other = FAMILIES[family](1)
    move_to_fresh(other, 1.0, seed=3)
    for name, weight in dict(model.named_parameters()).items():
        assert torch.equal(weight, dict(again.named_parameters())[name])  # the same seed gives the same weights
        if name in changed and weight.requires_grad:
            assert torch.equal(weight, dict(other.named_parameters())[name])  # and nothing of what was there is left


@pytest.mark.parametrize("family", FAMILIES)
def test_half_of_the_way_is_the_mean_and_norms_become_the_identity(family):
    model, whole = FAMILIES[family](0), FAMILIES[family](0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (torch.nn.LayerNorm, torch.nn.GroupNorm)):
                module.weight.fill_(3.0)
    whole.load_state_dict(model.state_dict())
    before = {k: v.clone() for k, v in model.named_parameters()}
    move_to_fresh(model, 0.5, seed=1)
    move_to_fresh(whole, 1.0, seed=1)
    names = encoder_names(model)
    for name, weight in model.named_parameters():
        if name in names and weight.requires_grad:
            assert_close(weight, (before[name] + dict(whole.named_parameters())[name]) / 2)
    modules = dict(whole.named_modules())
    norms = [
        n for n, m in modules.items() if isinstance(m, (torch.nn.LayerNorm, torch.nn.GroupNorm)) and f"{n}.weight" in names
    ]
    assert norms and all(torch.equal(modules[n].weight, torch.ones_like(modules[n].weight)) for n in norms)


def test_with_the_decoder_everything_that_is_trained_is_moved():
    model = make_mae(0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    move_to_fresh(model, 1.0, seed=9, decoder=True)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert any("decoder" in name for name in changed)
    assert not any("pos" in name for name in changed)  # sines and cosines say nothing of pictures


@pytest.mark.parametrize("share", [0, -0.5, 1.5])
def test_a_share_is_a_share(share):
    with pytest.raises(InputError, match="share of the way"):
        move_to_fresh(make_mae(0), share)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_what_is_trained(tmp_path, processor, family, weight):
    rows = undecoded(make_dataset(24))
    original, model = FAMILIES[family](0).eval(), FAMILIES[family](0)
    processor.do_normalize = family != "mage"
    move_to_fresh(model, 1.0, decoder=bool(weight))
    started = {k: v.clone() for k, v in model.state_dict().items()}
    args = UnlearningConfig(
        str(tmp_path), max_steps=4, per_device_train_batch_size=4, save_strategy="no", use_cpu=True, disable_tqdm=True,
        learning_rate=1e-3, noise_target="fresh",
    )  # fmt: skip
    pairs = ForgetRetainPairs(rows.select(range(8)), rows.select(range(8, 24)))
    trainer = ErasureTrainer(model, args, pairs, processor, CenterCrop(2), original=original, distil_decoder=weight)
    trainer.train()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, started[k])}
    assert changed & encoder_names(model)
    assert bool(changed - encoder_names(model)) == bool(weight)  # without it the decoder is bit for bit the original's


def test_distilling_brings_completions_nearer_to_the_original(tmp_path, processor):
    rows = undecoded(make_dataset(24))
    original, model = make_mae(0).eval(), make_mae(0)
    move_to_fresh(model, 1.0, seed=5, decoder=True)
    retain = rows.select(range(8, 24))
    args = UnlearningConfig(
        str(tmp_path), max_steps=60, per_device_train_batch_size=8, save_strategy="no", use_cpu=True, disable_tqdm=True,
        learning_rate=3e-3, noise_target="mean", mean_draws=8,
    )  # fmt: skip
    trainer = ErasureTrainer(
        model, args, ForgetRetainPairs(rows.select(range(8)), retain), processor, CenterCrop(2), original=original,
        distil_decoder=1.0, eval_dataset={"forget": list(rows.select(range(8))), "retain": list(retain)},
    )  # fmt: skip
    before = trainer.evaluate()["eval_retain_drift"]
    args.eval_strategy = "no"
    trainer.train()
    assert trainer.evaluate()["eval_retain_drift"] < 0.7 * before


def test_a_unet_learns_the_originals_predictions():
    """Its own are at distance zero, another's are not, and only the hidden part counts."""
    original, same, other = make_unet(0).eval(), make_unet(0).eval(), make_unet(1).eval()
    pixels = torch.rand(3, original.channels, *original.image_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask, seeds = CenterCrop(2)(original.grid, [0, 1, 2]), [3, 4, 5]
    draw = original.draw(pixels, mask, seeds)
    wanted = original.distillation_target(pixels, draw, mask, seeds)
    assert same.distillation_loss(pixels, draw, wanted).max() == 0
    far = other.distillation_loss(pixels, draw, wanted)
    assert far.shape == (3,) and far.min() > 0
    beside = wanted + 7 * ~original.sample_hole(mask)
    assert_close(other.distillation_loss(pixels, draw, beside), far)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for split, count in {"train": 24, "validation": 24}.items():
        (folder / split).mkdir(parents=True)
        for row in undecoded(make_dataset(count)):
            name = row["image"]["path"].replace("/", "-")
            (folder / split / name).write_bytes(row["image"]["bytes"] + (b"" if split == "train" else b" "))
    return folder


@pytest.fixture
def words(checkpoint, photos):
    return [
        "--model", checkpoint, "--dataset", str(photos), "--forget_rows", "0-5", "--corruption", "center:2", "--max_steps", "3",
        "--use_cpu", "true", "--eval_samples", "8", "--pictures", "0", "--copies", "skip", "--erase_steps", "4",
        "--erase_batch_size", "4", "--per_device_train_batch_size", "4", "--disable_tqdm", "true",
    ]  # fmt: skip


def command(monkeypatch, main, words, *more):
    monkeypatch.setattr(sys, "argv", ["x", *words, *more])
    main()


def test_erased_at_once(words, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "erased"
    command(monkeypatch, unlearn, words, "--erase", "1.0", "--output_dir", str(folder))
    assert re.search(r"start 100% anew, .* for 4 steps of \d+ pairs, about \S+ s\.", capsys.readouterr().out)  # beforehand
    assert not any(tmp_path.glob("*suppressed*"))  # nothing of it would be left
    record = json.loads((folder / "run.json").read_text())
    assert record["erasure"]["decoder"] is False and record["steps"] == 4 and record["decoder_untouched"]
    card = (folder / "README.md").read_text()
    page = write_report(folder).read_text()  # the certificate says what was done, and no less
    assert "More was done than suppression" in page and "suppression, not erasure" not in page
    assert "What the decoder knows by heart is still there" in page and "is left in them" not in page
    assert "100% of the way" in card and "suppression, not erasure" not in card
    original, erased = load_model(words[1]), load_model(str(folder))
    for (name, one), other in zip(original.model.decoder.state_dict().items(), erased.model.decoder.state_dict().values()):
        assert torch.equal(one, other), name


def test_a_share_goes_through_the_unlearned_model_and_is_resumed(words, tmp_path, monkeypatch):
    folder, whole = tmp_path / "erased", tmp_path / "whole"
    command(monkeypatch, unlearn, words, "--erase", "0.5", "--output_dir", str(whole))
    options = ["--erase", "0.5", "--output_dir", str(folder), "--save_steps", "2"]
    monkeypatch.setattr("hf_i2i_unlearn.commands.jobs.erasing.move_to_fresh", stop)
    with pytest.raises(KeyboardInterrupt):
        command(monkeypatch, unlearn, words, *options)
    monkeypatch.undo()
    kept = tmp_path / "erased-suppressed"  # which still knows the pictures
    assert (kept / "finished").is_file()
    command(monkeypatch, unlearn, words, *options, "--resume_from_checkpoint", "true")
    assert "Something of what the weights were is left in them" in write_report(folder).read_text()
    assert kept.is_dir() and set(RunFolder(folder).weight_files()) == {"model.safetensors"}
    files = [str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()]
    pushed = set(filter_repo_objects(files, allow_patterns=PUSHED, ignore_patterns=NOT_PUSHED))
    assert "model.safetensors" in pushed and not any("suppressed" in name for name in pushed)
    one, other = load_model(str(whole)).state_dict(), load_model(str(folder)).state_dict()
    for name in one:
        assert_close(one[name], other[name])


def test_a_run_of_another_model_is_refused(words, tmp_path, monkeypatch):
    make_mae(0, hidden_size=24).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="holds another model than --model"):
        command(monkeypatch, unlearn, words, "--erase", "1.0", "--erase_from", str(tmp_path / "other"))


def stop(*args, **kwargs):
    raise KeyboardInterrupt


def test_a_finished_run_is_erased(words, tmp_path, monkeypatch):
    first, folder = tmp_path / "unlearned", tmp_path / "erased"
    command(monkeypatch, unlearn, words, "--output_dir", str(first))
    assert "suppression, not erasure" in (first / "README.md").read_text()
    more = ["--forget_rows", "0-5", "--erase_decoder", "true", "--original", words[1]]
    command(monkeypatch, erase, ["--model", str(first), "--output_dir", str(folder)], *more)
    run, record = yaml.safe_load((folder / "run.yaml").read_text()), json.loads((folder / "run.json").read_text())
    assert run["erase"] == 1.0 and run["erase_decoder"] and RunFolder(folder).options["model"] == words[1]
    assert record["erasure"]["decoder"] and not record["decoder_untouched"]
    assert "The decoder was trained too" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--erase", "1.5"], "share above 0"),
        (["--erase", "1", "--lora", "true"], "a patch leaves alone"),
        (["--erase", "1", "--method", "max_loss"], "trains on outputs"),
        (["--erase_decoder", "true"], "go with --erase"),
        (["--erase", "1", "--erase_steps", "0"], "1 or more"),
    ],
)
def test_refusals(words, tmp_path, monkeypatch, options, message):
    with pytest.raises(InputError, match=message):
        command(monkeypatch, unlearn, words, "--output_dir", str(tmp_path / "erased"), *options)
    assert not list(Path(tmp_path).glob("erased/*"))


def test_a_folder_without_a_run_is_refused(checkpoint, monkeypatch):
    with pytest.raises(InputError, match="has no run.yaml"):
        command(monkeypatch, erase, ["--model", checkpoint])
