"""From a list to a record to `verify`: what is certified is what was measured."""

import json

import pytest
import torch
from conftest import make_dataset, make_mae
from helpers.close import assert_close
from helpers.console import console  # noqa: F401 (a fixture)

from hf_i2i_unlearn import InputError, load_processor
from hf_i2i_unlearn.commands import unlearn, verify
from hf_i2i_unlearn.data.decoding import picture_hash
from hf_i2i_unlearn.reporting.report import write_report
from hf_i2i_unlearn.reporting.request import details, headline, remains, status, worst
from hf_i2i_unlearn.reporting.run_folder import RunFolder


@pytest.fixture
def command(console, monkeypatch, tmp_path):  # noqa: F811
    """Runs a command as the console does; its exit status and what it printed."""

    def called(main, *words):
        monkeypatch.chdir(tmp_path)
        code, *said = console(main, *words)
        return code, "".join(said)

    return called


@pytest.fixture
def request_of_three(tmp_path, checkpoint):
    """Options of a run that forgets three pictures of a parquet folder, by a list."""
    make_dataset(32).to_parquet(tmp_path / "data" / "train.parquet")
    make_dataset(64).select(range(32, 64)).to_parquet(tmp_path / "data" / "validation.parquet")
    (tmp_path / "request.txt").write_text("ant/000.png\nbee/001.png\ncat/002.png\n")
    return [
        "--model", checkpoint, "--dataset", tmp_path / "data", "--forget_list", "request.txt", "--corruption", "center:2",
        "--use_cpu", "true", "--disable_tqdm", "true", "--pictures", 0, "--learning_rate", "1e-2", "--save_strategy", "no",
        "--eval_strategy", "no",
    ]  # fmt: skip


def test_from_a_list_to_a_report_to_verify(command, request_of_three, tmp_path):
    code, said = command(unlearn.main, *request_of_three, "--max_steps", 12, "--output_dir", "out")
    assert code == 0, said
    folder = RunFolder(tmp_path / "out")
    found = folder.request
    names = {
        picture_hash(row) for row in make_dataset(3).cast_column("image", type(make_dataset(1).features["image"])(decode=False))
    }
    assert {p["sha256"] for p in found["pictures"]} == names and found["total"] == 3 and found["missed"] == []
    assert found["certified"] and found["trained"]["least"] >= 1 and len(found["masks"]) == 4
    assert [item["pictures"] for item in found["items"]] == [1, 1, 1] and {i["item"] for i in found["items"]} == {None}
    assert set(found["weights"]["after"]) == {"model.safetensors"} and not found["seen"]
    assert "ant/000.png" not in (tmp_path / "out" / "request.json").read_text() + folder.card.read_text()
    # The verdict stands first, on the screen, in the card and in the report.
    assert said.index(headline(found)) < said.index("| set |")
    card = folder.card.read_text()
    assert card.index(headline(found)) < card.index("after machine unlearning")
    page = write_report(tmp_path / "out").read_text()
    assert page.index("What was asked") < page.index("Was it honoured?") < page.index("Before and after")
    assert all(line.split("(")[0].split("'")[0] in page for line in details(found)[:1])
    # Verified: the same verdicts, of the same pictures and weights.
    words = ["--model", "out", "--forget_list", "request.txt", "--require_forgotten", 0.01, "--verbose", "true"]
    code, said = command(verify.main, *words)
    again = json.loads((tmp_path / "verified" / "verified.json").read_text())
    assert [p["grade"] for p in again["pictures"]] == [p["grade"] for p in found["pictures"]]
    assert again["certified"] and "The pictures are those of the request" in said and "are those that were certified" in said
    assert code == (0 if again["honoured"]["count"] else 3)
    assert "Picture by picture" in (tmp_path / "verified" / "verified.html").read_text()


def test_other_pictures_and_other_weights_are_told(command, request_of_three, tmp_path):
    assert command(unlearn.main, *request_of_three, "--max_steps", 2, "--output_dir", "out")[0] == 0
    (tmp_path / "other.txt").write_text("ant/000.png\ndog/003.png\n")
    code, said = command(verify.main, "--model", "out", "--forget_list", "other.txt")
    assert code == 3 and said.startswith("No: the pictures are not those of the request.\n")
    later = make_mae(9)
    later.save_pretrained(tmp_path / "later")
    code, said = command(verify.main, "--model", "later", "--record", "out", "--forget_list", "request.txt")
    assert "The weights are not those that were certified (model.safetensors differ)" in said
    code, said = command(verify.main, "--model", "later", "--forget_list", "request.txt")
    assert code == 2 and "has no run.yaml; give --record" in said


def test_too_few_steps_are_not_certified(command, request_of_three, tmp_path):
    """One pair a step and two steps: a third picture was never looked at."""
    words = ["--max_steps", 2, "--per_device_train_batch_size", 1, "--require_forgotten", 0.5]
    code, said = command(unlearn.main, *request_of_three, *words, "--output_dir", "out")
    found = RunFolder(tmp_path / "out").request
    assert code == 3 and status(found) == "not certified" and len(found["missed"]) == 1
    assert (
        "Not certified: 1 forget pictures were never trained on" in said and (tmp_path / "out" / "model.safetensors").is_file()
    )
    assert any("never trained on" in line for line in remains(found)) and len(worst(found)) == 3


def test_a_share_that_is_none(command, request_of_three):
    code, said = command(unlearn.main, *request_of_three, "--require_forgotten", 2, "--max_steps", 1)
    assert code == 2 and "--require_forgotten is a share" in said
    assert isinstance(InputError("x"), ValueError)


@pytest.mark.parametrize("kind", ["patch", "merged"])
def test_a_patch_and_a_merged_model(command, request_of_three, tmp_path, kind):
    words = ["--lora", "true", *(["--merge", "true"] if kind == "merged" else [])]
    assert command(unlearn.main, *request_of_three, *words, "--max_steps", 8, "--output_dir", "out")[0] == 0
    found = RunFolder(tmp_path / "out").request
    words = ["--model", "out", "--forget_list", "request.txt", "--require_forgotten", 0.01, "--verbose", "true"]
    code, said = command(verify.main, *words)
    again = json.loads((tmp_path / "verified" / "verified.json").read_text())
    assert code in (0, 3) and again["certified"] and "The weights are those that were certified" in said
    for old, new in zip(found["pictures"], again["pictures"]):
        assert old["sha256"] == new["sha256"] and new["grade"] == old["grade"]
        for mask, cell in old["masks"].items():
            assert_close(torch.tensor(new["masks"][mask]["after"]), torch.tensor(cell["after"]), 1e-3)
    if kind == "patch":  # merged by somebody later on: the same verdicts, of files that nobody certified
        from hf_i2i_unlearn import load_model
        from hf_i2i_unlearn.models.patches import merge

        merged = load_model(str(tmp_path / "out"))
        merge(merged)
        merged.save_pretrained(tmp_path / "later")
        code, said = command(verify.main, "--model", "later", "--record", "out", "--forget_list", "request.txt")
        later = json.loads((tmp_path / "verified" / "verified.json").read_text())
        assert [p["grade"] for p in later["pictures"]] == [p["grade"] for p in found["pictures"]]
        assert "The weights are not those that were certified" in said


def test_a_model_that_somebody_has_trained_further(command, request_of_three, tmp_path):
    """With the class of the library alone, as a stranger would: the pictures are known again, and `verify` says so."""
    from transformers import ViTMAEForPreTraining

    assert command(unlearn.main, *request_of_three, "--max_steps", 12, "--output_dir", "out")[0] == 0
    found = RunFolder(tmp_path / "out").request
    code, _ = command(verify.main, "--model", "out", "--forget_list", "request.txt", "--require_forgotten", 0.01)
    model = ViTMAEForPreTraining.from_pretrained(tmp_path / "out").train()
    pixels = load_processor(str(tmp_path / "out"))(make_dataset(3)["image"][:], return_tensors="pt")["pixel_values"]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    torch.manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        model(pixels).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "further")
    words = ["--model", "further", "--record", "out", "--forget_list", "request.txt", "--verbose", "true"]
    later, said = command(verify.main, *words)
    again = json.loads((tmp_path / "verified" / "verified.json").read_text())
    assert "The weights are not those that were certified (model.safetensors differ); the verdicts are of these." in said
    assert "The pictures are those of the request" in said and again["certified"]
    after = [[p["masks"]["center:2"]["after"] for p in record["pictures"]] for record in (found, again)]
    assert all(new < old for old, new in zip(*after)), "trained on again, they are completed better"
    assert again["honoured"]["count"] < again["honoured"]["of"] and later == 3
