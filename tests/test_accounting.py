"""What a run vouches for: its request, every picture of it, and that it trained."""

import pytest
import torch
from conftest import make_mae
from test_trainer import FORGET, RETAIN, StopAt, make_trainer

from hf_i2i_unlearn import (
    METHODS,
    CenterCrop,
    ForgetRetainPairs,
    InputError,
    RandomMask,
    RunError,
    UnlearningConfig,
    UnlearningTrainer,
)
from hf_i2i_unlearn.data.decoding import picture_hash

SAVED = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}


def break_off(trainer):
    """Train until `StopAt` ends it."""
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


def test_every_picture_is_counted(tmp_path, processor):
    """Two epochs: each twice; also over a break."""
    trainer = make_trainer(tmp_path, processor)
    trainer.train()
    wanted = {picture_hash(row): 2 for row in FORGET}
    assert len(wanted) == len(FORGET) and trainer.accounting.counts == wanted and not trainer.accounting.missed
    options = {"save_strategy": "steps", "save_steps": 1}
    break_off(make_trainer(tmp_path / "broken", processor, callbacks=[StopAt(3)], **options))
    resumed = make_trainer(tmp_path / "broken", processor, **options)
    resumed.train("true")
    assert resumed.accounting.counts == wanted


def test_a_picture_that_was_never_trained_on_is_missed(tmp_path, processor):
    trainer = make_trainer(tmp_path, processor, max_steps=1)
    trainer.train()
    seen = set(trainer.accounting.counts)
    assert len(seen) == 4 and set(trainer.accounting.missed) == {picture_hash(row) for row in FORGET} - seen


@pytest.mark.parametrize(
    "change, words",
    [
        ({"pairs": ForgetRetainPairs(FORGET.select(range(4)), RETAIN, 5)}, "its forget set is another one"),
        ({"corruption": CenterCrop(1)}, r"its T is another one \('center:2', not 'center:1'\)"),
        ({"corruption": RandomMask(0.25)}, r"\('center:2', not 'random:0.25'\)"),
        ({"method": "random_encoder"}, r"its method is another one \('ours', not 'random_encoder'\)"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_checkpoint_belongs_to_its_request(tmp_path, processor, change, words, finished):
    if finished:
        make_trainer(tmp_path, processor, **SAVED).train()
    else:
        break_off(make_trainer(tmp_path, processor, callbacks=[StopAt(2)], **SAVED))
    with pytest.raises(InputError, match=words):
        make_trainer(tmp_path, processor, **SAVED | change).train("true")


def test_the_same_pictures_in_another_order_are_the_same_request(tmp_path, processor):
    break_off(make_trainer(tmp_path, processor, callbacks=[StopAt(2)], **SAVED))
    order = list(reversed(range(len(FORGET))))
    make_trainer(tmp_path, processor, pairs=ForgetRetainPairs(FORGET.select(order), RETAIN, 5), **SAVED).train("true")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 64}, "fewer than 64 pairs, and there are 8 forget"),
        ({"max_steps": 0}, "No step can be taken with max_steps 0"),
        ({"num_train_epochs": 0}, "No step can be taken"),
    ],
)
def test_a_run_without_a_step_is_refused(tmp_path, processor, options, words):
    with pytest.raises(InputError, match=words):
        make_trainer(tmp_path, processor, **options)


def test_a_run_that_moves_no_weight_is_refused(tmp_path, processor):
    with pytest.raises(RunError, match="No weight has moved in 1 steps.*above 0"):
        make_trainer(tmp_path, processor, learning_rate=0.0, max_steps=1).train()


def test_a_finished_run_resumed_moved_its_weights(tmp_path, processor):
    model = make_mae()
    make_trainer(tmp_path, processor, model, **SAVED).train()
    again = make_trainer(tmp_path, processor, make_mae(), **SAVED)
    again.train("true")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.i2i.parameters(), strict=True))


def test_a_stream_counts_what_it_saw(tmp_path, processor):
    from hf_i2i_unlearn import ForgetRetainStream

    stream = ForgetRetainStream(FORGET.to_iterable_dataset(), RETAIN.to_iterable_dataset(), 5, 0)
    args = UnlearningConfig(str(tmp_path), max_steps=2, per_device_train_batch_size=4, use_cpu=True, disable_tqdm=True)
    trainer = UnlearningTrainer(make_mae(), args, stream, processor, CenterCrop(2), method=METHODS["ours"])
    trainer.train()
    assert trainer.accounting.counts == {picture_hash(row): 1 for row in FORGET} and trainer.accounting.missed == []
