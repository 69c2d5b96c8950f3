import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import make_dataset, make_mae
from helpers.close import assert_close
from huggingface_hub import ModelCard
from test_unet import make_unet
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_i2i_unlearn import CenterCrop, Evaluator, FeatureNetwork, ImageReader, InputError, RandomMask, load_processor, undecoded
from hf_i2i_unlearn.commands import evaluate as command
from hf_i2i_unlearn.commands.words import parse_corruption
from hf_i2i_unlearn.data.pairs import seeds_for
from hf_i2i_unlearn.evaluation.completions import completions, embeddings
from hf_i2i_unlearn.evaluation.feature_loaders import load_features
from hf_i2i_unlearn.evaluation.metrics import hole_mse
from hf_i2i_unlearn.evaluation.tables import feature_rows, feature_table, markdown_table
from hf_i2i_unlearn.methods.corruptions import CenterRatio

ROOT = Path(__file__).parents[1]
ROWS = list(undecoded(make_dataset(10)))
SPLITS = {"forget": ROWS[:4], "retain": ROWS[4:]}


def test_hole_mse_by_hand():
    a, b = torch.zeros(1, 2, 2, 2), torch.tensor([[[[1.0, 9], [9, 9]], [[3.0, 9], [9, 9]]]])
    hole = torch.tensor([[[[True, False], [False, False]]]])
    assert hole_mse(a, b, hole).tolist() == [(1 + 9) / 2]


def test_figures_by_hand(processor):
    """Against a loop over single pictures."""
    original, model, corruption = make_mae(0), make_mae(1), RandomMask(0.5)
    reader = ImageReader(processor, 3)
    result = Evaluator(original, SPLITS, reader, corruption, batch_size=3, seed=7)(model, progress=False)
    for name, rows in SPLITS.items():
        mse, psnr, drift = [], [], []
        for i, row in enumerate(rows):
            seeds = seeds_for(7, i)
            x, mask = reader.pixels([reader.decode(row)]), corruption((4, 4), seeds[:1])
            hole = model.hole(mask).expand_as(x)
            after, before = model.generate(x, mask), original.generate(x, mask)
            mse.append((after - x)[hole].square().mean())
            error = (reader.unit(after) - reader.unit(x))[hole].square().mean()
            psnr.append(10 * math.log10(1 / error))
            drift.append((after - before)[hole].square().mean())
        assert result[name]["count"] == len(rows)
        for key, values in {"mse": mse, "psnr": psnr, "drift": drift}.items():
            assert result[name][key] == pytest.approx(
                torch.stack([torch.as_tensor(v) for v in values]).mean().item(), rel=1e-5
            ), key


def test_the_original_has_not_drifted(processor):
    original = make_mae()
    evaluator = Evaluator(original, SPLITS, ImageReader(processor, 3), CenterCrop(2), keep_original=True)
    result = evaluator(original, progress=False)
    assert result["retain"]["drift"] == 0 == result["forget"]["drift"]
    assert result["forget"]["mse"] == result["forget"]["original_mse"] > 0
    # Kept completions give the same figures as new ones.
    changed = make_mae(1)
    fresh = Evaluator(original, SPLITS, ImageReader(processor, 3), CenterCrop(2))(changed, progress=False)
    assert evaluator(changed, progress=False) == fresh
    assert changed.training  # left as it was


def test_refuses_an_empty_set(processor):
    with pytest.raises(InputError, match="no forget pictures to evaluate on"):
        Evaluator(make_mae(), {"forget": []}, ImageReader(processor, 3), CenterCrop(2))


def test_table_and_columns(processor):
    table = markdown_table(
        {
            s: {"count": 3, "mse": 2, "psnr": 8, "original_mse": 1, "original_psnr": 12.34, "drift": 0.5}
            for s in ("forget", "retain")
        }
    )
    assert "| retain | 3 | 1.000 | 2.000 | 12.3 dB | 8.0 dB | 0.500 |" in table
    columns = completions({"before": make_mae(0), "after": make_mae(1)}, ImageReader(processor, 3), CenterCrop(2), ROWS[:2])
    assert list(columns) == ["image", "T(x)", "before", "after"]
    for pixels in columns.values():
        assert pixels.shape == (2, 3, 16, 16) and pixels.min() >= 0 and pixels.max() <= 1
    assert (columns["T(x)"][:, :, 4:12, 4:12] == 0.5).all() and torch.equal(columns["T(x)"][..., :4], columns["image"][..., :4])


def make_network(size=(8, 8), classes=3, seed=5):
    """A classifier with 6 features of pictures of any size."""
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Flatten(), nn.Linear(3 * size[0] * size[1], 6), nn.Tanh(), nn.Linear(6, classes))
    return FeatureNetwork(body, "tiny", size, head=body[3])


def test_scores_by_hand(processor):
    """Against features of all pictures at once and numpy."""
    original, model, corruption, network = make_mae(0), make_mae(1), CenterCrop(2), make_network()
    reader = ImageReader(processor, 3)
    rows = {"retain": ROWS}
    result = Evaluator(original, rows, reader, corruption, 4, features=[network])(model, progress=False)["retain"]
    x = reader.pixels([reader.decode(row) for row in ROWS])
    seeds = [seeds_for(0, i) for i in range(len(ROWS))]
    mask = corruption((4, 4), [s[0] for s in seeds])
    truth = reader.unit(x)
    blank = truth.clone()
    blank[:, :, 4:12, 4:12] = 0.5
    pictures = {"": reader.unit(model.generate(x, mask)), "original_": reader.unit(original.generate(x, mask)), "blank_": blank}
    assert [how["region"] for how in result["features"]] == ["whole", "hole"]
    labels = network(truth)[1].argmax(1)
    for how, see in zip(result["features"], (lambda p: p, lambda p: p[:, :, 4:12, 4:12])):
        true = network.embed(see(truth))
        for kind, images in pictures.items():
            features, logits = network(see(images))
            p = logits.double().softmax(1)
            kl = (p * (p / p.mean(0)).log()).sum(1).mean()
            wanted = {
                "similarity": nn.functional.cosine_similarity(features, true).mean().item(),
                "accuracy": (logits.argmax(1) == labels).double().mean().item(),
                "inception_score": kl.exp().item(),
            }
            for key, value in wanted.items():
                assert how[kind + key] == pytest.approx(value, rel=1e-5), (how["region"], kind, key)
            a, b = true.double().numpy(), features.double().numpy()
            s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
            fid = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1 + s2)
            fid -= 2 * np.sqrt(np.linalg.eigvals(s1 @ s2).astype(complex)).real.sum()
            assert how[kind + "fid"] == pytest.approx(fid, rel=1e-4, abs=1e-6)
            assert how[kind + "kid"] == pytest.approx(kernel_distance_by_hand(a, b), rel=1e-4, abs=1e-6)
        assert how["count"] == 10 and how["dimensions"] == 6 and not how["few_samples"]
        assert how["weights_sha256"] == network.weights and how["input"] == [3, 8, 8]
    assert result["features"][0]["true_accuracy"] == 1


def kernel_distance_by_hand(a, b):
    """Of (N, D) features each, pair by pair."""

    def k(x, y):
        return (float(x @ y) / len(x) + 1) ** 3

    own = [np.mean([k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (a, b)]
    return sum(own) - 2 * np.mean([k(x, y) for x in a for y in b])


def test_scores_are_the_same_again_and_in_other_batches(processor):
    reader, network = ImageReader(processor, 3), make_network()
    original, model = make_mae(0), make_mae(1)

    def make(**options):
        return Evaluator(original, {"forget": ROWS}, reader, RandomMask(0.5), features=[network], inception_splits=2, **options)

    one = make(batch_size=10)
    first, again = one(model, progress=False), one(model, progress=False)
    assert first == again
    other = one(original, progress=False)["forget"]["features"]
    for a, b, c in zip(first["forget"]["features"], make(batch_size=3)(model, progress=False)["forget"]["features"], other):
        assert a.keys() == b.keys() == c.keys()
        for key, value in a.items():
            assert b[key] == (pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value), key
            if key.startswith(("original_", "blank_", "true_")):  # the same whichever model is measured
                assert c[key] == value
        assert c["fid"] == pytest.approx(c["original_fid"], rel=1e-4) and "inception_score_std" in c


def test_few_pictures_are_marked(processor):
    network = make_network()
    result = Evaluator(make_mae(), SPLITS, ImageReader(processor, 3), CenterCrop(2), features=[network])(make_mae(1), False)
    assert [how["few_samples"] for how in result["forget"]["features"]] == [True, True]
    assert not any(how["few_samples"] for how in result["retain"]["features"])
    table = feature_table({"mine": result})
    # The Frechet distance of the forget set would mean nothing: another one takes its place, and a sentence says why.
    assert "No Frechet distance is given of fewer pictures than dimensions" in table.splitlines()[0]
    assert "The kernel distance is given" in table.splitlines()[0]
    head, original = (
        next(line for line in table.splitlines() if line.startswith(f"| {word}")) for word in ("model", "original")
    )
    cells = dict(zip(head.split(" | "), original.split(" | ")))
    assert cells["forget KD"] == f"{result['forget']['features'][0]['original_kid']:.3g}"
    assert "retain KD" in cells and "FD" not in table.splitlines()[2]
    assert all("fid" not in row and "kid" in row for row in feature_rows({"center:2": {"mine": result}}))
    with pytest.raises(InputError, match="'sky' is no region"):
        Evaluator(make_mae(), SPLITS, ImageReader(processor, 3), CenterCrop(2), regions=("sky",))


def test_cross_validation(processor):
    """The second picture depends on the first one's filling alone, and is compared as a whole."""
    original, model, corruption = make_mae(0), make_mae(1), CenterCrop(2)
    reader = ImageReader(processor, 3)
    evaluator = Evaluator(original, {"forget": ROWS}, reader, corruption, features=[make_network()], cross_validation=True)
    result = evaluator(model, progress=False)["forget"]
    x = reader.pixels([reader.decode(row) for row in ROWS])
    mask = corruption((4, 4), range(len(ROWS)))
    first = model.generate(x, mask)
    second = original.generate(first, ~mask)
    assert torch.equal(second[:, :, 4:12, 4:12], first[:, :, 4:12, 4:12])  # the filling is kept
    elsewhere = torch.where(model.hole(mask), first, torch.randn_like(first))
    assert_close(original.generate(elsewhere, ~mask), second)  # and nothing else
    assert result["mse"] == pytest.approx((second - x).square().mean().item(), rel=1e-5)
    before = original.generate(original.generate(x, mask), ~mask)
    assert result["original_mse"] == pytest.approx((before - x).square().mean().item(), rel=1e-5)
    assert [how["region"] for how in result["features"]] == ["whole"]


def test_feature_tables(processor):
    network = make_network()
    evaluator = Evaluator(make_mae(), SPLITS, ImageReader(processor, 3), CenterCrop(2), features=[network], regions=("hole",))
    results = {name: evaluator(make_mae(seed), progress=False) for seed, name in ((1, "one"), (2, "two"))}
    table = feature_table(results).splitlines()
    assert table[0].startswith("Features of the hole alone: tiny (weights sha256") and "6 pictures per set" not in table[1]
    assert table[2].startswith("| model | retain KD | forget KD |")  # no Inception, no KID; 4 pictures in 6 dimensions
    assert [line.split(" | ")[0] for line in table[4:]] == ["| true pictures", "| blank hole", "| original", "| one", "| two"]
    assert f"| {results['two']['retain']['features'][0]['kid']:.3g} |" in table[-1]
    rows = feature_rows({"center:2": results})
    assert [(r["model"], r["set"], r["region"]) for r in rows] == [
        (m, s, "hole") for m in ("one", "two") for s in ("forget", "retain")
    ]
    assert "fid" not in rows[0] and rows[0]["mse"] == results["one"]["forget"]["mse"]
    assert rows[1]["kid"] == results["one"]["retain"]["features"][0]["kid"]
    many = {"retain": ROWS, "forget": ROWS}
    result = Evaluator(make_mae(), many, ImageReader(processor, 3), CenterCrop(2), features=[network])(make_mae(1), False)
    table = feature_table({"mine": result})
    assert "| retain FD | forget FD |" in table and "KD" not in table and "No Frechet" not in table


def test_embeddings_are_those_of_the_completions(processor):
    models, network = {"a": make_mae(0), "b": make_mae(1)}, make_network()
    reader = ImageReader(processor, 3)
    found = embeddings(models, reader, RandomMask(0.5), ROWS, network, "whole", seed=3, batch_size=4)
    columns = completions(models, reader, RandomMask(0.5), ROWS, seed=3)
    assert_close(found["true"], network.embed(columns["image"]))
    assert_close(found["b"], network.embed(columns["b"]))
    hole = embeddings(models, reader, CenterCrop(2), ROWS, network, "hole", seed=3)
    wanted = network.embed(completions(models, reader, CenterCrop(2), ROWS, seed=3)["a"][:, :, 4:12, 4:12])
    assert_close(hole["a"], wanted)


def test_ratio_of_a_crop():
    assert CenterRatio(0.25).hidden((16, 16)) == 64 and CenterRatio(1 / 16).hidden((16, 16)) == 16
    for n in range(1, 14):  # the paper's 1/16 .. 13/16
        assert abs(CenterRatio(n / 16).hidden((16, 16)) / 256 - n / 16) < 0.03
    assert str(parse_corruption("ratio:0.5")) == "ratio:0.5"
    mask = CenterRatio(0.5)((4, 4), [0])[0]
    assert mask.sum() == 9 or mask.sum() == 8
    with pytest.raises(InputError, match="hides everything"):
        CenterRatio(1.0).check((4, 4))


@pytest.fixture
def unlearned(tmp_path, checkpoint, processor):
    """What an unlearning run leaves behind: a checkpoint, its run.yaml and a card."""
    data = tmp_path / "data"
    make_dataset(32).to_parquet(data / "train.parquet")
    make_dataset(24).to_parquet(data / "validation.parquet")
    folder = tmp_path / "unlearned"
    make_mae(1).save_pretrained(folder)
    processor.save_pretrained(folder)
    run = {"model": checkpoint, "dataset": str(data), "forget_classes": ["cat", "dog"], "corruption": "center:2", "alpha": 0.25}
    (folder / "run.yaml").write_text(yaml.safe_dump(run | {"learning_rate": 1e-4, "eval_samples": 0}))
    ModelCard("---\nmodel-index:\n- name: unlearned\n  results: []\n---\n\n# unlearned\n\n## Limits\n\nSome.\n").save(
        folder / "README.md"
    )
    return folder


def write_network(folder):
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 6], depths=[1, 1], layer_type="basic", num_labels=4)
    ResNetForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)


def evaluate(tmp_path, *argv, processes=1):
    start = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *start, str(ROOT / "recipes" / "evaluate.py"), "--use_cpu", *map(str, argv)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The command called within this process: argv -> None."""
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", "--use_cpu", *map(str, argv)])
        command.main()

    return call


def test_the_recipe(tmp_path, unlearned, checkpoint, recipe, capsys):
    """One command without a repeated option.

    What is there is kept; the card; other options are refused; two processes agree.
    """
    write_network(tmp_path / "network")
    argv = ["--models", unlearned, "--features", f"classifier:{tmp_path}/network", "--update_card", "true", "--tsne", 6]
    argv += ["--pictures", 2]
    out = evaluate(tmp_path, *argv, "--output_dir", "one").stdout
    assert "[1/1] unlearned, center:2" in out and "| forget | 12 |" in out
    found = json.loads((tmp_path / "one" / "results.json").read_text())
    figures = found["results"]["center:2"]["unlearned"]
    reader = ImageReader(load_processor(str(unlearned)), 3)
    held = make_dataset(24)
    rows = {"retain": list(undecoded_rows(held, (0, 1))), "forget": list(undecoded_rows(held, (2, 3)))}
    network = load_features([f"classifier:{tmp_path}/network"])[0]
    wanted = Evaluator(make_mae(0), rows, reader, CenterCrop(2), features=[network])(make_mae(1), progress=False)
    for which in rows:
        assert figures[which]["drift"] == pytest.approx(wanted[which]["drift"], rel=1e-5)
        for a, b in zip(figures[which]["features"], wanted[which]["features"]):
            assert a["fid"] == pytest.approx(b["fid"], rel=1e-4, abs=1e-7) and a["similarity"] == pytest.approx(
                b["similarity"], rel=1e-5
            )
            assert (a["region"], a["count"], a["weights_sha256"]) == (b["region"], b["count"], b["weights_sha256"])
    names = {f.name for f in (tmp_path / "one").iterdir()}
    assert names == {
        "cells", "completions-center-2.png", "networks.json", "results.csv", "results.json", "run.yaml", "table.md",
        "tsne-whole.png", "tsne-hole.png",
    }  # fmt: skip
    card = ModelCard.load(unlearned / "README.md")
    assert card.text.index("## Metrics") < card.text.index("## Limits")
    section = card.text.partition("## Metrics\n")[2].partition("\n## ")[0]
    assert "| hole error, center:2 |" in section and 4 < section.count("\n| ") <= 1 + 10  # the head, and ten lines at most
    page = (unlearned / "evaluation.md").read_text()
    assert "[evaluation.md](evaluation.md)" in section and "| blank hole |" in page and "| blank hole |" not in section
    values = {(r.dataset_config, r.metric_type, r.metric_name.split(", ")[-1]) for r in card.data.eval_results}
    assert ("forget", "frechet_distance", "before unlearning") in values and (
        "retain",
        "similarity",
        "after unlearning",
    ) in values

    # The pictures that were to be forgotten themselves: another section, which leaves the first one alone.
    recipe(*argv[:6], "--eval_split", "none", "--pictures", 0, "--output_dir", "trained")
    after = ModelCard.load(unlearned / "README.md")
    held_out, trained = (
        after.text.partition(f"## {t}\n")[2].partition("\n## ")[0] for t in ("Metrics", "Metrics on training pictures")
    )
    assert held_out and held_out == card.text.partition("## Metrics\n")[2].partition("\n## ")[0]
    assert "those that were to be forgotten" in trained and "| forget | 16 |" in (unlearned / "evaluation.md").read_text()
    assert (
        len(after.data.eval_results) == len(card.data.eval_results) + 2 * 2 * 2 * 4
    )  # sets, before and after, regions, metrics

    # Other pictures than those of the run: its card stays as it is.
    before = (unlearned / "README.md").read_bytes()
    recipe(*argv[:6], "--forget_classes", "dog", "--pictures", 0, "--output_dir", "others")
    assert (unlearned / "README.md").read_bytes() == before and "card was left as it is" in capsys.readouterr().out

    # More T, and a second model: what is there is kept.
    other = tmp_path / "other"  # the original's weights, as a run at another alpha
    shutil.copytree(checkpoint, other)
    (other / "run.yaml").write_text((unlearned / "run.yaml").read_text().replace("alpha: 0.25", "alpha: 1.0"))
    more = [*argv[2:], "--corruptions", "center:2", "ratio:0.5", "--cross_validation", "center:2", "--output_dir", "one"]
    capsys.readouterr()
    recipe("--models", unlearned, f"self={other}", *more, "--figures", "alpha")
    again = capsys.readouterr().out
    assert [line for line in again.splitlines() if line.startswith("[")] == [
        "[1/5] self, center:2",
        "[2/5] unlearned, ratio:0.5",
        "[3/5] self, ratio:0.5",
        "[4/5] unlearned, cross_validation center:2",
        "[5/5] self, cross_validation center:2",
    ]
    again = json.loads((tmp_path / "one" / "results.json").read_text())["results"]
    assert again["center:2"]["unlearned"] == figures
    same = again["cross_validation center:2"]["self"]["forget"]
    assert same["drift"] == 0 and same["features"][0]["fid"] == pytest.approx(same["features"][0]["original_fid"], rel=1e-4)
    assert list((tmp_path / "one").glob("ratio-*-hole.png"))
    assert (
        list((tmp_path / "one").glob("alpha-*-whole.png"))
        and "| alpha |  | 0.25 | 1.0 |" in (tmp_path / "one" / "table.md").read_text()
    )
    with pytest.raises(InputError, match=r"holds figures made with other options \(seed\)"):
        recipe(*argv, "--seed", 1, "--output_dir", "one")

    # Two processes find what one finds.
    two = evaluate(tmp_path, *argv[:4], "--pictures", 0, "--output_dir", "two", processes=2).stdout
    assert "| forget | 12 |" in two
    both = json.loads((tmp_path / "two" / "results.json").read_text())["results"]["center:2"]["unlearned"]
    for which in rows:
        for a, b in zip(both[which]["features"], figures[which]["features"]):
            for key, value in a.items():
                assert b[key] == (pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value), key


def undecoded_rows(dataset, labels):
    return list(undecoded(dataset.filter(lambda row: row["label"] in labels)))


def test_the_recipe_measures_diffusion(tmp_path, unlearned, processor, recipe):
    """The family is read from the checkpoint, and its options from the run."""
    processor.image_mean = processor.image_std = [0.5] * 3
    for name in ("unet", "unet-unlearned"):
        make_unet().save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    run = yaml.safe_load((unlearned / "run.yaml").read_text())
    run |= {"model": str(tmp_path / "unet"), "corruption": "center:8", "denoising_steps": 2, "eval_samples": 4}
    (tmp_path / "unet-unlearned" / "run.yaml").write_text(yaml.safe_dump(run))
    write_network(tmp_path / "network")
    recipe("--models", tmp_path / "unet-unlearned", "--features", f"classifier:{tmp_path}/network", "--pictures", 0)
    found = json.loads((tmp_path / "evaluated" / "results.json").read_text())["results"]["center:8"]["unet-unlearned"]
    # The same weights and draws: a square of rounding errors.
    assert found["forget"]["count"] == 4 and found["forget"]["drift"] < 1e-6 * found["forget"]["mse"]
    assert found["forget"]["features"][1]["fid"] == pytest.approx(found["forget"]["features"][1]["original_fid"], rel=1e-4)


def test_the_recipe_refuses(tmp_path, unlearned, recipe):
    for argv, message in (
        ([], "--models is missing"),
        (["--models", tmp_path / "data"], "--original is missing"),
        (["--models", unlearned, unlearned], "same name"),
        (["--models", unlearned, "--features", "vgg"], "'vgg' is no feature network"),
        (["--models", unlearned, "--features", "none", "--corruptions", "center:9"], "hides everything"),
        # A way of the command line takes the place of the run's.
        (["--models", unlearned, "--forget_classes", "cow", "--features", "none"], "no class 'cow'"),
        (["--models", unlearned, "--figures", "size", "--features", "none"], "'size' is no option to draw against"),
    ):
        with pytest.raises(InputError, match=message):
            recipe(*argv)
