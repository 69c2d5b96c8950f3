"""Diffusion under the trainer: every method, eq. C.25, and what a checkpoint holds."""

import pytest
import torch
from conftest import make_dataset
from diffusers import UNet2DModel
from test_unet import make_unet
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_i2i_unlearn import (
    DISTANCES,
    METHODS,
    CenterCrop,
    ForgetRetainPairs,
    InputError,
    RandomMask,
    StandardNormal,
    UnlearningConfig,
    UnlearningTrainer,
    undecoded,
)
from hf_i2i_unlearn.models.base import join
from hf_i2i_unlearn.objective import Objective

DATA = undecoded(make_dataset())
FORGET, RETAIN = DATA.select(range(8)), DATA.select(range(8, 24))


def make_trainer(folder, model, **options):
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    args = UnlearningConfig(
        str(folder), max_steps=3, per_device_train_batch_size=2, learning_rate=1e-3, logging_steps=1, eval_steps=3, save_steps=3,
        use_cpu=True, disable_tqdm=True, **options,
    )  # fmt: skip
    return UnlearningTrainer(
        model, args, ForgetRetainPairs(FORGET, RETAIN, 0), processor, CenterCrop(8),
        eval_dataset={"forget": list(FORGET)[:4], "retain": list(RETAIN)[:4]},
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("variant", ["paper", "reference"])
def test_every_method_trains_what_it_should(tmp_path, method, variant):
    model = make_unet(steps=3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trainer = make_trainer(tmp_path, model, method=method, variant=variant)
    first = trainer.evaluate()
    trainer.train()
    last = trainer.evaluate()
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    encoder = {k for k in before if k.startswith(("model.conv_in", "model.down_", "model.mid_"))}
    if METHODS[method].space == "encoder":
        assert first["eval_retain_distance"] < 1e-12  # student and teacher saw the same time and noise
        assert moved == encoder
    else:
        assert any(k.startswith("model.up_") for k in moved)
    assert first["eval_retain_drift"] == 0 and last["eval_retain_drift"] > 0
    again = UNet2DModel.from_pretrained(tmp_path / "checkpoint-3")
    assert all(torch.equal(v, model.model.state_dict()[k]) for k, v in again.state_dict().items())


@pytest.mark.parametrize("corruption", [CenterCrop(8), RandomMask(0.5)])
def test_ours_is_equation_c25(corruption):
    student, teacher = make_unet(1).train(), make_unet(2).frozen_copy()
    seeds = torch.arange(12).view(4, 3).numpy()
    generator = torch.Generator().manual_seed(0)
    x_r, x_f = (torch.rand(4, 3, 16, 16, generator=generator) for _ in range(2))
    objective = Objective(METHODS["ours"], teacher, DISTANCES["mse"], StandardNormal())
    retain, forget, _ = objective(student, student, corruption, x_r, x_f, seeds)

    draw_r, draw_f = (teacher.draw(x, corruption((16, 16), seeds[:, k]), seeds[:, k]) for k, x in enumerate((x_r, x_f)))
    square = lambda a, b: (a - b).square().mean(1)  # noqa: E731
    torch.testing.assert_close(retain, square(student(x_r, draw_r), teacher(x_r, draw_r)), atol=1e-5, rtol=1e-4)
    # The teacher's input, taken from the library's first layer: same condition and visible part, n in the hole.
    n = torch.stack([torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(int(s))) for s in seeds[:, 2]])
    hole, seen = teacher.hole(draw_f.mask), []
    hook = teacher.model.conv_in.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    target = teacher(*teacher.noised(x_f, draw_f, n))
    hook.remove()
    condition = torch.where(hole, draw_f.condition, x_f)
    assert torch.equal(seen[0], torch.cat([condition, torch.where(hole, n, x_f)], 1))
    torch.testing.assert_close(forget, square(student(x_f, draw_f), target), atol=1e-5, rtol=1e-4)


def test_draws_are_joined_field_by_field():
    model, pixels = make_unet(), torch.zeros(3, 3, 16, 16)
    mask = CenterCrop(8)((16, 16), range(3))
    whole = model.draw(pixels, mask, [1, 2, 3])
    parts = join(model.draw(pixels[:1], mask[:1], [1]), model.draw(pixels[1:], mask[1:], [2, 3]))
    assert type(parts) is type(whole) and all(torch.equal(a, b) for a, b in zip(whole, parts))


def test_the_mean_target_is_refused(tmp_path):
    with pytest.raises(InputError, match="family 'diffusion' depends on the visible part"):
        make_trainer(tmp_path, make_unet(steps=3), noise_target="mean")
