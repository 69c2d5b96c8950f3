"""Options that make a step cheaper change nothing in what is learned: bf16, torch.compile, fused AdamW, channels last.

Activation checkpointing is tested with the families (test_unet_training, test_mage), kept targets in test_targets.
"""

import pytest
import torch
from conftest import make_dataset, make_mae
from helpers.close import assert_close
from test_unet import make_unet
from torch._dynamo.utils import counters
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_i2i_unlearn import I2IMAE, CenterCrop, ForgetRetainPairs, UnlearningConfig, UnlearningTrainer, add_patch, undecoded

DATA = undecoded(make_dataset(24))
FORGET, RETAIN = DATA.select(range(8)), DATA.select(range(8, 24))
PROCESSOR = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def make_trainer(folder, model, **options):
    options = {
        "per_device_train_batch_size": 4, "learning_rate": 0.05, "optim": "sgd", "max_steps": 2, "save_strategy": "no",
        "logging_steps": 1, "seed": 5, "mean_draws": 4, "targets_dir": str(folder / "targets"),
    } | options  # fmt: skip
    args = UnlearningConfig(str(folder / "run"), use_cpu=True, disable_tqdm=True, **options)
    return UnlearningTrainer(model, args, ForgetRetainPairs(FORGET, RETAIN, 5), PROCESSOR, CenterCrop(2))


def run(folder, model, **options):
    """Losses, how far each weight moved, and the trainer."""
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = make_trainer(folder, model, **options)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert len(losses) == 2
    return losses, {n: p.detach() - before[n] for n, p in model.named_parameters()}, trainer


def flat(moves):
    return torch.cat([move.flatten() for move in moves.values()])


def small():
    return make_mae(1, num_hidden_layers=1)


def patched():
    model = small()
    torch.manual_seed(3)
    add_patch(model, "tiny", rank=2)
    return model


def test_bf16(tmp_path):
    """Half of the digits of a float: losses within 5%, the way of the weights within 20% of its length. Weights stay fp32."""
    losses, moves, _ = run(tmp_path, make_mae(1))
    half_losses, half, trainer = run(tmp_path, make_mae(1), bf16=True)
    assert half_losses == pytest.approx(losses, rel=0.05) and half_losses != losses
    assert (flat(half) - flat(moves)).norm() < 0.2 * flat(moves).norm()
    assert all(p.dtype == torch.float32 for p in trainer.i2i.parameters())


@pytest.mark.parametrize("options", [{}, {"noise_target": "mean"}])
def test_bf16_with_kept_targets(tmp_path, options):
    losses, moves, _ = run(tmp_path, make_mae(1), bf16=True, **options)
    kept_losses, kept, _ = run(tmp_path, make_mae(1), bf16=True, cache_targets=True, **options)
    # Products of other batch sizes may round to another bfloat16.
    assert kept_losses == pytest.approx(losses, rel=0.02)
    assert (flat(kept) - flat(moves)).norm() < 0.1 * flat(moves).norm()


@pytest.mark.parametrize("make", [small, patched])
def test_torch_compile(tmp_path, make):
    """With the backend that only captures graphs: a compiler's own numbers are not ours to test."""
    losses, moves, _ = run(tmp_path, make())
    torch._dynamo.reset()
    counters.clear()
    model = make()
    compiled_losses, compiled, trainer = run(tmp_path, model, torch_compile=True, torch_compile_backend="eager")
    assert counters["stats"]["unique_graphs"] > 0
    assert_close(compiled_losses, losses)
    assert_close(compiled, moves, 1e-3)
    trainer.save_model()
    if not model.patch:
        again = I2IMAE.from_pretrained(trainer.args.output_dir)
        assert all(torch.equal(p, again.state_dict()[n]) for n, p in model.state_dict().items())


def test_fused_adamw_is_the_default(tmp_path):
    assert UnlearningConfig(str(tmp_path)).optim == "adamw_torch_fused"
    options = {
        "learning_rate": 1e-3,
        "adam_epsilon": 1e-4,
    }  # or Adam makes steps of the rounding errors of gradients that are 0
    _, fused, trainer = run(tmp_path, make_mae(1), optim="adamw_torch_fused", **options)
    assert trainer.optimizer.optimizer.defaults["fused"]
    _, plain, _ = run(tmp_path, make_mae(1), optim="adamw_torch", **options)
    assert (flat(fused) - flat(plain)).norm() < 1e-3 * flat(plain).norm()


def test_channels_last(tmp_path):
    losses, moves, _ = run(tmp_path, make_unet(), learning_rate=1e-3)
    model = make_unet()
    other_losses, other, trainer = run(
        tmp_path, model, learning_rate=1e-3, channels_last=True, save_strategy="steps", save_steps=2
    )
    for one in (model, trainer.original):
        assert one.model.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        assert not one.model.conv_in.weight.is_contiguous()
    assert_close(other_losses, losses, 1e-4)
    assert (flat(other) - flat(moves)).norm() < 1e-3 * flat(moves).norm()
    again = model.kind.from_pretrained(tmp_path / "run" / "checkpoint-2")
    assert all(torch.equal(v, model.model.state_dict()[k]) for k, v in again.state_dict().items())
