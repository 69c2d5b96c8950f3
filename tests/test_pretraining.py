"""Training from nothing: all families on the trainer, MAGE's three stages, streams, samples, and the recipe."""

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_dataset, make_mae
from helpers.close import assert_close, is_close
from PIL import Image
from safetensors.torch import load_file
from test_mage import make_mage
from test_unet import make_unet
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_i2i_unlearn import CenterCrop, I2IMage, I2IUNet, InputError, RandomMask, undecoded
from hf_i2i_unlearn.data.pairs import SingleImages
from hf_i2i_unlearn.data.streams import SingleImageStream
from hf_i2i_unlearn.models.diffusion.layout import palette_config
from hf_i2i_unlearn.models.mae.pretraining import MAEAdversarialTraining
from hf_i2i_unlearn.models.mage.hf.configuration_mage import MageConfig
from hf_i2i_unlearn.models.mage.hf.decoding_mage import fill_hole
from hf_i2i_unlearn.models.mage.hf.modeling_mage import MageModel
from hf_i2i_unlearn.models.mage.pretraining import (
    MageDecoderTraining,
    MageTokenizerTraining,
    MageTransformerTraining,
    informed_start,
    perplexity,
)
from hf_i2i_unlearn.originals.config import PretrainingConfig
from hf_i2i_unlearn.originals.pretraining import PretrainingTrainer
from hf_i2i_unlearn.training.optimizers import block_matrices

ROOT = Path(__file__).parents[1]
DATA = undecoded(make_dataset())
FAMILIES = {
    "mae": make_mae,
    "adversarial": lambda: MAEAdversarialTraining(make_mae().model),
    "diffusion": make_unet,
    "tokenizer": lambda: MageTokenizerTraining(make_mage(random=False), reseed_every=2),
    "transformer": lambda: MageTransformerTraining(make_mage(random=False), steps=3),
    "decoder": lambda: MageDecoderTraining(make_mage(random=False), steps=3),
}


def make_trainer(folder, model, data=None, rows=(), **options):
    unit = isinstance(model, I2IMage)
    norm = {"do_normalize": False} if unit else {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    height, width = model.image_size
    muon = 0 if isinstance(model, (MageTokenizerTraining, MageDecoderTraining)) or model.family == "diffusion" else 1e-2
    defaults = {
        "muon_learning_rate": muon,
        "max_steps": 4,
        "save_steps": 2,
        "save_total_limit": 9,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    corruptions = {CenterCrop(2): 0.5, RandomMask(0.5): 0.5}
    return PretrainingTrainer(
        model,
        PretrainingConfig(str(folder), **defaults | options),
        SingleImages(DATA, 0) if data is None else data,
        ViTImageProcessorPil(size={"height": height, "width": width}, **norm),
        corruptions,
        sample_rows=list(rows),
    )


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def pictures(seed=0, count=4):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


# -------------------------------------------------------------------------------------------------------------- every family


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ema", [0, 0.9])
def test_resumed_equals_straight_and_samples_change_nothing(tmp_path, family, ema):
    torch.manual_seed(0)
    model = FAMILIES[family]()
    first = weights(model)
    trainer = make_trainer(tmp_path / "straight", model, rows=list(DATA)[:3], ema_decay=ema)
    trainer.train()
    assert not same(first, weights(model))
    sample = Image.open(tmp_path / "straight" / "samples" / "step-4.png")
    side = model.image_size[0]
    assert sample.size == (3 * (side + 2) * (64 // side), 3 * (side + 2) * (64 // side))  # image, T(x), completion; 3 rows

    shutil.copytree(tmp_path / "straight" / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    torch.manual_seed(123)  # another start, other random numbers
    other = FAMILIES[family]()
    make_trainer(tmp_path / "cut", other, ema_decay=ema).train(resume_from_checkpoint="true")
    assert same(weights(model), weights(other))
    assert not (tmp_path / "cut" / "samples").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16(tmp_path, family):
    torch.manual_seed(0)
    trainer = make_trainer(tmp_path, FAMILIES[family](), bf16=True, max_steps=3, save_strategy="no")
    trainer.train()
    assert all(p.dtype == torch.float32 for p in trainer.i2i.parameters())
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 3 and all(map(math.isfinite, losses))


@pytest.mark.parametrize("family, stacks", [("mae", "layers."), ("transformer", "blocks.")])
def test_muon_takes_the_matrices_of_the_blocks(tmp_path, family, stacks):
    model = FAMILIES[family]()
    wanted = {n for n, p in model.named_parameters() if p.ndim == 2 and stacks in n and p.requires_grad}
    names = {id(p): n for n, p in model.named_parameters()}
    assert {names[id(p)] for p in block_matrices(model)} == wanted and len(wanted) >= 12
    trainer = make_trainer(tmp_path, model)
    groups = trainer.create_optimizer().param_groups
    given = [id(p) for group in groups for p in group["params"]]
    assert len(given) == len(set(given)) and set(given) == {id(p) for p in model.parameters() if p.requires_grad}
    with pytest.raises(InputError, match="none of the 'mage' model's is to be trained; set muon_learning_rate to 0"):
        make_trainer(tmp_path, FAMILIES["tokenizer"](), muon_learning_rate=0.1).train()


def test_refused_before_training(tmp_path):
    with pytest.raises(InputError, match="The training set is empty"):
        make_trainer(tmp_path, make_mae(), SingleImages(DATA.select([])))
    stream = DATA.to_iterable_dataset()
    with pytest.raises(InputError, match="needs max_steps .* got max_steps=-1"):
        make_trainer(tmp_path, make_mae(), SingleImageStream(stream), max_steps=-1)
    with pytest.raises(InputError, match="The training set is empty"):
        make_trainer(tmp_path, make_mae(), SingleImageStream(stream.filter(lambda row: False)))
    broken = [{"image": {"bytes": b"no picture", "path": "x.png"}}] * 3
    with pytest.raises(InputError, match="Cannot read x.png"):
        make_trainer(tmp_path, make_mae(), SingleImages(broken))
    assert not any(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------------- adversarial losses


def test_adversarial_loss_by_hand():
    torch.manual_seed(0)
    model = MAEAdversarialTraining(make_mae().model, weight=0.3).eval()  # eval: spectral norms stand still
    x, mask = pictures(), RandomMask(0.5)(model.grid, torch.arange(4))
    hole = model.hole(mask)
    loss = model.training_loss(x, mask)
    completed = model.generate(x, mask)
    counted = hole.unfold(2, 4, 4).unfold(3, 4, 4).any(-1).any(-1).flatten(1).float()  # (B, verdicts)

    def verdict(pictures):
        values = model.discriminator(pictures, hole)
        return values, lambda f: (f(values) * counted).sum(1) / counted.sum(1)

    (_, real), (_, made) = verdict(x), verdict(completed)
    squared = ((completed - x).square() * hole).flatten(1).sum(1) / (3 * hole.flatten(1).sum(1))
    wanted = squared - 0.3 * made(lambda v: v) + real(lambda v: (1 - v).clamp_min(0)) + made(lambda v: (1 + v).clamp_min(0))
    assert_close(loss, wanted)
    # Pixels outside the hole are no part of the completion: the verdicts differ by the hole alone.
    assert_close(completed[~hole.expand_as(x)], x[~hole.expand_as(x)])


def test_each_part_of_the_adversarial_loss_trains_its_own_network():
    torch.manual_seed(0)
    model, x = MAEAdversarialTraining(make_mae().model, weight=0.3).eval(), pictures()
    mask = CenterCrop(2)(model.grid, torch.arange(4))

    def gradients(weight):
        model.zero_grad()
        model.weight = weight
        model.training_loss(x, mask).mean().backward()
        return [
            torch.cat([p.grad.flatten() for p in part.parameters() if p.grad is not None])
            for part in (model.model, model.discriminator)
        ]

    (plain_model, plain_critic), (model_, critic) = gradients(1e-12), gradients(0.3)
    assert_close(critic, plain_critic)  # the model's loss does not reach the discriminator
    plain = make_mae()
    plain.model.load_state_dict(model.model.state_dict())
    plain.training_loss(x, mask).mean().backward()
    squared_alone = torch.cat([p.grad.flatten() for p in plain.model.parameters() if p.grad is not None])
    assert_close(plain_model, squared_alone)  # nor the discriminator's the model
    assert not is_close(model_, plain_model, 1e-3)


def test_adversarial_refusals_and_result_without_discriminator(tmp_path):
    with pytest.raises(InputError, match="must be larger than 0, got 0"):
        MAEAdversarialTraining(make_mae().model, weight=0.0)
    trainer = make_trainer(tmp_path, MAEAdversarialTraining(make_mae().model), max_steps=2)
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "checkpoint-2" / "training_only.safetensors").is_file()
    assert not (tmp_path / "training_only.safetensors").exists()
    assert not any("discriminator" in name for name in load_file(tmp_path / "model.safetensors"))
    (tmp_path / "checkpoint-2" / "training_only.safetensors").unlink()
    with pytest.raises(InputError, match="has no training_only.safetensors"):
        make_trainer(tmp_path, MAEAdversarialTraining(make_mae().model)).train(resume_from_checkpoint="true")


def test_decoder_loss_of_mage_by_hand():
    torch.manual_seed(0)
    model = MageDecoderTraining(make_mage(random=False), weight=0.3, steps=3).eval()
    x, mask = pictures(), RandomMask(0.5)(model.grid, torch.arange(4))
    hole = model.hole(mask)
    blanked = fill_hole(x, hole, model.model.config.fill_color)
    ids = torch.where(mask.flatten(1), model.model.tokenize(x), model.model.tokenize(blanked))
    completed = torch.where(hole, model.model.decode_tokens(ids), x)
    squared = ((completed - x).square() * hole).flatten(1).sum(1) / (3 * hole.flatten(1).sum(1))
    fooled, told_apart, _ = model.discriminator.losses(2 * x - 1, 2 * completed - 1, hole)
    loss = model.training_loss(x, model.draw(x, mask, torch.zeros(4, 2, dtype=torch.long)))
    assert_close(loss, squared + 0.3 * fooled + told_apart)


def test_decoder_of_mage_is_trained_alone(tmp_path):
    made = make_mage(random=False)
    before = {name: w.clone() for name, w in made.state_dict().items()}
    trainer = make_trainer(tmp_path, MageDecoderTraining(made, steps=3))
    trainer.train()
    trainer.save_model()
    after = MageModel.from_pretrained(tmp_path).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith("vqgan.decoder.") for name in moved)
    assert moved == {name for name in before if name.startswith("vqgan.decoder.")}
    with pytest.raises(InputError, match="must be larger than 0, got -1"):
        MageDecoderTraining(made, weight=-1.0)


# ----------------------------------------------------------------------------------------------------------------- streams


def test_stream_of_single_pictures(tmp_path):
    rows = [row["image"]["path"] for row in DATA]
    stream = iter(SingleImageStream(DATA.to_iterable_dataset(3), seed=1, shuffle_buffer=8))
    seen = [next(stream) for _ in range(2 * len(rows))]
    passes = [[row["image"]["image"]["path"] for row in part] for part in (seen[: len(rows)], seen[len(rows) :])]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(rows) and passes[0] != passes[1] and passes[0] != rows
    assert len({tuple(row["seeds"]) for row in seen}) == len(seen)

    def train(folder, resume=None):
        torch.manual_seed(0)
        model = make_mae()
        make_trainer(tmp_path / folder, model, SingleImageStream(DATA.to_iterable_dataset(3), 0), max_steps=8).train(resume)
        return weights(model)

    straight = train("straight")
    shutil.copytree(tmp_path / "straight" / "checkpoint-6", tmp_path / "cut" / "checkpoint-6")
    shutil.copytree(tmp_path / "straight" / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-6")
    assert same(straight, train("cut", "true"))


# --------------------------------------------------------------------------------------------------------- MAGE's tokenizer


def test_codes_start_on_vectors_far_apart():
    quantizer = make_mage(codebook_size=4, codebook_dim=2, vocab_size=None).vqgan.quantize
    # Two big clusters, two tiny ones: random picks would miss the tiny ones.
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    vectors = torch.cat([centres[k] + 0.01 * torch.randn(n, 2) for k, n in enumerate((500, 500, 2, 1))])
    assert quantizer.reseed(vectors, torch.Generator().manual_seed(0), everything=True) == 4
    codes = quantizer.embedding.weight
    assert torch.equal(torch.cdist(codes, centres).argmin(1).sort().values, torch.arange(4))
    assert all((vectors == code).all(1).any() for code in codes)


def test_unused_codes_are_replaced_and_used_ones_left():
    quantizer = make_mage(codebook_size=4, codebook_dim=2, vocab_size=None).vqgan.quantize
    codes = torch.tensor([[0.0, 0.0], [100.0, 0.0], [5.0, 0.0], [0.0, 100.0]])
    quantizer.embedding.weight.data.copy_(codes)
    vectors = torch.tensor([[0.1, 0.0], [5.1, 0.0], [5.0, 3.0], [0.0, 3.0]])
    assert quantizer.reseed(vectors, torch.Generator().manual_seed(0)) == 2
    after = quantizer.embedding.weight
    assert torch.equal(after[[0, 2]], codes[[0, 2]])
    assert sorted(after[[1, 3]].tolist()) == [[0.0, 3.0], [5.0, 3.0]]  # by far the worst served
    assert quantizer.reseed(vectors, torch.Generator().manual_seed(0)) == 0


def test_when_codes_are_replaced():
    model, x = MageTokenizerTraining(make_mage(), reseed_every=10, reseed_until=0.5), pictures()
    model.model.vqgan.quantize.embedding.weight.data.mul_(100)  # most are out of reach
    for step, total, changes in ((5, 100, False), (60, 100, False), (50, 100, True), (0, 100, True)):
        before = model.model.vqgan.quantize.embedding.weight.clone()
        model.before_step(x, step, total)
        assert torch.equal(model.model.vqgan.quantize.embedding.weight, before) != changes, step
    assert model.model.tokenize(x).unique().numel() == 12  # every code is now a vector of the batch, so every one is used


def test_tokenizer_loss_and_figures():
    model, x = MageTokenizerTraining(make_mage()), pictures()
    tokenizer = model.model.vqgan
    draw = model.draw(x, CenterCrop(2)((4, 4), range(4)), range(4))
    assert draw.sum((1, 2)).tolist() == [0, 4, 0, 4]
    loss = model.training_loss(x, draw)
    ids = tokenizer.tokenize(x)
    z, codes = tokenizer.encode(x), tokenizer.quantize.embedding(ids)
    mixed, wanted = ids.clone(), x.clone()
    for b in (1, 3):  # each has the centre of the picture before it, tokens and pixels
        mixed[b, 1:3, 1:3], wanted[b, :, 4:12, 4:12] = ids[b - 1, 1:3, 1:3], x[b - 1, :, 4:12, 4:12]
    error = tokenizer.decode_tokens(mixed) - wanted
    expected = error.abs().mean((1, 2, 3)) + (error**2).mean((1, 2, 3)) + 1.25 * ((z - codes) ** 2).mean()
    assert_close(loss, expected)
    counts = torch.tensor([(ids == k).sum() for k in range(12)]) / ids.numel()
    entropy = -sum(p * math.log(p) for p in counts.tolist() if p)
    assert model.diagnostics["perplexity"] == pytest.approx(math.exp(entropy), rel=1e-5)
    assert model.diagnostics["codes_used"] == ids.unique().numel()
    figures = model.figures([x[:3], x[3:]])
    mse = (tokenizer.decode_tokens(ids).clamp(0, 1) - x).square().mean((1, 2, 3))
    assert figures["count"] == 4 and figures["mse"] == pytest.approx(mse.mean().item(), rel=1e-5)
    assert figures["psnr"] == pytest.approx((-10 * mse.log10()).mean().item(), rel=1e-5)
    assert figures["codes_used"] == ids.unique().numel() and figures["perplexity"] == pytest.approx(math.exp(entropy), rel=1e-5)
    assert perplexity(torch.full((8,), 1 / 8)) == pytest.approx(8, rel=1e-5)


def test_tokenizer_stage_trains_the_tokenizer_alone(tmp_path):
    torch.manual_seed(0)
    model = FAMILIES["tokenizer"]()
    before = weights(model)
    trainer = make_trainer(tmp_path, model, max_steps=30, learning_rate=3e-3)
    trainer.train()
    moved = {k for k, v in weights(model).items() if not torch.equal(v, before[k])}
    assert moved == {k for k in before if k.startswith("model.vqgan.")}
    log = [line for line in trainer.state.log_history if "loss" in line]
    assert log[-1]["reconstruction_mse"] < 0.6 * log[0]["reconstruction_mse"]
    assert max(line["codes_used"] for line in log) == 12 and log[0]["perplexity"] > 1


# ------------------------------------------------------------------------------------------------------- MAGE's transformer


def test_transformer_stage_leaves_the_tokenizer_and_the_config(tmp_path):
    torch.manual_seed(0)
    model = FAMILIES["transformer"]()
    dropouts = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
    attention = {m.attention_dropout for m in model.modules() if hasattr(m, "attention_dropout")}
    assert dropouts == attention == {0.1}
    before = weights(model)
    make_trainer(tmp_path, model).train()
    moved = {k for k, v in weights(model).items() if not torch.equal(v, before[k])}
    assert moved == {k for k in before if not k.startswith("model.vqgan.")}
    again = MageModel.from_pretrained(tmp_path / "checkpoint-4")
    assert again.config.hidden_dropout_prob == again.config.attention_dropout_prob == 0
    assert {m.p for m in again.blocks.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    with pytest.raises(InputError, match="dropout must lie between 0 and 1"):
        MageTransformerTraining(make_mage(), dropout=1.0)


def test_informed_start():
    """Similar codes are similar words by as much as `share` says; near places are more alike than far ones; sizes stay."""
    torch.manual_seed(0)
    changes = {"hidden_size": 256, "codebook_size": 64, "codebook_dim": 4, "initializer_range": 0.05}
    model = MageModel(MageConfig(**make_mage().config.to_dict() | {"vocab_size": None} | changes))
    words, codes = model.token_emb.word_embeddings.weight, model.vqgan.quantize.embedding.weight.data.normal_()
    fresh, off = words.detach().clone(), ~torch.eye(64, dtype=torch.bool)
    truth = ((codes - codes.mean(0)) @ (codes - codes.mean(0)).T)[off]
    for share in (1.0, 0.5, 0.0):
        informed_start(model, share)
        assert torch.equal(words[64:], fresh[64:]) and words[:64].std().item() == pytest.approx(0.05, rel=0.1)
        known = (words[:64] @ words[:64].T)[off]  # those of the codes, scaled, and noise's, which on the average are 0
        slope = (known * truth).sum() / (truth**2).sum()
        scale = 256 * 0.05**2 / (codes - codes.mean(0)).square().sum(1).mean()
        assert slope.item() == pytest.approx(share * scale.item(), rel=0.1, abs=0.02)
        if share == 1:
            assert_close(torch.nn.functional.cosine_similarity(known, truth, 0), torch.tensor(1.0))
    for table, size in ((model.token_emb.position_embeddings.weight, 0.05), (model.decoder_pos_embed_learned[0], 0.5)):
        places = table[1:17].view(4, 4, -1)  # rows, columns
        assert places.std().item() == pytest.approx(size, rel=1e-4)
        distance = (places - places[0, 0]).norm(dim=2)
        assert (distance[0].diff() > 0).all() and is_close(distance, distance.T)
    with pytest.raises(InputError, match="between 0 and 1"):
        informed_start(model, 1.1)
    model.config.codebook_dim = 512
    with pytest.raises(InputError, match="codes' 512 dimensions, got hidden_size 256"):
        informed_start(model)


def test_draws_of_pretraining():
    model, x = MageTransformerTraining(make_mage()), pictures()
    kinds = []
    for step in range(60):
        seeds = range(4 * step, 4 * step + 4)
        mask = CenterCrop(2)((4, 4), seeds)
        draw = model.draw(x, mask, seeds)
        assert torch.equal(draw.hole, mask)
        if not draw.dropped.any():  # what decoding looks at: some of T hidden, nothing dropped
            kinds.append("decoding")
            assert not (draw.hidden & ~mask).any() and draw.hidden.flatten(1).sum(1).min() >= 1
        elif torch.equal(draw.hidden, mask):  # what unlearning looks at: T
            kinds.append("T")
            assert torch.equal(draw.dropped, mask)
        else:  # as MAGE trains: T dropped, a random share beside it hidden
            kinds.append("mage")
            plain = I2IMage(model.model, mask_rate="mage").draw(x, mask, seeds)
            assert torch.equal(draw.dropped, mask) and torch.equal(draw.hidden, plain.hidden)
    assert all(8 < kinds.count(kind) < 32 for kind in ("decoding", "T", "mage"))
    hidden = torch.cat(
        [
            model.draw(x, mask, range(s, s + 4)).hidden
            for s in range(0, 400, 4)
            if not model.draw(x, mask, range(s, s + 4)).dropped.any()
        ]
    )
    counts = torch.bincount(hidden.flatten(1).sum(1), minlength=5)[1:] / len(hidden)
    assert counts.min() > 0.1  # 1 to 4 of the 4 tokens, about equally often


@torch.no_grad()
def test_transformer_loss_is_the_models_own_on_these_tokens():
    model, x = MageTransformerTraining(make_mage(), dropout=0.0), pictures()
    inner, seen = model.model, set()
    for step in range(0, 40, 4):
        mask = CenterCrop(2)((4, 4), range(4))
        draw = model.draw(x, mask, range(step, step + 4))
        seen.add(bool(draw.dropped.any()))
        truth = inner.tokenize(x)
        ids = inner.tokenize(fill_hole(x, model.hole(mask), inner.config.fill_color))
        for b, row, col in mask.nonzero().tolist():
            ids[b, 4 * row + col] = truth[b, 4 * row + col]
        dropped, hidden = draw.dropped.flatten(1), draw.hidden.flatten(1)
        out = inner(token_ids=ids, token_drop_mask=dropped, token_all_mask=hidden)
        expected = torch.stack([inner.loss(out.logits[b : b + 1], truth[b : b + 1], hidden[b : b + 1]) for b in range(4)])
        assert_close(model.training_loss(x, draw), expected)
    assert seen == {True, False}


# ---------------------------------------------------------------------------------------------------------------- the recipe


def load_recipe():
    spec = importlib.util.spec_from_file_location("pretrain", ROOT / "recipes" / "pretrain.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAGE = {
    "image_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "codebook_size": 12, "codebook_dim": 4,
    "tokenizer_channels": 8, "tokenizer_channel_multipliers": [1, 1, 2], "tokenizer_norm_groups": 4, "tokenizer_res_blocks": 1,
    "max_position_embeddings": 17,
}  # fmt: skip


@pytest.fixture
def source(tmp_path):
    make_dataset(32).to_parquet(tmp_path / "data" / "train.parquet")
    make_dataset(8).to_parquet(tmp_path / "data" / "validation.parquet")
    return tmp_path / "data"


def options(source, folder, *more):
    return ["--family", "mage", "--dataset", source, "--output_dir", folder, "--max_steps", 3, "--save_steps", 2, "--use_cpu",
            "--disable_tqdm", "true", "--per_device_train_batch_size", 4, "--logging_steps", 1, *more]  # fmt: skip


def test_recipe_for_the_three_stages_of_mage(source, tmp_path, monkeypatch, capsys):
    recipe = load_recipe()

    def launch(*argv):
        monkeypatch.setattr(sys, "argv", ["pretrain.py", *map(str, argv)])
        recipe.main()
        return capsys.readouterr().out

    out = launch(
        *options(source, tmp_path / "tokenizer", "--model", json.dumps(MAGE), "--half", "true", "--muon_learning_rate", 0)
    )
    assert "reconstruction: PSNR" in out and "on 8 validation pictures" in out
    figures = json.loads((tmp_path / "tokenizer" / "figures.json").read_text())["reconstruction"]
    assert 0 < figures["psnr"] < 40 and 1 <= figures["perplexity"] <= figures["codes_used"] <= 12
    out = launch(*options(source, tmp_path / "mage", "--stage", "transformer", "--init", tmp_path / "tokenizer",
                                  "--half", "true", "--streaming", "true", "--generation", '{"steps": 3, "margin": 0}',
                                  "--corruptions", '{"center:2": 1}', "--informed_start", "true"))  # fmt: skip
    assert "center:2: hole error" in out and "a stream of pictures" in out
    names = {f.name for f in (tmp_path / "mage").iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "figures.json", "run.yaml", "loss.png",
            "samples", "checkpoint-3"} <= names  # fmt: skip
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("tokenizer", "mage"))
    places = two["decoder_pos_embed_learned"][0, 1:].float().view(4, 4, -1)
    assert (places[0, 0] - places[0, 3]).norm() > 1.3 * (places[0, 0] - places[0, 1]).norm()  # waves, not noise
    assert {v.dtype for v in two.values()} == {torch.float16}
    assert all(torch.equal(one[k], two[k]) for k in one if k.startswith("vqgan.")) and not same(one, two)
    out = launch(
        *options(
            source,
            tmp_path / "sharp",
            "--stage",
            "decoder",
            "--init",
            tmp_path / "mage",
            "--adversarial_weight",
            0.1,
            "--half",
            "true",
            "--generation",
            '{"steps": 3, "margin": 0}',
            "--corruptions",
            '{"center:2": 1}',
            "--muon_learning_rate",
            0,
        )
    )
    assert "center:2: hole error" in out
    three = load_file(tmp_path / "sharp" / "model.safetensors")
    assert all(torch.equal(two[k], three[k]) for k in two if not k.startswith("vqgan.decoder.")) and not same(two, three)
    script = f"""
import os, sys; sys.modules["hf_i2i_unlearn"] = None; os.environ["HF_MODULES_CACHE"] = {str(tmp_path / "modules")!r}
import torch
from transformers import AutoModel
model, info = AutoModel.from_pretrained({str(tmp_path / "mage")!r}, trust_remote_code=True, output_loading_info=True)
assert not any(info.values()) and model.dtype == torch.float16 and model.vqgan.dtype == torch.float32, info
assert model.float().complete(torch.rand(1, 3, 16, 16), torch.eye(4).bool()[None], steps=3).shape == (1, 3, 16, 16)
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True)
    for file in (tmp_path / "mage").glob("*.py"):  # the package has the code itself
        file.unlink()
    model = I2IMage.from_pretrained(str(tmp_path / "mage"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_recipe_goes_on_with_a_mae_under_an_adversarial_loss(source, tmp_path, monkeypatch, capsys):
    make_mae().save_pretrained(tmp_path / "first")
    second = ["--family", "mae", "--init", tmp_path / "first", "--adversarial_weight", 0.1, "--corruptions", '{"center:2": 1}']
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *map(str, options(source, tmp_path / "second", *second))])
    load_recipe().main()
    assert "center:2: hole error" in capsys.readouterr().out
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert one.keys() == two.keys() and not same(one, two)
    assert all((two[name] - one[name]).abs().max() < 0.5 for name in one)  # it went on, and did not start anew


def test_recipe_goes_on_with_a_unet_and_gives_its_encoder_attention(source, tmp_path, monkeypatch, capsys):
    first = I2IUNet.from_config(
        palette_config(16, inner=8, multipliers=(1, 2), layers=1, head_channels=4, norm_groups=4), patch_size=4
    )
    first.save_pretrained(tmp_path / "first")
    second = [
        "--family",
        "diffusion",
        "--init",
        tmp_path / "first",
        "--model",
        '{"encoder_attention": [1]}',
        "--muon_learning_rate",
        0,
        "--patch_size",
        4,
        "--denoising_steps",
        2,
        "--corruptions",
        '{"center:2": 1}',
        "--learning_rate",
        1e-4,
        "--image_mean",
        0.5,
        0.5,
        0.5,
        "--image_std",
        0.5,
        0.5,
        0.5,
    ]
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *map(str, options(source, tmp_path / "second", *second))])
    load_recipe().main()
    assert "center:2: hole error" in capsys.readouterr().out
    one, two = (load_file(tmp_path / name / "diffusion_pytorch_model.safetensors") for name in ("first", "second"))
    assert all(".attentions." in name for name in two.keys() - one.keys()) and two.keys() > one.keys()
    moved = [(two[name] - one[name]).abs().max() for name in one]
    assert 0 < max(moved) < 0.01  # it went on, and did not start anew
    assert I2IUNet.from_pretrained(tmp_path / "second").model.config.down_block_types[1] == "AttnDownBlock2D"


def test_recipe_errors(source, tmp_path, monkeypatch):
    recipe, folder = load_recipe(), tmp_path / "out"

    def refused(*argv):
        monkeypatch.setattr(sys, "argv", ["pretrain.py", *map(str, options(source, folder, *argv))])
        with pytest.raises(InputError) as error:
            recipe.main()
        assert not folder.exists()
        return str(error.value)

    make_mae().save_pretrained(tmp_path / "mae")
    make_mage(tokenizer_channel_multipliers=(1, 2, 2)).save_pretrained(tmp_path / "mage")
    assert "--stage transformer needs --init" in refused("--stage", "transformer")
    assert "--init goes with --stage transformer" in refused("--init", tmp_path / "mage")
    transformer = ["--stage", "transformer", "--init"]
    assert "holds a 'vit_mae' model, expected 'mage'" in refused(*transformer, tmp_path / "mae")
    assert "Cannot load a model" in refused(*transformer, tmp_path / "nothing")
    changed = json.dumps({"codebook_size": 24, "hidden_size": 8})
    assert "changes codebook_size, which the tokenizer" in refused(*transformer, tmp_path / "mage", "--model", changed)
    assert "'hiden_size', which MageConfig does not have" in refused("--model", '{"hiden_size": 3}')
    assert "'hiden_size', which ViTMAEConfig does not have" in refused("--family", "mae", "--model", '{"hiden_size": 3}')
    assert "give one of them" in refused("--family", "mae", "--init", tmp_path / "mae", "--model", '{"hidden_size": 16}')
    assert "--adversarial_weight is for MAE" in refused("--model", json.dumps(MAGE), "--adversarial_weight", 0.1)
    assert "--informed_start is for" in refused("--model", json.dumps(MAGE), "--informed_start", "true")
    make_unet().save_pretrained(tmp_path / "unet")
    unet = ["--family", "diffusion", "--init"]
    assert "holds a 'vit_mae' model" in refused(*unet, tmp_path / "mae")
    assert "leave out inner, layers" in refused(*unet, tmp_path / "unet", "--model", '{"layers": 1, "inner": 8}')
    assert "has no level 9" in refused(*unet, tmp_path / "unet", "--model", '{"encoder_attention": [9]}')
    decoder = ["--stage", "decoder", "--init", tmp_path / "mage"]
    assert "--stage decoder needs --init: the folder that --stage transformer wrote" in refused(*decoder[:2])
    assert "must be larger than 0, got 0" in refused(*decoder)
    assert "give one of them" in refused(*decoder, "--adversarial_weight", 0.1, "--model", '{"hidden_size": 16}')
    assert "image_size is 18, expected a multiple of 4" in refused("--model", json.dumps(MAGE | {"image_size": 18}))
    assert "do not fit" in refused("--model", json.dumps(MAGE), "--generation", '{"step": 3}')
    assert "at least 1 step" in refused("--model", json.dumps(MAGE), "--generation", '{"steps": 0}')
    assert "hides everything" in refused("--model", json.dumps(MAGE), "--corruptions", '{"center:4": 1}')
    assert "needs max_steps" in refused("--model", json.dumps(MAGE), "--streaming", "true", "--max_steps", -1)
    make_dataset(3).to_parquet(source / "train.parquet")
    nobody = ["--model", json.dumps(MAGE), "--eval_split", "none", "--classes", "dog"]
    assert "No picture has label 'dog'" in refused(*nobody)
    assert "No picture has label 'dog'" in refused(*nobody, "--streaming", "true")
