import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.close import assert_close
from safetensors.torch import load_file, save_file

from hf_i2i_unlearn import InputError
from hf_i2i_unlearn.commands.convert import main
from hf_i2i_unlearn.models.mage.conversion import from_original, infer_config, to_original
from hf_i2i_unlearn.models.mage.hf import completion_mage
from hf_i2i_unlearn.models.mage.hf.configuration_mage import MageConfig
from hf_i2i_unlearn.models.mage.hf.decoding_mage import (
    decoding_step,
    feathered_paste,
    fill_hole,
    grow,
    masks_from_noise,
    sample_codes,
    truncated_normal,
)
from hf_i2i_unlearn.models.mage.hf.modeling_mage import MageModel
from hf_i2i_unlearn.tensor_files import read_tensors

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
CLASS_ID, MASK_ID = 12 + 76, 12 + 1000


def make_config(**changes) -> MageConfig:
    """16x16 pictures on a 4x4 grid; encoder and decoder of different widths, a spare row of positions."""
    options = {
        "image_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "decoder_hidden_size": 24,
        "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 3, "codebook_size": 12, "codebook_dim": 6,
        "tokenizer_channels": 8, "tokenizer_channel_multipliers": (1, 2, 2), "tokenizer_norm_groups": 4,
        "max_position_embeddings": 18,
    }  # fmt: skip
    return MageConfig(**options | changes)


def make_mage(seed: int = 0, random: bool = True, **changes) -> MageModel:
    """A tiny model in eval mode; with `random` no weight, norm or bias is at its neutral value."""
    torch.manual_seed(seed)
    model = MageModel(make_config(**changes)).eval()
    if random:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.1))
            for buffer in model.buffers():
                buffer.normal_()
    return model


@pytest.fixture
def mage():
    return make_mage()


@pytest.fixture
def pixels():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def masks():
    return masks_from_noise(torch.rand(3, 16, generator=torch.Generator().manual_seed(2)), 8, 11)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The fixture's tensors and its model, converted by the code under test and loaded from the folder."""
    if not (FIXTURES / "mage_a.safetensors").exists():
        pytest.skip("fixture mage_a is not there; test_agrees_with_a_second_implementation stands in for it")
    tensors = load_file(FIXTURES / "mage_a.safetensors")
    folder = tmp_path_factory.mktemp("mage")
    prefix = "state_dict."
    torch.save({"model": {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}}, folder / "a.pth")
    from_original(folder / "a.pth", folder / "converted", heads=4, decoder_heads=8)
    return tensors, MageModel.from_pretrained(folder / "converted")


# ------------------------------------------------------------------------------------------------------ the same numbers


def assert_within(actual, expected):
    tolerance = json.loads((FIXTURES / "mage_a.json").read_text())["tolerance"]
    assert_close(actual, expected, tolerance["rtol"])


@torch.no_grad()
def test_fixture_tokenizer(published):
    x, model = published
    # In float64, where it is the same code that is nearest on every processor.
    ids = copy.deepcopy(model).double().tokenize(x["input.images"].double())
    assert torch.equal(ids, x["output.vqgan_token_indices"])
    assert_within(model.vqgan.encoder(x["input.images"]), x["output.vqgan_z"])
    assert_within(model.decode_tokens(x["input.decode_indices"]), x["output.vqgan_decode"])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_fixture_transformer(published, attention):
    x, model = published
    model.set_attn_implementation(attention)
    masks = x["input.token_drop_mask_raw"].bool(), x["input.token_all_mask_raw"].bool()
    assert all(torch.equal(a, b) for a, b in zip(masks, masks_from_noise(x["input.mask_noise"], 8, 11)))
    out = model(x["input.images"], token_drop_mask=masks[0], token_all_mask=masks[1])
    assert_within(out.last_hidden_state, x["output.encoder_latent"])
    assert_within(out.logits, x["output.decoder_logits"])
    assert_within(out.loss, x["output.loss"][0])
    assert_within(model.token_emb(x["output.input_token_ids"]), x["output.token_embeddings"])
    noise = model.encode(model.tokenize(x["input.noise_images_clamped"]), *masks)
    assert_within(noise, x["output.noise_encoder_latent"])
    whole = model(x["input.images"][:1], token_all_mask=masks[1][:1])
    assert_within(whole.last_hidden_state, x["output.nodrop_encoder_latent"])
    assert_within(whole.logits, x["output.nodrop_decoder_logits"])


@torch.no_grad()
def test_fixture_inpainting_step_by_step(published, monkeypatch):
    x, model = published
    facts = json.loads((FIXTURES / "mage_a.json").read_text())["inpaint"]
    tokens, hidden = x["output.inpaint_step_tokens"], x["input.inpaint_token_mask"].bool()
    sampled, gumbel = x["output.inpaint_step_sampled_ids"], x["output.inpaint_step_gumbel"]
    exact = copy.deepcopy(model).double()  # in float64 the same tokens are the surest on every processor
    first = exact.tokenize(x["input.inpaint_masked_image"].double())
    assert torch.equal(first.masked_fill(hidden, model.config.mask_token_id), tokens[:1])
    for k, (count, temperature) in enumerate(facts["mask_len_and_temperature_per_step"]):
        logits = model.code_logits(tokens[k : k + 1])
        assert_within(logits[0], x["output.inpaint_step_logits"][k])
        logits = exact.code_logits(tokens[k : k + 1])
        ids, left = decoding_step(
            tokens[k : k + 1],
            logits,
            sampled[k : k + 1],
            gumbel[k : k + 1],
            torch.tensor([int(count)]),
            temperature,
            model.config.mask_token_id,
        )
        assert torch.equal(left[0] == model.config.mask_token_id, x["output.inpaint_step_remask"][k].bool())
        if k + 1 < facts["steps_run"]:
            assert torch.equal(left[0], tokens[k + 1])
    assert torch.equal(ids, x["output.inpaint_final_ids"])

    # The whole loop, fed with the same draws: skipped steps, schedule and temperatures are its own.
    draws = iter(zip(sampled.split(1), gumbel.split(1)))
    monkeypatch.setattr(completion_mage, "draw_noise", lambda *args: next(draws))
    monkeypatch.setattr(completion_mage, "sample_codes", lambda logits, uniform: uniform)
    final = exact.complete_tokens(first, hidden, facts["num_iter"], facts["choice_temperature"])
    assert torch.equal(final, x["output.inpaint_final_ids"]) and next(draws, None) is None


@torch.no_grad()
def test_fixture_compositing(published):
    x, model = published
    decoded = model.decode_tokens(x["output.inpaint_final_ids"])
    assert_within(decoded, x["output.inpaint_decoded"])
    hole = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    hole[..., 24:56, 8:40] = True
    assert torch.equal(grow(hole, 14).expand(1, 3, -1, -1), x["input.inpaint_pixel_mask"].bool())
    filled = fill_hole(x["input.images"][:1], hole, model.config.fill_color)
    assert_close(filled, x["input.inpaint_masked_image"])
    # Theirs is truncated to 8 bit: what was cut off lies between 0 and 1.
    picture = feathered_paste(x["output.inpaint_decoded"], filled, hole)[0].permute(1, 2, 0)
    cut = picture * 255 - x["output.inpaint_composited_uint8_rgb"]
    assert cut.min() > -1e-3 and cut.max() < 1 + 1e-3


@torch.no_grad()
def test_agrees_with_a_second_implementation(mage, pixels, masks):
    """The model again as functions of the original state dict, sample by sample and token by token.

    In float64, where a wrong epsilon shows.
    """
    mage, pixels = mage.double(), pixels.double()
    w = to_original(mage)

    def norm(x, name, eps=1e-6):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def block(x, name, heads):  # x: (L, D)
        q, k, v = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv").chunk(3, -1)
        size = x.shape[1] // heads
        parts = []
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            parts.append(((q[:, part] @ k[:, part].T) / math.sqrt(size)).softmax(-1) @ v[:, part])
        x = x + linear(torch.cat(parts, 1), f"{name}.attn.proj")
        return x + linear(F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")

    def group(x, name):
        return F.silu(F.group_norm(x, 4, w[f"{name}.weight"], w[f"{name}.bias"], 1e-6))

    def conv(x, name):
        weight = w[f"vqgan.{name}.weight"]
        return F.conv2d(x, weight, w.get(f"vqgan.{name}.bias"), padding=weight.shape[-1] // 2)

    def res(x, name):
        h = conv(group(x, f"vqgan.{name}.norm1"), f"{name}.conv1")
        h = conv(group(h, f"vqgan.{name}.norm2"), f"{name}.conv2")
        return x + h if x.shape == h.shape else h + conv(h, f"{name}.nin_shortcut")

    z = conv(pixels, "encoder.conv_in")
    for name in ("down.0", None, "down.1", None, "down.2", "mid"):
        if name is None:
            z = z.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
        else:
            for j in ("block_1", "block_2") if name == "mid" else ("block.0", "block.1"):
                z = res(z, f"encoder.{name}.{j}")
    z = conv(group(z, "vqgan.encoder.norm_out"), "encoder.conv_out")
    codes = w["vqgan.quantize.embedding.weight"]
    ids = torch.cdist(z.flatten(2).transpose(1, 2), codes[None]).argmin(-1)
    assert torch.equal(mage.tokenize(pixels), ids) and len(ids.unique()) > 3

    x = codes[ids].transpose(1, 2).reshape(3, 6, 4, 4)
    x = conv(x, "decoder.conv_in")
    for name in ("mid", "up.2", "up.1", "up.0"):
        for j in ("block_1", "block_2") if name == "mid" else ("block.0", "block.1"):
            x = res(x, f"decoder.{name}.{j}")
        if name in ("up.2", "up.1"):
            x = conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3), f"decoder.{name}.upsample.conv")
    x = conv(group(x, "vqgan.decoder.norm_out"), "decoder.conv_out")
    assert_close(mage.decode_tokens(ids), x, 1e-10)

    out = mage(pixels, token_drop_mask=masks[0], token_all_mask=masks[1])
    total = 0.0
    for b in range(3):
        words = [CLASS_ID] + [MASK_ID if hidden else int(i) for i, hidden in zip(ids[b], masks[1][b])]
        table = w["token_emb.word_embeddings.weight"][words] + w["token_emb.position_embeddings.weight"][:17]
        kept = [0] + [1 + n for n in range(16) if not masks[0][b, n]]
        latent = norm(table, "token_emb.LayerNorm")[kept]
        for n in range(2):
            latent = block(latent, f"blocks.{n}", heads=2)
        latent = norm(latent, "norm")
        assert_close(out.last_hidden_state[b], latent, 1e-10)
        x = linear(latent, "decoder_embed")
        full = torch.stack([x[0] if n and masks[1][b, n - 1] else x[kept.index(n)] for n in range(17)])
        x = norm(block(full + w["decoder_pos_embed_learned"][0], "decoder_blocks.0", heads=3), "decoder_norm")
        x = norm(F.gelu(linear(x, "mlm_layer.fc")), "mlm_layer.ln", eps=1e-5)
        logits = x @ w["token_emb.word_embeddings.weight"].T + w["mlm_layer.bias"][0]
        assert_close(out.logits[b], logits, 1e-10)
        log_p = logits[1:, :12].log_softmax(-1)
        total += (-0.9 * log_p[range(16), ids[b]] - 0.1 * log_p.mean(-1))[masks[1][b]].sum()
    assert_close(out.loss, (total / 33).float())


# ------------------------------------------------------------------------------------------------------------ invariants


@torch.no_grad()
def test_what_is_hidden_changes_nothing(mage, masks):
    generator = torch.Generator().manual_seed(0)
    ids, other = torch.randint(0, 12, (2, 3, 16), generator=generator)
    changed = torch.where(masks[1], other, ids)
    assert not torch.equal(ids, changed)
    latent = mage.encode(ids, *masks)
    assert latent.shape == (3, 1 + 8, 16)
    assert torch.equal(latent, mage.encode(changed, *masks))
    seen = ids.clone()
    place = (~masks[1][0]).nonzero()[0, 0]
    seen[0, place] = (seen[0, place] + 1) % 12
    assert not torch.equal(latent[0], mage.encode(seen, *masks)[0])


def test_gradients_of_encoder_and_decoder(mage, masks):
    """The head reads the word table but does not train it; the tokenizer takes no gradient."""
    ids = torch.randint(0, 12, (3, 16), generator=torch.Generator().manual_seed(0))
    logits = mage.decode(mage.encode(ids, *masks).detach(), *masks)
    mage.loss(logits, ids, masks[1]).backward()
    decoder = ("decoder_embed.", "decoder_pos_embed_learned", "decoder_blocks.", "decoder_norm.", "mlm_layer.")
    moved = {n for n, p in mage.named_parameters() if p.grad is not None}
    assert moved == {n for n, _ in mage.named_parameters() if n.startswith(decoder)}
    mage.zero_grad(set_to_none=True)
    mage.encode(ids, *masks).square().sum().backward()
    moved = {n for n, p in mage.named_parameters() if p.grad is not None}
    assert moved == {n for n, _ in mage.named_parameters() if n.startswith(("token_emb.", "blocks.", "norm."))}
    assert not any(p.requires_grad for p in mage.vqgan.parameters())


def test_fresh_models_are_initialised():
    model = make_mage(random=False)
    assert model.vqgan.quantize.embedding.weight.abs().max() <= 1 / 12
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.dim() == 1:
            assert (parameter == 1).all(), name
        else:
            assert parameter.std() > 0, name
    assert abs(model.decoder_pos_embed_learned.std() - 0.02) < 0.005
    assert abs(model.token_emb.word_embeddings.weight.std() - 0.02) < 0.002
    assert model.blocks[0].mlp.fc1.weight.abs().max() <= math.sqrt(6 / (16 + 64))  # Xavier


def test_training_loss_falls():
    model = make_mage(random=False).train()
    ids = torch.randint(0, 12, (1, 16), generator=torch.Generator().manual_seed(0)).expand(8, -1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(80):
        loss = model(token_ids=ids, generator=generator).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert abs(losses[0] - math.log(12)) < 0.3 and losses[-1] < 1.5


def test_tokenizer_trains(pixels):
    tokenizer = make_mage().vqgan.requires_grad_().train()
    picture, codebook_loss, ids = tokenizer(pixels)
    assert torch.equal(ids, tokenizer.tokenize(pixels))
    assert_close(picture, tokenizer.decode_tokens(tokenizer.tokenize(pixels)), 1e-4)
    (F.mse_loss(picture, pixels) + codebook_loss).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tokenizer.parameters())
    assert tokenizer.encoder.conv_in.weight.grad.abs().max() > 0  # through the codebook


def test_gradient_checkpointing_changes_no_gradient(masks):
    ids = torch.randint(0, 12, (3, 16), generator=torch.Generator().manual_seed(0))
    gradients = []
    for checkpointing in (False, True):
        model = make_mage(embedding_dropout_prob=0.0).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.blocks[0].gradient_checkpointing
        model(token_ids=ids, token_drop_mask=masks[0], token_all_mask=masks[1]).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@torch.no_grad()
def test_half_precision(mage, pixels, masks, tmp_path):
    mage.save_pretrained(tmp_path)
    half = MageModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.norm.weight.dtype == torch.bfloat16 and half.vqgan.dtype == torch.float32
    exact, rounded = (m(pixels, token_drop_mask=masks[0], token_all_mask=masks[1]) for m in (mage, half))
    assert torch.equal(exact.token_ids, rounded.token_ids)  # the tokenizer stays in float32
    assert rounded.logits.dtype == torch.bfloat16
    assert_close(rounded.last_hidden_state.float(), exact.last_hidden_state, 0.05)
    assert_close(rounded.loss, exact.loss, 0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mage.tokenize(pixels), exact.token_ids)
        mixed = mage(pixels, token_drop_mask=masks[0], token_all_mask=masks[1])
    assert_close(mixed.loss, exact.loss, 0.02)
    picture = half.to(torch.bfloat16).complete(pixels, torch.ones(3, 4, 4, dtype=torch.bool), steps=2)
    assert picture.dtype == torch.float32 and picture.isfinite().all()


def test_mask_sampling():
    model = make_mage()
    shares = []
    for seed in range(200):
        drop, hidden = model.sample_masks(4, torch.Generator().manual_seed(seed))
        assert (drop.sum(1) == 8).all() and (hidden.sum(1) == hidden[0].sum()).all()
        assert hidden[drop].all()
        shares.append(hidden[0].sum().item() / 16)
    assert min(shares) >= 0.5 and max(shares) <= 1.0 and len(set(shares)) > 5
    again = model.sample_masks(4, torch.Generator().manual_seed(199))
    assert torch.equal(again[0], drop) and torch.equal(again[1], hidden)


def test_share_of_hidden_tokens_is_a_truncated_normal():
    quantiles = torch.tensor([truncated_normal((n + 0.5) / 2000, 0.55, 0.25, 0.5, 1.0) for n in range(2000)])
    normal = 0.55 + 0.25 * torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    normal = normal[(normal >= 0.5) & (normal <= 1.0)]
    for q in (0.1, 0.5, 0.9):
        assert abs(quantiles.quantile(q) - normal[:200_000].quantile(q)) < 0.005
    assert truncated_normal(0.0, 0.55, 0.25, 0.5, 1.0) == pytest.approx(0.5)
    assert truncated_normal(1.0, 0.55, 0.25, 0.5, 1.0) == pytest.approx(1.0)


# ------------------------------------------------------------------------------------------------------------ generation


def test_codes_are_sampled_by_their_probabilities():
    logits = torch.tensor([0.5, 0.0, 0.25, 0.25, 0.0]).log()
    uniform = (torch.arange(1000) + 0.5) / 1000
    assert sample_codes(logits.expand(1000, -1), uniform).bincount(minlength=5).tolist() == [500, 0, 250, 250, 0]
    assert sample_codes(logits, torch.tensor(0.0)) == 0
    assert sample_codes(logits, torch.tensor(1.0).nextafter(torch.tensor(0.0))) == 3


@torch.no_grad()
def test_the_head_is_asked_at_the_wanted_places_alone(mage):
    tokens = torch.randint(0, 12, (3, 16), generator=torch.Generator().manual_seed(0))
    tokens[:, 5:9] = MASK_ID
    places = torch.tensor([[8, 1], [0, 15], [5, 6]])
    heads = []
    mage.mlm_layer.register_forward_hook(lambda module, args, logits: heads.append(tuple(logits.shape)))
    whole, some = mage.code_logits(tokens), mage.code_logits(tokens, places)
    assert_close(some, whole.gather(1, places.unsqueeze(2).expand(-1, -1, 12)))
    hidden = torch.zeros(3, 16, dtype=torch.bool)
    hidden[0, :4] = hidden[1, 2:8] = True
    mage.complete_tokens(tokens.masked_fill(tokens == MASK_ID, 0), hidden, 2, generator=torch.Generator().manual_seed(0))
    assert heads == [(3, 16, 12), (3, 2, 12), (2, 6, 12)]  # of 16 places, and of two pictures with 4 and 6 to complete


def know(model, logits):
    """Have a model decode by logits(tokens (B, N)) -> (B, N, 12) in place of its own."""
    model.code_logits = lambda tokens, places: logits(tokens).gather(1, places.unsqueeze(2).expand(-1, -1, 12))


def central(first, last, size=16):
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[first:last, first:last] = True
    return mask


def test_schedule_of_each_sample_is_its_own():
    """The reference's sequences of unknown tokens, for three holes in one batch (the last 1 is never looked at)."""
    model = make_mage(image_size=64, max_position_embeddings=257)
    holes = grow(torch.stack([central(6, 10), central(4, 12), ~central(4, 12)])[:, None], 1).flatten(1)
    assert holes.sum(1).tolist() == [36, 100, 220]
    assert ~holes[2].view(16, 16)[5:11, 5:11].any()
    seen = {0: [], 1: [], 2: []}

    def logits(tokens):
        for row in tokens:  # known tokens carry the number of their sample
            seen[int(row[row != MASK_ID].mode().values) % 3].append(int((row == MASK_ID).sum()))
        return (
            torch.full((*tokens.shape, 12), -math.inf).index_fill_(2, torch.tensor([0, 1, 2]), 0.0)
            + (torch.arange(12) == tokens.masked_fill(tokens == MASK_ID, 0).amax(1, keepdim=True)[..., None]) * 50.0
        )

    know(model, logits)
    ids = torch.arange(3)[:, None].expand(-1, 256).clone()
    model.complete_tokens(ids, holes, steps=20, temperature=6.0, generator=torch.Generator().manual_seed(0))
    assert seen[0] == [36, 20]
    assert seen[1] == [100, 97, 79, 59, 40, 20]
    assert len(seen[2]) == 14 and seen[2][:3] == [220, 218, 207] and seen[2][-1] == 20


def test_every_step_decides_a_token_and_cools_down(mage, monkeypatch):
    """More steps than tokens: where the cosine would stand still one more token is decided all the same."""
    calls = []

    def recorded(tokens, logits, sampled, gumbel, count, temperature, mask_id):
        calls.append((int((tokens == mask_id).sum()), int(count), temperature))
        return decoding_step(tokens, logits, sampled, gumbel, count, temperature, mask_id)

    monkeypatch.setattr(completion_mage, "decoding_step", recorded)
    mage.generate(1, steps=50, temperature=4.5, generator=torch.Generator().manual_seed(0))
    unknown, count, temperature = zip(*calls)
    assert unknown[0] == 16 and unknown[1:] == count[:-1]
    cosine = [int(16 * math.cos(math.pi / 2 * (k + 1) / 50)) for k in range(50)]
    assert list(count) == [max(1, min(before - 1, c)) for before, c in zip(unknown, cosine)]
    assert unknown[:4] == (16, 15, 14, 13)
    assert temperature == pytest.approx([4.5 * (1 - (k + 1) / 50) for k in range(50)])


def test_a_sample_does_not_depend_on_its_batch(mage, pixels):
    """In float64: the last bits go with the size of the batch, and one of them could draw another code."""
    mage, pixels = mage.double(), pixels.double()
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, 1:3, 1:3] = True
    masks[1] = True
    masks[2, :, :1] = True

    def generators(*seeds):
        return [torch.Generator().manual_seed(s) for s in seeds]

    together = mage.complete(pixels, masks, steps=6, generator=generators(5, 6, 7))
    for n in range(3):
        alone = mage.complete(pixels[n : n + 1], masks[n : n + 1], steps=6, generator=generators(5 + n))
        assert_close(together[n : n + 1], alone)
    one = [mage.complete(pixels, masks, steps=6, generator=torch.Generator().manual_seed(8)) for _ in range(2)]
    assert torch.equal(*one) and not torch.equal(one[0], together)


@torch.no_grad()
def test_completion_keeps_what_is_visible(mage, pixels):
    mask = torch.zeros(3, 4, 4, dtype=torch.bool)
    mask[0, 1:3, 2:] = True
    mask[1] = True  # the third has no hole
    hole = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand(-1, 3, -1, -1)
    calls = []
    tokenize, mage.tokenize = mage.tokenize, lambda x: calls.append(x) or tokenize(x)
    out = mage.complete(pixels, mask, steps=4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(out[~hole], pixels[~hole]) and not torch.isclose(out[hole], pixels[hole]).all()
    assert out.min() >= 0 and out.max() <= 1
    assert_close(calls[0][0, :, 5, 10], torch.tensor([0.485, 0.456, 0.406]))
    # No pixel of the hole reaches the result.
    other = torch.where(hole, torch.rand_like(pixels), pixels)
    assert torch.equal(out, mage.complete(other, mask, steps=4, generator=torch.Generator().manual_seed(0)))


@torch.no_grad()
def test_only_hole_and_margin_are_predicted(mage, pixels):
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 0, 0] = True
    calls, complete = [], mage.complete_tokens

    def recorded(ids, hidden, *options):
        calls.append((ids, hidden, complete(ids, hidden, *options)))
        return calls[-1][2]

    mage.complete_tokens = recorded
    for margin, expected in ((0, 1), (1, 4), (2, 9)):
        mage.complete(pixels[:1], mask, margin=margin)
        before, hidden, after = calls[-1]
        assert hidden.sum() == expected and hidden.view(4, 4)[: margin + 1, : margin + 1].all()
        assert torch.equal(before[~hidden], after[~hidden]) and (after < 12).all()


@torch.no_grad()
def test_feathered_paste():
    """Far outside the filled input, deep inside the decoded picture, in between a monotone blend."""
    decoded, filled = torch.full((2, 3, 96, 96), 2.0), torch.zeros(2, 3, 96, 96)
    hole = torch.zeros(2, 1, 96, 96, dtype=torch.bool)
    hole[0, :, 40:56, 40:56] = True
    out = feathered_paste(decoded / 2, filled, hole)
    assert not out[1].any() and (out[0, 0] == out[0, 2]).all()
    line = out[0, 0, 48]
    assert line[48] == 1 and line[0] == 0 and (line[:48].diff() >= 0).all()
    assert 0.3 < line[26] < 0.7  # the edge of the hole grown by 14
    assert_close(line * 255, (line * 255).round())  # the weight is 8 bit
    assert feathered_paste(decoded, filled, hole).max() == 1


@torch.no_grad()
def test_generates_from_nothing(mage):
    out = mage.generate(3, steps=4, generator=torch.Generator().manual_seed(0))
    assert out.shape == (3, 3, 16, 16) and out.min() >= 0 and out.max() <= 1
    assert torch.equal(out, mage.generate(3, steps=4, generator=torch.Generator().manual_seed(0)))
    assert not torch.equal(out[0], out[1])
    assert mage.generate(1, steps=1, temperature=0.0).isfinite().all()


@torch.no_grad()
def test_a_model_that_knows_one_picture_completes_it():
    """Decoding end to end: if the logits always name the truth, every hole is filled with it."""
    model = make_mage()
    truth = torch.randint(0, 12, (2, 16), generator=torch.Generator().manual_seed(3))
    know(model, lambda tokens: F.one_hot(truth[: len(tokens)], 12) * 100.0)
    hidden = torch.rand(2, 16, generator=torch.Generator().manual_seed(4)) < 0.6
    assert torch.equal(model.complete_tokens(truth.masked_fill(hidden, 0), hidden), truth)


@torch.no_grad()
@pytest.mark.parametrize("code_temperature, shares", [(1.0, [0.25, 0.75]), (0.5, [0.1, 0.9]), (0.0, [0.0, 1.0])])
def test_code_temperature_is_that_of_the_softmax(code_temperature, shares):
    model = make_mage()
    scores = torch.full((12,), -math.inf).index_copy_(0, torch.tensor([4, 7]), torch.tensor([0.0, math.log(3.0)]))
    know(model, lambda tokens: scores.expand(*tokens.shape, 12))
    ids, generator = torch.zeros(500, 16, dtype=torch.long), torch.Generator().manual_seed(0)
    # One step, so that every token is drawn once and from the whole distribution.
    drawn = model.complete_tokens(ids, ids == 0, 1, 6.0, generator, code_temperature).flatten()
    found = drawn.bincount(minlength=12) / len(drawn)
    assert_close(found[[4, 7]], torch.tensor(shares), 0.02)  # 3 standard deviations of 8,000 draws
    assert found[[4, 7]].sum() == 1
    with pytest.raises(ValueError, match="code_temperature -1"):
        model.complete_tokens(ids, ids == 0, code_temperature=-1)


@torch.no_grad()
@pytest.mark.parametrize("toward_mean, found", [(0.0, {4, 7}), (0.5, {2, 7}), (1.0, {2})])
def test_codes_move_toward_their_mean(toward_mean, found):
    """Codes 4 and 7 at -1 and 1, believed 1 to 3, so their mean is 0.5: half way from -1 lies -0.25, and from 1 lies 0.75."""
    model = make_mage()
    table = model.vqgan.quantize.embedding.weight
    table.fill_(9.0)
    table[[4, 7, 2]] = torch.tensor([-1.0, 1.0, 0.3]).unsqueeze(1).expand(-1, table.shape[1])
    scores = torch.full((12,), -math.inf).index_copy_(0, torch.tensor([4, 7]), torch.tensor([0.0, math.log(3.0)]))
    know(model, lambda tokens: scores.expand(*tokens.shape, 12))
    ids = torch.zeros(20, 16, dtype=torch.long)
    drawn = model.complete_tokens(ids, ids == 0, 1, 6.0, torch.Generator().manual_seed(0), 1.0, toward_mean)
    assert set(drawn.flatten().tolist()) == found
    with pytest.raises(ValueError, match="toward_mean -1"):
        model.complete_tokens(ids, ids == 0, toward_mean=-1)


# -------------------------------------------------------------------------------------------------- files and conversion


@torch.no_grad()
def test_saved_model_loads_the_same(mage, pixels, masks, tmp_path):
    mage.save_pretrained(tmp_path)
    other, info = MageModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and not any(p.requires_grad for p in other.vqgan.parameters())
    assert other.norm.weight.requires_grad
    a, b = (m(pixels, token_drop_mask=masks[0], token_all_mask=masks[1]) for m in (mage, other))
    assert torch.equal(a.logits, b.logits) and torch.equal(a.loss, b.loss)


def test_code_travels_with_the_weights(mage, pixels, masks, tmp_path):
    """`trust_remote_code` in a process that has no such package, for the model and what it can do."""
    folder = tmp_path / "model"
    mage.save_pretrained(folder)
    torch.save({"pixels": pixels, "drop": masks[0], "all": masks[1]}, tmp_path / "in.pt")
    script = f"""
import sys; sys.modules["hf_i2i_unlearn"] = None
import torch
from transformers import AutoModel
model, info = AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True, output_loading_info=True)
assert not any(info.values()), info
assert type(model).__module__.startswith("transformers_modules"), type(model)
x = torch.load({str(tmp_path / "in.pt")!r}, weights_only=True)
out = model(x["pixels"], token_drop_mask=x["drop"], token_all_mask=x["all"])
picture = model.complete(x["pixels"], torch.ones(3, 4, 4, dtype=torch.bool), 3, generator=torch.Generator().manual_seed(0))
torch.save({{"logits": out.logits.detach(), "picture": picture}}, {str(tmp_path / "out.pt")!r})
model.save_pretrained({str(tmp_path / "again")!r})
"""
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    theirs = torch.load(tmp_path / "out.pt", weights_only=True)
    ours = mage(pixels, token_drop_mask=masks[0], token_all_mask=masks[1])
    assert_close(ours.logits, theirs["logits"])
    picture = mage.complete(pixels, torch.ones(3, 4, 4, dtype=torch.bool), 3, generator=torch.Generator().manual_seed(0))
    assert_close(picture, theirs["picture"])
    assert (tmp_path / "again" / "tokenizer_mage.py").exists()


def test_published_layout_of_the_base_model():
    """433 tensors and the published numbers of parameters, without the weights; the configuration is found again."""
    with torch.device("meta"):
        model = MageModel(MageConfig(keep_unused_tensors=True))
    zeros = {k: torch.zeros(1).expand(v.shape) for k, v in model.state_dict().items()}
    model.state_dict = lambda: zeros
    original = to_original(model)
    found = infer_config(original)
    assert found.num_attention_heads == 12 and found.decoder_num_attention_heads == 16 and found.grid == (16, 16)
    assert list(found.tokenizer_channel_multipliers) == [1, 1, 2, 2, 4] and found.mask_token_id == 2024
    state = {k: tuple(v.shape) for k, v in original.items()}
    assert len(state) == 433 and state["vqgan.encoder.down.4.block.0.nin_shortcut.weight"] == (512, 512, 1, 1)
    assert state["patch_embed.proj.weight"] == (768, 3, 16, 16) and state["decoder_pred.weight"] == (768, 768)
    del state["token_emb.position_ids"]
    count = {k: math.prod(s) for k, s in state.items()}
    assert round(sum(count.values()) / 1e6, 2) == 200.99
    assert round(sum(n for k, n in count.items() if k.startswith("vqgan.")) / 1e6, 2) == 54.52
    encoder = sum(n for k, n in count.items() if k.startswith(("token_emb.", "blocks.", "norm.")))
    assert round(encoder / 1e6, 2) == 86.81


@pytest.fixture
def original():
    """A tiny checkpoint in the published layout, with the published tokenizer's group norms."""
    model = make_mage(tokenizer_channels=32, tokenizer_norm_groups=32, keep_unused_tensors=True)
    return to_original(model)


@pytest.mark.parametrize("layout", ["model", "bare", "safetensors", "apart", "apart, state_dict"])
def test_round_trip_of_identical_tensors(original, layout, tmp_path):
    file, vqgan = tmp_path / "mage.pth", tmp_path / "vqgan.ckpt"
    arguments = ["--heads", "2", "--decoder-heads", "3"]
    if layout == "safetensors":
        file = tmp_path / "mage.safetensors"
        save_file(original, file)
    elif layout.startswith("apart"):
        tokenizer = {k.removeprefix("vqgan."): v for k, v in original.items() if k.startswith("vqgan.")}
        torch.save({k: v for k, v in original.items() if not k.startswith("vqgan.")}, file)
        torch.save({"state_dict": tokenizer} if "state_dict" in layout else tokenizer, vqgan)
        arguments += ["--vqgan", str(vqgan)]
    else:
        torch.save({"model": original, "epoch": 3} if layout == "model" else original, file)
    main(["mage", str(file), str(tmp_path / "ours"), *arguments])
    model = MageModel.from_pretrained(tmp_path / "ours")
    assert model.config.to_diff_dict().get("tokenizer_res_blocks", 2) == 2 and model.config.grid == (4, 4)
    main(["mage", str(tmp_path / "ours"), str(tmp_path / "back.pth"), "--back"])
    back = read_tensors(tmp_path / "back.pth")
    assert back.keys() == original.keys()
    for name, tensor in original.items():
        assert torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype, name


def test_fixture_round_trip(published):
    x, model = published
    original = {k.removeprefix("state_dict."): v for k, v in x.items() if k.startswith("state_dict.")}
    back = to_original(model)
    assert back.keys() == original.keys() and all(torch.equal(back[k], v) for k, v in original.items())


def test_a_model_of_ours_goes_to_the_published_layout(mage, original):
    back = to_original(mage)
    assert back.keys() == original.keys() and not back["decoder_pred.weight"].any()
    assert torch.equal(back["norm.weight"], mage.norm.weight)


def test_configuration_from_shapes(original):
    config = infer_config(original, 2, 3)
    wanted = make_config(tokenizer_channels=32, tokenizer_norm_groups=32, keep_unused_tensors=True)
    expected, got = ({k: v for k, v in c.to_dict().items() if k != "dtype"} for c in (wanted, config))
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in got.items()} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in expected.items()
    }


# ---------------------------------------------------------------------------------------------------------------- errors


def saved(state, folder):
    torch.save({"model": state}, folder / "mage.pth")
    return folder / "mage.pth"


def test_conversion_names_missing_and_foreign_tensors(original, tmp_path):
    del original["blocks.1.norm1.bias"], original["norm.bias"]
    original["discriminator.weight"] = torch.zeros(1)
    with pytest.raises(InputError, match="2 missing, first 'blocks.1.norm1.bias'; 1 unexpected, first 'discriminator.weight'"):
        from_original(saved(original, tmp_path), tmp_path / "out", heads=2, decoder_heads=3)
    with pytest.raises(InputError, match="'decoder_embed.weight' is missing, its first tensor is 'fc.weight'"):
        infer_config({"fc.weight": torch.zeros(1)})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.weight": torch.zeros(15)}, r"'norm.weight' .* has shape \(15,\), expected \(16,\)"),
        ({"token_emb.position_ids": torch.zeros(1, 18, dtype=torch.long)}, "is not 0, 1, 2"),
        ({"vqgan.quantize.embedding.weight": torch.zeros(13, 6)}, "codebook does not match the head: 13 codes .* 1014.* 1013"),
        ({"token_emb.position_embeddings.weight": torch.zeros(9, 16)}, "grid of 4x4 tokens, which needs 17 positions"),
        ({"decoder_pos_embed_learned": torch.zeros(1, 16, 24)}, "positions for 15 tokens, expected a square"),
    ],
)
def test_conversion_refuses_what_does_not_fit(original, change, message, tmp_path):
    with pytest.raises(InputError, match=message):
        from_original(saved(original | change, tmp_path), tmp_path / "out", heads=2, decoder_heads=3)


def test_conversion_wants_one_tokenizer_and_known_heads(original, tmp_path):
    file = saved(original, tmp_path)
    with pytest.raises(InputError, match="heads of a model of width 16 is unknown .known: 768, 1024."):
        from_original(file, tmp_path / "out")
    with pytest.raises(InputError, match="holds its tokenizer already"):
        from_original(file, tmp_path / "out", vqgan=file)
    file = saved({k: v for k, v in original.items() if not k.startswith("vqgan.")}, tmp_path)
    with pytest.raises(InputError, match="holds no tokenizer"):
        from_original(file, tmp_path / "out", heads=2, decoder_heads=3)
    with pytest.raises(InputError):
        main(["mage", str(file), str(tmp_path / "out")])
    with pytest.raises(InputError):
        main(["mage", str(tmp_path / "nowhere"), str(tmp_path / "file.pth"), "--back"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 32}, "image_size 32 gives a grid of 8x8 tokens, which needs 65 positions .* is 18"),
        ({"image_size": 18}, "image_size is 18, expected a multiple of 4"),
        ({"vocab_size": 2025}, "codebook_size 12 needs a vocabulary of 1013 .*got 2025"),
        ({"num_attention_heads": 3}, "encoder's width 16 is not a multiple of its 3"),
        ({"tokenizer_norm_groups": 32}, "8 channels, expected a multiple of tokenizer_norm_groups = 32"),
        ({"fill_color": [0.5]}, "fill_color has 1 values, expected one for each of 3"),
    ],
)
def test_configuration_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(**changes)


def test_model_errors(mage, pixels, masks):
    with pytest.raises(ValueError, match="3x32x32 .* do not give the 4x4 grid .* expected 3x16x16"):
        mage.tokenize(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"shape \(1, 64\) do not fit .* expected \(batch, 16\)"):
        mage.encode(torch.zeros(1, 64, dtype=torch.long))
    with pytest.raises(ValueError, match="16 tokens do not fill a grid of 3x4"):
        mage.decode_tokens(torch.zeros(1, 16, dtype=torch.long), (3, 4))
    uneven = masks[0].clone()
    uneven[0] = False
    with pytest.raises(ValueError, match=r"same number of tokens, got \[8, 16\]"):
        mage.encode(torch.zeros(3, 16, dtype=torch.long), uneven, masks[1])
    with pytest.raises(ValueError, match=r"shape \(3, 16, 16\), expected \(3, 4, 4\)"):
        mage.complete(pixels, torch.zeros(3, 16, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least 1 step"):
        mage.generate(steps=0)
    with pytest.raises(ValueError, match="2 generators for 1 pictures"):
        mage.generate(generator=[torch.Generator()] * 2)
    with pytest.raises(ValueError, match="got neither"):
        mage()


def test_grey_pictures():
    model = make_mage(num_channels=1)
    picture = torch.rand(2, 1, 16, 16)
    assert model.complete(picture, torch.ones(2, 4, 4, dtype=torch.bool), steps=2, feather=True).shape == picture.shape
    assert model.config.fill_color == pytest.approx([0.449])
