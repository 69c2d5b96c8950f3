"""The study of erasing: its rows, its resumption, and the choice of a learning rate."""

import json
import sys

import numpy as np
import pytest
from conftest import make_dataset, make_mae
from helpers.close import assert_close
from test_mage import make_mage
from test_mage_training import make_processor
from test_unet import make_unet

from hf_i2i_unlearn import METHODS, CenterCrop, Evaluator, I2IMage, ImageReader, InputError, undecoded
from hf_i2i_unlearn.audit.attacks import Setting, hole_errors
from hf_i2i_unlearn.commands import evidence
from hf_i2i_unlearn.commands.erasure_study import Arguments, main, stages_of
from hf_i2i_unlearn.evaluation.feature_loaders import load_features
from hf_i2i_unlearn.experiments.erasure_study import KNOWS, NEVER_SAW, Stage, Study
from hf_i2i_unlearn.experiments.study_page import (
    forgotten_of,
    mean_table,
    points_of,
    scores_tables,
    study_table,
    summary_table,
)  # fmt: skip
from hf_i2i_unlearn.methods.noise import Constant, StandardNormal
from hf_i2i_unlearn.models.diffusion.modeling import I2IUNet
from hf_i2i_unlearn.storage import write_json

T = CenterCrop(2)
STAGES = [
    Stage("unlearned", 3, (1e-3, 3e-3), batch_size=4),
    Stage("max_loss", 3, method=METHODS["max_loss"], batch_size=4),
    Stage("erased 50%", 3, batch_size=4, share=0.5, after="unlearned"),
    Stage("erased 100%, decoder too", 3, batch_size=4, share=1.0, decoder=True),
]


def study(processor, folder=None, twin=True, original=None):
    rows, reader = undecoded(make_dataset(40)), ImageReader(processor, 3)
    some = list(rows)
    knows, unseen, train = some[:8], some[30:], rows.select(range(8, 30))
    original, twin = original or make_mae(0).eval(), make_mae(1).eval() if twin else None
    return Study(original, twin, reader, knows, train, unseen, T, steps=2, batch_size=4, folder=folder)


def test_rows_are_what_the_parts_measure(processor, tmp_path):
    made = study(processor, tmp_path)
    found = made.run(STAGES)
    assert [row["name"] for row in found] == ["never saw them", "knows them by heart", *(stage.name for stage in STAGES)]
    reader = Setting(ImageReader(processor, 3), progress=False)
    for row in found[2:]:
        model = made.models[row["name"]]
        assert_close(row["known"], hole_errors(model, made.known, T, reader).mean())
        assert_close(row["start"], hole_errors(model, made.others, T, reader).mean())
        assert row["lowest"] <= row["start"] and row["honoured"]["of"] == 8
    assert found[1]["drift"] == 0 and all(row["drift"] > 0 for row in found[2:])
    attackers, others = ({row["image"]["path"] for row in rows} for rows in (made.attackers, made.others))
    assert not attackers & others and len(attackers | others) == 8
    untouched = made.original.model.decoder.state_dict()
    kept = made.models["erased 50%"].model.decoder.state_dict()
    assert all((kept[name] == weight).all() for name, weight in untouched.items())
    assert "never saw them" in study_table(found)

    points = points_of([found, found])
    assert list(points) == [stage.name for stage in STAGES] and all(len(some) == 2 for some in points.values())
    assert_close(points["max_loss"][0][0], found[3]["retain"] / found[1]["retain"])

    again = study(processor, tmp_path)
    again._train = again._measure = lambda *args: 1 / 0  # what is there is not done again
    assert again.run(STAGES) == found
    pictures = again.pictures(found, ["unlearned", "erased 50%"], 2)
    assert list(pictures)[-2:] == ["erased 50%", "erased 50%,\nattacked"] and len(pictures["image"]) == 2


def test_the_rate_is_chosen_where_nothing_is_reported(processor):
    made = study(processor, twin=False)
    assert not {r["image"]["path"] for r in made.unseen} & {r["image"]["path"] for r in made.chosen_by}
    errors = {0.1: (1.02, 3.0), 0.2: (1.029, 4.0), 0.3: (1.5, 9.0)}  # by rate: on retain, on the known pictures
    made._train = lambda stage, rate: (rate, 1.0)
    made._error = lambda model, rows: 1.0 if model is made.original else errors[model][rows is made.known]
    assert made._tuned(Stage("x", 1, tuple(errors)))[2] == 0.2  # the most forgotten within the tolerance
    errors = {0.1: (1.2, 3.0), 0.2: (1.1, 4.0)}
    assert made._tuned(Stage("x", 1, tuple(errors)))[2] == 0.2  # none is within: the cheapest


@pytest.mark.parametrize("make", [lambda: I2IMage(make_mage(0), steps=2), lambda: make_unet(0)], ids=["mage", "unet"])
def test_the_other_families(make, processor, request):
    if "mage" in request.node.name:
        processor = make_processor()  # does not normalise
    made = study(processor, twin=False, original=make().eval())
    found = made.run([Stage("unlearned", 2, batch_size=2), Stage("erased", 2, batch_size=2, share=1.0, decoder=True)])
    assert all(np.isfinite(row["lowest"]) and row["lowest"] <= row["start"] for row in found)
    assert found[-1]["drift"] > 0


def test_without_a_twin_the_start_is_the_reference(processor):
    found = study(processor, twin=False).run(STAGES[:1])
    assert [row["name"] for row in found] == ["knows them by heart", "unlearned"]


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["x", *map(str, words)])
    main()


def test_the_command_on_the_demo(tmp_path, monkeypatch, capsys):
    options = ["--unlearn_steps", 2, "--erase_steps", 2, "--erase_batch_size", 2, "--attack_steps", 1, "--eval_samples", 8]
    run(monkeypatch, *options, "--pictures", 1, "--attack_learning_rates", 1e-3, "--output_dir", tmp_path / "study")
    text = (tmp_path / "study" / "results.md").read_text()
    assert "| erased 100% |" in text and "--unlearn_steps 2" in text
    printed = capsys.readouterr().out
    assert text[text.index("| model") : text.index("\n\n```bash")] in printed  # the table
    assert all((tmp_path / "study" / name).is_file() for name in ("study.png", "came_back.png"))
    row = json.loads((tmp_path / "study" / "seed-0" / "knows them by heart.json").read_text())
    assert row["result"]["known"] < 0.1  # the embedded twin knows the embedded canaries


def test_other_options_of_the_model_are_another_study(processor, tmp_path, capsys):
    made = study(processor, tmp_path, twin=False)
    made.run([Stage("unlearned", 2, batch_size=4)])
    for options, trained in (({}, 0), ({"steps": 3}, 1)):
        again = study(processor, tmp_path, twin=False)
        again.options = options
        capsys.readouterr()
        again.run([Stage("unlearned", 2, batch_size=4)])
        assert capsys.readouterr().out.count("training unlearned") == trained


def test_what_a_decoder_learns_is_part_of_what_is_kept(processor, tmp_path, capsys, monkeypatch):
    """An erased U-Net that learnt completions is not taken for one that learnt predictions."""
    stage, trained = Stage("erased", 1, batch_size=2, share=1.0, decoder=True), []
    for distils in ("completions", "predictions", "predictions"):
        monkeypatch.setattr(I2IUNet, "distils", distils)
        study(processor, tmp_path, twin=False, original=make_unet(0).eval()).run([stage])
        trained.append(capsys.readouterr().out.count("training erased"))
    assert trained == [1, 1, 0]


def test_the_noise_of_a_stage(processor, tmp_path):
    """Another distribution of n is another target, and what was kept of the one is not taken for the other."""
    made = study(processor, tmp_path, twin=False)
    rows = [made.run([Stage("unlearned", 2, batch_size=4, noise=noise)])[-1] for noise in (StandardNormal(), Constant())]
    assert rows[0]["known"] != rows[1]["known"]
    for stage in stages_of(Arguments(unlearn_noise="constant", unlearn_alpha=1.0), 0.0):  # unlearning, and erasing
        assert isinstance(stage.noise, Constant) and stage.alpha == 1.0


def test_stages_that_erase_nothing():
    args = Arguments(methods=["ours", "max_loss"], decoder=["none"], unlearn_lr_scheduler_type="cosine", proxy_retain=True)
    stages = stages_of(args, 0.02)
    assert [stage.name for stage in stages] == ["unlearned", "max_loss", "ours, proxy retain"]
    assert all(stage.scheduler == "cosine" and not stage.share for stage in stages)
    assert [stage.proxy for stage in stages] == [False, False, True]


@pytest.mark.parametrize(
    "words", [["--decoder", "maybe"], ["--shares", "2"], ["--methods", "oops"], ["--methods", "max_loss", "--shares", "0.5"]]
)
def test_refusals(monkeypatch, tmp_path, words):
    with pytest.raises(InputError):
        run(monkeypatch, *words, "--output_dir", tmp_path / "study")


def test_proxies_and_features(processor, tmp_path):
    made = study(processor, tmp_path)
    made.proxies, made.features = undecoded(make_dataset(50)).select(range(40, 50)), tuple(load_features(["demo"]))
    stages = [Stage("ours", 2, batch_size=4), Stage("ours, proxy retain", 2, batch_size=4, proxy=True)]
    found = made.run(stages)
    weights = [list(made.models[stage.name].parameters()) for stage in stages]
    assert any((a != b).any() for a, b in zip(*weights))  # other retain pictures
    evaluator = Evaluator(made.original, {"known": made.known}, made.reader, T, features=made.features)
    figures = evaluator(made.models["ours"], progress=False)["known"]["features"]
    mine = {one["region"]: one for one in found[2]["scores"] if one["set"] == "known"}
    for expected in figures:
        assert_close(mine[expected["region"]]["similarity"], expected["similarity"])
        assert_close(mine[expected["region"]]["accuracy"], expected["accuracy"])
    again = study(processor, tmp_path)
    again.proxies, again.features, again._train = made.proxies, made.features, lambda *args: 1 / 0
    again._measure = again._scores = lambda *args: 1 / 0
    assert again.run(stages) == found
    bare = study(processor, tmp_path)  # other networks: the attacks are not done again
    bare.proxies, bare._measure = made.proxies, lambda *args: 1 / 0
    assert [row["scores"] for row in bare.run(stages)] == [[]] * 4


def rows_of(seed):
    row = {"seconds": 1.0, "learning_rate": 1e-3, "drift": 0.1, "start": 1.0, "lowest": 0.5, "came_back": 0.25 + 0.5 * seed}
    row["honoured"] = {"count": 1, "of": 2, "share": 0.5}
    made = [(NEVER_SAW, 0.5, 1.0), (KNOWS, 1.0, 0.1), ("unlearned", 1.1, 2.0 + seed)]
    score = {"network": "net", "kind": "classifier", "few_samples": False, "fid": 4.0, "kid": 0.25, "similarity": 0.5}
    scores = [score | {"set": kind, "region": "hole"} for kind in ("retain", "known")]
    return [row | {"name": name, "retain": retain, "known": known, "scores": scores} for name, retain, known in made]


def test_the_pages_of_several_seeds(tmp_path):
    studies = [rows_of(0), rows_of(1)]
    assert "| unlearned | 1 | 1.100 | 0.100 | 2.500 ± 0.500 | 1 of 2 | 1.000 | 0.500 | 50% |" in mean_table(studies)
    assert "| unlearned | 4 | 4 | 0.5 | 0.5 |" in scores_tables(studies)["net"]
    few = [[row | {"scores": [one | {"few_samples": True} for one in row["scores"]]} for row in rows] for rows in studies]
    assert "FD" not in scores_tables(few)["net"] and "| unlearned | 0.25 | 0.25 | 0.5 | 0.5 |" in scores_tables(few)["net"]
    lines = summary_table({"MAE": {"": studies}, "MAGE": {"": [rows_of(0)]}}).splitlines()
    assert lines[4] == "|  | ours | x2.50 | x1.10 | 10% | 50% | 50% |" and len(lines) == 2 + 3 + 3
    assert lines[5].startswith("| **MAGE** | never saw them | x1.00 |")
    assert lines[-1] == "|  | ours | x2.00 | x1.10 | 10% | 50% | 25% |"
    assert forgotten_of(studies)["ours"] == [(0.1, 2.0), (0.1, 3.0)]


def test_the_evidence_of_several_families(tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        write_json(tmp_path / name / "rows.json", {"0": rows_of(0)})
    words = ["--studies", tmp_path / "a", tmp_path / "b", "--families", "MAE", "MAGE"]
    monkeypatch.setattr(sys, "argv", ["x", *map(str, words), "--output_dir", str(tmp_path / "evidence")])
    evidence.main()
    assert "| **MAGE** | never saw them |" in capsys.readouterr().out
    assert (tmp_path / "evidence" / "forgotten.png").stat().st_size > 10_000
    words[-2:] = ["MAE: 9 steps", "MAE"]  # one family: the references once, and what is special in the names
    monkeypatch.setattr(sys, "argv", ["x", *map(str, words), "--output_dir", str(tmp_path / "evidence")])
    evidence.main()
    said = capsys.readouterr().out
    assert said.count("never saw them") == 1 and "|  | ours (9 steps) |" in said and "|  | ours |" in said
    words[-1] = "MAE: 9 steps"
    monkeypatch.setattr(sys, "argv", ["x", *map(str, words)])
    with pytest.raises(InputError, match="Two studies are called"):
        evidence.main()
    words[-1] = "MAGE"
    monkeypatch.setattr(sys, "argv", ["x", *map(str, words)])
    write_json(tmp_path / "b" / "rows.json", {"0": rows_of(0)[1:]})
    with pytest.raises(InputError, match="never saw"):
        evidence.main()
    for bad in ("--studies no --families MAE", "--studies a b --families MAE", ""):
        monkeypatch.setattr(sys, "argv", ["x", *bad.split()])
        with pytest.raises(InputError):
            evidence.main()
