"""A stranger's method, distance, T and noise: classes made here, used through the public names alone."""

import pytest
import torch
from conftest import make_dataset, make_mae

from hf_i2i_unlearn import (
    METHODS,
    CenterCrop,
    Corruption,
    Distance,
    EncodedTarget,
    ForgetRetainPairs,
    InputError,
    Method,
    Noise,
    PictureTarget,
    UnlearningConfig,
    UnlearningTrainer,
    by_classes,
    select,
    undecoded,
)

PICTURES = make_dataset(16)
CATS = by_classes(PICTURES, ["cat"])
FORGET, RETAIN = (undecoded(select(PICTURES, CATS, keep)) for keep in (True, False))


class Blurred(EncodedTarget):
    """E0(T(blur(x_f)))."""

    def pictures(self, halves):
        return torch.nn.functional.avg_pool2d(halves.forget, 5, stride=1, padding=2)


class Flipped(PictureTarget):
    """The forget picture upside down."""

    def pictures(self, halves):
        return halves.forget.flip(2)


class Huber(Distance):
    name = "huber"

    def __call__(self, a, b):
        return torch.nn.functional.smooth_l1_loss(a, b, reduction="none").flatten(1).mean(1)


class Checkerboard(Corruption):
    """Every other patch."""

    def __str__(self):
        return "checkerboard"

    def draw(self, grid, generator):
        rows, cols = grid
        return (torch.arange(rows)[:, None] + torch.arange(cols)) % 2 == 0


class Stripes(Noise):
    """One random value a row."""

    def draw(self, shape, generator):
        return torch.randn(shape[0], shape[1], 1, generator=generator).expand(shape)


def make_trainer(folder, processor, model=None, corruption=None, noise=None, **objects):
    options = {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "max_steps": 4, "logging_steps": 1, "eval_steps": 4}
    return UnlearningTrainer(
        model or make_mae(1),
        UnlearningConfig(str(folder), use_cpu=True, disable_tqdm=True, save_strategy="no", seed=5, **options),
        ForgetRetainPairs(FORGET, RETAIN, seed=5),
        processor,
        corruption or CenterCrop(2),
        {"forget": list(FORGET), "retain": list(RETAIN)},
        noise=noise,
        **objects,
    )


def test_a_method_in_the_encoder_space_moves_pictures_to_its_target(tmp_path, processor):
    """Its own forget term is that of the formula, falls, and the decoder is untouched."""
    blurred = Method("blurred", Blurred(), source="this test", summary="E(T(x_f)) is moved to E0(T(blur(x_f)))")
    model = make_mae(1)
    original = model.frozen_copy()
    trainer = make_trainer(tmp_path, processor, model, method=blurred)
    before = trainer.evaluate()
    batch = next(iter(trainer.eval_pairs))
    mask = CenterCrop(2)(model.grid, [0]).expand(len(batch["forget"]), 4, 4)
    blurry = torch.nn.functional.avg_pool2d(batch["forget"], 5, stride=1, padding=2)
    wanted = (model(batch["forget"], mask) - original(blurry, mask)).square().mean().item()
    assert before["eval_forget_distance"] == pytest.approx(wanted, rel=1e-4)
    trainer.train()
    assert trainer.evaluate()["eval_forget_distance"] < 0.9 * before["eval_forget_distance"]
    pairs = zip(model.model.decoder.parameters(), original.model.decoder.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_method_in_the_output_space_trains_the_whole_model(tmp_path, processor, sign):
    model = make_mae(1)
    original = model.frozen_copy()
    trainer = make_trainer(tmp_path, processor, model, method=Method("flipped", Flipped(), sign))
    figures = trainer.evaluate()
    wanted = figures["eval_retain_distance"] + sign * 0.25 * figures["eval_forget_distance"]
    assert figures["eval_loss"] == pytest.approx(wanted, rel=1e-5) and figures["eval_forget_distance"] > 0.1
    trainer.train()
    assert not torch.equal(model.model.decoder.decoder_pred.weight, original.model.decoder.decoder_pred.weight)


def test_a_distance_a_corruption_and_a_noise(tmp_path, processor):
    model = make_mae(1)
    original = model.frozen_copy()
    noise, corruption = Stripes(), Checkerboard()
    trainer = make_trainer(tmp_path, processor, model, corruption, noise, distance=Huber())
    logged = trainer.evaluate()["eval_forget_distance"]
    batch = next(iter(trainer.eval_pairs))
    mask = corruption(model.grid, [0] * len(batch["forget"]))
    assert mask.sum() == 8 * len(batch["forget"])
    n = noise(batch["forget"], batch["seeds"][:, 2])
    target = original(n, mask)
    assert logged == pytest.approx(Huber()(model(batch["forget"], mask), target).mean().item(), rel=1e-4)
    trainer.train()
    assert trainer.evaluate()["eval_forget_distance"] < logged
    assert (str(corruption), str(noise), str(trainer.objective.distance)) == ("checkerboard", "Stripes", "huber")


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Method("mine", "a typo"), "target of the method 'mine' must be an object of a subclass .* got 'a typo'"),
        (lambda: Method("mine", Blurred), "got the class Blurred"),
        (lambda: Method("", Blurred()), "A method needs a name"),
        (lambda: Method("mine", Blurred(), 0), "sign of the method 'mine' is 1 .* got 0 with Blurred"),
        (lambda: Method("mine", Blurred(), 2), "got 2 with Blurred"),
    ],
)
def test_what_is_put_together_wrongly_is_refused_when_it_is_made(make, words):
    with pytest.raises(InputError, match=words):
        make()


@pytest.mark.parametrize(
    "objects, words",
    [
        ({"method": "ours"}, r"method is a Method object, such as METHODS\['ours'\], got 'ours'"),
        ({"distance": "mse"}, r"distance is a Distance object, such as DISTANCES\['mse'\], got 'mse'"),
        ({"corruption": "center:2"}, r"corruption is a Corruption object, such as CenterCrop\(8\), got 'center:2'"),
        ({"noise": "normal"}, r"noise is a Noise object, such as StandardNormal\(\), got 'normal'"),
    ],
)
def test_words_are_refused_where_objects_are_wanted(tmp_path, processor, objects, words):
    with pytest.raises(InputError, match=words):
        make_trainer(tmp_path, processor, **objects)


def test_a_table_of_methods_can_be_extended_without_the_package(tmp_path, processor):
    """Nobody asks for a name: a method called `ours` that is another one is that other one."""
    impostor = Method("ours", Blurred())
    assert impostor != METHODS["ours"] and not impostor.shared_target
    with pytest.raises(InputError, match="noise_target 'mean' needs a method whose target all forget pictures share"):
        UnlearningTrainer(
            make_mae(),
            UnlearningConfig(str(tmp_path), noise_target="mean", use_cpu=True),
            ForgetRetainPairs(FORGET, RETAIN),
            processor,
            CenterCrop(2),
            method=impostor,
        )
