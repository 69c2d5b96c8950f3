import copy
import subprocess
import sys

import pytest
import torch
from conftest import make_mae
from helpers.close import assert_close
from transformers import ViTConfig, ViTForImageClassification, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import (
    build_2d_sinusoidal_position_embedding,
)

from hf_i2i_unlearn import I2IMAE, CenterCrop, InputError, RandomMask, load_processor
from hf_i2i_unlearn.models.positions import sincos_positions

MASK = CenterCrop(2)((4, 4), range(5))


@pytest.fixture
def pixels():
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_encodes_the_visible_patches_and_no_other(mae, pixels):
    """Against the layers of the library, fed with the visible tokens picked by hand."""
    vit, mask = mae.model.vit, RandomMask(0.5)((4, 4), range(5))
    tokens = vit.embeddings.patch_embeddings(pixels) + vit.embeddings.position_embeddings[:, 1:]
    visible = torch.stack([t[~m.flatten()] for t, m in zip(tokens, mask)])
    hidden = torch.cat([vit.embeddings.cls_token.expand(5, -1, -1) + vit.embeddings.position_embeddings[:, :1], visible], 1)
    for layer in vit.layers:
        hidden = layer(hidden)
    encoded = mae(pixels, mask)
    assert encoded.shape == (5, 1 + 8, 16)
    assert_close(encoded, vit.layernorm(hidden))


def test_what_is_hidden_changes_nothing(mae, pixels):
    other = torch.where(mae.hole(MASK), torch.randn_like(pixels), pixels)
    assert torch.equal(mae(pixels, MASK), mae(other, MASK))


def test_completes_the_hole_and_leaves_the_rest(mae, pixels):
    hole = mae.hole(MASK).expand_as(pixels)
    completed = mae.generate(pixels, MASK)
    assert torch.equal(completed[~hole], pixels[~hole]) and not torch.isclose(completed[hole], pixels[hole]).all()
    assert hole[0, 0].sum() == 8 * 8 and hole[0, 0, 4:12, 4:12].all()


@pytest.mark.parametrize("norm_pix", [False, True])
def test_training_loss_is_the_librarys(pixels, norm_pix):
    mae, mask = make_mae(norm_pix_loss=norm_pix), RandomMask(0.75)((4, 4), range(5))
    noise = mask.flatten(1).float() + torch.linspace(0, 0.5, 16)
    expected = mae.model(pixels, noise=noise).loss  # its default mask ratio is 0.75
    assert_close(mae.training_loss(pixels, mask).mean(), expected)


def test_patchwise_normalised_predictions_are_scaled_back(pixels):
    """If every patch is predicted perfectly in normalised units, the completion must be the truth."""
    mae = make_mae(norm_pix_loss=True)
    patches = mae.model.patchify(pixels)
    perfect = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    mae._decode = lambda encoded: perfect
    assert_close(mae.generate(pixels, MASK), pixels)


def test_fresh_models_know_places():
    ours, theirs = sincos_positions(4, 16)[0, 1:], build_2d_sinusoidal_position_embedding(4, 4, 16)
    # The published checkpoints hold the column before the row; the library's function has it the other way round.
    assert_close(ours, torch.cat([theirs[:, 8:], theirs[:, :8]], 1))
    mae = make_mae()
    for parameter in (
        mae.model.vit.embeddings.position_embeddings,
        mae.model.decoder.decoder_pos_embed,
        mae.model.decoder.mask_token,
    ):
        assert parameter.abs().max() > 0


def test_mask_ratio_does_not_leak_into_the_config(mae, pixels):
    mae(pixels, MASK)
    assert mae.model.config.mask_ratio == 0.75


def test_encoder_and_decoder_are_apart(mae):
    mae.train_encoder_only()
    trained = {n for n, p in mae.named_parameters() if p.requires_grad}
    assert trained and all(n.startswith("model.vit.") for n in trained)
    assert "model.vit.embeddings.position_embeddings" not in trained  # fixed in MAE
    assert "model.vit.layernorm.weight" in trained


def test_saved_model_loads_without_this_package(mae, pixels, tmp_path):
    mae.save_pretrained(tmp_path)
    torch.save({"pixels": pixels, "mask": MASK}, tmp_path / "in.pt")
    script = f"""
import sys; sys.modules["hf_i2i_unlearn"] = None
import torch
from transformers import ViTMAEForPreTraining
model, info = ViTMAEForPreTraining.from_pretrained({str(tmp_path)!r}, mask_ratio=3.5 / 16, output_loading_info=True)
assert not any(info.values()), info
data = torch.load({str(tmp_path / "in.pt")!r}, weights_only=True)
out = model(data["pixels"], noise=2.0 * data["mask"].flatten(1) + torch.arange(16) / 16)
torch.save(model.unpatchify(out.logits).detach(), {str(tmp_path / "out.pt")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    theirs = torch.load(tmp_path / "out.pt", weights_only=True)
    hole = mae.hole(MASK).expand_as(pixels)
    assert_close(mae.generate(pixels, MASK)[hole], theirs[hole])


def test_loads_its_own_weights_strictly(mae, tmp_path):
    mae.save_pretrained(tmp_path)
    other = make_mae(seed=1)
    other.load_weights(tmp_path)
    for (name, a), b in zip(mae.named_parameters(), other.parameters()):
        assert torch.equal(a, b), name


def test_refuses_a_checkpoint_that_is_no_mae(tmp_path):
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8, patch_size=4
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="holds a 'vit' model, expected 'vit_mae'"):
        I2IMAE.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("files", [{}, {"config.json": "{}"}])
def test_refuses_what_is_no_checkpoint(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match="Cannot load a model from .* Give a folder with a config.json, or a Hub id"):
        I2IMAE.from_pretrained(str(tmp_path))
    with pytest.raises(InputError, match="has no image processor"):
        load_processor(str(tmp_path))


def test_refuses_an_encoder_without_its_decoder(mae, tmp_path):
    mae.model.vit.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"lacks \d+ weights of a masked autoencoder, first 'decoder\."):
        I2IMAE.from_pretrained(str(tmp_path))


def test_refuses_pictures_of_another_shape(mae):
    with pytest.raises(InputError, match="takes pictures of 3 channel.* 16x16 pixels, got 1 and 28x28"):
        mae(torch.zeros(2, 1, 28, 28), MASK[:2])


def test_refuses_masks_of_unequal_size(mae, pixels):
    mask = MASK.clone()
    mask[0, 0, 0] = True
    with pytest.raises(InputError, match=r"same number of patches, got \[4, 5\]"):
        mae(pixels, mask)


def test_wraps_only_what_it_knows():
    with pytest.raises(InputError, match="got Linear"):
        I2IMAE(torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match="one number"):
        config = make_mae().model.config
        model = ViTMAEForPreTraining(config)
        model.config.image_size = (16, 32)
        I2IMAE(model)


def test_a_checkpoint_in_half_precision_is_trained_in_single(tmp_path, mae):
    copy.deepcopy(mae.model).half().save_pretrained(tmp_path)
    assert {p.dtype for p in I2IMAE.from_pretrained(tmp_path).parameters()} == {torch.float32}
    assert {p.dtype for p in I2IMAE.from_pretrained(tmp_path, dtype=torch.float16).parameters()} == {torch.float16}
