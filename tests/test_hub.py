"""Pushing to a Hub: the real client against a server on this machine (`hub_server`)."""

import hashlib
import json
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import make_dataset, make_mae
from helpers.close import assert_close, is_close
from hub_server import Hub
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.utils import close_session
from peft import PeftModel
from safetensors.torch import load_file
from test_mage import make_mage
from test_unet import make_unet
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_i2i_unlearn import InputError, load_model
from hf_i2i_unlearn.reporting import hub
from hf_i2i_unlearn.reporting.hub import PushError

ROOT = Path(__file__).parents[1]
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@pytest.fixture
def server(monkeypatch):
    """A Hub that this process's client talks to."""
    with Hub() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "WAITS", (0.01, 0.02))
        close_session()  # the client was perhaps made offline
        yield server
        close_session()


def environment(server, tmp_path, token="hf_writer"):
    """That of a fresh process whose client talks to `server`."""
    clean = {name: value for name, value in os.environ.items() if name not in OFFLINE}
    return clean | {
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": token,
        "HF_HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


@pytest.fixture
def folder(tmp_path):
    """What a run leaves behind, and more that is nobody's business."""
    names = [
        "model.safetensors", "config.json", "preprocessor_config.json", "README.md", "before_after.png", "run.yaml", "run.json",
        "request.json", "figures.json", "modeling_x.py", "scheduler/scheduler_config.json", "tokenizer/merges.txt",
        # not for others:
        "training_args.json", "training_args.bin", "log.jsonl", "optimizer.pt", "request.txt", "checkpoint-5/model.safetensors",
        "checkpoint-5/optimizer.pt", "checkpoint-5/trainer_state.json", "weights.pkl",
    ]  # fmt: skip
    for name in names:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("---\nlicense: mit\n---\n" if name == "README.md" else name)
    return tmp_path / "out"


PUSHED = {
    "model.safetensors", "config.json", "preprocessor_config.json", "README.md", "before_after.png", "run.yaml", "run.json",
    "request.json", "figures.json", "modeling_x.py", "scheduler/scheduler_config.json", "tokenizer/merges.txt",
}  # fmt: skip


def push(folder, repo="me/new", **options):
    repo = hub.check_access(repo, options.get("private"), options.get("revision"), options.get("token", "hf_writer"))
    return hub.push(folder, repo, **{"token": "hf_writer"} | options)


def download(name, folder, **options):
    """The text of a file of me/new, or lab/secret."""
    repo = options.pop("repo", "me/new")
    return Path(hf_hub_download(repo, name, cache_dir=folder.parent / "cache", **options)).read_text()


def test_what_is_pushed(server, folder):
    address = push(folder, "new")  # in the namespace of the token
    assert set(server.files("me/new")) == PUSHED and address.startswith(f"{server.url}/me/new/commit/")
    assert not server.repos["me/new"]["private"]
    assert download("config.json", folder) == "config.json"


def test_private_and_revision(server, folder):
    push(folder, "lab/secret", private=True, revision="v2")
    assert server.repos["lab/secret"]["private"] and server.files("lab/secret") == {}
    assert set(server.files("lab/secret", "v2")) == PUSHED
    push(folder, "lab/secret", private=True, revision="v2")  # what is there already is no fault
    with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):
        download("config.json", folder, repo="lab/secret", token=False)


@pytest.mark.parametrize(
    "method, path, what",
    [
        ("GET", "whoami", 503),
        ("POST", "repos/create", 502),
        ("POST", "repos/create", "reset"),
        ("POST", "validate-yaml", 500),
        ("POST", "preupload", "reset"),
        ("POST", "/commit/", 500),
        ("POST", "/commit/", "reset"),
        ("POST", "/commit/", "cut"),
        ("GET", "/resolve/", "cut"),
    ],
)
def test_a_fault_in_the_middle_passes(server, folder, method, path, what):
    server.faults.append((method, path, what))
    push(folder)
    assert download("model.safetensors", folder) == "model.safetensors"
    assert not server.faults, "the fault was not met"
    assert set(server.files("me/new")) == PUSHED


def test_a_fault_that_stays_ends_with_the_command_that_tries_again(server, folder, tmp_path):
    before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    server.faults += [("POST", "/commit/", 507)] * 3
    with pytest.raises(PushError) as caught:
        push(folder, revision="v2", private=True)
    assert not server.faults and server.files("me/new", "v2") == {}
    assert before == {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    first, command = str(caught.value).splitlines()
    assert "507" in first and f"'{folder}' is complete" in first and "hf_writer" not in str(caught.value)
    client = [str(Path(sys.executable).with_name("hf")), *shlex.split(command)[1:]]
    subprocess.run(client, check=True, env=environment(server, tmp_path), capture_output=True)
    assert set(server.files("me/new", "v2")) == PUSHED


@pytest.mark.parametrize(
    "repo, token, message",
    [
        ("me/new", "hf_wrong", "401: .*"),
        ("me/new", "hf_reader", "The Hub token may only read"),
        ("you/theirs", "hf_writer", "The token of 'me' may not push to 'you/theirs'; choose a --hub_model_id under lab, me"),
        ("you/fresh", "hf_writer", "may not push to 'you/fresh'"),
        ("a/b/c", "hf_writer", "may not push|Repo id"),
    ],
)
def test_no_access_is_told_before_any_work(server, repo, token, message):
    server.put("you/theirs")
    with pytest.raises(InputError, match=message):
        hub.check_access(repo, token=token)
    assert set(server.repos) == {"you/theirs"}


def test_no_token_at_all(server, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.hf_api, "get_token", lambda: None)
    with pytest.raises(InputError, match="There is no Hub token to push with; run 'hf auth login'"):
        hub.check_access("me/new")


def test_a_repository_of_somebody_else_refuses_the_commit(server, folder):
    """Rights that were lost since the check."""
    server.put("you/theirs")
    with pytest.raises(PushError, match="403: .*rights to write"):
        hub.push(folder, "you/theirs", token="hf_writer")
    assert server.files("you/theirs") == {}
    tries = [r for r in server.requests if "preupload" in r[1]]
    assert len(tries) == 1, "what is refused is not tried again"


def test_a_card_that_the_hub_refuses(server, folder):
    (folder / "README.md").write_text("---\nbase_model: /home/me/original\n---\n")
    with pytest.raises(PushError, match='"base_model" with value "/home/me/original" is not valid'):
        push(folder)
    with pytest.raises(ValueError, match="is not valid"):
        ModelCard.load(folder / "README.md").validate()


# Whole runs: original from the Hub, unlearned, pushed, and loaded again in a process that has never heard of this package

FORGET = {
    "mae": ["--forget_column", "owner", "--forget_values", "person1", "person2"],
    "diffusion": ["--forget_classes", "cat"],
    "mage": ["--forget_list", "request.txt"],
}
RECIPES = {"mae": [], "diffusion": ["--denoising_steps", "2"], "mage": ["--decoding_steps", "2"]}
KINDS = {
    "mae": "transformers.ViTMAEForPreTraining.from_pretrained({!r})",
    "diffusion": "diffusers.UNet2DModel.from_pretrained({!r})",
    "mage": "transformers.AutoModel.from_pretrained({!r}, trust_remote_code=True)",
}
OUTPUTS = {
    "mae": "model.vit(x, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state",
    "diffusion": "model(torch.cat([x, x], 1), torch.full((2,), 0.5)).sample",
    "mage": "model.encode(model.tokenize(x), *[torch.arange(16).expand(2, -1) < 4] * 2)",
}
X = "torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))"


def script(tmp_path, server, text, **options):
    return subprocess.run(
        [sys.executable, "-c", text], cwd=tmp_path, env=environment(server, tmp_path), capture_output=True, text=True, **options
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A full and a LoRA run of every family, from the Hub to the Hub: (server, folder, what the process printed)."""
    tmp_path = tmp_path_factory.mktemp("runs")
    make_dataset(32).to_parquet(tmp_path / "data" / "train.parquet")
    make_dataset(16).to_parquet(tmp_path / "data" / "validation.parquet")
    (tmp_path / "request.txt").write_text("cat/002.png\ndog/007.png\n")
    size = {"height": 16, "width": 16}
    originals = {
        "mae": (make_mae(), {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}),
        "diffusion": (make_unet(), {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}),
        "mage": (make_mage(), {"do_normalize": False}),
    }
    with Hub() as server:
        for family, (model, options) in originals.items():
            model.save_pretrained(tmp_path / "originals" / family)
            ViTImageProcessorPil(size=size, **options).save_pretrained(tmp_path / "originals" / family)
            (tmp_path / "originals" / family / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
            server.put(f"me/{family}", tmp_path / "originals" / family)
        commands = [
            [str(ROOT / "recipes" / f"unlearn_{family}.py"), "--model", f"me/{family}", "--dataset", str(tmp_path / "data"),
             *FORGET[family], "--corruption", "center:2", "--max_steps", "2", "--eval_samples", "2", "--pictures", "1",
             "--per_device_train_batch_size", "2", "--learning_rate", "1e-2", "--output_dir", f"out/{family}-{kind}",
             "--push_to_hub", "--hub_model_id", f"me/{family}-{kind}", "--use_cpu", "--disable_tqdm", "true", *RECIPES[family],
             *(["--lora", "--lora_rank", "2"] if kind == "lora" else [])]
            for family in originals for kind in ("full", "lora")
        ]  # fmt: skip
        done = script(
            tmp_path,
            server,
            "import runpy, sys, torch\n"
            "torch.set_num_threads(1)\n"
            f"for command in {commands!r}:\n"
            "    sys.argv = command\n"
            "    runpy.run_path(command[0], run_name='__main__')\n"
            "from hf_i2i_unlearn import load_model\n"
            "from safetensors.torch import save_file\n"
            f"x = {X}\n"
            f"for family, output in {OUTPUTS!r}.items():\n"
            "    model = load_model(f'me/{family}-lora').model.eval()\n"
            "    with torch.no_grad():\n"
            "        save_file({'output': eval(output)}, f'{family}-ours.safetensors')\n",
        )
        assert done.returncode == 0, done.stderr
        lines = ["import sys; sys.modules['hf_i2i_unlearn'] = None", "import torch, transformers, diffusers"]
        lines += ["from peft import PeftModel; from safetensors.torch import save_file", "torch.set_num_threads(1)", f"x = {X}"]
        lines += ["from huggingface_hub import ModelCard", "cards = {}"]
        for family in originals:
            for kind in ("full", "lora"):
                base = KINDS[family].format(f"me/{family}-full" if kind == "full" else f"me/{family}")
                lines.append(f"model = {base}")
                if kind == "lora":
                    lines.append(f"model = PeftModel.from_pretrained(model, 'me/{family}-lora')")
                lines.append(f"with torch.no_grad(): save_file({{'output': {OUTPUTS[family]}}}, '{family}-{kind}.safetensors')")
                lines.append(f"ModelCard.load('me/{family}-{kind}').validate()")
            lines.append(f"transformers.AutoImageProcessor.from_pretrained('me/{family}-lora', backend='pil')")
        loaded = script(tmp_path, server, "\n".join(lines))
        assert loaded.returncode == 0, loaded.stderr
        yield server, tmp_path, done.stdout + done.stderr


@pytest.mark.parametrize("family", FORGET)
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_round_trip_over_http(runs, family, kind):
    server, tmp_path, printed = runs
    folder, pushed = tmp_path / "out" / f"{family}-{kind}", server.files(f"me/{family}-{kind}")
    weights = {"lora": "adapter_model.safetensors"}.get(
        kind, "diffusion_pytorch_model.safetensors" if family == "diffusion" else "model.safetensors"
    )
    common = {
        weights,
        "README.md",
        "preprocessor_config.json",
        "before_after.png",
        "run.yaml",
        "run.json",
        "request.json",
        "figures.json",
    }
    own = {name for name in pushed if name.endswith(".py")} if family == "mage" and kind == "full" else set()
    own |= {"scheduler/scheduler_config.json", "i2i_model.json"} if family == "diffusion" and kind == "full" else set()
    assert set(pushed) == common | own | {"adapter_config.json" if kind == "lora" else "config.json"}
    assert pushed[weights] == (folder / weights).read_bytes()
    assert f"{server.url}/me/{family}-{kind}/commit/" in printed

    # What the other process computed from the Hub is what the folder here computes, and not what the original does.
    x = eval(X)

    def compute(model):
        return eval(OUTPUTS[family], {"model": model.eval(), "x": x, "torch": torch})

    original = load_model(str(tmp_path / "originals" / family)).model
    there = load_file(tmp_path / f"{family}-{kind}.safetensors")["output"]
    with torch.no_grad():
        assert not is_close(compute(original), there, 1e-3)
        here = load_model(str(folder)).model if kind == "full" else PeftModel.from_pretrained(original, folder)
        assert_close(compute(here), there)
        if kind == "lora":
            assert_close(load_file(tmp_path / f"{family}-ours.safetensors")["output"], there)


@pytest.mark.parametrize("family", FORGET)
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_card_of_what_was_pushed(runs, family, kind):
    server, tmp_path, _ = runs
    pushed = server.files(f"me/{family}-{kind}")
    card = ModelCard(pushed["README.md"].decode())
    data = card.data
    assert data.base_model == f"me/{family}" and data.license == "cc-by-nc-4.0" and data.pipeline_tag == "image-to-image"
    assert {"machine-unlearning", "image-to-image"} <= set(data.tags)
    assert data.base_model_relation == ("adapter" if kind == "lora" else "finetune")
    assert data.library_name == ("peft" if kind == "lora" else "diffusers" if family == "diffusion" else "transformers")
    assert data.datasets is None  # a folder of this machine is none of the Hub's
    again = ModelCard(f"---\n{data.to_yaml()}\n---\n").data
    results = {(r.dataset_config, r.metric_type, r.metric_name): r.metric_value for r in again.eval_results}
    figures = json.loads(pushed["figures.json"])
    for split in ("forget", "retain"):
        for metric in ("mse", "psnr"):
            for when, key in (("before", f"original_{metric}"), ("after", metric)):
                name = f"{metric} in the hole (center:2), {when} unlearning"
                assert results[split, metric, name] == pytest.approx(figures[split][key], abs=1e-4)
    usage = card.text.split("```python\n")[1].split("```")[0]
    assert f'"me/{family}-{kind}"' in usage and ("trust_remote_code" in usage) == (family == "mage")
    assert ("hf-i2i-unlearn audit" in card.text) and "## Audit" in card.text
    assert adapter_base(pushed) == (f"me/{family}" if kind == "lora" else None)
    # Neither the token nor the names of anybody.
    secrets = ["hf_writer", "person1", "person2", "cat/002.png", "dog/007.png", "002.png"]
    assert not [(name, s) for name, content in pushed.items() for s in secrets if s.encode() in content]
    digest = hashlib.sha256(b"cat/002.png\ndog/007.png\n").hexdigest()
    assert (digest in card.text) == (family == "mage")
    said = {"mae": "2 value(s) of the column 'owner', not named here", "diffusion": "classes cat", "mage": "a list of 2 lines"}
    assert said[family] in card.text and f"{server.url}" not in card.text


def adapter_base(files):
    return json.loads(files["adapter_config.json"])["base_model_name_or_path"] if "adapter_config.json" in files else None


DEMO = [str(ROOT / "recipes" / "unlearn_mae.py"), "--lora", "--max_steps", "1", "--eval_samples", "4", "--disable_tqdm", "true"]


def test_a_refused_token_costs_no_training(server, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [*DEMO, "--push_to_hub", "--hub_model_id", "me/patch", "--hub_token", "hf_wrong"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(DEMO[0], run_name="__main__")
    said = capsys.readouterr()
    assert done.value.code == 2 and server.repos == {} and not list(tmp_path.iterdir())
    assert (
        said.err.strip()
        .splitlines()[-1]
        .startswith("error: Pushing to 'me/patch' is not possible, so nothing was started: 401")
    )
    assert "hf_wrong" not in said.err + said.out


def test_a_failed_push_leaves_a_whole_folder_and_a_command(tmp_path):
    with Hub() as server:
        server.faults += [("POST", "/commit/", 507)] * 3
        done = subprocess.run(
            [sys.executable, *DEMO, "--push_to_hub", "--hub_private_repo", "true", "--hub_token", "hf_writer"],
            cwd=tmp_path,
            env=environment(server, tmp_path),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1 and "Traceback" not in done.stderr
        sentence, retry = done.stderr.strip().splitlines()[-2:]
        assert sentence.startswith("error: The push to 'me/unlearned-mnist-mae' failed (507: ")
        folder = tmp_path / "unlearned-mnist-mae"
        names = {f.name for f in folder.iterdir() if f.is_file()}
        pushed = {"adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json", "README.md",
                  "before_after.png", "run.yaml", "run.json", "request.json", "figures.json"}  # fmt: skip
        assert names == pushed | {"training_args.json", "log.jsonl"}
        assert server.files("me/unlearned-mnist-mae") == {}
        client = [str(Path(sys.executable).with_name("hf")), *shlex.split(retry)[1:]]
        subprocess.run(client, cwd=tmp_path, check=True, env=environment(server, tmp_path), capture_output=True)
        assert set(server.files("me/unlearned-mnist-mae")) == pushed and server.repos["me/unlearned-mnist-mae"]["private"]
        written = "".join(f.read_text() for f in folder.rglob("*") if f.suffix in (".md", ".json", ".yaml"))
        assert "hf_writer" not in written + done.stderr + done.stdout and "--hub_token ..." in written
