"""Patches.

Adapters on the encoder alone, the original underneath, merging, stacking, and checkpoints that hold adapters alone.
"""

import json
import re
from pathlib import Path

import peft
import pytest
import test_mage_training
import test_unet_training
import torch
from conftest import make_mae
from diffusers import UNet2DConditionModel
from helpers.close import assert_close, is_close
from latent_pipeline import save_pipeline
from peft import PeftModel
from safetensors.torch import load_file
from test_mage_training import wrapped as make_mage
from test_trainer import FORGET, RETAIN, StopAt, assert_same, make_trainer, weights
from test_unet import make_unet
from torch import nn

from hf_i2i_unlearn import CenterCrop, InputError, RandomMask, UnlearningConfig, add_patch, load_model, load_patches, merge
from hf_i2i_unlearn.commands.jobs.run import prepare_run
from hf_i2i_unlearn.commands.options import RunArguments
from hf_i2i_unlearn.models.auto import DEMOS, split_patch
from hf_i2i_unlearn.models.lora_layers import anchored, encoder_layers
from hf_i2i_unlearn.models.patches import AdaptersOff, original_of

MAKE = {"mae": make_mae, "diffusion": make_unet, "mage": make_mage}
GRIDS = {"mae": (4, 4), "diffusion": (16, 16), "mage": (4, 4)}
SEEDS = [1, 2, 3]
families = pytest.mark.parametrize("family", MAKE)


def randomise(model, scale=0.1):
    """Give the trained adapter weights, as if it had learnt something."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(generator=generator).mul_(scale)


def pictures():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def outputs(model, family):
    """Representation and completion, with fixed draws."""
    x, mask = pictures(), CenterCrop(GRIDS[family][0] // 2)(GRIDS[family], range(3))
    with torch.no_grad():
        return model(x, model.draw(x, mask, SEEDS)), model.generate(x, mask, SEEDS)


def assert_alike(ones, twos):
    """The same outputs but for the last bits, which go with the alignment of loaded weights in memory.

    Or with the order of the products, where a patch is merged. Denoising steps multiply a difference of completions.
    """
    assert len(ones) == len(twos) == 2
    for one, two, tolerance in zip(ones, twos, (1e-4, 1e-3)):
        assert_close(one, two, tolerance)


def trainer_of(family, folder, model, processor, **options):
    if family == "mae":
        return make_trainer(folder, processor, model, evaluate=True, **{"max_steps": 3} | options)
    return {"diffusion": test_unet_training, "mage": test_mage_training}[family].make_trainer(folder, model, **options)


# The original underneath


@families
def test_adapters_off_is_the_original_bit_for_bit(family):
    """In every mode of the trained model, of which it changes nothing, with dropout and with trained adapters."""
    original, model = MAKE[family](), MAKE[family]()
    for part in model.modules():  # dropout that would be seen
        if isinstance(part, nn.Dropout):
            part.p = 0.5
    before = outputs(original.eval(), family)
    add_patch(model, "base")
    view = original_of(model)
    randomise(model)
    model.train()
    next(model.model.children()).eval()
    modes = [module.training for module in model.modules()]
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert isinstance(view, AdaptersOff)
    for one, two in zip(before, outputs(view, family)):
        assert torch.equal(one, two) and not two.requires_grad
    x, mask = pictures(), CenterCrop(2)(GRIDS[family], range(3))
    assert not view(x, model.draw(x, mask, SEEDS)).requires_grad
    assert model(x, model.draw(x, mask, SEEDS)).requires_grad
    assert modes == [module.training for module in model.modules()]
    assert learning == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not torch.equal(outputs(model.eval(), family)[0], before[0])
    assert view.channels == model.channels and sum(p.numel() for p in view.parameters()) == sum(
        p.numel() for p in model.parameters()
    )


@families
def test_the_encoder_alone_is_trained(family, tmp_path, processor):
    model = MAKE[family]()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    linear = (nn.Linear, nn.Conv2d) if family == "diffusion" else nn.Linear
    wanted = {
        name
        for part in model.encoder_modules()
        for name, m in model.model.named_modules()
        if isinstance(m, linear) and any(m is inner for inner in part.modules())
    }
    line = add_patch(model, "base", rank=2)
    assert f"rank 2 on {len(wanted)} layers of the encoder" in line
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".lora_")[0].removeprefix("model.") for name in trained} == wanted
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    trainer = trainer_of(family, tmp_path, model, processor)
    first = trainer.evaluate()
    trainer.train()
    last = trainer.evaluate()
    # The original's own outputs: at the start nothing lies between the two but squares of rounding errors.
    assert first["eval_retain_distance"] < 1e-8 * first["eval_forget_distance"]
    assert first["eval_retain_drift"] <= 1e-3 * last["eval_retain_drift"] > 0
    after = {name.replace(".base_layer", ""): p for name, p in model.state_dict().items() if ".lora_" not in name}
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


# Refusals


@pytest.mark.parametrize(
    "family, targets, message",
    [
        (
            "mae",
            ["decoder_layers.0.mlp.fc1"],
            "'decoder_layers.0.mlp.fc1' is a layer of the decoder; the encoder's are fc1, fc2,",
        ),
        ("mae", ["query"], "'query' is no linear layer or convolution of the model; the encoder's are fc1, fc2, k_proj"),
        ("diffusion", ["conv_out"], "'conv_out' is a layer of the decoder"),
        ("mage", ["decoder_embed"], "'decoder_embed' is a layer of the decoder"),
        ("mage", ["vqgan.encoder.conv_in"], "'vqgan.encoder.conv_in' is a layer of the decoder"),
    ],
)
def test_targets_outside_the_encoder_are_refused(family, targets, message):
    model = MAKE[family]()
    with pytest.raises(InputError, match=message):
        add_patch(model, "base", targets=targets)
    assert model.patch is None and all(p.numel() for p in model.parameters())


def test_a_decoder_weight_that_could_train_is_refused(monkeypatch):
    """What no name could tell: the pattern hits a decoder layer."""
    from hf_i2i_unlearn.models import lora

    monkeypatch.setattr(lora, "anchored", lambda names, model: r".*\.mlp\.fc1")
    with pytest.raises(
        InputError, match=r"These weights of the decoder would be trained: model.decoder.decoder_layers.0.mlp.fc1.lora_A"
    ):
        add_patch(make_mae(), "base")


@pytest.mark.parametrize("model", [lambda: make_unet(train_time_embedding=True), lambda: make_mage(train_word_embeddings=True)])
def test_a_patch_changes_no_decoder(model):
    with pytest.raises(InputError, match="A patch leaves the decoder as it was"):
        add_patch(model(), "base")


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0}])
def test_bad_sizes(options):
    with pytest.raises(InputError, match="a rank of 1 or more and an alpha above 0"):
        add_patch(make_mae(), "base", **options)


def test_nothing_to_train(tmp_path, processor):
    model = make_mae()
    add_patch(model, "base")
    model.patch.save_pretrained(tmp_path / "patch")
    other = make_mae()
    load_patches(other, [tmp_path / "patch"])
    with pytest.raises(InputError, match="nothing to train: put a new adapter on it"):
        make_trainer(tmp_path / "out", processor, other)


def test_a_trained_adapter_is_no_original(tmp_path):
    """Adapters off is the original of a fresh adapter alone.

    One that has learnt something is part of what the run starts from.
    """
    model = make_mae()
    add_patch(model, "base")
    assert isinstance(original_of(model), AdaptersOff)
    randomise(model)
    start = outputs(model.eval(), "mae")
    original = original_of(model)
    assert not isinstance(original, AdaptersOff)
    assert_alike(outputs(original, "mae"), start)
    with pytest.raises(InputError, match="The model has a patch of its own; save it, and load it below a new one"):
        add_patch(model, "base")
    model.patch.save_pretrained(tmp_path)
    other = make_mae()
    load_patches(other, [tmp_path])
    with pytest.raises(InputError, match="Nothing was trained on the model since its patches were loaded"):
        other.patch.save_pretrained(tmp_path / "again")


def test_chosen_targets():
    model = make_mae()
    names = encoder_layers(model, ["q_proj", "layers.1.mlp.fc2"])
    assert names == ["vit.layers.0.attention.q_proj", "vit.layers.1.attention.q_proj", "vit.layers.1.mlp.fc2"]
    pattern = anchored(names, model.model)
    hit = {name for name, _ in model.model.named_modules() if re.fullmatch(pattern, name)}
    assert hit == set(names)  # not layers.0.mlp.fc2, not the decoder's
    assert r"vit\.layers\.\d+\.attention\.q_proj" in pattern and r"layers\.1\.mlp\.fc2" in pattern


# Saved, loaded, merged, stacked


@families
def test_plain_peft_loads_a_patch_and_merging_is_equal(family, tmp_path):
    model, base = MAKE[family](), MAKE[family]()
    add_patch(model, "some/original")
    randomise(model)
    with pytest.raises(InputError, match="The model has a patch on it"):
        model.save_pretrained(tmp_path / "wrong")
    model.patch.save_pretrained(tmp_path / "patch")
    assert {f.name for f in (tmp_path / "patch").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((tmp_path / "patch" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/original" and config["task_type"] is None and config["inference_mode"]
    wanted = outputs(model.eval(), family)
    loaded = PeftModel.from_pretrained(base.model, tmp_path / "patch")
    assert_alike(wanted, outputs(base.eval(), family))
    assert not any(p.requires_grad for p in loaded.parameters())

    before = MAKE[family]()
    learning = {name for name, p in before.named_parameters() if p.requires_grad}
    merge(model)
    assert model.patch is None and model.state_dict().keys() == before.state_dict().keys()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == learning
    assert_alike(outputs(model, family), wanted)
    model.save_pretrained(tmp_path / "merged")
    again = load_model(str(tmp_path / "merged"))
    assert type(again) is type(model) and all(torch.equal(p, model.state_dict()[n]) for n, p in again.state_dict().items())


@families
def test_load_model_brings_the_original_and_the_patches_below(family, tmp_path):
    base = MAKE[family]()
    base.save_pretrained(tmp_path / "base")
    model = load_model(str(tmp_path / "base"))
    assert type(model) is type(base) and model.patch is None
    add_patch(model, tmp_path / "base")
    randomise(model)
    model.patch.save_pretrained(tmp_path / "one")
    first = outputs(model.eval(), family)
    second = load_model(str(tmp_path / "one"))
    assert_alike(first, outputs(second.eval(), family))
    add_patch(second, tmp_path / "base", rank=4)
    randomise(second, 0.2)
    second.patch.save_pretrained(tmp_path / "two")
    assert json.loads((tmp_path / "two" / "patches.json").read_text()) == [str(tmp_path / "one")]
    both = outputs(second.eval(), family)
    loaded = load_model(str(tmp_path / "two"))
    assert loaded.patch.below == [str(tmp_path / "one"), str(tmp_path / "two")]
    assert_alike(both, outputs(loaded.eval(), family))
    # Each can be taken off, by plain peft, and the rest is what it was.
    tuner = loaded.patch.peft.base_model
    tuner.set_adapter(["patch0"])
    assert_alike(outputs(loaded, family), first)
    tuner.set_adapter(["patch1"])
    alone = load_model(str(tmp_path / "base"))
    PeftModel.from_pretrained(alone.model, tmp_path / "two")
    assert_alike(outputs(loaded, family), outputs(alone.eval(), family))
    with loaded.patch.peft.disable_adapter():
        plain = load_model(str(tmp_path / "base"))
        assert_alike(outputs(loaded, family), outputs(plain.eval(), family))


def test_a_patch_of_a_pipeline(tmp_path):
    """Latent inpainting: the adapters are on the encoder's half of the pipeline's U-Net, which plain peft patches too."""
    save_pipeline(tmp_path / "pipeline")
    model = load_model(str(tmp_path / "pipeline"), patch_size=2)
    wanted = load_model(str(tmp_path / "pipeline"), patch_size=2)
    add_patch(model, tmp_path / "pipeline")
    assert all(
        n.startswith(("model.conv_in", "model.down_", "model.mid_")) for n, p in model.named_parameters() if p.requires_grad
    )
    randomise(model)
    model.patch.save_pretrained(tmp_path / "patch")
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "pipeline", subfolder="unet")
    wanted.model = PeftModel.from_pretrained(unet, tmp_path / "patch").base_model.model
    x, mask = pictures(), CenterCrop(model.grid[0] // 2)(model.grid, range(3))
    loaded = load_model(str(tmp_path / "patch"), patch_size=2)
    outs = [m.eval().generate(x, mask, SEEDS) for m in (model, wanted, loaded)]
    assert_close(outs[1], outs[0], 1e-4)
    assert_close(outs[2], outs[0], 1e-4)
    original = load_model(str(tmp_path / "pipeline"), patch_size=2).eval()
    assert not is_close(original.generate(x, mask, SEEDS), outs[0], 1e-2)


def test_a_second_request_starts_from_the_first(tmp_path, processor):
    """Its original has the first patch on, and training leaves that patch as it is."""
    base = make_mae()
    base.save_pretrained(tmp_path / "base")
    add_patch(base, tmp_path / "base")
    randomise(base)
    base.patch.save_pretrained(tmp_path / "one")
    first = outputs(base.eval(), "mae")
    model = load_model(str(tmp_path / "one"))
    add_patch(model, tmp_path / "base")
    original = original_of(model)
    trainer = make_trainer(tmp_path / "out", processor, model, max_steps=3)
    trainer.train()
    assert isinstance(original, AdaptersOff)
    assert_alike(outputs(original, "mae"), first)
    assert_alike(outputs(trainer.original, "mae"), first)
    assert_alike(outputs(original.alone, "mae"), outputs(load_model(str(tmp_path / "base")).eval(), "mae"))
    kept = load_file(tmp_path / "one" / "adapter_model.safetensors")
    now = peft.get_peft_model_state_dict(model.patch.peft, adapter_name="patch0")
    assert kept.keys() == now.keys() and all(torch.equal(kept[name], now[name]) for name in kept)
    assert not is_close(outputs(model.eval(), "mae")[0], first[0], 1e-3)


def test_patches_of_another_model(tmp_path):
    model = make_unet()
    add_patch(model, "base")
    model.patch.save_pretrained(tmp_path / "unet")
    wider = make_mae(hidden_size=24)
    add_patch(wider, "base")
    wider.patch.save_pretrained(tmp_path / "wider")
    deeper = make_mae(num_hidden_layers=3)
    add_patch(deeper, "base")
    deeper.patch.save_pretrained(tmp_path / "deeper")
    for path in ("unet", "wider", "nothing"):
        with pytest.raises(InputError, match=f"Cannot put the patch '.*{path}' on the model: .+"):
            load_patches(make_mae(), [tmp_path / path])
    with pytest.raises(InputError, match="is of other layers than this one"):  # peft alone would leave some out, in silence
        load_patches(make_mae(), [tmp_path / "deeper"])


@pytest.mark.parametrize("name", DEMOS)
def test_a_patch_of_a_demo_names_its_original(tmp_path, name):
    if not Path(DEMOS[name]).is_dir():
        pytest.skip(f"the weights of {name} are not in this checkout")
    model = load_model(name)
    add_patch(model, name)
    model.patch.save_pretrained(tmp_path)
    assert type(load_model(str(tmp_path))) is type(model) and split_patch(str(tmp_path)) == (name, [str(tmp_path)])
    args, training = RunArguments(model=str(tmp_path)), UnlearningConfig(str(tmp_path / "new"), use_cpu=True)
    prepare_run(args, training)
    assert (args.model, args.patches) == (name, [str(tmp_path)])


def test_load_model_says_what_is_wrong(tmp_path, mae):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="holds a 'bert' model; known are vit_mae, mage, UNet2DModel"):
        load_model(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no config.json and no adapter_config.json"):
        load_model(str(tmp_path / "empty"))
    (tmp_path / "empty" / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    with pytest.raises(InputError, match="does not name its original"):
        load_model(str(tmp_path / "empty"))


# Under the trainer


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_resumed_run_ends_with_the_same_patch(tmp_path, processor, ema):
    def run(folder, **more):
        model = make_mae()
        add_patch(model, "base", rank=2)
        return make_trainer(
            tmp_path / folder, processor, model, corruption=RandomMask(0.5), max_steps=7, save_strategy="steps", save_steps=2,
            lr_scheduler_type="cosine", ema_decay=ema, **more,
        )  # fmt: skip

    straight = run("straight")
    straight.train()
    with pytest.raises(KeyboardInterrupt):
        run("killed", callbacks=[StopAt(5)]).train()
    resumed = run("killed")
    resumed.train(resume_from_checkpoint="true")
    assert resumed.state.global_step == 7
    assert_same(weights(straight), weights(resumed))
    resumed.save_model()
    names = {f.name for f in (tmp_path / "killed").iterdir() if f.is_file()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json", "training_args.json"}
    assert not list((tmp_path / "killed").rglob("model.safetensors"))  # nor in checkpoints
    fresh = make_mae()
    PeftModel.from_pretrained(fresh.model, tmp_path / "killed")
    assert_alike(outputs(fresh.eval(), "mae"), outputs(resumed.i2i.eval(), "mae"))


def test_the_best_patch_is_kept(tmp_path, processor):
    model = make_mae()
    add_patch(model, "base")
    trainer = make_trainer(
        tmp_path, processor, model, evaluate=True, num_train_epochs=4, learning_rate=0.05, load_best_model_at_end=True, alpha=1,
        eval_steps=1, save_strategy="steps", save_steps=1, save_total_limit=None,
    )  # fmt: skip
    trainer.train()
    losses = {log["step"]: log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log}
    best = min(losses, key=losses.get)
    assert best != max(losses), "the test needs a run that gets worse"
    kept = load_file(tmp_path / f"checkpoint-{best}" / "adapter_model.safetensors")
    now = peft.get_peft_model_state_dict(model.patch.peft)
    assert kept.keys() == now.keys() and all(torch.equal(kept[name], now[name]) for name in kept)


def test_resuming_with_other_layers_is_refused(tmp_path, processor):
    def run(targets):
        model = make_mae()
        add_patch(model, "base", targets=targets)
        return make_trainer(tmp_path, processor, model, max_steps=2, save_strategy="steps", save_steps=1)

    run(["q_proj"]).train()
    with pytest.raises(InputError, match="is of other layers than this one; use the same model and --lora_targets"):
        run(["fc1"]).train(resume_from_checkpoint="true")


@pytest.mark.parametrize("method", ["random_encoder", "max_loss", "noisy_label", "control"])
def test_every_method_can_train_a_patch(tmp_path, processor, method):
    model = make_mae()
    before = {n: p.clone() for n, p in model.state_dict().items()}
    add_patch(model, "base")
    trainer = make_trainer(tmp_path, processor, model, max_steps=2, method=method)
    trainer.train()
    after = {n.replace(".base_layer", ""): p for n, p in model.state_dict().items() if ".lora_" not in n}
    assert all(torch.equal(after[n], before[n]) for n in before)
    assert any(p.abs().sum() > 0 for n, p in model.named_parameters() if ".lora_B." in n)


def test_accumulation_and_sets(tmp_path, processor):
    """The same patch by 8 pairs at once and by 4 micro-batches of 2."""
    runs = []
    for batch, accumulation in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        model = make_mae()
        add_patch(model, "base")
        trainer = make_trainer(
            tmp_path,
            processor,
            model,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=0.1,
            max_steps=3,
        )
        trainer.train()
        runs.append(weights(trainer))
    assert len(FORGET) == 8 and len(RETAIN) == 16
    assert_close(runs[1], runs[0])
