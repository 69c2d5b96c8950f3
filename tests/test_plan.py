"""`--plan`: what it counts is right, it names what is cheaper, and nothing is left. What it measures is no matter."""

import json
import sys

import pytest
import torch
from conftest import make_dataset

from hf_i2i_unlearn import InputError, UnlearningConfig, load_model
from hf_i2i_unlearn.commands.jobs.measuring import duration
from hf_i2i_unlearn.commands.jobs.plan import size, steps_of, times
from hf_i2i_unlearn.commands.jobs.published import make
from hf_i2i_unlearn.commands.unlearn import main


@pytest.fixture
def planned(tmp_path, monkeypatch, capsys):
    """Plans a run on 32 tiny pictures: (what it said, the folder where it was)."""
    place = tmp_path / "place"
    place.mkdir()
    make_dataset(32, 64).to_parquet(tmp_path / "data" / "train.parquet")

    def plan(name, *options, form="json", tiny=True, asked=("--forget_classes", "cat", "--corruption", "center:2")):
        model = str(tmp_path / name)
        if not (tmp_path / name).exists():
            make(name, model, tiny)
        argv = ["unlearn", "--model", model, "--dataset", tmp_path / "data", "--eval_split", "none", *asked,
                "--per_device_train_batch_size", 2, "--eval_samples", 3, "--copies", "skip",
                "--use_cpu", "true", "--output_dir", place / "out", "--plan", form, *options]  # fmt: skip
        monkeypatch.setattr(sys, "argv", list(map(str, argv)))
        capsys.readouterr()
        main()
        said = capsys.readouterr().out
        assert list(place.iterdir()) == []  # neither a result nor a checkpoint nor kept targets
        return json.loads(said) if form == "json" else said

    return plan


@pytest.mark.parametrize("name", ["mae-base", "mage-base", "palette"])
def test_what_is_counted(planned, tmp_path, name):
    plan = planned(name, "--num_train_epochs", 3)
    model = load_model(str(tmp_path / name)).train_encoder_only()
    assert plan["trained"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert plan["weights"] == sum(p.numel() for p in model.model.parameters())
    assert (plan["steps"], plan["pairs"], plan["devices"]) == (3 * 4, 2, 1)  # 8 forget pictures
    weights = 4 * plan["weights"]
    assert plan["disk"]["3 checkpoints"] > 3 * (weights + 2 * 4 * plan["trained"])  # with Adam's two moments
    assert weights < plan["disk"]["the result"] < 1.5 * weights + 2e5
    assert plan["memory"] > 0 and all(seconds >= 0 for seconds in plan["seconds"].values())
    parts = {
        "preparing",
        "targets",
        "steps",
        "erasing",
        "looks at the verdicts",
        "evaluations",
        "checkpoints",
        "verdicts",
        "figures",
    }
    assert plan["seconds"].keys() == parts
    assert plan["seconds"]["steps"] == pytest.approx(12 * plan["measured"]["step"])
    assert len(plan["measured"]["verdicts"]) == 4  # one trained mask, three others


def test_what_is_cheaper(planned):
    """Options are named where they would help, and not where they are used or cannot be."""
    lines = " ".join(planned("mae-base", "--max_steps", 1000)["cheaper"])
    assert all(option in lines for option in ("--cache_targets", "--noise_target mean", "--lora", "devices"))
    used = planned("mae-base", "--max_steps", 9, "--cache_targets", "true", "--noise_target", "mean", "--lora", "true")
    assert not any(option in " ".join(used["cheaper"]) for option in ("--cache_targets", "--noise_target", "--lora"))
    assert used["trained"] < used["weights"] / 4 and used["seconds"]["targets"] > 0
    kept = used["disk"]["kept targets"] / 24  # retain pictures
    assert kept == 4 * 32 * (16 - 4 + 1)  # fp32, the width, visible patches and the class token
    assert used["disk"]["the result"] < 4 * used["weights"]
    lines = " ".join(planned("mae-base", "--max_steps", 9, "--corruption", "random:0.5")["cheaper"])
    assert "--cache_targets" not in lines and "--noise_target" not in lines  # T is another one each time
    settled = planned("mae-base", "--max_steps", 9, "--noise_target", "auto")
    assert "--noise_target" not in " ".join(settled["cheaper"]) and settled["seconds"]["targets"] > 0
    lines = " ".join(planned("palette", "--max_steps", 9)["cheaper"])
    assert "--cache_targets" not in lines and "--lora" in lines


def test_what_people_read(planned):
    said = planned("mae-base", "--max_steps", 7, form="true")
    assert "Nothing was trained, and nothing is left" in said
    assert all(word in said for word in ("weights trained", "memory a device", "7 of 2 pairs", "disk", "cheaper"))


def test_an_erasure_is_counted(planned):
    plan = planned("mae-base", "--max_steps", 7, "--erase", 1, "--erase_steps", 10, "--erase_batch_size", 4)
    assert plan["seconds"]["erasing"] == pytest.approx(20 * plan["measured"]["step"]) and plan["seconds"]["steps"] == 0


def test_a_takedown_looks_at_its_verdicts(planned):
    """It trains until they hold: the plan is of the most steps, with the looks on the way."""
    said = planned("mae-base", form="true", asked=("--forget_rows", "2,6"))
    assert "steps            at most 1,200 of 2 pairs" in said
    assert planned("mae-base", asked=("--forget_rows", "2,6"))["seconds"]["looks at the verdicts"] > 0


def test_a_run_that_is_refused_has_no_plan(planned):
    with pytest.raises(InputError, match="hides"):
        planned("mae-base", "--corruption", "center:4")


def test_steps_are_those_of_the_trainer(tmp_path):
    def steps(pairs, **options):
        return steps_of(UnlearningConfig(str(tmp_path), use_cpu=True, report_to="none", **options), pairs)

    assert steps(100, max_steps=7) == 7
    assert steps(None, max_steps=7) == 7
    assert steps(100, num_train_epochs=5, per_device_train_batch_size=16) == 5 * 7
    assert steps(100, num_train_epochs=2.5, per_device_train_batch_size=16, gradient_accumulation_steps=2) == 10
    assert steps(3, num_train_epochs=2, per_device_train_batch_size=2, gradient_accumulation_steps=8) == 2


def test_how_often():
    assert [times(625, 0.2, "steps"), times(10, 3, "steps"), times(10, 3, "no")] == [5, 3, 0]
    assert (duration(3), duration(45), duration(600), duration(7800)) == ("3 s", "45 s", "10.0 min", "2.2 h")
    assert (size(3.1e9), size(4.5e6)) == ("3.10 GB", "4.5 MB")


def test_the_memory_of_a_part():
    """A tensor of 64 MB is seen; what is given back before is not."""
    from hf_i2i_unlearn.commands.jobs.measuring import Memory

    with Memory(torch.device("cpu")) as memory:
        held = torch.ones(2**24)
    assert memory.peak - memory.before > 0.05 * held[0].item()
