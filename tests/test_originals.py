import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import make_dataset, make_mae
from helpers.close import assert_close
from huggingface_hub import ModelCard
from test_evaluation import make_network, write_network
from test_mage import make_mage
from test_unet import make_unet

from hf_i2i_unlearn import CenterCrop, Evaluator, I2IMage, ImageReader, InputError, RandomMask, undecoded
from hf_i2i_unlearn.commands import evaluate_original as command
from hf_i2i_unlearn.evaluation.trivial import Biharmonic, MeanColour, TrueTokens
from hf_i2i_unlearn.originals.quality import against_trivial, load_original, original_table, verdict

ROOT = Path(__file__).parents[1]
ROWS = list(undecoded(make_dataset(10)))


def test_mean_colour_by_hand():
    mae = make_mae()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, 1:3, 1:3] = True
    mask[1, 0] = True  # the upper quarter
    filled = MeanColour(mae).generate(x, mask)
    seen = torch.cat(
        [x[0, :, :4].flatten(1), x[0, :, 12:].flatten(1), x[0, :, 4:12, :4].flatten(1), x[0, :, 4:12, 12:].flatten(1)], 1
    )
    assert_close(filled[0, :, 4:12, 4:12], seen.mean(1).view(3, 1, 1).expand(3, 8, 8))
    assert_close(filled[1, :, :4], x[1, :, 4:].mean((1, 2)).view(3, 1, 1).expand(3, 4, 16))
    assert torch.equal(filled[1, :, 4:], x[1, :, 4:])


def test_true_tokens_are_what_the_tokenizer_gives_back():
    mage = I2IMage(make_mage())
    x = torch.rand(2, 3, *mage.image_size, generator=torch.Generator().manual_seed(0))
    mask = CenterCrop(2)(mage.grid, range(2))
    hole, filled = mage.hole(mask), TrueTokens(mage).generate(x, mask)
    again = mage.model.decode_tokens(mage.model.tokenize(x))
    assert_close(filled, torch.where(hole, again, x))
    assert not torch.equal(again, x)


def test_biharmonic_continues_a_ramp_and_is_the_librarys():
    skimage = pytest.importorskip("skimage.restoration")
    mae = make_mae()
    rows, cols = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    ramp = torch.stack([0.1 * rows + 0.03 * cols, 1 - 0.2 * cols, 0.5 + 0 * rows])  # linear, one per channel
    noise = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pictures = torch.cat([ramp[None], noise])
    mask = CenterCrop(2)((4, 4), range(4)).clone()
    mask[3] = False
    mask[3, 0, :2] = True  # another hole, at the edge
    filled = Biharmonic(mae).generate(pictures, mask)
    assert_close(filled[0], ramp, 1e-4)
    for picture, hole, result in zip(pictures, mae.hole(mask)[:, 0], filled):
        alone = skimage.inpaint_biharmonic(picture.double().numpy(), hole.numpy(), channel_axis=0)
        assert_close(result, torch.tensor(alone, dtype=torch.float32), 1e-4)
        assert torch.equal(result[:, ~hole], picture[:, ~hole])


def test_biharmonic_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.restoration", None)
    with pytest.raises(InputError, match=r"needs scikit-image; install it \(pip install 'hf_i2i_unlearn\[metrics\]'\)"):
        Biharmonic(make_mae())


class Counting(ImageReader):
    """Counts what is decoded."""

    decoded = 0

    def decode(self, row, seed=0):
        self.decoded += 1
        return super().decode(row, seed)


def test_nothing_is_made_twice(processor):
    """Pictures are decoded once for all T and models; the original completes once per T; true features are made once."""
    original, other, network, reader = make_mae(0), make_mae(1), make_network(), Counting(processor, 3)
    generated, seen = [], []
    generate = original.generate
    original.generate = lambda *args: generated.append(1) or generate(*args)
    network.network.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    first = Evaluator(original, {"a": ROWS}, reader, CenterCrop(1), batch_size=5, keep_original=True, features=[network])
    results = {}
    for corruption in (CenterCrop(2), RandomMask(0.5)):
        evaluator, before = first.under(corruption), len(seen)
        results[str(corruption)] = [evaluator(model, progress=False) for model in (MeanColour(original), original, other)]
        # Two batches; of whole and hole: truth (the whole once for all T), mean colour, original, blank, other; not the
        # original again
        assert len(seen) - before == 2 * (10 if before == 0 else 9)
    assert reader.decoded == 10 and len(generated) == 4
    for corruption in (CenterCrop(2), RandomMask(0.5)):  # and the figures are those of evaluators that keep nothing
        fresh = Evaluator(make_mae(0), {"a": ROWS}, ImageReader(processor, 3), corruption, batch_size=5, features=[network])
        mean, same, changed = results[str(corruption)]
        assert fresh(other, progress=False) == changed
        assert fresh(MeanColour(original), progress=False) == mean
        for how in same["a"]["features"]:
            assert how["fid"] == how["original_fid"] and how["accuracy"] == how["original_accuracy"]
        assert same["a"]["drift"] == 0 and same["a"]["mse"] == changed["a"]["original_mse"]


def figures(mse, fid, similarity, blank=None):
    how = {"network": "tiny", "kind": "module", "region": "hole", "fid": fid, "similarity": similarity}
    return {
        "all": {
            "mse": mse,
            "psnr": 10.0,
            "features": [how | ({} if blank is None else {"blank_fid": blank, "blank_similarity": 0.0})],
        }
    }


def test_verdict_by_hand():
    results = {
        "mean colour": figures(1.0, 30.0, 0.5),
        "biharmonic": figures(0.6, 20.0, 0.75),
        "original": figures(0.45, 16.0, 0.74, 18.0),
    }
    rows = against_trivial(results, "all")
    found = {r["figure"]: (r["by"], r["closer"]) for r in rows}
    assert found["hole error"] == ("biharmonic", pytest.approx(1 - 0.45 / 0.6))
    assert found["FD, hole"] == ("blank hole", pytest.approx(1 - 16 / 18))
    assert found["similarity, hole"] == ("biharmonic", pytest.approx(1 - 0.26 / 0.25))
    text = verdict(rows, "center:2")
    assert text.startswith(
        "center:2: the original beats every trivial completion in 2 of 3 figures, **not in** similarity, hole."
    )
    assert "| hole error | 0.45 | 0.6 (biharmonic) | +25% |" in text
    better = against_trivial(results | {"original": figures(0.3, 10.0, 0.9)}, "all")
    assert "**clearly beats**" in verdict(better, "x")
    assert "**does not beat**" in verdict(against_trivial(results | {"original": figures(2.0, 90.0, 0.1, 1.0)}, "all"), "x")
    table = original_table(results, "all").splitlines()
    assert (
        table[0] == "| tiny | hole error | PSNR | FD, hole | similarity, hole |"
        and "| biharmonic | 0.600 | 10.0 dB | 20 | 0.75 |" in table
    )
    assert "| blank hole | | | 18 | 0 |" in original_table({"original": results["original"]}, "all")


def test_settings_of_generation(tmp_path, processor, checkpoint):
    make_unet(steps=3).save_pretrained(tmp_path / "unet")
    assert load_original(str(tmp_path / "unet")).steps == 3 and load_original(str(tmp_path / "unet"), steps=2).steps == 2
    assert load_original(str(tmp_path / "unet"), {"steps": 5}).steps == 5
    make_mage().save_pretrained(tmp_path / "mage")
    (tmp_path / "mage" / "run.yaml").write_text(yaml.safe_dump({"generation": {"margin": 0, "steps": 4}}))
    assert (load_original(str(tmp_path / "mage")).margin, load_original(str(tmp_path / "mage"), {"margin": 2}).margin) == (0, 2)
    assert not load_original(checkpoint).training
    with pytest.raises(InputError, match="do not fit"):
        load_original(str(tmp_path / "mage"), {"colour": 1})


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The command called within this process: argv -> None."""
    monkeypatch.chdir(tmp_path)
    make_dataset(8).to_parquet(tmp_path / "data" / "train.parquet")
    make_dataset(20).to_parquet(tmp_path / "data" / "validation.parquet")
    write_network(tmp_path / "network")

    def call(*argv):
        monkeypatch.setattr(
            sys, "argv", ["evaluate_original.py", "--use_cpu", "--dataset", str(tmp_path / "data"), *map(str, argv)]
        )
        command.main()

    return call


def test_the_recipe(tmp_path, checkpoint, processor, recipe, capsys):
    ModelCard("---\nlicense: mit\n---\n\n# original\n\n## Limits\n\nSome.\n").save(Path(checkpoint) / "README.md")
    make_mae(1).save_pretrained(tmp_path / "other")
    argv = [
        "--model",
        checkpoint,
        "--corruptions",
        "center:2",
        "--features",
        f"classifier:{tmp_path}/network",
        "--output_dir",
        "one",
    ]
    recipe(*argv, "--update_card", "true")
    out = capsys.readouterr().out
    assert "20 validation" in out and "| biharmonic |" in out and "`center:2`: the original " in out
    assert {f.name for f in (tmp_path / "one").iterdir()} == {
        "cells",
        "completions-center-2.png",
        "networks.json",
        "results.csv",
        "results.json",
        "run.yaml",
        "table.md",
    }
    card = ModelCard.load(Path(checkpoint) / "README.md")
    assert card.text.index("## Against trivial completions") < card.text.index("## Limits") and "mean colour" in card.text
    assert ("validation", "frechet_distance") in {(r.dataset_config, r.metric_type) for r in card.data.eval_results}
    mse = json.loads((tmp_path / "one" / "results.json").read_text())["results"]["center:2"]["original"]["validation"]["mse"]
    reader = ImageReader(processor, 3)
    wanted = Evaluator(make_mae(0), {"v": list(undecoded(make_dataset(20)))}, reader, CenterCrop(2))(
        make_mae(0), progress=False
    )
    assert mse == pytest.approx(wanted["v"]["mse"], rel=1e-5)

    # A copy that never saw the forget classes, both sets apart; another set of pictures takes another folder.
    split = [
        "--forget_classes",
        "cat",
        "--retain_classes",
        "ant",
        "bee",
        "--models",
        f"never_saw={tmp_path}/other",
    ]
    with pytest.raises(InputError, match=r"holds figures made with other options \(forget_classes, retain_classes\)"):
        recipe(*argv, *split)
    recipe(*argv[:-1], "two", *split, "--pictures", 0)
    out = capsys.readouterr().out
    assert "10 retain and 5 forget" in out and out.count("| never_saw |") == 2
    cells = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "two" / "cells").iterdir()}
    recipe(*argv[:-1], "two", *split, "--pictures", 0)
    assert {f.name: f.stat().st_mtime_ns for f in (tmp_path / "two" / "cells").iterdir()} == cells  # nothing is measured again


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--retain_classes", "ant"], "--retain_classes goes with --forget_classes"),
        (["--trivial", "grey"], "'grey' is no trivial completion"),
        (["--models", "FOLDER"], "must be NAME=FOLDER"),
        (["--classes", "cow"], "no class 'cow'"),
        (["--sampler", "ddim"], "is an option of diffusion"),
        (["--corruptions", "center:4"], "hides everything"),
    ],
)
def test_the_recipe_refuses(recipe, checkpoint, argv, message):
    with pytest.raises(InputError, match=message):
        recipe(
            "--model",
            checkpoint,
            "--features",
            "none",
            *(["--corruptions", "center:2"] if "--corruptions" not in argv else []),
            *argv,
        )


def test_the_recipe_measures_diffusion(tmp_path, processor, recipe, capsys):
    processor.image_mean = processor.image_std = [0.5] * 3
    make_unet(steps=3).save_pretrained(tmp_path / "unet")
    processor.save_pretrained(tmp_path / "unet")
    recipe("--model", tmp_path / "unet", "--corruptions", "center:8", "--features", "none", "--eval_samples", 4,
           "--generation_steps", 2, "--sampler", "ddpm", "--pictures", 0)  # fmt: skip
    assert "4 validation" in capsys.readouterr().out
