import math

import pytest
import torch
from accelerate import Accelerator
from conftest import make_dataset, make_mae
from helpers.close import assert_close, is_close
from test_trainer import FORGET, RETAIN, StopAt, assert_same, make_trainer, weights
from transformers import TrainerCallback

from hf_i2i_unlearn import (
    DISTANCES,
    METHODS,
    CenterCrop,
    ForgetRetainPairs,
    InputError,
    RandomMask,
    UnlearningConfig,
    UnlearningTrainer,
    undecoded,
)
from hf_i2i_unlearn.methods.noise import LowRankNormal
from hf_i2i_unlearn.training.config import check_options
from hf_i2i_unlearn.training.control import RetainBound


def test_multiplier_by_hand():
    bound = RetainBound(bound=0.5, multiplier=4.0, rate=0.1, decay=0.5)
    loss = bound.weigh(torch.tensor(1.0), torch.tensor(3.0))
    assert loss.item() == pytest.approx((4 * 1 + 3) / 5)
    bound.weigh(torch.tensor(2.0), torch.tensor(3.0))  # a second micro-batch of the same step
    bound.step(Accelerator(cpu=True))
    assert bound.average == 0.75  # half of the mean 1.5
    assert bound.log_multiplier == pytest.approx(math.log(4) + 0.1 * 0.5)  # 0.75 / 0.5 - 1
    bound.weigh(torch.tensor(0.0), torch.tensor(3.0))
    bound.step(Accelerator(cpu=True))
    assert bound.log_multiplier == pytest.approx(math.log(4) + 0.1 * (0.5 - 0.25))  # 0.375 / 0.5 - 1


def test_the_target_allows_for_the_gap_to_unseen_pictures():
    bound = RetainBound(bound=0.5, multiplier=4.0, rate=0.1, decay=0.0)
    bound.calibrate(0.3)  # nothing seen in training yet
    assert bound.target == 0.5
    bound.weigh(torch.tensor(0.4), torch.tensor(3.0))
    bound.step(Accelerator(cpu=True))
    bound.calibrate(0.8)  # twice the distance in training
    assert bound.target == pytest.approx(0.25)
    bound.weigh(torch.tensor(0.3), torch.tensor(3.0))
    bound.step(Accelerator(cpu=True))
    assert bound.log_multiplier == pytest.approx(math.log(4) + 0.1 * (0.4 / 0.5 - 1) + 0.1 * (0.3 / 0.25 - 1))
    bound.calibrate(0.2)  # never above epsilon
    assert bound.target == 0.5


def bounded(folder, processor, bound, **options):
    return make_trainer(
        folder, processor, evaluate=True, retain_bound=bound, max_steps=150, eval_strategy="no", learning_rate=3e-3,
        logging_strategy="no", **options,
    )  # fmt: skip


def test_a_tighter_bound_keeps_more_and_forgets_less(tmp_path, processor):
    found = []
    for bound in (0.02, 0.2):
        trainer = bounded(tmp_path, processor, bound)
        trainer.train()
        assert trainer.bound.average == pytest.approx(bound, rel=0.5)  # the bound is used up, and not far exceeded
        report = trainer.bound_report()
        assert report["bound"] == bound and report["holds"] == (report["retain_distance"] <= bound)
        found.append((report["retain_distance"], trainer._eval_terms()[1]))
    (tight_retain, tight_forget), (wide_retain, wide_forget) = found
    assert tight_retain < wide_retain and tight_forget > wide_forget


def test_a_bounded_run_resumes_with_its_multiplier(tmp_path, processor):
    options = {"retain_bound": 0.05, "max_steps": 7, "save_strategy": "steps", "save_steps": 2}
    straight = make_trainer(tmp_path / "straight", processor, **options)
    straight.train()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "killed", processor, callbacks=[StopAt(5)], **options).train()
    resumed = make_trainer(tmp_path / "killed", processor, **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.bound.state() == straight.bound.state()
    assert_same(weights(straight), weights(resumed))


def test_without_a_bound_there_is_no_report(tmp_path, processor):
    assert make_trainer(tmp_path, processor).bound_report() is None


@pytest.mark.parametrize("method, rising", [("ours", False), ("max_loss", True)])
def test_stops_at_the_wanted_forget_distance(tmp_path, processor, method, rising):
    options = {"method": method, "evaluate": True, "max_steps": 60, "eval_steps": 5, "learning_rate": 3e-3}
    free = make_trainer(tmp_path, processor, **options)
    free.train()
    path = [log["eval_forget_distance"] for log in free.state.log_history if "eval_loss" in log]
    assert (path[-1] > path[0]) == rising
    wanted = (path[4] + path[5]) / 2  # no distance of the path itself, which another run could miss by a rounding error
    first = next(k for k, d in enumerate(path) if (d >= wanted if rising else d <= wanted))
    stopped = make_trainer(tmp_path, processor, stop_at_forget_distance=wanted, **options)
    stopped.train()
    assert stopped.state.global_step == 5 * (first + 1) < 60


def test_stops_at_a_plateau(tmp_path, processor):
    trainer = make_trainer(
        tmp_path, processor, evaluate=True, max_steps=60, eval_steps=5, patience=2, patience_threshold=10.0, learning_rate=1e-4
    )
    trainer.train()
    assert trainer.state.global_step == 15  # nothing can be better by 10, so two evaluations after the first


def test_stopping_needs_evaluation_pictures(tmp_path, processor):
    with pytest.raises(InputError, match="patience need evaluation pictures"):
        make_trainer(tmp_path, processor, patience=2)


def test_bounds_that_make_no_sense():
    with pytest.raises(InputError, match="retain_bound must be larger than 0, got -1"):
        UnlearningConfig("x", retain_bound=-1)
    with pytest.raises(InputError, match="'noisy_label' trains on outputs"):
        check_options(UnlearningConfig("x", retain_bound=0.1), METHODS["noisy_label"], DISTANCES["mse"])


@pytest.mark.parametrize("method", ["random_encoder", "max_loss", "noisy_label", "retain_label", "control"])
def test_every_method_trains_what_it_should(tmp_path, processor, method):
    model = make_mae()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = make_trainer(tmp_path, processor, model, method=method, evaluate=True, max_steps=3)
    trainer.train()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert any(n.startswith("model.vit.") for n in moved)
    assert any(n.startswith("model.decoder.") for n in moved) == (method != "random_encoder")
    logs = [log for log in trainer.state.log_history if "loss" in log]
    sign = {"max_loss": -1, "control": 0}.get(method, 1)
    for log in logs:
        assert log["loss"] == pytest.approx(log["retain_distance"] + sign * 0.25 * log.get("forget_distance", 0), rel=1e-4)
    assert ("forget_distance" in logs[0]) == (method != "control")
    trainer.save_model()
    other = make_mae(5)
    other.load_weights(tmp_path)
    assert_same(weights(trainer), dict(other.named_parameters()))


@pytest.mark.parametrize("corruption", [CenterCrop(2), RandomMask(0.5)])
def test_the_mean_target_forgets_as_fresh_noise_does(tmp_path, processor, corruption):
    found = {}
    for target in ("fresh", "mean"):
        trainer = make_trainer(
            tmp_path, processor, corruption=corruption, evaluate=True, eval_strategy="no", max_steps=80, noise_target=target,
            learning_rate=3e-3, logging_strategy="no", mean_draws=256,
        )  # fmt: skip
        trainer.objective.noise_target, start = "fresh", trainer.objective.noise_target
        first = trainer._eval_terms()[1]
        trainer.objective.noise_target = start
        trainer.train()
        trainer.objective.noise_target = "fresh"
        found[target] = trainer._eval_terms()[1]
        assert found[target] < 0.95 * first
    assert found["mean"] == pytest.approx(found["fresh"], rel=0.05)


def test_a_fitted_noise_is_used(tmp_path, processor):
    rows = undecoded(make_dataset(8))
    noise = LowRankNormal(torch.full((768,), 7.0), torch.zeros(768, 1), 0.0)
    trainer = UnlearningTrainer(
        make_mae(),
        UnlearningConfig(str(tmp_path), use_cpu=True),
        ForgetRetainPairs(rows, rows),
        processor,
        CenterCrop(2),
        noise=noise,
    )
    seen = []
    encode = trainer.original.forward
    trainer.original.forward = lambda x, mask: (seen.append(x), encode(x, mask))[1]
    batch = trainer.data_collator([trainer.train_dataset[t] for t in range(4)])
    trainer.compute_loss(trainer.model, batch)
    assert (seen[0][4:] == 7).all() and len(FORGET) == 8 and len(RETAIN) == 16


class Record(TrainerCallback):
    """The trained weights after each step."""

    def __init__(self):
        self.steps = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.steps.append({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})


def test_ema_by_hand(tmp_path, processor):
    """Against the recursion of the library's rule, decay_k = min(decay, (1 + k) / (10 + k)) with k = 0 at the first step."""
    record, model = Record(), make_mae()
    average = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = make_trainer(
        tmp_path, processor, model, evaluate=True, max_steps=6, eval_steps=3, ema_decay=0.3, callbacks=[record]
    )
    trainer.train()
    for k, step in enumerate(record.steps):
        decay = 0.0 if k == 0 else min(0.3, (1 + k) / (10 + k))
        for name, value in step.items():
            average[name] = decay * average[name] + (1 - decay) * value
    assert_close(weights(trainer), average, 1e-6)
    last = record.steps[-1]["model.vit.layernorm.weight"]
    assert not is_close(last, average["model.vit.layernorm.weight"], 1e-4)
    # The figures during training are those of the average: evaluating the result again gives the last ones.
    logged = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(logged[-1], rel=1e-5)


def test_a_run_with_ema_resumes(tmp_path, processor):
    options = {"ema_decay": 0.9, "max_steps": 7, "save_strategy": "steps", "save_steps": 2}
    straight = make_trainer(tmp_path / "straight", processor, **options)
    straight.train()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "killed", processor, callbacks=[StopAt(5)], **options).train()
    resumed = make_trainer(tmp_path / "killed", processor, **options)
    resumed.train(resume_from_checkpoint=True)
    assert_same(weights(straight), weights(resumed))
    resumed.save_model()
    assert not (tmp_path / "killed" / "ema.safetensors").exists()  # the result is the average


def test_a_decay_that_makes_no_sense():
    with pytest.raises(InputError, match="ema_decay must lie between 0 .* got 1.5"):
        UnlearningConfig("x", ema_decay=1.5)
