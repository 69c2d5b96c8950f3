"""Which family reads a checkpoint, and what of a run's options it takes."""

import json
import subprocess
import sys

import pytest
from conftest import make_mae
from test_mage import make_mage
from test_unet import make_unet
from torch import nn

from hf_i2i_unlearn import I2IMAE, I2IMage, I2IModel, I2IUNet, InputError, add_patch, load_model
from hf_i2i_unlearn.models.auto import FAMILIES, family_class, family_of, family_options


@pytest.mark.parametrize("make, family", [(make_mae, I2IMAE), (make_mage, I2IMage), (make_unet, I2IUNet)])
def test_the_family_is_told_without_weights(make, family, tmp_path):
    make().save_pretrained(tmp_path / "model")
    for file in (tmp_path / "model").glob("*.safetensors"):
        file.unlink()
    assert family_of(str(tmp_path / "model")) is family


def test_the_family_of_demos_patches_and_pipelines(tmp_path):
    names = {name: family_of(name).family for name in ("mnist-demo", "mnist-demo-unet", "mnist-demo-mage")}
    assert names == {"mnist-demo": "mae", "mnist-demo-unet": "diffusion", "mnist-demo-mage": "mage"}
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DModel"]}')
    assert family_of(str(tmp_path / "pipeline")) is I2IUNet
    model = make_mae()
    model.save_pretrained(tmp_path / "base")
    add_patch(model, tmp_path / "base")
    model.patch.save_pretrained(tmp_path / "patch")
    assert family_of(str(tmp_path / "patch")) is I2IMAE


def test_what_is_no_known_family(tmp_path):
    with pytest.raises(InputError, match="Cannot load a model from"):
        family_of(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="has no config.json and no adapter_config.json"):
        family_of(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="holds a 'bert' model; known are vit_mae, .* its `family`, a subclass of I2IModel"):
        load_model(str(tmp_path))


class NoLoader(I2IModel):
    """A family without `from_pretrained`."""


@pytest.mark.parametrize(
    "family, name", [("mae", "'mae'"), (nn.Linear, "Linear"), (NoLoader, "NoLoader"), (make_mae, "<function")]
)
def test_what_is_no_family_is_refused(family, name):
    with pytest.raises(
        InputError, match=f"family is {name}.*expected a subclass of I2IModel with a class method from_pretrained"
    ):
        load_model("mnist-demo", family=family)


def test_options_of_a_run():
    """Those that the family's `from_pretrained` takes, under its names; what a run left open is left to the family."""
    run = {"decoding_steps": 12, "temperature": 0.5, "mask_rate": "none", "margin": None, "feather": False, "alpha": 0.25}
    wanted = {"steps": 12, "temperature": 0.5, "feather": False}
    assert family_options(run) == family_options(run, family=I2IMage) == wanted
    assert family_options(run | {"mask_rate": "mage"}, 3) == wanted | {"steps": 3, "mask_rate": "mage"}
    unet = {"denoising_steps": 8, "combine": "mean", "teacher_condition": "noise", "patch_size": 4}
    assert family_options(unet, family=I2IUNet) == {"steps": 8, "combine": "mean", "patch_size": 4}
    assert family_options({"subfolder": "unet"}, 3) == {"subfolder": "unet"} and family_options({}, 3) == {}

    class Own(I2IMAE):
        run_options = {"sharpness": "sharp"}

    assert family_options({"sharpness": 2} | run, family=Own) == {"sharp": 2}


def test_every_known_family_is_there():
    assert {kind: family_class(kind) for kind in FAMILIES} == {
        "vit_mae": I2IMAE,
        "mage": I2IMage,
        "UNet2DModel": I2IUNet,
        "UNet2DConditionModel": I2IUNet,
    }


def test_a_family_is_loaded_without_the_libraries_of_the_others():
    """In a fresh process, beside what the Trainer of transformers imports anyway."""
    script = """
import sys
from hf_i2i_unlearn import load_model
assert not {"diffusers", "matplotlib"} & set(sys.modules)
load_model("mnist-demo")
load_model("mnist-demo-mage")
assert not {"diffusers", "matplotlib"} & set(sys.modules)
assert not any(name.startswith("hf_i2i_unlearn.models.diffusion") for name in sys.modules)
load_model("mnist-demo-unet")
assert "diffusers" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
