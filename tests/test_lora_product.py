"""The fused product of a layer and its adapter, against peft's own: the same numbers, and peft where it does not apply."""

import json

import peft
import pytest
import torch
from conftest import make_mae
from helpers.close import assert_close, is_close
from peft import PeftModel
from safetensors.torch import load_file
from test_lora import (
    GRIDS,
    MAKE,
    SEEDS,
    assert_alike,
    outputs,
    pictures,
    randomise,
)
from test_trainer import make_trainer
from torch import nn

from hf_i2i_unlearn import CenterCrop, add_patch, load_patches
from hf_i2i_unlearn.models.fused_lora import FusedLinear, LowRankLinear


def pefts_own(model):
    """The same model, computed by peft alone."""
    for layer in model.modules():
        if isinstance(layer, FusedLinear):
            layer.__class__ = peft.tuners.lora.Linear
    return model


@pytest.fixture
def fused(monkeypatch):
    """Counts the calls of the fused product."""
    calls, real = [], LowRankLinear.apply
    monkeypatch.setattr(LowRankLinear, "apply", lambda *args: (calls.append(args[0].shape), real(*args))[1])
    return calls


def gradients(model, family="mae", train=True):
    """Representation, and gradients of all that has one, by name."""
    model.train(train)
    x, mask = pictures(), CenterCrop(GRIDS[family][0] // 2)(GRIDS[family], range(3))
    encoded = model(x, model.draw(x, mask, SEEDS))
    weights = torch.randn(encoded.shape, generator=torch.Generator().manual_seed(2))
    (encoded.float() * weights).sum().backward()
    return encoded.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def flat(values):
    return torch.cat([value.flatten() for _, value in sorted(values.items())])


def patched(family="mae", targets=None, rank=2, make=None):
    model = (make or MAKE[family])()
    add_patch(model, "base", rank=rank, targets=targets)
    randomise(model)
    return model


@pytest.mark.parametrize("leading", [(), (5,), (3, 7), (2, 3, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_fused_product_by_hand(leading, bias):
    """Against autograd through W + scale B A, in double precision, for every input that can learn and no other."""
    torch.manual_seed(0)
    x, w, a, b = (torch.randn(*shape, dtype=torch.double) for shape in ((*leading, 6), (4, 6), (2, 6), (4, 2)))
    bias = torch.randn(4, dtype=torch.double) if bias else None
    for learns in ((x, a, b), (a, b), (x, a), (x,)):  # (a, b): the first layer's input
        one, two = [[t.clone().requires_grad_(any(t is u for u in learns)) for t in (x, a, b)] for _ in range(2)]
        fused = LowRankLinear.apply(one[0].reshape(-1, 6), w, bias, *one[1:], 3.0).view(*leading, 4)
        plain = nn.functional.linear(two[0], w + 3.0 * two[2] @ two[1], bias)
        assert_close(fused, plain, 1e-12)
        for out in (fused, plain):
            (out * torch.arange(out.numel()).view(out.shape)).sum().backward()
        for left, right in zip(one, two):
            assert (left.grad is None) == (right.grad is None)
            if left.grad is not None:
                assert_close(left.grad, right.grad, 1e-12)
    torch.autograd.gradcheck(
        lambda x, a, b: LowRankLinear.apply(x, w, bias, a, b, 3.0),
        [t.clone().requires_grad_() for t in (x.reshape(-1, 6), a, b)],
    )


@pytest.mark.parametrize("family", ["mae", "mage", "diffusion"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_peft(family, checkpointing, fused):
    outs = []
    for change in (lambda model: model, pefts_own):
        model = change(patched(family))
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        outs.append(gradients(model, family, train=checkpointing))
        if len(outs) == 1:
            layers = sum(isinstance(module, FusedLinear) for module in model.modules())
            assert layers and len(fused) >= layers * (1 + checkpointing if family != "diffusion" else 1)
            fused.clear()
    assert not fused
    (one, first), (two, second) = outs
    assert_close(one, two)
    assert all(".lora_" in name for name in first)
    assert_close(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, fused):
    """Outputs and gradients have peft's types, and differ from those in fp32 by rounding errors of the half type alone.

    How large these are no processor promises: up to 2 and 6 times the type's own were seen. A fault changes all by its own
    size.
    """
    exact, wanted = gradients(patched(), train=False)
    fused.clear()
    outs = []
    for change in (lambda model: model, pefts_own):
        model = change(patched())
        with torch.autocast("cpu", dtype):
            outs.append(gradients(model, train=False))
    assert len(fused) == 12
    (one, first), (two, second) = outs
    assert one.dtype == two.dtype and all(first[name].dtype == second[name].dtype == torch.float32 for name in wanted)
    for encoded, got in outs:
        assert 0 < (encoded - exact).norm() < 5 * torch.finfo(dtype).eps * exact.norm()
        assert got.keys() == wanted.keys()
        assert 0 < (flat(got) - flat(wanted)).norm() < 20 * torch.finfo(dtype).eps * flat(wanted).norm()


def test_a_trained_patch_is_that_of_peft(tmp_path, processor):
    """A few steps under the trainer, then saved and loaded by plain peft."""
    patches = []
    for name, change in (("fused", lambda model: model), ("peft", pefts_own)):
        model = change(patched())
        # With Adam's own epsilon of 1e-8 the rounding errors of gradients near 0 would become steps.
        trainer = make_trainer(tmp_path / name, processor, model, max_steps=5, learning_rate=1e-2, adam_epsilon=1e-4)
        trainer.train()
        model.patch.save_pretrained(tmp_path / name / "patch")
        patches.append(load_file(tmp_path / name / "patch" / "adapter_model.safetensors"))
    start = peft.get_peft_model_state_dict(patched().patch.peft)
    assert patches[0].keys() == start.keys()
    assert_close(patches[0], patches[1], 1e-4)
    assert not any(is_close(value, start[key], 1e-3) for key, value in patches[0].items())
    config = [json.loads((tmp_path / name / "patch" / "adapter_config.json").read_text()) for name in ("fused", "peft")]
    assert config[0] == config[1]
    fresh, trained = make_mae(), patched()
    PeftModel.from_pretrained(fresh.model, tmp_path / "fused" / "patch")
    trained.patch.load_weights(tmp_path / "fused" / "patch")
    assert_alike(outputs(fresh.eval(), "mae"), outputs(trained.eval(), "mae"))


def stacked(tmp_path):
    patched().patch.save_pretrained(tmp_path)
    model = make_mae()
    load_patches(model, [tmp_path])
    add_patch(model, "base")
    return model


def with_dropout(model):
    for layer in model.modules():
        if isinstance(layer, FusedLinear):
            layer.lora_dropout["default"] = nn.Dropout(0.0)
    return model


def base_learns(model):
    for layer in model.modules():
        if isinstance(layer, FusedLinear):
            layer.base_layer.weight.requires_grad_(True)
    return model


def merged(model):
    model.patch.peft.merge_adapter()
    return model.requires_grad_(True)


class Sharded(torch.Tensor):
    """Stands for a DTensor."""


def sharded(model):
    for layer in model.modules():
        if isinstance(layer, FusedLinear):
            weight = layer.base_layer.weight.detach().as_subclass(Sharded)
            layer.base_layer.weight = nn.Parameter(weight, requires_grad=False)
    return model


def compiled(model):
    for layer in model.modules():
        if isinstance(layer, FusedLinear):
            layer.compile(backend="eager")
    return model


def disabled(model):
    model.patch.peft.base_model.disable_adapter_layers()
    return model.requires_grad_(True)


CHANGES = {
    "stacked": None,
    "merged": merged,
    "disabled": disabled,
    "dropout": with_dropout,
    "base learns": base_learns,
    "sharded": sharded,
    "compiled": compiled,
    "no gradient": lambda model: model,
}


@pytest.mark.parametrize("case", CHANGES)
def test_where_peft_computes_itself(case, fused, tmp_path):
    """And what it gives."""
    outs = []
    for peft_alone in (False, True):
        model = stacked(tmp_path) if case == "stacked" else CHANGES[case](patched())
        if peft_alone:
            pefts_own(model)
        outs.append(outputs(model.eval(), "mae") if case == "no gradient" else gradients(model, train=False))
        if case != "no gradient":
            assert outs[-1][1]
    (one, first), (two, second) = outs
    assert not fused
    assert_close(one, two)
    assert_close(first, second, 1e-4 if case == "no gradient" else 1e-5)


def test_nothing_is_computed_for_frozen_weights_nor_below_the_first_adapter():
    """Products in the backward pass: one for dx, but in the first three layers, and the thin ones of A and B."""
    model = patched()
    x, mask = pictures(), CenterCrop(2)((4, 4), range(3))
    encoded = model(x, mask)
    loss = encoded.square().sum()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        loss.backward()
    calls = {event.key: event.count for event in profile.key_averages()}
    layers = 12  # of two blocks; of the first, q, k and v have an input that needs no gradient
    assert sum(isinstance(module, FusedLinear) for module in model.modules()) == layers
    assert calls["aten::mm"] == layers * 3 + (layers - 3) and calls["aten::addmm_"] == layers - 3
    assert not any("convolution_backward" in name for name in calls)
