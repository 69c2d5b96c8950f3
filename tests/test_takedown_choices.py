"""What a takedown chooses by itself, and what it leaves alone. The road through the commands: tests/roads/test_takedown.py."""

import pytest
from conftest import make_dataset, make_mae
from helpers.sources import names_of, write_source

from hf_i2i_unlearn import CenterCrop, ImageReader, InputError, undecoded
from hf_i2i_unlearn.audit.picture_verdicts import Judge, Standing, other_masks
from hf_i2i_unlearn.commands.cli import given_options
from hf_i2i_unlearn.commands.families import FAMILIES
from hf_i2i_unlearn.commands.jobs.takedown import Takedown, masks_for, rate_for
from hf_i2i_unlearn.data.options import SplitArguments
from hf_i2i_unlearn.data.splits import build_splits


@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (7, 7), (8, 8), (16, 16), (16, 8)])
def test_masks_suit_every_grid(grid):
    masks = masks_for(grid)
    for mask in masks:
        mask.check(grid)
    assert len(set(map(str, masks))) == len(masks) > 1
    assert grid == (2, 2) or len(other_masks(grid, masks)) == 3


def test_small_models_take_larger_steps():
    assert rate_for(1e-4, 86_000_000) == rate_for(1e-4, 300_000_000) == 1e-4
    assert 1e-4 < rate_for(1e-4, 20_000_000) < rate_for(1e-4, 2_000_000) < rate_for(1e-4, 900_000) == 1e-3
    assert rate_for(1e-5, 900_000, "diffusion") == 1e-3


@pytest.fixture
def options(tmp_path):
    """The options of a run as a command line makes them, and their names."""
    source = write_source("imagefolder", tmp_path / "photos", [(f"ant/{i}.png", b"") for i in range(2)])

    def make(**given):
        family = FAMILIES["mae"]
        names = {f.name for f in family.training.__dataclass_fields__.values()}
        training = family.training(str(tmp_path / "out"), use_cpu=True, **{k: v for k, v in given.items() if k in names})
        return family.arguments(**source, **{k: v for k, v in given.items() if k not in names}), training, set(given)

    return make


def test_what_is_given_is_left_alone(options):
    args, training, given = options(forget_list="request.txt")
    made = Takedown.of(args, training, given, make_mae())
    assert made.own == {"eval_split", "corruption", "max_steps"} and (args.eval_split, args.hold_out) == ("none", 0.2)
    assert training.noise_target == "mean" and training.learning_rate == 1e-2 and training.eval_strategy == "no"
    words = {"learning_rate": 3e-4, "noise_target": "fresh", "eval_split": "test", "corruption": "center:1"}
    args, training, given = options(forget_rows="3", **words)
    assert Takedown.of(args, training, given, make_mae()).own == {"max_steps"}
    assert {k: getattr(training if hasattr(training, k) else args, k) for k in words} == words
    for words in (
        {"forget_classes": ["ant"]},
        {"forget_rows": "3", "corruption": "center:1", "max_steps": 4},
        {"forget_list": "x", "forget_column": "owner"},
    ):
        args, training, given = options(**words)
        assert Takedown.of(args, training, given, make_mae()) is None
        assert training.noise_target == "fresh" and args.eval_split == "validation"


def test_names_of_what_was_given(tmp_path):
    (tmp_path / "x.yaml").write_text("max_steps: 4\n")
    words = ["--model", "m", "--forget-rows=3", "--config", str(tmp_path / "x.yaml")]
    assert given_options(words) == {"model", "forget_rows", "config", "max_steps"}
    assert "corruption" in given_options([], "unlearn_mnist_mae") and "corruption" not in given_options(
        ["--model", "m"], "unlearn_mnist_mae"
    )


@pytest.mark.parametrize("count, held", [(104, 20), (204, 40), (24, 0)])
def test_retain_pictures_are_held_out(tmp_path, count, held):
    make_dataset(count).to_parquet(tmp_path / "train.parquet")
    splits = build_splits(SplitArguments(str(tmp_path), forget_rows="0-3", eval_split="none", hold_out=0.2, copies="skip"))
    train, compared = set(names_of(splits.retain)), set(names_of(splits.eval_retain))
    assert (
        len(compared) == (held or count - 4)
        and len(train | compared) == count - 4
        and (train & compared == set()) == bool(held)
    )
    with pytest.raises(InputError, match="--hold_out is a share"):
        SplitArguments(hold_out=1)


def test_how_far_a_run_is(processor):
    """The figures of a look are those of the verdicts."""
    rows = list(undecoded(make_dataset(48)))
    judge = Judge(make_mae(), ImageReader(processor, 3), [CenterCrop(2)], [], progress=False)
    look, other = Standing(judge, rows[:6], rows[6:], rows[6:12]), make_mae(7)
    for model, cost in ((judge.original, True), (other, False)):
        done, of, risen = look(model)
        assert (done, of) == (judge(model, rows[:6], rows[6:])["honoured"]["count"], 6)
        assert (risen == pytest.approx(1)) is cost
