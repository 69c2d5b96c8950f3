"""The operator's road: a run that is preempted and goes on, trackers, and exit statuses that scripts can trust.

The plan is tests/test_plan.py, an internal Hub (HF_ENDPOINT) tests/test_hub.py, several devices tests/test_processes.py.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import CLASSES, make_dataset
from helpers.close import assert_close
from safetensors.torch import load_file
from test_faults import At
from test_trainer import make_trainer

from hf_i2i_unlearn import InputError, UnlearningConfig
from hf_i2i_unlearn.commands.cli import COMMON, run
from hf_i2i_unlearn.commands.unlearn import main as unlearn
from hf_i2i_unlearn.errors import Preempted
from hf_i2i_unlearn.training import base_trainer
from hf_i2i_unlearn.training.checkpoints import is_whole

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def command(tmp_path, checkpoint):
    """A run of 24 steps that takes its time, in a folder of its own."""
    make_dataset(32).to_parquet(tmp_path / "data" / "train.parquet")

    def command(folder, *options, steps=24):
        return [sys.executable, "-m", "hf_i2i_unlearn", "unlearn", "--model", checkpoint, "--dataset", str(tmp_path / "data"),
                "--eval_split", "none", "--forget_classes", "cat", "--corruption", "center:2", "--max_steps", str(steps),
                "--per_device_train_batch_size", "2", "--eval_samples", "2", "--pictures", "0", "--eval_strategy", "no",
                "--save_strategy", "no", "--copies", "skip", "--use_cpu", "true", "--disable_tqdm", "true", "--learning_rate",
                "1e-2", "--output_dir", str(folder), *options]  # fmt: skip

    return command


SLOWLY = """
import sys, time
from hf_i2i_unlearn import UnlearningTrainer
from hf_i2i_unlearn.commands import main
step = UnlearningTrainer.training_step
def slowly(self, *args, **kwargs):
    print("step", self.state.global_step, flush=True)
    time.sleep(0.1)
    return step(self, *args, **kwargs)
UnlearningTrainer.training_step = slowly
main()
"""


def test_a_preempted_run_goes_on_to_the_same_weights(tmp_path, command, monkeypatch):
    """By the command that a user types: SIGTERM, status 75, one sentence, and the weights of a run that nobody disturbed."""
    folder = tmp_path / "out"
    slow = [sys.executable, "-c", SLOWLY, *command(folder)[3:]]
    child = subprocess.Popen(slow, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "step 2" not in child.stdout.readline():
        assert child.poll() is None, child.stderr.read()
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 75, said
    (kept,) = folder.glob("checkpoint-*")
    assert is_whole(kept) and 3 <= int(kept.name[11:]) < 24
    sentence = said.strip().splitlines()[-1]
    assert f"'{kept}' is saved" in sentence and sentence.endswith("Go on with --resume_from_checkpoint true.")
    assert "Traceback" not in said
    for argv in (command(folder, "--resume_from_checkpoint", "true"), command(tmp_path / "straight")):
        monkeypatch.setattr(sys, "argv", argv[3:])
        unlearn()
    assert_close(load_file(folder / "model.safetensors"), load_file(tmp_path / "straight" / "model.safetensors"))


def test_the_signal_is_heard_in_training_alone(tmp_path, processor):
    """The handler of before is there again; what comes in the last step ends nothing."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        told = At(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        trainer = make_trainer(tmp_path, processor, max_steps=3, callbacks=[told])
        with pytest.raises(Preempted, match=r"after step 2; '.*checkpoint-2' is saved"):
            trainer.train()
        assert [f.name for f in tmp_path.iterdir()] == ["checkpoint-2"] and not heard
        told.on_step_begin = lambda *args, **kwargs: None
        trainer.train("true")
        assert trainer.state.global_step == 3
        last = At(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert make_trainer(tmp_path / "last", processor, max_steps=3, callbacks=[last]).train().global_step == 3
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert heard == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_scheduler_that_signals_the_data_workers_too(tmp_path, processor):
    """They are deaf, so that the step that is under way has its pictures; one that had not begun is told of."""

    def tell_all():
        workers = psutil.Process().children(recursive=True)
        assert workers
        for process in workers:
            process.terminate()
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(tmp_path, processor, dataloader_num_workers=1, callbacks=[At(3, tell_all)], **options)
    with pytest.raises(Preempted, match="after step 3; '.*checkpoint-3' is saved"):
        trainer.train()

    def end_all():
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")

    trainer = make_trainer(tmp_path / "ended", processor, callbacks=[At(4, end_all)], **options)
    with pytest.raises(Preempted, match="the last good checkpoint is .*checkpoint-2'. Go on with"):
        trainer.train()


def test_exit_statuses(capsys):
    def ended_by(error):
        def main():
            raise error

        with pytest.raises(SystemExit) as end:
            run(main)
        return end.value.code

    assert ended_by(Preempted("SIGTERM has ended this run.")) == 75
    assert capsys.readouterr().err == "error: SIGTERM has ended this run.\n"
    page = (ROOT / "recipes" / "README.md").read_text()
    table = page[page.index("| exit status |") :].split("\n\n")[0]
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["0", "1", "2", "3", "75"]


# ------------------------------------------------------------------------------------------------------------------ trackers


def test_help_shows_the_option():
    assert "report_to" in COMMON
    assert "tensorboard" in UnlearningConfig.__dataclass_fields__["report_to"].metadata["help"]


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio"])
def test_a_tracker_gets_figures_and_no_picture(tmp_path, processor, monkeypatch, tracker):
    """It is given losses, distances, seconds of a step, the figures of evaluation, and the options of training."""
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trainer = make_trainer(tmp_path / "out", processor, evaluate=True, max_steps=2, eval_steps=2, report_to=tracker)
    trainer.train()
    place = tmp_path / "out" if tracker == "tensorboard" else tmp_path / "trackio"
    deadline = time.time() + 20
    while not (files := [f for f in place.rglob("*") if f.is_file() and f.stat().st_size]) and time.time() < deadline:
        time.sleep(0.1)
    content = b"".join(f.read_bytes() for f in files)
    for name in (b"retain_distance", b"forget_distance", b"seconds_per_step"):
        assert name in content
    assert b"forget_mse" in content
    assert b"\x89PNG" not in content and b"\xff\xd8\xff" not in content  # no picture
    assert not any(f"{name}/".encode() in content for name in CLASSES)  # no file name


def test_a_tracker_that_is_unknown_or_not_there_is_one_sentence(tmp_path, processor, monkeypatch):
    with pytest.raises(InputError, match="'tensorbord' is no tracker for report_to; did you mean tensorboard?"):
        make_trainer(tmp_path, processor, report_to="tensorbord")
    monkeypatch.setattr(base_trainer, "get_available_reporting_integrations", lambda: [])
    with pytest.raises(InputError, match=r"'wandb' is not installed; install it \(pip install wandb\)"):
        make_trainer(tmp_path, processor, report_to="wandb")
