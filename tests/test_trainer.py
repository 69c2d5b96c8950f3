import os
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from conftest import make_dataset, make_mae
from helpers.close import assert_close
from helpers.words import objects
from PIL import Image
from transformers import TrainerCallback
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hf_i2i_unlearn import (
    DISTANCES,
    CenterCrop,
    Extend,
    ForgetRetainPairs,
    ForgetRetainStream,
    ImageReader,
    InputError,
    RandomMask,
    Turns,
    UnlearningConfig,
    UnlearningTrainer,
    undecoded,
)
from hf_i2i_unlearn.commands.options import RunArguments
from hf_i2i_unlearn.commands.words import find_distance, find_method
from hf_i2i_unlearn.data.reading import PairCollator
from hf_i2i_unlearn.methods.distances import MSE
from hf_i2i_unlearn.methods.method import OURS
from hf_i2i_unlearn.originals.config import PretrainingConfig
from hf_i2i_unlearn.training.checkpoints import last_whole_checkpoint

DATASET = undecoded(make_dataset(24))
FORGET, RETAIN = DATASET.select(range(8)), DATASET.select(range(8, 24))


def make_trainer(
    folder, processor, model=None, pairs=None, corruption=CenterCrop(2), callbacks=None, evaluate=False, **options
):
    options = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "learning_rate": 1e-2, "num_train_epochs": 2,
        "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "seed": 5,
    } | options  # fmt: skip
    how = objects(options)
    return UnlearningTrainer(
        model or make_mae(),
        UnlearningConfig(**options),
        pairs or ForgetRetainPairs(FORGET, RETAIN, seed=5),
        processor,
        corruption,
        eval_dataset={"forget": list(FORGET), "retain": list(RETAIN)} if evaluate else None,
        callbacks=callbacks,
        **how,
    )


def weights(trainer):
    return {n: p.detach().clone() for n, p in trainer.i2i.named_parameters()}


def assert_same(one, two):
    for name in one:
        assert torch.equal(one[name], two[name]), name


@pytest.mark.parametrize("distance", DISTANCES)
def test_loss_is_equation_10(tmp_path, processor, distance):
    """Against eq. 10 written out: four separate passes, pair by pair."""
    model, original = make_mae(1), make_mae(2).frozen_copy()
    pairs = ForgetRetainPairs(FORGET, RETAIN, seed=5)
    corruption = RandomMask(0.5)
    trainer = UnlearningTrainer(
        model,
        UnlearningConfig(str(tmp_path), alpha=0.3, use_cpu=True),
        pairs,
        processor,
        corruption,
        original=original,
        distance=DISTANCES[distance],
    )
    batch = PairCollator(ImageReader(processor, 3))([pairs[t] for t in range(5)])
    loss = trainer.compute_loss(model, batch)

    d = {
        "mse": lambda a, b: ((a - b) ** 2).mean(),
        "l2": lambda a, b: ((a - b) ** 2).sum().sqrt(),
        "unit_l2": lambda a, b: ((a / a.norm() - b / b.norm()) ** 2).sum().sqrt(),
    }[distance]
    retain, forget = [], []
    for x_r, x_f, seeds in zip(batch["retain"], batch["forget"], batch["seeds"]):
        mask_r, mask_f = (corruption((4, 4), [s]) for s in seeds[:2])
        n = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(int(seeds[2])))
        retain.append(d(model(x_r[None], mask_r), original(x_r[None], mask_r)))
        forget.append(d(model(x_f[None], mask_f), original(n[None], mask_f)))
    assert_close(loss, torch.stack(retain).mean() + 0.3 * torch.stack(forget).mean())


def test_only_the_encoder_moves(tmp_path, processor):
    model = make_mae()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = make_trainer(tmp_path, processor, model)
    trainer.train()
    fixed = {n for n, p in model.named_parameters() if torch.equal(p, before[n])}
    decoder = {n for n in before if n.startswith("model.decoder.")}
    assert fixed == decoder | {"model.vit.embeddings.position_embeddings"}
    assert all(torch.equal(p, before[n]) for n, p in trainer.original.named_parameters())


def test_terms_are_logged_apart(tmp_path, processor):
    trainer = make_trainer(tmp_path, processor, alpha=0.5)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 4  # two epochs of two steps
    for log in logs:
        assert log["loss"] == pytest.approx(log["retain_distance"] + 0.5 * log["forget_distance"], rel=1e-5)
    assert logs[0]["retain_distance"] < 1e-8 * logs[0]["forget_distance"]  # at theta_0
    assert logs[-1]["forget_distance"] < logs[0]["forget_distance"]


def test_accumulation_does_not_scale_the_loss(tmp_path, processor):
    runs = []  # with plain SGD: Adam would hide a gradient that is four times too large
    for batch, accumulation in ((8, 1), (4, 2), (2, 4)):
        trainer = make_trainer(
            tmp_path / str(batch),
            processor,
            corruption=RandomMask(0.5),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=3,
            optim="sgd",
        )
        trainer.train()
        runs.append((weights(trainer), [log["loss"] for log in trainer.state.log_history if "loss" in log]))
    for other, losses in runs[1:]:
        assert_close(losses, runs[0][1], 1e-4)
        assert_close(other, runs[0][0])


class StopAt(TrainerCallback):
    """Dies in the middle of a run, after a checkpoint and some steps that it does not hold."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def stream():
    return ForgetRetainStream(FORGET.to_iterable_dataset(2), RETAIN.to_iterable_dataset(2), seed=5, shuffle_buffer=4)


def test_several_corruptions_take_turns_and_a_resumed_run_keeps_them(tmp_path, processor):
    """Each step's loss is the one of its own T, by the terms written out; accumulated batches of a step share it."""
    turns = Turns((CenterCrop(2), Extend("left", 1), RandomMask(0.5)))
    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
    run = lambda folder, **more: make_trainer(tmp_path / folder, processor, corruption=turns, **options, **more)
    assert make_trainer(tmp_path, processor, corruption=turns, evaluate=True).evaluator.corruption == CenterCrop(2)
    straight, seen = run("straight"), []
    terms = straight._terms

    def recorded(model, batch, corruption):
        seen.append((straight.state.global_step, str(corruption)))
        return terms(model, batch, corruption)

    straight._terms = recorded
    straight.train()
    names = ["center:2", "left:1", "random:0.5", "center:2", "left:1"]
    assert list(dict.fromkeys(seen)) == list(enumerate(names))
    assert len(seen) > len(names)  # the accumulated batches of a step have its T
    with pytest.raises(KeyboardInterrupt):
        run("killed", callbacks=[StopAt(3)]).train()
    resumed = run("killed")
    resumed.train(resume_from_checkpoint="true")
    assert_same(weights(straight), weights(resumed))


@pytest.mark.parametrize("source", ["pairs", "stream", "pairs, 2 accumulated"])
def test_resumed_run_ends_with_the_same_weights(tmp_path, processor, source):
    make = stream if source == "stream" else lambda: ForgetRetainPairs(FORGET, RETAIN, seed=5)
    options = {"max_steps": 7, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "cosine"}
    if "accumulated" in source:
        options |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    run = lambda folder, **more: make_trainer(
        tmp_path / folder, processor, pairs=make(), corruption=RandomMask(0.5), **options, **more
    )
    straight = run("straight")
    straight.train()
    with pytest.raises(KeyboardInterrupt):
        run("killed", callbacks=[StopAt(5)]).train()
    resumed = run("killed")
    resumed.train(resume_from_checkpoint="true")
    assert resumed.state.global_step == 7
    assert_same(weights(straight), weights(resumed))


def test_a_half_written_checkpoint_is_passed_over(tmp_path, processor):
    make_trainer(tmp_path, processor, save_strategy="steps", save_steps=2).train()
    good = last_whole_checkpoint(tmp_path)
    assert good.endswith("checkpoint-4")
    half = tmp_path / "checkpoint-6"
    shutil.copytree(good, half)
    (half / "trainer_state.json").write_text('{"global_step": 6, "log_hi')
    os.makedirs(tmp_path / "checkpoint-10")
    assert last_whole_checkpoint(tmp_path) == good
    assert not half.exists() and not (tmp_path / "checkpoint-10").exists()
    with pytest.raises(InputError, match="no checkpoint in .* to resume from"):
        last_whole_checkpoint(tmp_path / "nowhere")


def test_checkpoints_hold_no_pickled_arguments_and_no_teacher(tmp_path, processor):
    trainer = make_trainer(tmp_path, processor, save_strategy="steps", save_steps=4)
    trainer.train()
    trainer.save_model()
    top = {f.name for f in Path(tmp_path).iterdir()}
    assert top == {"checkpoint-4", "config.json", "model.safetensors", "preprocessor_config.json", "training_args.json"}
    other = make_mae(9)
    other.load_weights(tmp_path / "checkpoint-4")
    assert_same(weights(trainer), dict(other.named_parameters()))


def test_evaluation_during_training_and_the_best_checkpoint(tmp_path, processor):
    trainer = make_trainer(
        tmp_path, processor, evaluate=True, num_train_epochs=4, learning_rate=0.3, load_best_model_at_end=True,
        eval_steps=1, save_strategy="steps", save_steps=1, save_total_limit=None,
    )  # fmt: skip
    trainer.train()
    evaluations = {log["step"]: log for log in trainer.state.log_history if "eval_loss" in log}
    assert set(evaluations) == set(range(1, 9))
    for log in evaluations.values():
        assert log["eval_loss"] == pytest.approx(log["eval_retain_distance"] + 0.25 * log["eval_forget_distance"], rel=1e-5)
        assert (log["eval_forget_count"], log["eval_retain_count"]) == (8, 16)
    best = min(evaluations, key=lambda step: evaluations[step]["eval_loss"])
    assert best != 8, "the test needs a run that gets worse"
    kept = make_mae(3)
    kept.load_weights(tmp_path / f"checkpoint-{best}")
    assert_same(weights(trainer), dict(kept.named_parameters()))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(evaluations[best]["eval_loss"], rel=1e-5)


def test_training_with_random_masks_and_evaluating_a_crop(tmp_path, processor):
    trainer = UnlearningTrainer(
        make_mae(),
        UnlearningConfig(str(tmp_path), use_cpu=True, max_steps=1),
        ForgetRetainPairs(FORGET, RETAIN),
        processor,
        RandomMask(0.75),
        {"forget": list(FORGET), "retain": list(RETAIN)},
        CenterCrop(2),
    )
    assert (trainer.corruption, trainer.evaluator.corruption) == (RandomMask(0.75), CenterCrop(2))


def test_unreadable_pictures_are_counted_or_refused(tmp_path, processor):
    rows = [*list(FORGET)[:7], {"image": {"bytes": b"broken", "path": "broken.png"}}]
    pairs = ForgetRetainPairs(rows, RETAIN, seed=5)
    with pytest.raises(InputError, match="Cannot read broken.png"):
        make_trainer(tmp_path, processor, pairs=pairs).train()
    trainer = UnlearningTrainer(
        make_mae(),
        UnlearningConfig(
            str(tmp_path), use_cpu=True, max_steps=4, per_device_train_batch_size=4, disable_tqdm=True, save_strategy="no"
        ),
        pairs,
        processor,
        CenterCrop(2),
        on_corrupt="skip",
    )
    trainer.train()
    assert trainer.skipped == 2  # once in each of two epochs


def test_a_broken_picture_in_the_middle_of_a_stream(tmp_path, processor):
    broken = {"image": {"bytes": b"broken", "path": "broken.png"}}
    forget = datasets.Dataset.from_list([*list(FORGET)[:4], broken, *list(FORGET)[4:7]], features=FORGET.features)
    pairs = lambda: ForgetRetainStream(forget.to_iterable_dataset(2), RETAIN.to_iterable_dataset(2), shuffle_buffer=0)
    options = {"max_steps": 4, "per_device_train_batch_size": 4}
    with pytest.raises(InputError, match="Cannot read broken.png"):
        make_trainer(tmp_path, processor, pairs=pairs(), **options).train()
    trainer = UnlearningTrainer(
        make_mae(),
        UnlearningConfig(str(tmp_path), use_cpu=True, disable_tqdm=True, save_strategy="no", **options),
        pairs(),
        processor,
        CenterCrop(2),
        on_corrupt="skip",
    )
    trainer.train()
    assert trainer.skipped == 2 and trainer.state.global_step == 4


def test_a_broken_first_picture_does_not_stop_a_run_that_skips(tmp_path, processor):
    broken = {"image": {"bytes": b"broken", "path": "broken.png"}}
    rows = [broken] * 2 + list(FORGET)[:1]
    options = {"output_dir": str(tmp_path), "use_cpu": True}
    for seed in range(6):  # whatever comes first
        pairs = ForgetRetainPairs(rows, RETAIN, seed=seed)
        UnlearningTrainer(make_mae(), UnlearningConfig(**options), pairs, processor, CenterCrop(2), on_corrupt="skip")
    with pytest.raises(InputError, match="None of the first 100 pairs"):
        pairs = ForgetRetainPairs([broken], RETAIN)
        UnlearningTrainer(make_mae(), UnlearningConfig(**options), pairs, processor, CenterCrop(2), on_corrupt="skip")


@pytest.mark.parametrize(
    "message, change",
    [
        ("needs max_steps", {"pairs": stream()}),
        ("hides everything .* 4x4 grid", {"corruption": CenterCrop(4)}),
        ("takes an I2IModel such as I2IMAE, got Linear", {"model": torch.nn.Linear(1, 1)}),
        (r"takes pictures of 3 channel\(s\) and 32x32 pixels, got 3 and 16x16", {"model": make_mae(image_size=32)}),
        ("normalises 3 channels, the model takes 1", {"model": make_mae(num_channels=1)}),
    ],
)
def test_bad_input_is_refused_before_training(tmp_path, processor, message, change):
    with pytest.raises(InputError, match=message):
        make_trainer(tmp_path / "out", processor, **change)
    assert not (tmp_path / "out").exists()


def test_the_original_must_be_another_object(tmp_path, processor):
    model, pairs = make_mae(), ForgetRetainPairs(FORGET, RETAIN)
    with pytest.raises(InputError, match="the very object to be trained"):
        UnlearningTrainer(model, UnlearningConfig(str(tmp_path)), pairs, processor, CenterCrop(2), original=model)


@pytest.mark.parametrize("alpha", [0, -1])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(InputError, match=f"alpha must be larger than 0 .* got {alpha}"):
        UnlearningConfig("x", alpha=alpha)
    with pytest.raises(InputError, match="distance is one of mse, l2, unit_l2, got 'l1'"):
        find_distance("l1")


def test_defaults_are_the_papers():
    config = UnlearningConfig("x")
    assert (config.alpha, config.learning_rate, config.adam_beta1, config.adam_beta2, config.weight_decay) == (
        0.25,
        1e-4,
        0.9,
        0.95,
        0,
    )
    assert (config.num_train_epochs, config.per_device_train_batch_size, config.optim.value[:5]) == (5, 16, "adamw")
    assert (config.noise_target, config.retain_bound) == ("fresh", None)
    words = RunArguments()
    assert (words.method, words.variant, words.distance) == ("ours", "paper", "mse")
    assert find_method(words.method, words.variant) is OURS and find_distance(words.distance) is MSE


@pytest.mark.parametrize(
    "options, words",
    [
        (
            {"load_best_model_at_end": True, "save_steps": 0.3},
            "saving steps to be a multiple of the evaluation steps, but found 0.3",
        ),
        ({"load_best_model_at_end": True, "eval_strategy": "no"}, "requires the save and eval strategy to match"),
        ({"dataloader_prefetch_factor": 2}, "dataloader_num_workers > 0"),
    ],
)
@pytest.mark.parametrize("kind", [UnlearningConfig, PretrainingConfig])
def test_options_that_the_trainer_refuses_are_one_sentence(kind, options, words):
    if kind is PretrainingConfig and "load_best_model_at_end" in options:
        options = options | {"eval_strategy": "no", "save_strategy": "steps"}
        words = "strategy to match"
    with pytest.raises(InputError, match=f"^The options of the Trainer do not go together: .*{words}") as error:
        kind("x", use_cpu=True, **options)
    assert "\n" not in str(error.value)


def test_a_processor_that_keeps_the_aspect_ratio_is_one_sentence():
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, do_center_crop=False)
    pictures = [Image.new("RGB", size) for size in ((20, 30), (30, 20))]
    with pytest.raises(InputError, match="must bring all pictures to one size"):
        ImageReader(processor, 3).pixels(pictures)
