"""MAGE under the trainer: every method, eq. 10, what T hides, and the recipe."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import make_dataset, make_mae
from helpers.close import assert_close
from helpers.words import objects
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from test_mage import make_mage
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_i2i_unlearn import (
    DISTANCES,
    METHODS,
    CenterCrop,
    ForgetRetainPairs,
    I2IMage,
    ImageReader,
    InputError,
    RandomMask,
    StandardNormal,
    UnlearningConfig,
    UnlearningTrainer,
    demo,
    load_model,
    load_processor,
    undecoded,
)
from hf_i2i_unlearn.data.reading import pixel_batches
from hf_i2i_unlearn.evaluation.metrics import hole_mse
from hf_i2i_unlearn.models.auto import family_options
from hf_i2i_unlearn.models.base import FOR_SAMPLING, join, seeded
from hf_i2i_unlearn.models.mage.hf.decoding_mage import fill_hole
from hf_i2i_unlearn.models.mage.hf.modeling_mage import MageModel
from hf_i2i_unlearn.training.objective import Objective

ROOT = Path(__file__).parents[1]
DATA = undecoded(make_dataset())
FORGET, RETAIN = DATA.select(range(8)), DATA.select(range(8, 24))
ENCODER = ("model.token_emb.position_embeddings", "model.token_emb.LayerNorm", "model.blocks.", "model.norm.")
WORDS = "model.token_emb.word_embeddings.weight"
SEEDS = torch.arange(12).view(4, 3).numpy()


def wrapped(seed=0, **options) -> I2IMage:
    return I2IMage(make_mage(seed), **{"steps": 3} | options)


def make_processor(**options):
    return ViTImageProcessorPil(size={"height": 16, "width": 16}, **{"do_normalize": False} | options)


def make_trainer(folder, model, corruption=CenterCrop(2), processor=None, **options):
    how = objects(options)
    args = UnlearningConfig(
        str(folder), max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2, logging_steps=1, eval_steps=3,
        save_steps=3, use_cpu=True, disable_tqdm=True, **options,
    )  # fmt: skip
    return UnlearningTrainer(
        model,
        args,
        ForgetRetainPairs(FORGET, RETAIN, 0),
        processor or make_processor(),
        corruption,
        eval_dataset={"forget": list(FORGET)[:4], "retain": list(RETAIN)[:4]},
        **how,
    )


def pictures(count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(4, 3, 16, 16, generator=generator) for _ in range(count)]


# -------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("variant", ["paper", "reference"])
def test_every_method_trains_what_it_should(tmp_path, method, variant):
    model = wrapped()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trainer = make_trainer(tmp_path, model, method=method, variant=variant)
    first = trainer.evaluate()
    trainer.train()
    last = trainer.evaluate()
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    if METHODS[method].space == "encoder":
        assert first["eval_retain_distance"] < 1e-8 * first["eval_forget_distance"]  # squares of rounding errors
        assert moved == {k for k in before if k.startswith(ENCODER)}
    else:
        assert moved == {k for k in before if not k.startswith("model.vqgan.")}
    assert first["eval_retain_drift"] == 0 and last["eval_retain_drift"] > 0
    again = MageModel.from_pretrained(tmp_path / "checkpoint-3")
    assert all(torch.equal(v, model.model.state_dict()[k]) for k, v in again.state_dict().items())


@pytest.mark.parametrize("options", [{"mask_rate": "mage", "blank_hole": False}, {"train_word_embeddings": True}])
def test_released_training_and_trained_words(tmp_path, options):
    model = wrapped(**options)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    make_trainer(tmp_path, model, RandomMask(0.5)).train()
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    trained = ENCODER if model.decoder_untouched else (*ENCODER, WORDS)
    assert moved == {k for k in before if k.startswith(trained)}
    assert model.decoder_untouched == (not options.get("train_word_embeddings", False))


@torch.no_grad()
def test_the_decoder_is_the_same_function_after_training(tmp_path):
    model, (x,) = wrapped(), pictures(1)
    latent, mask = torch.randn(4, 13, 16), CenterCrop(2)((4, 4), range(4)).flatten(1)
    before = model.model.decode(latent, mask, mask), model.model.tokenize(x)
    with torch.enable_grad():
        make_trainer(tmp_path, model).train()
    model.eval()
    assert torch.equal(model.model.decode(latent, mask, mask), before[0])
    assert torch.equal(model.model.tokenize(x), before[1])


@pytest.mark.parametrize("corruption", [CenterCrop(2), RandomMask(0.5)])
@pytest.mark.parametrize("mask_rate", [None, "mage"])
def test_ours_is_equation_10(corruption, mask_rate):
    student, teacher = wrapped(1, mask_rate=mask_rate), wrapped(2, mask_rate=mask_rate).frozen_copy()
    x_r, x_f = pictures()
    objective = Objective(METHODS["ours"], teacher, DISTANCES["mse"], StandardNormal())
    retain, forget, _ = objective(student, student, corruption, x_r, x_f, SEEDS)

    n = torch.stack([torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(int(s))) for s in SEEDS[:, 2]])

    def encode(i2i, x, column):
        """From the inner model: T blanks the hole, then the tokens are dropped."""
        mask = corruption((4, 4), SEEDS[:, column])
        hole = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
        hidden = i2i.draw(x, mask, SEEDS[:, column]).hidden
        ids = i2i.model.tokenize(fill_hole(x, hole, (0.485, 0.456, 0.406)))
        return i2i.model.encode(ids, mask.flatten(1), hidden.flatten(1))

    def square(a, b):
        return (a - b).square().flatten(1).mean(1)

    assert encode(student, x_r, 0).shape == (4, 1 + 16 - corruption.hidden((4, 4)), 16)
    assert_close(retain, square(encode(student, x_r, 0), encode(teacher, x_r, 0)))
    assert_close(forget, square(encode(student, x_f, 1), encode(teacher, n, 1)))
    assert retain.min() > 1e-2 and forget.min() > 1e-2


def test_the_mean_target(tmp_path):
    make_trainer(tmp_path, wrapped(), noise_target="mean", mean_draws=8).train()
    with pytest.raises(InputError, match="family 'mage' depends on the visible part"):
        make_trainer(tmp_path, wrapped(mask_rate="mage"), noise_target="mean")


@torch.no_grad()
def test_training_loss_is_the_models_own():
    model, (x, other) = wrapped(mask_rate="mage", blank_hole=False), pictures()
    draw = model.draw(x, RandomMask(0.5)((4, 4), range(4)), range(4))
    dropped, hidden = draw.mask.flatten(1), draw.hidden.flatten(1)
    whole = model.model(x, token_drop_mask=dropped, token_all_mask=hidden).loss  # a mean over all hidden tokens of the batch
    per_picture = model.training_loss(x, draw)
    assert_close((per_picture * hidden.sum(1)).sum() / hidden.sum(), whole)
    # A target replaces the truth, not the input.
    logits = model.model(x, token_drop_mask=dropped, token_all_mask=hidden).logits
    expected = model.model.loss(logits[1:2], model.model.tokenize(other[1:2]), hidden[1:2])
    assert_close(model.training_loss(x, draw, other)[1], expected)


# -------------------------------------------------------------------------------------------------------------- T and draws


@pytest.mark.parametrize("blank_hole", [True, False])
@torch.no_grad()
def test_hidden_pixels_and_the_latent(blank_hole):
    model, (x, other) = wrapped(blank_hole=blank_hole), pictures()
    mask = CenterCrop(2)((4, 4), range(4))
    changed = torch.where(model.hole(mask), other, x)
    one, two = (model(p, model.draw(p, mask, range(4))) for p in (x, changed))
    # Dropping tokens of the whole picture is not enough: the tokens beside the hole have seen it.
    assert torch.equal(one, two) == blank_hole
    assert not torch.equal(one, model(torch.where(model.hole(mask), x, other), mask))
    if blank_hole:
        losses = [model.training_loss(p, mask, other) for p in (x, changed)]
        assert torch.equal(*losses)


def test_draws():
    model, (x,) = wrapped(mask_rate="mage"), pictures(1)
    masks = RandomMask(0.5)((4, 4), range(4))
    whole = model.draw(x, masks, [1, 2, 3, 4])
    parts = join(model.draw(x[:1], masks[:1], [1]), model.draw(x[1:], masks[1:], [2, 3, 4]))
    assert type(parts) is type(whole) and all(torch.equal(a, b) for a, b in zip(whole, parts))
    assert torch.equal(whole.mask, masks) and not (masks & ~whole.hidden).any()
    plain = wrapped().draw(x, masks, range(4))
    assert torch.equal(plain.hidden, masks)

    # Over many pictures: the truncated normal on [0.5, 1] has mean 0.7089, and each token is hidden equally often.
    count = 1500
    masks = RandomMask(0.5)((4, 4), range(count))
    hidden = model.draw(torch.zeros(count, 3, 16, 16), masks, range(count)).hidden.float()
    assert hidden.sum((1, 2)).min() >= 8 and hidden.sum((1, 2)).unique().numel() > 6
    assert hidden.mean() == pytest.approx(0.7089 + 0.5 / 16, abs=0.015)  # counts are rounded up
    assert hidden.mean(0).std() < 0.02
    # T that hides more than the share: nothing is added, nothing is taken.
    most = torch.ones(1, 4, 4, dtype=torch.bool)
    most[0, 0, 0] = False
    hidden = [model.draw(x[:1], most, [seed]).hidden for seed in range(20)]
    assert all((h | ~most).all() for h in hidden)


# -------------------------------------------------------------------------------------------------------------- generation


@torch.no_grad()
def test_generation():
    model, (x, other) = wrapped(steps=4), pictures()
    mask = CenterCrop(2)((4, 4), range(4))
    hole = model.hole(mask).expand(-1, 3, -1, -1)
    out = model.generate(x, mask, [5, 6, 7, 8])
    assert torch.equal(out[~hole], x[~hole]) and not torch.isclose(out[hole], x[hole]).all()
    assert torch.equal(out, model.generate(torch.where(hole, other, x), mask, [5, 6, 7, 8]))
    assert not torch.equal(out, model.generate(x, mask, [1, 2, 3, 4]))
    assert torch.equal(model.generate(x, mask), model.generate(x, mask, [0] * 4))
    model.feather = True
    soft = model.generate(x, mask, [5, 6, 7, 8])
    assert not torch.equal(soft[~hole], x[~hole])  # what the soft edge is there for
    generators = seeded([5, 6, 7, 8], FOR_SAMPLING)
    assert torch.equal(soft, model.model.complete(x, mask, 4, model.temperature, generators, model.margin, True))
    model.feather = False
    # In float64: the last bits go with the size of the batch, and one of them could draw another code.
    model, x = model.double(), x.double()
    out = model.generate(x, mask, [5, 6, 7, 8])
    for k in range(4):
        assert_close(model.generate(x[k : k + 1], mask[:1], [5 + k]), out[k : k + 1])


# ------------------------------------------------------------------------------------------------------------ errors and files


def test_errors(tmp_path):
    model, (x,) = wrapped(), pictures(1)
    with pytest.raises(InputError, match=r"wraps a MageModel, got ViTMAE"):
        I2IMage(make_mae().model)
    for options in ({"steps": 0}, {"temperature": -1}, {"margin": -1}, {"code_temperature": -1}, {"toward_mean": 1.1}):
        with pytest.raises(InputError, match="at least 1 step"):
            wrapped(**options)
    with pytest.raises(InputError, match="mask_rate is None or 'mage', got 0.5"):
        wrapped(mask_rate=0.5)
    with pytest.raises(InputError, match=r"values in \[0, 1\], not normalised, got -.* do_normalize=False"):
        model.generate(x - 0.5, CenterCrop(2)((4, 4), range(4)))
    normalising = make_processor(do_normalize=True, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    with pytest.raises(InputError, match=r"values in \[0, 1\], not normalised"):
        make_trainer(tmp_path, wrapped(), processor=normalising)
    with pytest.raises(InputError, match="normalises with mean"):
        model.check_processor(normalising)
    model.check_processor(make_processor())
    model.check_processor(make_processor(do_normalize=True, image_mean=[0.0] * 3, image_std=[1.0] * 3))
    with pytest.raises(InputError, match="3 channel.* 16x16 pixels"):
        model(torch.zeros(1, 3, 32, 32), torch.ones(1, 4, 4, dtype=torch.bool))
    uneven = torch.zeros(4, 4, 4, dtype=torch.bool)
    uneven[0, 0] = True
    with pytest.raises(InputError, match=r"same number of tokens, got \[0, 4\]"):
        model(x, uneven)


def test_loading_errors(tmp_path):
    with pytest.raises(InputError, match="Cannot load a model from"):
        I2IMage.from_pretrained(str(tmp_path / "nothing"))
    make_mae().save_pretrained(tmp_path / "mae")
    with pytest.raises(InputError, match="holds a 'vit_mae' model, expected 'mage'"):
        I2IMage.from_pretrained(str(tmp_path / "mae"))
    model = make_mage()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("decoder_norm")}
    model.save_pretrained(tmp_path / "part", state_dict=state)
    with pytest.raises(InputError, match="lacks 2 weights of a MAGE model, first 'decoder_norm.bias'"):
        I2IMage.from_pretrained(str(tmp_path / "part"))
    config = tmp_path / "part" / "config.json"
    wrapped().save_pretrained(tmp_path / "part")
    text = config.read_text()
    config.write_text(text.replace('"vocab_size": 1013', '"vocab_size": 2025'))
    with pytest.raises(InputError, match="codebook does not match the head"):
        I2IMage.from_pretrained(str(tmp_path / "part"))
    config.write_text(text.replace('"max_position_embeddings": 18', '"max_position_embeddings": 20'))
    with pytest.raises(InputError, match="do not fit its config.json: 'token_emb.position_embeddings.weight'"):
        I2IMage.from_pretrained(str(tmp_path / "part"))


def launch(*argv, check=True, cwd=None):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, argv)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=check)


def test_the_demo(tmp_path):
    argv = [ROOT / "recipes" / "unlearn_mage.py", "--max_steps", 4, "--eval_samples", 10, "--disable_tqdm", "true"]
    done = launch(*argv, cwd=tmp_path)
    assert "| forget | 10 |" in done.stdout and "| retain | 10 |" in done.stdout
    folder = tmp_path / "unlearned-mnist-mage"
    before, after = load_file(Path(demo.MAGE) / "model.safetensors"), load_file(folder / "model.safetensors")
    moved = {k for k in before if not torch.equal(before[k].float(), after[k])}
    assert moved == {k for k in before if f"model.{k}".startswith(ENCODER)}
    names = {f.name for f in folder.iterdir() if not f.name.startswith("checkpoint-")}
    assert {"configuration_mage.py", "decoding_mage.py", "modeling_mage.py", "tokenizer_mage.py", "run.yaml"} <= names
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "mnist-demo-mage"


def test_the_embedded_model_completes_digits():
    """Loaded in float32 from half precision and without code beside it, it beats black and the mean digit in the hole."""
    assert not list(Path(demo.MAGE).glob("*.py"))
    assert sum(f.stat().st_size for f in Path(demo.MAGE).iterdir()) < 3_000_000
    model, processor = I2IMage.from_pretrained(demo.MAGE, margin=0).eval(), load_processor(demo.MAGE)
    model.check_processor(processor)
    reader, digits = ImageReader(processor, 1), demo.load_mnist()
    mean = torch.cat(list(pixel_batches(list(undecoded(digits["train"]))[::10], reader))).mean(0)
    x = torch.cat(list(pixel_batches(list(undecoded(digits["validation"]))[::10], reader)))
    mask = CenterCrop(3)(model.grid, range(len(x)))
    hole = model.hole(mask)
    error = hole_mse(model.generate(x, mask, range(len(x))), x, hole).mean()
    assert error < 0.8 * hole_mse(mean.expand_as(x), x, hole).mean() and error < 0.5 * hole_mse(0 * x, x, hole).mean()
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_recipe(tmp_path):
    make_dataset(32).to_parquet(tmp_path / "data" / "train.parquet")
    make_dataset(16).to_parquet(tmp_path / "data" / "validation.parquet")
    original, folder = wrapped(), tmp_path / "out"
    original.save_pretrained(tmp_path / "mage")
    make_processor().save_pretrained(tmp_path / "mage")
    argv = [ROOT / "recipes" / "unlearn_mage.py", "--dataset", tmp_path / "data", "--forget_classes", "cat",
            "--corruption", "random:0.5", "--eval_corruption", "center:2", "--mask_rate", "mage", "--decoding_steps", 3,
            "--temperature", 2, "--code_temperature", 0.7, "--toward_mean", 0.5,
            "--max_steps", 2, "--eval_samples", 4, "--pictures", 2, "--output_dir", folder, "--use_cpu",
            "--disable_tqdm", "true"]  # fmt: skip
    done = launch(*argv, "--model", tmp_path / "mage")
    assert "| forget | 4 |" in done.stdout
    decoding = family_options(
        yaml.safe_load((folder / "run.yaml").read_text())
    )  # what measures the folder later completes with
    again = load_model(str(folder), **decoding)
    assert (again.steps, again.temperature, again.code_temperature, again.toward_mean) == (3, 2, 0.7, 0.5)
    script = f"""
import os, sys; sys.modules["hf_i2i_unlearn"] = None; os.environ["HF_MODULES_CACHE"] = {str(tmp_path / "modules")!r}
import torch
from transformers import AutoImageProcessor, AutoModel
model, info = AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True, output_loading_info=True)
assert not any(info.values()), info
AutoImageProcessor.from_pretrained({str(folder)!r}, backend="pil")
torch.save(model.state_dict(), {str(tmp_path / "state.pt")!r})
"""
    launch("-c", script)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    moved = {f"model.{k}" for k, v in original.model.state_dict().items() if not torch.equal(v, state[k])}
    assert moved == {k for k in original.state_dict() if k.startswith(ENCODER)}
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers" and 'AutoModel.from_pretrained("' in card.text
    assert "trust_remote_code=True" in card.text
    assert "recipes/unlearn_mage.py" in card.text and "The decoder is the original's, bit for bit." in card.text

    make_processor(do_normalize=True).save_pretrained(tmp_path / "mage")
    refused = launch(*argv, "--model", tmp_path / "mage", "--output_dir", tmp_path / "other", check=False)
    assert refused.returncode == 2 and "error: The image processor normalises" in refused.stderr
    assert not (tmp_path / "other").exists()
