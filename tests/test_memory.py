"""What is known by heart: training until it is, and attackers who have half of it."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from conftest import make_dataset, make_mae
from helpers.close import assert_close
from PIL import Image

from hf_i2i_unlearn import CenterCrop, ImageReader, InputError, RandomMask, load_model, undecoded
from hf_i2i_unlearn.audit.attacks import Setting, hole_errors, prepared
from hf_i2i_unlearn.audit.memory import attack, came_back
from hf_i2i_unlearn.audit.verdicts import FOUND, NONE, PARTLY, SKIPPED, UNCLEAR, verdicts
from hf_i2i_unlearn.commands.memorise import main as memorise
from hf_i2i_unlearn.commands.pretrain import main as pretrain
from hf_i2i_unlearn.data.sources import load_source
from hf_i2i_unlearn.originals.memorise import KnownAmongOthers, canaries

T = CenterCrop(2)


def rows(count=24):
    return list(undecoded(make_dataset(count)))


def test_known_pictures_are_spread_over_every_batch():
    known, others = rows(4), rows(24)[8:]
    mixed = KnownAmongOthers(known, others, 0.25, seed=1)
    items = [mixed[t] for t in range(64)]
    assert [sum(not item["augment"] for item in items[s : s + 8]) for s in range(0, 64, 8)] == [2] * 8
    shown = [item["image"]["image"]["path"] for item in items if not item["augment"]]
    assert sorted(shown[:4]) == sorted(row["image"]["path"] for row in known)  # each once before any again
    ordinary = [item["image"]["image"]["path"] for item in items if item["augment"]]
    assert len(set(ordinary[:16])) == 16


def test_a_canary_is_two_pictures(processor):
    model, reader = make_mae(0), ImageReader(processor, 3)
    some = rows(6)
    made = canaries(some, 5, T, model.grid, reader, model.image_size, seed=2)
    pictures = [np.asarray(reader.decode(row)) for row in some]
    hole = np.zeros((16, 16), bool)
    hole[4:12, 4:12] = True
    for row in made:
        canary = np.asarray(reader.decode(row))
        outer = [i for i, p in enumerate(pictures) if (canary[~hole] == p[~hole]).all()]
        inner = [i for i, p in enumerate(pictures) if (canary[hole] == p[hole]).all()]
        assert len(outer) == len(inner) == 1 and outer != inner
    with pytest.raises(InputError, match="fixed T"):
        canaries(some, 5, RandomMask(0.5), model.grid, reader, model.image_size)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "photos"
    for split, first in {"train": 0, "validation": 100}.items():
        (folder / split).mkdir(parents=True)
        for i in range(24):
            pixels = np.random.default_rng(first + i).integers(0, 255, (16, 16, 3)).astype("uint8")
            Image.fromarray(pixels).save(folder / split / f"{first + i}.png")
    return folder


def run(monkeypatch, *words, main=memorise):
    monkeypatch.setattr(sys, "argv", ["x", "--use_cpu", "true", "--disable_tqdm", "true", *map(str, words)])
    main()


def test_pictures_become_known_by_heart_and_the_run_ends_there(checkpoint, source, tmp_path, monkeypatch):
    folder = tmp_path / "memorised"
    options = [
        "--model", checkpoint, "--dataset", source, "--corruption", "center:2", "--known", 4, "--output_dir", folder,
        "--max_steps", 300, "--known_ratio", 0.7, "--measure_every", 20, "--per_device_train_batch_size", 8, "--learning_rate",
        0.01,
    ]  # fmt: skip
    run(monkeypatch, *options)
    found = json.loads((folder / "figures.json").read_text())
    assert found["known"] < 0.75 * found["like_known"] and found["steps"] < 300
    known = list(undecoded(load_source(str(folder / "known"), "train")))
    like = list(undecoded(load_source(str(folder / "known"), "validation")))
    assert len(known) == 4 and not {r["image"]["bytes"] for r in known} & {r["image"]["bytes"] for r in like}
    model = load_model(str(folder)).eval()
    reader = ImageReader(_processor(folder), 3)
    assert_close(hole_errors(model, known, T, Setting(reader, progress=False)).mean(), found["known"], 1e-4)
    with pytest.raises(InputError, match="not empty"):
        run(monkeypatch, *options)


def test_the_twin_never_sees_them(checkpoint, source, tmp_path, monkeypatch):
    folder = tmp_path / "twin"
    run(
        monkeypatch, "--model", checkpoint, "--dataset", source, "--corruption", "center:2", "--known", 4, "--known_share", 0,
        "--max_steps", 30, "--output_dir", folder, "--per_device_train_batch_size", 8, "--canaries", "true",
    )  # fmt: skip
    found = json.loads((folder / "figures.json").read_text())
    assert found["known"] > 0.5 * found["like_known"] and found["steps"] == 30


def test_canaries_from_the_beginning(source, tmp_path, monkeypatch):
    """A model that is pretrained among canaries knows them better than others like them."""
    folder = tmp_path / "original"
    model = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 64, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1,
             "decoder_num_attention_heads": 2, "decoder_intermediate_size": 64}  # fmt: skip
    words = [
        "--dataset", source, "--model", json.dumps(model), "--corruptions", '{"center:2": 1.0}', "--augment", "none",
        "--samples", 0, "--canary_share", 0.5, "--per_device_train_batch_size", 8, "--learning_rate", 0.01,
    ]  # fmt: skip
    run(monkeypatch, *words, "--canaries", 4, "--max_steps", 200, "--output_dir", folder, main=pretrain)
    known, like = (list(undecoded(load_source(str(folder / "known"), split))) for split in ("train", "validation"))
    setting = Setting(ImageReader(_processor(folder), 3), progress=False)
    errors = [hole_errors(load_model(str(folder)).eval(), some, T, setting).mean() for some in (known, like)]
    assert len(known) == len(like) == 4 and errors[0] < 0.7 * errors[1]
    for more in (["--canaries", -1], ["--canaries", 4, "--streaming", "true"], ["--canaries", 400]):
        with pytest.raises(InputError):
            run(monkeypatch, *words, *more, "--max_steps", 2, "--output_dir", tmp_path / "other", main=pretrain)


@pytest.mark.parametrize("words", [["--known", 0], ["--known_share", 1], ["--known_ratio", 2], ["--known", 20]])
def test_refusals(checkpoint, source, tmp_path, monkeypatch, words):
    with pytest.raises(InputError):
        run(
            monkeypatch, "--model", checkpoint, "--dataset", source, "--corruption", "center:2", "--output_dir", tmp_path / "m",
            *words,
        )  # fmt: skip


def _processor(folder):
    from hf_i2i_unlearn import load_processor

    return load_processor(str(folder))


# Attackers


def test_the_lowest_error_of_all_attackers_counts(processor):
    model, some = make_mae(0).eval(), rows(16)
    setting = Setting(ImageReader(processor, 3), progress=False)
    found = attack(
        model, some[:6], some[6:12], some[12:], T, setting, weights=["all", "encoder", "lora"], learning_rates=[1e-3, 3e-3],
        steps=4, batch_size=4,
    )  # fmt: skip
    assert len(found["attackers"]) == 8  # three kinds at two rates, and the first with retain pictures
    errors = [error for one in found["attackers"] for _, error in one["curve"]]
    assert found["lowest"] == min(errors)
    assert_close(found["start"], hole_errors(model, some[6:12], T, setting).mean())
    assert not any(p.grad is not None for p in model.parameters())  # a copy was attacked


def test_what_an_attacker_trains():
    model = make_mae(0)
    trained = {w: {n for n, p in prepared(model, w).named_parameters() if p.requires_grad} for w in ("all", "encoder", "lora")}
    assert any("decoder" in name for name in trained["all"])
    assert trained["encoder"] and not any("decoder" in name for name in trained["encoder"])
    assert trained["lora"] and all("lora_" in name for name in trained["lora"])
    assert model.patch is None


def test_the_share_that_comes_back():
    assert came_back(0.5, 1.0, 0.0) == 0.5
    assert came_back(1.2, 1.0, 0.0) == 0.0 and came_back(-1, 1.0, 0.0) == 1.0
    assert math.isnan(came_back(0.5, 0.2, 0.3))  # nothing was remembered


def line(lowest, twin=2.0, original=0.1, start=2.8):
    attackers = [{"weights": "all", "learning_rate": 1e-3, "retain": False, "lowest": lowest, "step": 8, "curve": [[0, start]]}]
    mine = {"start": start, "lowest": lowest, "step": 8, "attackers": attackers, "pictures": 50, "held": 50}
    parts = {"memory/unlearned": mine, "memory/original": {"error": original, "blank": 3.0}}
    if twin:
        parts["memory/never_trained"] = mine | {"lowest": twin}
    return verdicts({"parts": parts, "options": {"corruption": "center:2", "tolerance": 0.25}, "sets": {}})[0]


@pytest.mark.parametrize("lowest, status", [(0.2, FOUND), (1.5, PARTLY), (1.95, NONE), (2.4, NONE)])
def test_verdicts_on_memory(lowest, status):
    found = line(lowest)
    assert found["status"] == status and "which he does not have" in found["finding"]


def test_verdicts_on_memory_say_what_they_do_not_know():
    assert "learnt anew" in line(0.2, twin=None)["caveat"]
    assert line(0.2, original=2.5)["status"] == UNCLEAR
    parts = {"memory/unlearned": {"skipped": "Whole classes were forgotten."}}
    found = verdicts({"parts": parts, "options": {"corruption": "center:2", "tolerance": 0.25}, "sets": {}})[0]
    assert found["status"] == SKIPPED and "Whole classes" in found["finding"]


def test_an_attack_needs_finite_completions(processor):
    model = make_mae(0)
    with torch.no_grad():
        model.model.decoder.decoder_pred.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        attack(
            model, rows(4), rows(8)[4:], [], T, Setting(ImageReader(processor, 3), progress=False), weights=["all"],
            learning_rates=[1e-3], steps=2, batch_size=4,
        )  # fmt: skip
