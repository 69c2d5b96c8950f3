"""Feature networks: what pictures are measured by. Each knows its input and says in a report what it is.

A network is one word in the recipes, see `FEATURES_HELP`.
"""

import hashlib
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    CLIPConfig,
    CLIPVisionModelWithProjection,
    ResNetConfig,
    ResNetForImageClassification,
)

from .data import load_processor
from .errors import InputError
from .inception import InceptionV3

CLIP = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # the paper's "ViT-H-14" (App. C.2)
INCEPTION_URL = "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth"  # torchvision's IMAGENET1K_V1
FEATURES_HELP = (
    "demo (a small classifier of digits, embedded), clip or clip:ID (any CLIPModel; ViT-H-14 if not given), classifier:ID (any "
    "image classifier of transformers, Hub id or folder), inception or inception:FILE (torchvision's weights, downloaded if no file "
    "is given), fid_inception:FILE (those of pytorch-fid or torch-fidelity), places365:FILE (the ResNet-50 of Places-365)"
)


class FeatureNetwork(nn.Module):
    """A frozen network from pictures to features, and to logits if it classifies.

    Args:
        network: any module that takes (B, channels, height, width).
        name: for reports. size: (height, width) it takes; pictures are resized, never cropped.
        mean, std: per channel, or one for all, of its input: (x - mean) / std for x in [0, 1].
        channels: 1 or 3. A grey picture is repeated, a colour one becomes its luma.
        resize: "bilinear" or "bicubic". antialias: as PIL does, when pictures get smaller.
        head: the last linear layer of a classifier: what goes into it are the features, what comes out the logits. None: the
            output of `network` are the features.
        kind: the word that made it.
    """

    def __init__(
        self, network, name: str, size: tuple[int, int], mean=0.5, std=0.5, channels: int = 3, resize: str = "bicubic",
        antialias: bool = True, head: nn.Linear | None = None, kind: str = "module",
    ):  # fmt: skip
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.name, self.kind, self.size, self.channels = name, kind, tuple(size), channels
        self.resize, self.antialias, self.head = resize, antialias, [head]  # in a list: it is a part of the network already
        for key, value in (("mean", mean), ("std", std)):
            value = torch.as_tensor(value, dtype=torch.float).flatten()
            self.register_buffer(key, value.expand(channels).clone().view(-1, 1, 1))
        self.weights = hash_weights(network)

    @property
    def classifies(self) -> bool:
        """Whether there are logits."""
        return self.head[0] is not None

    def describe(self) -> dict:
        """What a figure must carry to be understood: network, hash of the weights, input, resize, range."""
        return {
            "network": self.name,
            "kind": self.kind,
            "weights_sha256": self.weights,
            "input": [self.channels, *self.size],
            "resize": self.resize + (", antialiased" if self.antialias else ""),
            "range": f"(x - {_short(self.mean)}) / {_short(self.std)} of x in [0, 1]",
        }

    def fill(self, channels: int) -> torch.Tensor:
        """The colour of a blank, in [0, 1]: the mean colour of the network's training pictures, (channels,)."""
        mean = self.mean.flatten()
        return mean if len(mean) == channels else mean.mean().expand(channels)

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1 or 3, H, W) in [0, 1] -> the network's input, (B, channels, height, width)."""
        x = images.to(self.mean)
        if x.shape[1] == 1 and self.channels == 3:
            x = x.expand(-1, 3, -1, -1)
        elif x.shape[1] == 3 and self.channels == 1:
            x = (x * x.new_tensor([0.299, 0.587, 0.114]).view(-1, 1, 1)).sum(1, keepdim=True)
        if x.shape[2:] != self.size:
            x = nn.functional.interpolate(x, self.size, mode=self.resize, align_corners=False, antialias=self.antialias)
        return (x.clamp(0, 1) - self.mean) / self.std

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, 1 or 3, H, W) in [0, 1] -> features (B, D) and logits (B, classes) or None."""
        x, head, seen = self.prepare(images), self.head[0], []
        if head is None:
            return self.network(x).flatten(1).float(), None
        hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            logits = self.network(x)
        finally:
            hook.remove()
        logits = getattr(logits, "logits", logits)
        return seen[0].flatten(1).float(), logits.float()

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """The features alone."""
        return self(images)[0]


def crop_to_hole(images: torch.Tensor, hole: torch.Tensor, size: tuple[int, int], fill: torch.Tensor) -> torch.Tensor:
    """The hole alone: the box around it, resized, with the visible pixels in the box (if any) set to one colour.

    A rectangular hole fills its box, so nothing is set. A random mask's box is nearly the whole picture; what is visible of it,
    which no model has generated, is blanked.

    Args:
        images: (B, C, H, W) in [0, 1]. hole: (B, 1, H, W) boolean, True = hidden. fill: (C,) or (1,) in [0, 1].

    Returns:
        (B, C, height, width), bicubic.
    """
    images = torch.where(hole, images, fill.to(images).view(1, -1, 1, 1))
    rows, cols = hole.any(3)[:, 0], hole.any(2)[:, 0]  # (B, H), (B, W)
    boxes = torch.stack([_first(rows), _last(rows), _first(cols), _last(cols)], 1)  # (B, 4)
    kinds, which = boxes.unique(dim=0, return_inverse=True)
    result = images.new_empty(len(images), images.shape[1], *size)
    for number, (top, bottom, left, right) in enumerate(kinds.tolist()):
        part = images[which == number, :, top:bottom, left:right]
        part = nn.functional.interpolate(part, size, mode="bicubic", align_corners=False, antialias=True)
        result[which == number] = part.clamp(0, 1)
    return result


def _first(line):
    return line.int().argmax(1)


def _last(line):
    return line.shape[1] - line.flip(1).int().argmax(1)


def hash_weights(network: nn.Module) -> str:
    """sha256 over names, shapes and values of a state dict; the same wherever and however often the weights are loaded."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


def load_features(words: list[str]) -> list[FeatureNetwork]:
    """The networks that words such as 'clip' or 'classifier:folder' name (`FEATURES_HELP`).

    Raises:
        InputError: an unknown word, a missing file, or one of another kind.
    """
    return [_load(word) for word in words]


def _load(text: str) -> FeatureNetwork:
    word, _, where = text.partition(":")
    if word == "demo" and not where:
        from .demo import FEATURES

        network = load_classifier(FEATURES)
        network.name, network.kind = "mnist-demo", "demo"
        return network
    if word == "clip":
        return load_clip(where or CLIP)
    if word == "classifier" and where:
        return load_classifier(where)
    if word == "inception":
        return load_inception(where or None)
    if word == "fid_inception" and where:
        return load_inception(where, fid=True)
    if word == "places365" and where:
        return load_places365(where)
    raise InputError(f"'{text}' is no feature network: {FEATURES_HELP}.")


def load_clip(path: str) -> FeatureNetwork:
    """The image embedding of a CLIP model (after its projection), Hub id or folder of a `CLIPModel`."""
    config = _config(path)
    if not isinstance(config, CLIPConfig):
        raise InputError(f"'{path}' holds a '{config.model_type}' model, expected 'clip'; for others take classifier:{path}.")
    config.vision_config.projection_dim = config.projection_dim  # not every checkpoint repeats it there
    model, missing = _load_model(CLIPVisionModelWithProjection, path, config=config.vision_config)
    _refuse_missing(path, missing)
    processor, side = load_processor(path), config.vision_config.image_size
    network = FeatureNetwork(
        _ImageEmbedding(model), str(path), (side, side), processor.image_mean, processor.image_std,
        resize=_filter(processor), kind="clip",
    )  # fmt: skip
    return network


class _ImageEmbedding(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(pixel_values=x).image_embeds


def load_classifier(path: str) -> FeatureNetwork:
    """Any image classifier of transformers, Hub id or folder: its features are what its last linear layer reads."""
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
        _Logits(model), str(path), (height, width), processor.image_mean if normalises else 0.0,
        processor.image_std if normalises else 1.0, getattr(model.config, "num_channels", 3), _filter(processor),
        head=heads[-1], kind="classifier",
    )  # fmt: skip


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
        state = _tensors(file)
    state = {k: v for k, v in state.items() if not k.startswith("AuxLogits.")}
    network = InceptionV3(1008 if fid else 1000, fid)
    _fill(network, state, file, "Inception-v3 of the original FID" if fid else "Inception-v3 of torchvision")
    name = "FID Inception-v3" if fid else "torchvision Inception-v3"
    # pytorch-fid's resize: bilinear, which skips pixels when pictures get smaller.
    return FeatureNetwork(
        network, name, (299, 299), resize="bilinear", antialias=not fid, head=network.fc,
        kind="fid_inception" if fid else "inception",
    )  # fmt: skip


def load_places365(file: str) -> FeatureNetwork:
    """The ResNet-50 of Places-365 (resnet50_places365.pth.tar, Zhou et al., 2017), as a `ResNetForImageClassification`."""
    state = _tensors(file)
    state = {_resnet_key(k.removeprefix("module.")): v for k, v in state.items()}
    model = ResNetForImageClassification(ResNetConfig(num_labels=365))  # its defaults are those of ResNet-50 v1.5
    _fill(model, state, file, "ResNet-50 of Places-365")
    return FeatureNetwork(
        _Logits(model), "Places-365 ResNet-50", (224, 224), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], resize="bilinear",
        head=model.classifier[1], kind="places365",
    )  # fmt: skip


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


def _tensors(file: str) -> dict:
    """The tensors of a weights file, and nothing that could run code."""
    if not Path(file).is_file():
        raise InputError(f"There is no file '{file}' with the weights of a feature network.")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle of anything but tensors, or no such file at all
        raise InputError(
            f"'{file}' holds more than tensors, or is no weights file ({type(error).__name__}). Load it where you trust it and save "
            "its state dict alone: torch.save(state_dict, FILE)."
        ) from error
    return state.get("state_dict", state)


def _fill(network, state, file, what):
    wanted = {k: tuple(v.shape) for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    got = {k: tuple(v.shape) for k, v in state.items() if not k.endswith("num_batches_tracked")}
    if wanted != got:
        wrong = sorted(k for k in wanted.keys() | got.keys() if wanted.get(k) != got.get(k))
        raise InputError(f"'{file}' does not hold the {what}: {len(wrong)} weights differ, first '{wrong[0]}'.")
    network.load_state_dict(state, strict=False)


def _config(path):
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


def _short(value) -> str:
    values = [f"{v:g}" for v in value.flatten().tolist()]
    return values[0] if len(set(values)) == 1 else f"({', '.join(values)})"
