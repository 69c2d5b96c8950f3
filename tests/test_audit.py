"""The audit: its estimates against formulas and loops, its attacks on models whose answer is known, its file and its rules."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import make_dataset, make_mae
from test_mage import make_mage
from test_unet import make_unet
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_i2i_unlearn import CenterCrop, Evaluator, I2IMage, ImageReader, InputError, RandomMask, add_patch, undecoded
from hf_i2i_unlearn.audit import run as audit_run
from hf_i2i_unlearn.audit.attacks import (
    Setting,
    best_relearning,
    blank_errors,
    features,
    hole_errors,
    measured_at,
    probe,
    relearn,
    scrambled,
    sketch,
    visible_pixels,
)
from hf_i2i_unlearn.audit.statistics import auc, ratio, share
from hf_i2i_unlearn.audit.verdicts import FOUND, HOLDS, NONE, PARTLY, SKIPPED, UNCLEAR, overall, verdicts
from hf_i2i_unlearn.commands.audit import AuditArguments
from hf_i2i_unlearn.commands.jobs.audited import build_sets, read_run, run_audit, split_arguments
from hf_i2i_unlearn.reporting.model_card import write_section

ROOT = Path(__file__).parents[1]
ROWS = list(undecoded(make_dataset(16)))
T = CenterCrop(2)


# Estimates


def test_auc_by_hand_and_against_all_pairs():
    assert auc([3, 1], [2, 0])["auc"] == 3 / 4
    assert auc([1, 1], [1, 1])["auc"] == 1 / 2
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 37), rng.integers(1, 8, 23)  # many ties
    pairs = (a[:, None] > b) + 0.5 * (a[:, None] == b)
    found = auc(a, b)
    assert found["auc"] == pytest.approx(pairs.mean(), rel=1e-12)
    error = math.sqrt(pairs.mean(1).var(ddof=1) / 37 + pairs.mean(0).var(ddof=1) / 23)  # DeLong's structural components
    assert (found["low"], found["high"]) == pytest.approx((pairs.mean() - 1.959964 * error, pairs.mean() + 1.959964 * error))


def test_auc_interval_covers_the_truth():
    rng, truth = np.random.default_rng(1), 0.5 * (1 + math.erf(0.5 / math.sqrt(2) / math.sqrt(2)))  # Phi(0.5 / sqrt 2)
    intervals = [auc(rng.normal(0.5, 1, 40), rng.normal(0, 1, 60)) for _ in range(400)]
    assert 0.91 < np.mean([i["low"] <= truth <= i["high"] for i in intervals]) < 0.985


def test_auc_of_parted_groups_keeps_an_interval():
    found = auc([5, 6, 7], [1, 2, 3, 4])
    assert found["auc"] == found["high"] == 1 and found["low"] == pytest.approx(0.025 ** (1 / 3))
    assert auc([1], [2, 3])["high"] == pytest.approx(1 - 0.025)
    assert auc([2], [1, 3]) == {"auc": 0.5, "low": 0.0, "high": 1.0}  # one picture tells nothing


def test_share_and_ratio_against_known_values():
    assert share(8, 10) == pytest.approx({"accuracy": 0.8, "low": 0.4902, "high": 0.9433, "count": 10}, abs=1e-4)  # Wilson 1927
    assert (share(0, 10)["low"], share(10, 10)["high"]) == pytest.approx((0, 1))
    before = np.linspace(1, 2, 30)
    assert ratio(3 * before, before) == pytest.approx({"ratio": 3, "low": 3, "high": 3})
    rng, inside = np.random.default_rng(2), 0
    for i in range(100):
        base = rng.gamma(2, 1, 80)
        found = ratio(base * rng.gamma(4, 0.5, 80), base, i, 300)  # truth: 2
        inside += found["low"] <= 2 <= found["high"]
    assert inside > 85


# Attacks


@pytest.fixture(scope="module")
def setting():
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    return Setting(ImageReader(processor, 3), batch_size=6, progress=False)


@pytest.fixture(scope="module")
def trained(setting):
    """A MAE that has learned to continue the four colours of the classes."""
    model, pixels = make_mae(), setting.pixels(ROWS)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(60):
        model.training_loss(pixels, T((4, 4), range(len(pixels)))).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def mean_error(model, setting, rows=ROWS):
    return float(hole_errors(model, rows, T, setting).mean())


def test_hole_errors_are_those_of_the_evaluator(setting):
    model = make_mae()
    expected = Evaluator(model, {"forget": ROWS}, setting.reader, RandomMask(0.5), 6)(model, progress=False)
    errors = hole_errors(model, ROWS, RandomMask(0.5), setting)
    assert errors.shape == (16,) and errors.mean() == pytest.approx(expected["forget"]["mse"], rel=1e-5)
    assert model.training


def test_blank_errors_against_a_loop(setting):
    found = blank_errors(make_mae(), ROWS, T, setting)
    for error, x in zip(found, setting.pixels(ROWS)):  # (3, 16, 16)
        hidden = torch.zeros(16, 16, dtype=torch.bool)
        hidden[4:12, 4:12] = True
        expected = np.mean([(x[c][hidden] - x[c][~hidden].mean()).square().mean().item() for c in range(3)])
        assert error == pytest.approx(expected, rel=1e-5)


def test_measured_steps():
    assert measured_at(1) == [0, 1]
    places = measured_at(200)
    assert places[:7] == [0, 1, 2, 3, 4, 5, 6] and places[-1] == 200
    assert all(0 < b - a <= max(1, 0.25 * a) for a, b in zip(places, places[1:]))


def test_an_untouched_model_relearns_in_no_step(setting, trained):
    target = 1.25 * mean_error(trained, setting)
    found = relearn(trained, ROWS[:8], ROWS, T, setting, target=target, learning_rate=1e-3, steps=5, batch_size=4)
    assert found["steps"] == 0 and len(found["curve"]) == 1
    assert found["error"] == pytest.approx(target / 1.25, rel=1e-5)


def test_a_scrambled_encoder_takes_steps_and_the_best_rate_is_found(setting, trained):
    before = {k: v.clone() for k, v in trained.state_dict().items()}
    model = scrambled(trained, 3)
    for name, weight in model.state_dict().items():
        assert torch.equal(trained.state_dict()[name], before[name])
        if name.startswith("model.vit.") and "position" not in name:
            assert torch.equal(weight.flatten().sort()[0], before[name].flatten().sort()[0])
        else:
            assert torch.equal(weight, before[name]), name
    target = 1.25 * mean_error(trained, setting)
    assert mean_error(model, setting) > target
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    found = best_relearning(
        model, ROWS[:8], ROWS, T, setting, learning_rates=[1e-7, 1e-2, 1e-6], target=target, steps=60, batch_size=8
    )
    assert found["learning_rate"] == 1e-2 and 0 < found["steps"] <= 60 and found["error"] <= target
    assert [t["steps"] for t in found["tried"]] == [None, found["steps"], None]
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())  # the attack works on a copy
    steps = [step for step, _ in found["curve"]]
    assert steps == measured_at(60)[: len(steps)] and found["curve"][-2][1] > target


def test_one_step_of_relearning_is_one_of_adamw(setting, trained):
    model, pixels = make_mae(5), setting.pixels(ROWS[:8])
    found = relearn(model, ROWS[:8], ROWS, T, setting, target=0, learning_rate=1e-2, steps=1, batch_size=50)
    weights = [p for p in model.parameters() if p.requires_grad]
    model.training_loss(pixels, T((4, 4), range(8))).mean().backward()
    norm = torch.stack([p.grad.square().sum() for p in weights if p.grad is not None]).sum().sqrt()
    with torch.no_grad():
        for p in weights:
            g = p.grad * min(1, 1 / norm) if p.grad is not None else torch.zeros_like(p)
            p -= 1e-2 * g / (g.abs() + 1e-8)  # the first step of Adam: both averages are corrected to g and g^2
    assert found["steps"] is None and found["error"] == pytest.approx(mean_error(model, setting), rel=1e-4)


def test_relearning_goes_on_to_the_end_and_refuses_numbers_that_are_none(setting, trained):
    curve = relearn(trained, ROWS[:8], ROWS, T, setting, target=9, learning_rate=1e-3, steps=4, batch_size=4, to_the_end=True)[
        "curve"
    ]
    assert [step for step, _ in curve] == [0, 1, 2, 3, 4]
    broken = make_mae()
    with torch.no_grad():
        broken.model.vit.layernorm.weight.fill_(math.nan)
    with pytest.raises(InputError, match="not finite"):
        relearn(broken, ROWS[:8], ROWS, T, setting, target=1, learning_rate=1e-3, steps=4, batch_size=4)


def test_sketch_keeps_inner_products_in_the_mean():
    x = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    assert sketch(x, 50) is x
    products = torch.tensor([float(s[0] @ s[1]) for s in (sketch(x, 20, seed) for seed in range(2000))])
    assert products.mean() == pytest.approx(float(x[0] @ x[1]), abs=4 * float(products.std()) / 2000**0.5)


def test_features_and_visible_pixels(setting):
    model = make_mae()
    full, short = features(model, ROWS, T, setting, 10_000), features(model, ROWS, T, setting, 40)
    assert full.shape == (16, 13 * 16 + 16) and short.shape == (16, 40 + 16)  # 12 visible tokens and the class token
    seen = visible_pixels(model, ROWS, T, setting, 10_000).view(16, 3, 16, 16)
    pixels = setting.pixels(ROWS)
    assert (seen[:, :, 4:12, 4:12] == 0).all() and torch.equal(seen[:, :, :4], pixels[:, :, :4])


def test_probe_on_separable_and_on_meaningless_features():
    generator = torch.Generator().manual_seed(0)
    labels = [i % 3 for i in range(240)]
    means = 4 * torch.eye(3, 12)
    x = means[labels] + torch.randn(240, 12, generator=generator)
    apart = probe(x[:120], labels[:120], x[120:], labels[120:])
    assert apart["accuracy"] > 0.95 and apart["chance"] == pytest.approx(1 / 3) and apart["count"] == 120
    noise = torch.randn(240, 12, generator=generator)
    nothing = probe(noise[:120], labels[:120], noise[120:], labels[120:])
    assert nothing["low"] < 1 / 3 < nothing["high"]
    unknown = probe(x[:120], labels[:120], x[120:123], [0, 1, "new"])  # a class it was never shown is left out
    assert unknown["count"] == 2


@pytest.mark.parametrize("family", ["unet", "mage"])
def test_attacks_on_the_other_families(family, setting):
    model = make_unet(steps=2) if family == "unet" else I2IMage(make_mage(0), steps=2)
    options = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if family == "unet" else {"do_normalize": False}
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16}, **options)
    setting, corruption = Setting(ImageReader(processor, 3), 4, progress=False), CenterCrop(model.grid[0] // 2)
    assert hole_errors(model, ROWS[:4], corruption, setting).shape == (4,)
    found = relearn(model, ROWS[:4], ROWS[4:6], corruption, setting, target=0, learning_rate=1e-3, steps=2, batch_size=2)
    assert found["steps"] is None and len({error for _, error in found["curve"]}) > 1
    x = features(model, ROWS[:4], corruption, setting, 64)
    assert len(x) == 4 and x.isfinite().all() and torch.equal(x, features(model, ROWS[:4], corruption, setting, 64))
    assert hole_errors(scrambled(model), ROWS[:4], corruption, setting).shape == (4,)


# Verdicts

OPTIONS = {"tolerance": 0.25, "relearn_steps": 100, "corruption": "center:2"}


def verdict(name, part, **others):
    audit = {"options": OPTIONS, "sets": {}, "parts": {name: part} | others}
    return next(line for line in verdicts(audit) if line["part"] == name)


def relearned(steps, **changes):
    return {
        "steps": steps,
        "learning_rate": 1e-3,
        "target": 1.0,
        "original_error": 0.8,
        "pictures": 5,
        "error": 0.9,
        "curve": [[0, 3.0]],
        "tried": [{"learning_rate": r} for r in (1e-4, 1e-3, 1e-2)],
    } | changes


def test_verdicts_on_relearning():
    name = "relearning/unlearned"
    found = verdict(name, relearned(4))
    assert found["status"] == FOUND and "4 steps" in found["finding"] and "cannot be told from" in found["caveat"]
    assert verdict(name, relearned(0))["status"] == FOUND
    assert verdict(name, relearned(None))["status"] == NONE
    slow = verdict(name, relearned(40), **{"relearning/never_trained": relearned(48)})
    assert slow["status"] == NONE and "takes 48 steps" in slow["finding"] and "cannot be told from" not in slow["caveat"]
    assert verdict(name, relearned(38), **{"relearning/never_trained": relearned(48)})["status"] == FOUND
    assert verdict(name, relearned(40), **{"relearning/never_trained": relearned(None)})["status"] == FOUND
    assert verdict(name, {"skipped": "why"})["status"] == SKIPPED
    assert "the highest tried" in verdict(name, relearned(4, learning_rate=1e-2))["caveat"]


@pytest.mark.parametrize(
    "interval, status", [((0.56, 0.62), FOUND), ((0.38, 0.47), FOUND), ((0.47, 0.54), NONE), ((0.41, 0.58), UNCLEAR)]
)
def test_verdicts_on_membership(interval, status):
    after = {"auc": sum(interval) / 2, "low": interval[0], "high": interval[1]}
    before = {"auc": 0.6, "low": 0.55, "high": 0.65}
    line = verdict("membership/forget", {"before": before, "after": after, "members": 9, "others": 9, "unseen": "x"})
    assert line["status"] == status
    assert ("HIGHER" in line["finding"]) == (interval[1] < 0.5)  # forgetting itself marks the pictures


def test_verdicts_on_probes():
    def probed(accuracy, low, high):
        value = {"accuracy": accuracy, "low": low, "high": high, "chance": 0.5, "count": 99}
        return verdict("probe/forget_retain", {"before": value, "after": value, "pixels": value, "fitted": 9})["status"]

    assert [probed(0.9, 0.8, 0.95), probed(0.5, 0.47, 0.53), probed(0.55, 0.4, 0.7)] == [FOUND, NONE, UNCLEAR]


def test_verdicts_on_masks():
    def masked(ratio, low, before=1.0, blank=4.0):
        change = {"ratio": ratio, "low": low, "high": ratio + 0.1}
        left = (blank - before * ratio) / (blank - before) if blank > before else None
        return {"before": before, "after": before * ratio, "blank": blank, "lead_left": left, "change": change}

    def status(part):
        return verdict("leakage/left:1", part, **{"leakage/center:2": masked(3, 2.9)})["status"]

    assert status(masked(1.3, 1.2)) == FOUND  # may be within 25%
    assert status(masked(1.9, 1.8)) == PARTLY  # 0.9 of a rise of 2
    assert status(masked(2.2, 2.1)) == PARTLY  # 1.2 of 2, but 60% of the lead over a blank fill is left
    assert status(masked(2.5, 2.4)) == HOLDS
    assert status(masked(3, 2.9, before=5)) == UNCLEAR
    assert "the trained one" in verdict("leakage/center:2", masked(3, 2.9))["title"]
    several = {"options": OPTIONS | {"corruption": "center:2,left:1"}, "sets": {}, "parts": {"leakage/left:1": masked(3, 2.9)}}
    assert "left:1 (trained)" in verdicts(several)[0]["title"]
    assert "33% of the original's lead" in verdict("leakage/center:2", masked(3, 2.9))["caveat"]


def test_overall_does_not_oversell():
    line = {"status": NONE}
    assert "no proof" in overall([line, line])
    back = {"status": FOUND, "steps": 4}
    assert overall([line, back, {"status": FOUND, "reference": True}]) == (
        "1 of the 2 tests found something of what was to be forgotten. Ordinary training brings it back in 4 steps."
    )
    assert overall([{"status": SKIPPED}]) == "Nothing was measured."


# The whole

CARD = """---
license: mit
model-index:
- name: x
  results: []
---

# x

## Limits

- some
"""


@pytest.fixture
def unlearned(tmp_path, checkpoint, processor):
    """A folder as an unlearning run leaves it, and the options of a quick audit of it."""
    make_dataset(32).to_parquet(tmp_path / "data" / "train.parquet")
    make_dataset(20).to_parquet(tmp_path / "data" / "validation.parquet")
    folder = tmp_path / "unlearned"
    make_mae(1).save_pretrained(folder)
    processor.save_pretrained(folder)
    run = {"model": checkpoint, "dataset": str(tmp_path / "data"), "forget_classes": ["cat", "dog"], "corruption": "center:2"}
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    (folder / "README.md").write_text(CARD)
    return folder


def arguments(folder, **changes):
    options = {
        "samples": 8, "membership_samples": 8, "relearn_pictures": 4, "relearn_samples": 4, "relearn_steps": 3,
        "relearn_learning_rates": [1e-3, 1e-2], "relearn_batch_size": 4, "memory_steps": 2,
        "masks": ["random:0.5", "left:1"], "use_cpu": True,
    }  # fmt: skip
    return AuditArguments(model=str(folder), **options | changes)


PARTS = {
    "relearning/unlearned", "relearning/original", "relearning/scrambled", "memory/unlearned",
    "membership/forget", "membership/retain",
    "probe/classes", "probe/forget_retain", "leakage/center:2", "leakage/random:0.5", "leakage/left:1",
}  # fmt: skip


def test_an_audit_goes_on_where_it_was_and_mixes_nothing(unlearned, checkpoint, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(audit_run, "probe", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_audit(arguments(unlearned))
    half = json.loads((unlearned / "audit.json").read_text())["parts"]
    assert half.keys() == {p for p in PARTS if p.startswith(("relearning", "memory", "membership"))}

    with monkeypatch.context() as patch:  # what is there is not done again
        patch.setattr(audit_run, "best_relearning", lambda *a, **k: 1 / 0)
        found = run_audit(arguments(unlearned), "the command")
    assert found["parts"].keys() == PARTS and all(found["parts"][name] == half[name] for name in half)
    assert json.loads((unlearned / "audit.json").read_text()) == found
    assert len(found["verdicts"]) == 9 and found["command"] == "the command"
    assert found["sets"]["forget"] == "classes cat, dog"

    with monkeypatch.context() as patch:  # a new mask is one new part
        patch.setattr(audit_run, "features", lambda *a: 1 / 0)
        assert run_audit(arguments(unlearned, masks=["up:1"]))["parts"].keys() == PARTS | {"leakage/up:1"}
        never = run_audit(arguments(unlearned, never_trained=checkpoint))["parts"]["relearning/never_trained"]
    assert never["steps"] == 0  # here it is the original itself
    with pytest.raises(InputError, match=r"other options \(relearn_steps\)"):
        run_audit(arguments(unlearned, relearn_steps=4))
    make_mae(2).save_pretrained(unlearned)
    with pytest.raises(InputError, match=r"other options \(weights\)"):
        run_audit(arguments(unlearned))


def test_figures_of_an_audit_are_those_of_the_evaluator(unlearned, checkpoint, processor):
    parts = run_audit(arguments(unlearned, parts=["leakage", "membership"]))["parts"]
    assert {name.partition("/")[0] for name in parts} == {"leakage", "membership"}
    data = make_dataset(20)
    held = list(undecoded(data.filter(lambda label: label in (2, 3), input_columns="label")))
    held = [held[i] for i in np.linspace(0, 9, 8).astype(int)]
    evaluator = Evaluator(make_mae(0), {"forget": held}, ImageReader(processor, 3), CenterCrop(2))
    expected = evaluator(make_mae(1), progress=False)["forget"]
    part = parts["leakage/center:2"]
    assert (part["before"], part["after"]) == pytest.approx((expected["original_mse"], expected["mse"]), rel=1e-5)
    assert part["change"]["ratio"] == pytest.approx(expected["mse"] / expected["original_mse"], rel=1e-5)
    assert parts["membership/forget"]["after"]["other_error"] == pytest.approx(expected["mse"], rel=1e-5)


def test_single_pictures_are_parted_and_not_named(unlearned, tmp_path):
    names = [f"{c}/{i:03d}.png" for c, start in (("cat", 2), ("dog", 3)) for i in range(start, 32, 4)]
    (tmp_path / "request.txt").write_text("\n".join(names))
    run = yaml.safe_load((unlearned / "run.yaml").read_text()) | {"forget_classes": None}
    (unlearned / "run.yaml").write_text(yaml.safe_dump(run | {"forget_list": str(tmp_path / "request.txt")}))
    found = run_audit(arguments(unlearned))
    assert found["parts"].keys() == PARTS | {"memory/original", "memory/extraction"}
    text = (unlearned / "audit.json").read_text()
    assert not any(name.partition("/")[2] in text for name in names) and "request.txt" not in text
    assert found["parts"]["membership/forget"]["unseen"] == "of the same classes"
    assert found["parts"]["membership/forget"]["others"] == 8  # of ten cats and dogs in the other split

    # Held-out pictures are none that the attacker has.
    args = arguments(unlearned)
    sets = build_sets(args, split_arguments(args, read_run(str(unlearned))))
    paths = [{row["image"]["path"] for row in rows} for rows in (sets.known, sets.held)]
    assert not paths[0] & paths[1] and paths[0] | paths[1] == set(names)


def test_a_run_of_several_corruptions(unlearned):
    """The attacks use the first one; all are among the masks, as trained ones."""
    file = unlearned / "run.yaml"
    file.write_text(file.read_text().replace("center:2", "center:2,left:1"))
    found = run_audit(arguments(unlearned, parts=["leakage", "probe"], masks=["left:1", "up:1"]))
    titles = {line["title"] for line in found["verdicts"] if line["part"].startswith("leakage")}
    assert titles == {"Mask center:2 (trained)", "Mask left:1 (trained)", "Mask up:1"}
    assert found["options"]["corruption"] == "center:2,left:1"


def test_without_an_evaluation_split_membership_is_not_measured(unlearned):
    found = run_audit(arguments(unlearned, eval_split="none", parts=["membership", "probe"]))
    assert found["parts"]["membership/forget"]["skipped"].startswith("No unseen pictures")
    assert found["parts"]["probe/classes"]["after"]["count"] == 8
    assert overall(found["verdicts"]) == found["overall"]


def test_a_patch_is_audited_merged(unlearned, checkpoint, processor):
    model = make_mae(0)
    add_patch(model, checkpoint, rank=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(generator=generator).mul_(0.3)
    folder = unlearned.parent / "patch"
    model.patch.save_pretrained(folder)
    (folder / "run.yaml").write_text((unlearned / "run.yaml").read_text())
    found = run_audit(arguments(folder, parts=["relearning", "leakage"], never_seen_classes=["ant"]))
    assert found["sets"]["patch"] and "can switch it off" in found["verdicts"][0]["caveat"]
    assert found["parts"]["relearning/never_seen"]["source"] == "classes ant"
    data = make_dataset(20)
    held = list(undecoded(data.filter(lambda label: label in (2, 3), input_columns="label")))
    held = [held[i] for i in np.linspace(0, 9, 8).astype(int)]
    expected = Evaluator(make_mae(0), {"forget": held}, ImageReader(processor, 3), CenterCrop(2))(model, progress=False)
    assert expected["forget"]["drift"] > 0.01
    assert found["parts"]["leakage/center:2"]["after"] == pytest.approx(expected["forget"]["mse"], rel=1e-4)


def test_one_forgotten_picture_is_too_few(unlearned):
    run = yaml.safe_load((unlearned / "run.yaml").read_text()) | {"forget_classes": None}
    (unlearned / "run.yaml").write_text(yaml.safe_dump(run))
    with pytest.raises(InputError, match="exactly one way"):
        run_audit(arguments(unlearned))
    found = run_audit(arguments(unlearned, forget_rows="2"))
    assert {v["part"]: v["status"] for v in found["verdicts"]}["relearning/unlearned"] == SKIPPED
    assert found["parts"]["membership/forget"]["after"]["low"] < 0.5 < found["parts"]["membership/forget"]["after"]["high"]


def test_the_card_gets_a_section(unlearned):
    found = run_audit(arguments(unlearned, parts=["membership"]), "accelerate launch recipes/audit.py")
    write_section(unlearned, "Audit")
    write_section(unlearned, "Audit")
    card = (unlearned / "README.md").read_text()
    assert (
        card.count("## Audit") == 1 and "suppression, not erasure" in card and card.index("## Audit") < card.index("## Limits")
    )
    assert "AUC of membership inference, after unlearning" in card
    assert f"| **{found['verdicts'][0]['status']}** |" in card


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"parts": ["magic"]}, "'magic' is no part"),
        ({"relearn_steps": 0}, "relearn_steps must be 1 or more, got 0"),
        ({"tolerance": 0}, "tolerance is a share larger than 0"),
        ({"relearn_learning_rates": []}, "one or more numbers above 0"),
        ({"masks": ["center:9"]}, "hides everything"),
        ({"never_trained": "palette"}, "another kind or size"),
        ({"model": "palette"}, "has no run.yaml; give --model the output folder"),
        ({"never_seen_classes": ["cow"]}, "no class 'cow'"),
    ],
)
def test_refusals(unlearned, tmp_path, changes, message):
    """Each before anything is measured."""
    make_unet().save_pretrained(tmp_path / "palette")
    changes = {k: str(tmp_path / v) if v == "palette" else v for k, v in changes.items()}
    with pytest.raises(InputError, match=message):
        run_audit(replace(arguments(unlearned), **changes))
    assert not (unlearned / "audit.json").exists()


@pytest.mark.parametrize("more", [(), ("--update_card", "true")])
def test_the_command(unlearned, tmp_path, more):
    """It writes into a folder of its own, and into the run's only where that is asked for."""
    (unlearned / "figures.json").write_text("{}")
    before = {file.name: file.read_bytes() for file in unlearned.iterdir()}
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "recipes" / "audit.py"), "--model", unlearned, "--use_cpu", "--samples", "4",
            "--membership_samples", "4", "--relearn_steps", "1", "--masks", "left:1", "--relearn_samples", "2",
            "--relearn_learning_rates", "1e-3", *more,
        ], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "suppression, not erasure" in done.stdout and "[" in done.stdout
    own = tmp_path / "audited"
    assert (own / "audit.json").is_file() and (own / "report.html").read_text().startswith("<!doctype html>")
    after = {file.name: file.read_bytes() for file in unlearned.iterdir()}
    if more:
        assert after.keys() - before.keys() == {"audit.json", "report.html"} and "## Audit" in after["README.md"].decode()
    else:
        assert after == before
