"""Choice of points, tables by hand, and the recipe on data made here."""

import csv
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import make_dataset, make_mae
from test_evaluation import make_network, write_network
from test_mage import make_mage
from test_unet import make_unet
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_i2i_unlearn import (
    METHODS,
    CenterCrop,
    Evaluator,
    ImageReader,
    InputError,
    StandardNormal,
    UnlearningConfig,
    load_model,
    load_processor,
    undecoded,
)
from hf_i2i_unlearn.commands import tables as command
from hf_i2i_unlearn.data.augmentation import AUGMENTATIONS
from hf_i2i_unlearn.data.options import SplitArguments
from hf_i2i_unlearn.experiments import tables
from hf_i2i_unlearn.experiments.runs import FAILED, Comparison, NamedPictures, Setting
from hf_i2i_unlearn.methods.noise import Uniform
from hf_i2i_unlearn.reporting.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
T = "center:2"


def point(retain, forget, report=None, **more):
    """A point whose Frechet distances on the half "select" are these multiples of the original's 10 and 20."""
    report = report or (retain, forget)
    figures = {}
    for half, (r, f) in (("select", (retain, forget)), ("report", report)):
        for which, value, base in (("retain", r, 10.0), ("forget", f, 20.0)):
            figures[f"{which} {half}"] = {
                "mse": value,
                "original_mse": 1.0,
                "fid hole 0": value * base,
                "original_fid hole 0": base,
                "blank_fid hole 0": 70.0,
            }
    return {"seconds": 1.0, "figures": {T: figures}} | more


def test_the_choice_sees_one_half_alone():
    points = [
        point(1.04, 2.0, report=(9.0, 0.1), n="best"),  # bad on the other half, which must not matter
        point(1.2, 5.0, n="too dear"),
        point(1.0, 1.5, report=(1.0, 9.0), n="forgets less"),
    ]
    best, within = tables.choose(points, T, "fid hole 0", 1.05)
    assert (best["n"], within) == ("best", True)
    best, within = tables.choose(points[1:2] + [point(1.3, 9.0, n="dearer")], T, "fid hole 0", 1.05)
    assert (best["n"], within) == ("too dear", False)  # none fits: the one that costs least
    assert tables.choose(points, T, "mse", 1.3)[0]["n"] == "too dear"


def test_a_table_by_hand():
    rows = {"ours": [point(1.0, 2.0), point(1.2, 3.0)], "control": [point(0.9, 1.0)]}
    network = {"network": "tiny", "kind": "classifier"}
    lines = tables.table(rows, T, "hole 0", [network]).splitlines()
    assert lines[0] == "| method | FD R | FD F |"
    assert lines[2] == "| original | 10 | 20 |" and lines[3] == "| blank hole | 70 | 70 |"
    assert lines[4] == "| ours | 11 ± 1.4 (x1.10) | 50 ± 14 (x2.50) |"  # deviations sqrt(2) and 10 sqrt(2)
    assert lines[5] == "| control | 9 (x0.90) | 20 (x1.00) |"
    assert tables.table(rows, T, "hole 0", [network | {"kind": "inception"}]).startswith("| method | FID R")
    errors = tables.table(rows, T, "", []).splitlines()
    assert (
        errors[0] == "| method | hole error R | hole error F |"
        and errors[3] == "| ours | 1.1 ± 0.14 (x1.10) | 2.5 ± 0.71 (x2.50) |"
    )
    assert "| 4x4 | 10 -> 12 | 20 -> 60 |" in tables.table_over(point(1.2, 3.0), {"4x4": T}, "hole 0", [network], "crop")
    curve = tables.curve_rows({0.5: rows["ours"]}, T, "hole 0", "alpha")
    assert curve == [
        {"model": "0.5", "set": "retain", "alpha": 0.5, "fid": 11.0, "original_fid": 10.0},
        {"model": "0.5", "set": "forget", "alpha": 0.5, "fid": 50.0, "original_fid": 20.0},
    ]
    assert tables.mean_and_spread([3.0]) == (3.0, None)


def test_halves_and_figures(processor):
    rows = list(undecoded(make_dataset(7)))
    pictures = tables.halves({"retain": rows})
    assert pictures == {"retain select": rows[::2], "retain report": rows[1::2]}
    evaluator = Evaluator(
        make_mae(0), pictures, ImageReader(processor, 3), CenterCrop(2), features=[make_network(), make_network(seed=6)]
    )
    result = evaluator(make_mae(1), progress=False)["retain select"]
    flat = tables.flat_figures(result)
    assert flat["mse"] == result["mse"] and flat["original_similarity whole 1"] == result["features"][2]["original_similarity"]
    assert flat["blank_fid hole 0"] == result["features"][1]["blank_fid"] and all(
        isinstance(v, (int, float)) for v in flat.values()
    )
    for few, shown in ((True, "kid"), (False, "fid")):  # of few pictures the kernel distance, and no Frechet distance
        sets = {name: flat | {"few_samples hole 0": few} for name in ("retain report", "forget report")}
        columns = tables.columns_of({"figures": {"T": sets}}, "T", "hole 0")
        assert columns[0] == f"{shown} hole 0" and len(columns) == 4


@pytest.fixture
def pictures(tmp_path):
    make_dataset(32).to_parquet(tmp_path / "data" / "train.parquet")
    make_dataset(32).to_parquet(tmp_path / "data" / "validation.parquet")
    write_network(tmp_path / "network")
    return tmp_path / "data"


def test_runs_are_kept_and_the_same_however_they_are_asked_for(tmp_path, checkpoint, pictures):
    """A run stopped early is the beginning of a longer one.

    What is known is not made again; adapters, bounds, proxies, few pictures.
    """
    made = []

    def comparison(folder, augment=None):
        def measure(model, setting, step, what):
            made.append((setting.name, step, what))
            return {"weights": float(sum(p.detach().double().abs().sum() for p in model.parameters())), "kind": what}

        args = SplitArguments(
            dataset=str(pictures), forget_classes=["cat"], retain_classes=["ant", "bee"], proxy_classes=["dog"]
        )
        training = UnlearningConfig(
            output_dir=str(tmp_path / folder), per_device_train_batch_size=4, use_cpu=True, disable_tqdm=True, max_steps=99
        )
        return Comparison(
            tmp_path / folder, lambda: load_model(checkpoint), load_model(checkpoint).eval(), load_processor(checkpoint),
            NamedPictures(args), training, CenterCrop(2), 4, measure, {"normal": StandardNormal(), "uniform": Uniform()}.get,
            augment=augment,
        )  # fmt: skip

    one, ours = comparison("one"), Setting(METHODS["ours"], 1e-2, 0.5, seed=3)
    first = one.run(ours, [2, 4], ["a"])
    assert made == [(ours.name, 2, "a"), (ours.name, 4, "a")] and first[2]["figures"]["a"] != first[4]["figures"]["a"]
    assert one.run(ours, [4], ["a"]) == {4: first[4]} and len(made) == 2
    again = comparison("one").run(ours, [2], ["a", "b"], save=tmp_path / "weights")  # another process, more to know
    assert made[2:] == [(ours.name, 2, "b")] and again[2]["figures"]["a"] == first[2]["figures"]["a"]
    assert again[2]["figures"]["b"]["weights"] == first[2]["figures"]["a"]["weights"]  # stopped at 2 of 4 steps
    saved = load_model(str(tmp_path / "weights"))
    assert sum(p.double().abs().sum() for p in saved.parameters()).item() == pytest.approx(
        first[2]["figures"]["a"]["weights"], rel=1e-9
    )
    assert comparison("two").run(ours, [4], ["a"])[4]["figures"] == first[4]["figures"]
    assert comparison("flipped", AUGMENTATIONS["flip"]).run(ours, [4], ["a"])[4]["figures"] != first[4]["figures"]

    def weights(**change):
        options = {"method": METHODS["ours"], "learning_rate": 1e-2, "alpha": 0.5, "seed": 3} | change
        return one.run(Setting(**options), [4], ["a"])[4]["figures"]["a"]["weights"]

    changes = [{}, {"seed": 4}, {"noise": "uniform"}, {"retain_per_class": 1}, {"proxy": True}, {"lora": 2}, {"alpha": 1.0},
               {"retain_bound": 0.01}, {"method": METHODS["control"]}]  # fmt: skip
    assert len({weights(**change) for change in changes}) == len(changes)
    bounded = one.run(Setting(METHODS["ours"], 1e-2, 0.5, 3, retain_bound=0.01), [4], ["a"])[4]["bound"]
    assert bounded["bound"] == 0.01 and bounded["retain_distance"] > 0
    splits = one.pictures.splits
    few, proxies = (splits(Setting(METHODS["ours"], 1, 1, **kind)) for kind in ({"retain_per_class": 1}, {"proxy": True}))
    assert (len(few.retain), len(proxies.retain), len(splits().retain)) == (2, 8, 16)
    assert few.eval_retain == proxies.eval_retain == splits().eval_retain and len(few.eval_retain) == 16


@pytest.fixture
def recipe(tmp_path, monkeypatch, pictures):
    """The command called within this process: argv -> None."""
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        options = ["--dataset", pictures, "--forget_classes", "cat", "--retain_classes", "ant", "bee", "--corruption",
                   "center:2", "--use_cpu", "--disable_tqdm", "true", "--per_device_train_batch_size", 4,
                   "--features", f"classifier:{tmp_path}/network"]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["tables.py", *map(str, [*options, *argv])])
        command.main()

    return call


@pytest.mark.filterwarnings("ignore:The Frechet distance")
def test_all_tables(tmp_path, checkpoint, recipe, capsys):
    argv = ["--model", checkpoint, "--methods", "ours", "control", "--learning_rates", "1e-2", "--alphas", 0.25, 0.5,
            "--measure_at", 1, 3, "--seeds", 0, 1, "--eval_corruptions", "center:2", "center:1", "--proxy_classes", "dog",
            "--noise_rank", 4, "--tolerance", 9, "--output_dir", "out"]  # fmt: skip
    recipe(*argv)
    out, folder = capsys.readouterr().out, tmp_path / "out"
    runs = [line for line in out.splitlines() if line.startswith("[")]
    assert [r for r in runs if "tuning" in r] == [
        "[tuning 1/2] ours-lr0.01-alpha0.25-seed0",
        "[tuning 2/2] ours-lr0.01-alpha0.5-seed0",
        "[tuning 1/1] control-lr0.01-alpha0.25-seed0",
    ]
    # Then each chosen setting: with both seeds under both T, and the proxies.
    assert len(runs) == 3 + 2 + 2 + 2 and sum("proxy" in r for r in runs) == 2
    page = (folder / "results.md").read_text()
    assert (
        "8 retain select, 8 retain report, 4 forget select, 4 forget report" in page
        and "all figures here are those of the other half" in page
    )
    assert "no FID unless that is Inception" in page and "FID R" not in page
    assert "| method | KD R | KD F |" in page and "FD R" not in page  # of so few pictures

    # The choice, and the figures of the page, from what the runs have shown.
    def shown(name, step):
        return json.loads((folder / "runs" / f"{name}.json").read_text())["result"][str(step)]["figures"][T]

    candidates = {
        (alpha, step): shown(f"ours-lr0.01-alpha{alpha}-seed0", step)["forget select"]["fid hole 0"]
        for alpha in (0.25, 0.5)
        for step in (1, 3)
    }
    alpha, step = max(candidates, key=candidates.get)
    assert f"ours: lr 0.01, alpha {alpha}, {step} steps" in page
    values = [shown(f"ours-lr0.01-alpha{alpha}-seed{seed}", step)["retain report"] for seed in (0, 1)]
    mean = sum(v["kid hole 0"] for v in values) / 2
    rows = [
        line.split(" | ")
        for line in page.split("Features of the hole alone: network:")[1].splitlines()
        if line.startswith("| ours |")
    ]
    assert rows[0][1].startswith(f"{mean:.3g} ± ")
    errors = next(line for line in page.split("Errors:")[1].splitlines() if line.startswith("| ours |")).split(" | ")
    mean = sum(v["mse"] for v in values) / 2
    assert errors[1].startswith(f"{mean:.3g} ± ") and f"(x{mean / values[0]['original_mse']:.2f})" in errors[1]
    with open(folder / "points.csv") as file:
        points = list(csv.DictReader(file))
    assert {p["half"] for p in points} == {"select", "report"} and float(points[0]["mse"]) > 0

    # Without ours there is nothing that proxies could stand beside.
    recipe(*argv, "--methods", "control", "--output_dir", "control-alone")
    assert "ours" not in capsys.readouterr().out

    # More tables on top: only what is new is run; a broken-off command goes on.
    recipe(*argv, "--tables", "main", "alpha", "--alpha_values", 0.25, 0.5)
    runs = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    other = 0.75 - alpha
    assert [r.split("] ")[1] for r in runs] == (
        [f"ours-lr0.01-alpha{other:g}-seed0"]
    )  # under the second T; the chosen alpha is there
    more = ["alpha", "retain_per_class", "noise", "ratio", "cross_validation", "lora", "bound"]
    recipe(*argv, "--tables", "main", *more, "--alpha_values", 0.25, 0.5, "--retain_counts", 1,
           "--noises", "normal", "low_rank", "--crop_ratios", 0.0625, 0.25, 0.3, "--bounds", 0.01)  # fmt: skip
    capsys.readouterr()
    page = (folder / "results.md").read_text()
    for title in (
        "Table 3",
        "Figure D.6",
        "Figure E.20",
        "Figures E.18, E.19",
        "Table E.4",
        "LoRA against",
        "Runs with a retain bound",
    ):
        assert f"## {title}" in page, title
    assert (
        "cross_validation center:2" in page
        and "| LoRA, rank 8 |" in page
        and "| 0.01 (distance " in page
        and "| low_rank |" in page
    )
    assert "| share cropped |" in page and "| 0.0625 | " in page and " -> " in page
    for name in ("alpha", "retain_per_class", "noise", "ratio", "frontier", "frontier-bound"):
        assert (folder / f"{name}.png").stat().st_size > 5000 and f"({name}.png)" in page

    # The weights of "ours" are there, as recipes/evaluate.py reads them, and give the figures of the page.
    (saved,) = (folder / "models").iterdir()
    options = RunFolder(saved).options
    assert (
        options["model"] == checkpoint
        and options["alpha"] == alpha
        and options["corruption"] == "center:2"
        and options["max_steps"] == step
    )
    reader = ImageReader(load_processor(checkpoint), 3)
    held = list(undecoded(make_dataset(32).filter(lambda row: row["label"] == 2)))
    result = Evaluator(make_mae(0), {"f": held[1::2]}, reader, CenterCrop(2))(load_model(str(saved)), progress=False)
    assert result["f"]["mse"] == pytest.approx(shown(saved.name.rsplit("-", 1)[0], step)["forget report"]["mse"], rel=1e-5)

    with pytest.raises(InputError, match=r"holds runs made with other options \(corruption\)"):
        recipe(*argv, "--corruption", "center:1")


@pytest.mark.filterwarnings("ignore:The Frechet distance")
def test_a_run_that_breaks_is_marked_and_not_repeated(tmp_path, checkpoint, recipe, capsys):
    """Weights that overflow end one run and not the tables."""
    argv = ["--model", checkpoint, "--methods", "ours", "max_loss", "--learning_rates", "1e-2", "1e38", "--alphas", 0.25,
            "--measure_at", 1, 3, "--seeds", 0, "--max_grad_norm", 0, "--optim", "sgd", "--tolerance", 9,
            "--output_dir", "out"]  # fmt: skip
    recipe(*argv)
    out = capsys.readouterr().out
    assert (
        "[tuning 2/2] max_loss-lr1e+38-alpha0.25-seed0" in out and "| max_loss" in (tmp_path / "out" / "results.md").read_text()
    )
    points = json.loads((tmp_path / "out" / "runs" / "max_loss-lr1e+38-alpha0.25-seed0.json").read_text())["result"]
    assert points["3"]["failed"] == FAILED and points["3"]["figures"] == {}
    recipe(*argv)
    assert not [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]


@pytest.mark.parametrize("family", ["diffusion", "mage"])
@pytest.mark.filterwarnings("ignore:The Frechet distance")
def test_other_families(tmp_path, recipe, capsys, family):
    torch.manual_seed(0)
    size = {"height": 16, "width": 16}
    if family == "diffusion":
        model, processor = make_unet(steps=2), ViTImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    else:
        model, processor = make_mage(), None
        size = {"height": model.config.image_size, "width": model.config.image_size}
        processor = ViTImageProcessorPil(size=size, do_normalize=False)
    model.save_pretrained(tmp_path / "original")
    processor.save_pretrained(tmp_path / "original")
    grid = {"diffusion": 16}.get(family, None) or load_model(str(tmp_path / "original")).grid[0]
    recipe("--model", tmp_path / "original", "--methods", "ours", "max_loss", "--learning_rates", "1e-2",
           "--alphas", 0.25, "--measure_at", 1, "--seeds", 0, "--corruption", f"center:{grid // 2}",
           "--generation_steps", 2, "--eval_samples", 4, "--output_dir", "out")  # fmt: skip
    page = (tmp_path / "out" / "results.md").read_text()
    assert "| max_loss" in page and f"`center:{grid // 2}`" in page
    (saved,) = (tmp_path / "out" / "models").iterdir()
    assert yaml.safe_load((saved / "run.yaml").read_text())["generation_steps"] == 2


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--tables", "third"], "'third' is no table"),
        (["--methods", "mine"], "'mine' is no method"),
        (["--retain_per_class", 3], "give --retain_counts"),
        (["--measure_at", 0, 3], "'0' in --measure_at"),
        (["--eval_corruptions", "center:4"], "hides everything"),
        (["--ema_decay", 0.9], "ema_decay averages the weights at the end"),
    ],
)
def test_refuses(checkpoint, recipe, argv, message, tmp_path):
    with pytest.raises(InputError, match=message):
        recipe("--model", checkpoint, "--output_dir", "out", *argv)
    assert not (tmp_path / "out").exists()


def test_proxies_are_in_no_figure():
    """Without --retain_classes everything else is retained, proxies too."""
    with pytest.raises(InputError, match="Name the --retain_classes when there are proxies"):
        command.check(command.Arguments(forget_classes=["cat"], proxy_classes=["dog"]))
