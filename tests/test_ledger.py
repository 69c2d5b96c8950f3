"""Requests that live on: patches that stand alone and together, their ledger, and what withdraw, renew and merge make of it."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_mae
from helpers.close import assert_close, is_close
from helpers.console import call
from safetensors.torch import load_file, save_file
from test_lora import outputs, randomise
from test_trainer import StopAt, assert_same, make_trainer, weights

from hf_i2i_unlearn import InputError, add_patch, load_model, load_patches
from hf_i2i_unlearn.commands import merge, renew, unlearn, verify, withdraw
from hf_i2i_unlearn.commands.jobs.ledger import LedgerArguments, check, given_pictures, next_folder, open_ledger
from hf_i2i_unlearn.commands.options import RunArguments
from hf_i2i_unlearn.demo import DEMOS
from hf_i2i_unlearn.models.ledger import Ledger, weights_of
from hf_i2i_unlearn.models.patches import original_of

ROWS = {"one": "0-2", "two": "10-12", "three": "20-22", "four": "30-32"}
demo = pytest.mark.skipif(not Path(DEMOS["mnist-demo"]).is_dir(), reason="the embedded MAE is not in this checkout")


def forget(folder, name, *more):
    """Three digits of the embedded demo are forgotten by a patch that goes to the ledger; a later option overrides."""
    return call(
        unlearn.main, "--model", "mnist-demo", "--dataset", "mnist-demo", "--forget_rows", ROWS[name], "--copies", "skip",
        "--corruption", "center:3", "--learning_rate", "2e-3", "--noise_target", "mean", "--mean_draws", 128, "--max_steps", 20,
        "--lora", "true", "--ledger", folder, "--output_dir", folder / name, "--use_cpu", "true", "--disable_tqdm", "true",
        "--pictures", 0, "--save_strategy", "no", "--eval_strategy", "no", "--eval_samples", 24, "--alpha", 0.5,
        "--per_device_train_batch_size", 8, "--card_names", "true", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The ledger of four requests, made one after the other."""
    folder = tmp_path_factory.mktemp("requests") / "patches"
    for name in ROWS:
        assert forget(folder, name) == 0
    return folder


@pytest.fixture
def four(made, tmp_path):
    """A copy of it, in another place."""
    return shutil.copytree(made, tmp_path / "patches")


def spoil(folder, name):
    """The patch of a request forgets nothing any more, and the ledger takes it for its own."""
    ledger = Ledger(folder)
    entry = ledger.find(name)
    file = Path(ledger.patch(entry)) / "adapter_model.safetensors"
    save_file({key: torch.zeros_like(w) for key, w in load_file(file).items()}, file)
    entry["weights"] = weights_of(file.parent)
    ledger.write()


@demo
def test_whatever_is_withdrawn_the_others_hold(made):
    """Alone, with one of the others withdrawn, and all four together; `recipes/four_requests.py` goes through every subset."""
    ledger = open_ledger(made)
    args = LedgerArguments(ledger=str(made), use_cpu=True, require_forgotten=0.6)
    pictures, found = given_pictures(args, ledger), 0
    for count in (1, 3, 4):
        for some in itertools.combinations(ledger.active, count):
            assert check(ledger, list(some), pictures, args) == []
            found += sum(entry["held"]["count"] for entry in some)
    assert found >= 0.95 * 20 * 3  # 20 times three pictures
    content = json.loads((made / "requests.json").read_text())
    assert [e["name"] for e in content["requests"]] == list(ROWS) and content["original"] == "mnist-demo"
    assert [e["patch"] for e in content["requests"]] == [f"./{name}" for name in ROWS]
    assert len({e["request"] for e in content["requests"]}) == 4
    assert not (made / "two" / "patches.json").exists()  # each stands alone; who is on says the ledger


@demo
def test_withdraw(four, tmp_path, capsys):
    """A request comes off; the rest holds, here after one that did not was trained anew."""
    assert call(withdraw.main, "--ledger", four, "--request", "seven") == 2
    assert "'seven' names no request in" in capsys.readouterr().err
    ledger = Ledger(four)
    for name in ("one", "three"):  # so that nothing but its own patch makes it forget the fourth
        ledger.find(name)["withdrawn"] = "before"
    ledger.write()
    spoil(four, "four")
    words = ["--ledger", four, "--use_cpu", "true", "--require_forgotten", 0.6]
    before = (four / "requests.json").read_text()
    assert call(withdraw.main, *words, "--request", "two", "--renewals", 0) == 3
    assert "Without two, four cannot be made to hold" in capsys.readouterr().err
    assert json.loads((four / "requests.json").read_text()) == json.loads(before)
    assert call(withdraw.main, *words, "--request", "two") == 0
    said = capsys.readouterr().out
    assert "four does NOT hold" in said and "four is trained anew, for 20 steps" in said and "Withdrawn: two." in said
    ledger = open_ledger(four)
    assert [e["name"] for e in ledger.active] == ["four"]
    four_again = ledger.find("four")
    assert four_again["patch"] == "./four-2" and four_again["renewed"] and four_again["held"]["with"] == ["four"]
    assert load_model(str(four)).patch.below == [str(four / "four-2")]


@demo
def test_merge(four, tmp_path, capsys):
    words = ["--ledger", four, "--use_cpu", "true", "--require_forgotten", 0.6, "--output_dir", tmp_path / "merged"]
    ledger = Ledger(four)
    ledger.find("one")["withdrawn"] = "today"
    ledger.write()
    assert call(merge.main, *words) == 0
    merged, layer = load_model(str(tmp_path / "merged")), load_model(str(four)).model.vit.layers[0].mlp.fc1
    added = sum(layer.get_delta_weight(f"patch{i}") for i in range(3))
    assert merged.patch is None
    assert_close(merged.model.vit.layers[0].mlp.fc1.weight, layer.base_layer.weight + added)
    told = json.loads((tmp_path / "merged" / "merged.json").read_text())
    assert [request["name"] for request in told["requests"]] == ["two", "three", "four"]
    card = (tmp_path / "merged" / "README.md").read_text()
    assert all(request["request"] in card for request in told["requests"]) and "of 3 requests" in card
    assert str(tmp_path) not in card
    # The merged model answers for each of its requests to `verify` too.
    verified = ["--model", tmp_path / "merged", "--record", four / "two", "--output_dir", tmp_path / "verified"]
    assert call(verify.main, *verified, "--use_cpu", "true", "--require_forgotten", 0.6) == 0
    for name in ("two", "three", "four"):
        spoil(four, name)
    assert call(merge.main, *words[:-1], tmp_path / "again") == 3
    assert "two and three and four do not hold in the merged model" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


@demo
def test_renew(four, capsys):
    words = ["--ledger", four, "--use_cpu", "true", "--require_forgotten", 0.6]
    spoil(four, "three")
    status = call(renew.main, "--request", "three", "--max_steps", 30, *words, "--learning_rate", "3e-3")
    assert status == 0 and "three holds" in capsys.readouterr().out
    new = json.loads((four / "requests.json").read_text())["requests"][2]
    assert new["patch"] == "./three-2" and new["renewed"]
    assert "max_steps: 30" in (four / "three-2" / "run.yaml").read_text()
    assert call(renew.main, "--request", "three", *words, "--learning_rat", "3e-3") == 2
    assert "'--learning_rat' is no option; did you mean --learning_rate" in capsys.readouterr().err


# What nobody needs weights that have learnt something for


def patched(folder, count):
    """Patches of a tiny MAE with random weights; their folders."""
    paths = []
    for number in range(count):
        model = make_mae()
        add_patch(model, "base")
        randomise(model, 0.1 * (number + 1))
        model.patch.save_pretrained(folder / str(number))
        paths.append(str(folder / str(number)))
    return paths


def test_patches_below_take_turns(tmp_path):
    """A draw is of the seed and the step alone, all and none come up, and what is trained goes on being trained."""
    model = make_mae()
    load_patches(model, patched(tmp_path, 3))
    add_patch(model, "base")
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    seen = {}
    for step in range(60):
        model.patch.take_turns(0, step)
        seen[step] = tuple(model.patch.layers()[0].active_adapters)
        assert seen[step][-1] == "default"
        assert {name for name, p in model.named_parameters() if p.requires_grad} == learning
    assert {len(names) for names in seen.values()} == {1, 2, 3, 4}
    model.patch.take_turns(0, 7)
    assert tuple(model.patch.layers()[0].active_adapters) == seen[7]
    assert all(".lora_" in name and ".default." in name for name in learning)


def test_the_original_has_the_same_patches_on(tmp_path):
    """Bit for bit what the model without the new patch says, with those below on that are on; and `alone` without any."""
    paths = patched(tmp_path, 2)
    model = make_mae()
    load_patches(model, paths)
    add_patch(model, "base")
    view = original_of(model)
    randomise(model)
    model.eval()
    for on in ([], [0], [1], [0, 1]):
        model.patch._act([f"patch{i}" for i in on] + ["default"])
        other = make_mae()
        if on:
            load_patches(other, [paths[i] for i in on])
        assert_close(outputs(view, "mae")[0], outputs(other.eval(), "mae")[0])
        assert_close(outputs(view.alone, "mae")[0], outputs(make_mae().eval(), "mae")[0])
        assert model.patch.layers()[0].active_adapters == [f"patch{i}" for i in on] + ["default"]
    assert not is_close(outputs(model, "mae")[0], outputs(view, "mae")[0], 1e-2)


def test_a_resumed_run_takes_the_same_turns(tmp_path, processor):
    paths = patched(tmp_path, 2)

    def begun(folder, **more):
        model = make_mae()
        load_patches(model, paths)
        add_patch(model, "base", rank=2)
        options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "noise_target": "mean", "mean_draws": 8}
        return make_trainer(tmp_path / folder, processor, model, evaluate=True, **options | more)

    straight = begun("straight")
    straight.train()
    with pytest.raises(KeyboardInterrupt):
        begun("killed", callbacks=[StopAt(5)]).train()
    resumed = begun("killed")
    resumed.train(resume_from_checkpoint="true")
    assert_same(weights(straight), weights(resumed))
    assert straight.i2i.patch.layers()[0].active_adapters == ["patch0", "patch1", "default"]  # all on, at the end


def test_targets_that_change_with_the_turns_are_not_kept(tmp_path, processor):
    model = make_mae()
    load_patches(model, patched(tmp_path, 1))
    add_patch(model, "base")
    with pytest.raises(InputError, match="the patches below are switched on and off in training"):
        make_trainer(tmp_path / "out", processor, model, cache_targets=True)


def test_options_that_do_not_go_with_a_ledger():
    for options in ({"lora": False}, {"lora": True, "merge": True}, {"lora": True, "streaming": True}):
        with pytest.raises(InputError, match="A ledger is of patches and of pictures that can be counted"):
            RunArguments(ledger="x", **options)


def entered(tmp_path, **more):
    """A ledger of one random patch of a tiny MAE, whose pictures lie beside it."""
    make_mae().save_pretrained(tmp_path / "base")
    (tmp_path / "photos").mkdir()
    (path,) = patched(tmp_path / "patches", 1)
    ledger = Ledger(tmp_path / "patches")
    ledger.original = str(tmp_path / "base")
    pictures = {"dataset": str(tmp_path / "photos"), "forget_list": "not/there.txt"} | more
    ledger.enter("zero", "ab12", path, pictures, "3 pictures", {"count": 3, "of": 3})
    ledger.write()
    return ledger


def test_a_ledger_can_be_moved_with_what_lies_beside_it(tmp_path):
    entered(tmp_path)
    text = (tmp_path / "patches" / "requests.json").read_text()
    assert str(tmp_path) not in text
    (tmp_path / "elsewhere").mkdir()
    for name in ("patches", "photos", "base"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere")
    ledger = open_ledger(str(tmp_path / "elsewhere" / "patches"))
    assert ledger.original == str(tmp_path / "elsewhere" / "base")
    assert load_model(str(tmp_path / "elsewhere" / "patches")).patch.below == [str(tmp_path / "elsewhere" / "patches" / "0")]
    pictures = given_pictures(LedgerArguments(ledger=str(ledger.folder)), ledger)["zero"]
    assert pictures == {"dataset": str(tmp_path / "elsewhere" / "photos"), "forget_list": "not/there.txt"}


def test_pictures_are_given_again_per_request(tmp_path):
    ledger = entered(tmp_path)
    asked = LedgerArguments(ledger="x", dataset=["else"], forget_list=["zero=now.txt"])
    assert given_pictures(asked, ledger)["zero"] == {"dataset": "else", "forget_list": "now.txt"}
    with pytest.raises(InputError, match="--forget_rows takes NAME=..., NAME one of the requests zero; got 'nine=3'"):
        given_pictures(LedgerArguments(ledger="x", forget_rows=["nine=3"]), ledger)
    asked = LedgerArguments(ledger="x", forget_values=["zero=Jane", "zero=Joe"])
    assert given_pictures(asked, ledger)["zero"]["forget_values"] == ["Jane", "Joe"]


def test_other_weights_and_other_originals_are_told(tmp_path):
    ledger = entered(tmp_path)
    assert ledger.find("ab")["name"] == "zero" and next_folder(tmp_path / "patches" / "0").name == "0-2"
    with pytest.raises(InputError, match="has a request 'zero'; choose another --output_dir"):
        ledger.enter("zero", "cd34", tmp_path / "patches" / "0", {}, "", {})
    add = make_mae(1)
    add_patch(add, "base", rank=4)
    randomise(add)
    add.patch.save_pretrained(tmp_path / "patches" / "0")
    with pytest.raises(InputError, match="are not those that were entered for 'zero'"):
        load_model(str(tmp_path / "patches"))
    shutil.rmtree(tmp_path / "patches" / "0")
    with pytest.raises(InputError, match="The patch of 'zero' is not in"):
        open_ledger(str(tmp_path / "patches"))
    with pytest.raises(InputError, match="has no requests.json; give --ledger the folder"):
        open_ledger(str(tmp_path / "photos"))
