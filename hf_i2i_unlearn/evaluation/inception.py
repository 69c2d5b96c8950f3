"""Inception-v3 (Szegedy et al., 2015) with torchvision's weight names, so that its weights load without torchvision.

`fid=True` is the network of the original FID code, whose weights pytorch-fid and torch-fidelity publish: 1,008 classes, average
pools that leave the padding out, and a max pool in the last block, which the published numbers depend on.
"""

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, max_pool2d


class Convolution(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel, stride: int = 1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


class Mixed(nn.Module):
    """Paths side by side, joined along the channels.

    Args:
        layers: {name: arguments of `Convolution`}.
        paths: sequences of names; a tuple of names splits the path in two, and a function is called as it is.
    """

    def __init__(self, layers: dict, paths: list):
        super().__init__()
        self.paths = paths
        for name, arguments in layers.items():
            self.add_module(name, Convolution(*arguments))

    def forward(self, x):
        joined = []
        for path in self.paths:
            y = x
            for step in path:
                if isinstance(step, tuple):
                    y = torch.cat([getattr(self, name)(y) for name in step], 1)
                else:
                    y = getattr(self, step)(y) if isinstance(step, str) else step(y)
            joined.append(y)
        return torch.cat(joined, 1)


class InceptionV3(nn.Module):
    """(B, 3, 299, 299) in [-1, 1] -> logits (B, classes); what `fc` is given are the 2,048 features."""

    def __init__(self, classes: int = 1000, fid: bool = False):
        super().__init__()

        def average(x):
            return avg_pool2d(x, 3, 1, 1, count_include_pad=not fid)

        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, 1, 1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Mixed_5b = _block_a(192, 32, average)
        self.Mixed_5c = _block_a(256, 64, average)
        self.Mixed_5d = _block_a(288, 64, average)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b = _block_c(768, 128, average)
        self.Mixed_6c = _block_c(768, 160, average)
        self.Mixed_6d = _block_c(768, 160, average)
        self.Mixed_6e = _block_c(768, 192, average)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b = _block_e(1280, average)
        self.Mixed_7c = _block_e(2048, (lambda x: max_pool2d(x, 3, 1, 1)) if fid else average)
        self.fc = nn.Linear(2048, classes)

    def forward(self, x):
        for name, layer in self.named_children():  # in the order of their definition
            if name == "fc":
                x = x.mean((2, 3))  # (B, 2048)
            x = layer(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = max_pool2d(x, 3, 2)
        return x


def _block_a(inputs, pooled, average):
    layers = {
        "branch1x1": (inputs, 64, 1),
        "branch5x5_1": (inputs, 48, 1),
        "branch5x5_2": (48, 64, 5, 1, 2),
        "branch3x3dbl_1": (inputs, 64, 1),
        "branch3x3dbl_2": (64, 96, 3, 1, 1),
        "branch3x3dbl_3": (96, 96, 3, 1, 1),
        "branch_pool": (inputs, pooled, 1),
    }
    doubled = ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]
    return Mixed(layers, [["branch1x1"], ["branch5x5_1", "branch5x5_2"], doubled, [average, "branch_pool"]])


def _block_b(inputs):
    layers = {
        "branch3x3": (inputs, 384, 3, 2),
        "branch3x3dbl_1": (inputs, 64, 1),
        "branch3x3dbl_2": (64, 96, 3, 1, 1),
        "branch3x3dbl_3": (96, 96, 3, 2),
    }
    doubled = ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]
    return Mixed(layers, [["branch3x3"], doubled, [lambda x: max_pool2d(x, 3, 2)]])


def _block_c(inputs, width, average):
    wide, tall = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
    layers = {
        "branch1x1": (inputs, 192, 1),
        "branch7x7_1": (inputs, width, 1),
        "branch7x7_2": (width, width, *wide),
        "branch7x7_3": (width, 192, *tall),
        "branch7x7dbl_1": (inputs, width, 1),
        "branch7x7dbl_2": (width, width, *tall),
        "branch7x7dbl_3": (width, width, *wide),
        "branch7x7dbl_4": (width, width, *tall),
        "branch7x7dbl_5": (width, 192, *wide),
        "branch_pool": (inputs, 192, 1),
    }
    single, doubled = [f"branch7x7_{i}" for i in (1, 2, 3)], [f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)]
    return Mixed(layers, [["branch1x1"], single, doubled, [average, "branch_pool"]])


def _block_d(inputs):
    layers = {
        "branch3x3_1": (inputs, 192, 1),
        "branch3x3_2": (192, 320, 3, 2),
        "branch7x7x3_1": (inputs, 192, 1),
        "branch7x7x3_2": (192, 192, (1, 7), 1, (0, 3)),
        "branch7x7x3_3": (192, 192, (7, 1), 1, (3, 0)),
        "branch7x7x3_4": (192, 192, 3, 2),
    }
    long = [f"branch7x7x3_{i}" for i in (1, 2, 3, 4)]
    return Mixed(layers, [["branch3x3_1", "branch3x3_2"], long, [lambda x: max_pool2d(x, 3, 2)]])


def _block_e(inputs, pool):
    wide, tall = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
    layers = {
        "branch1x1": (inputs, 320, 1),
        "branch3x3_1": (inputs, 384, 1),
        "branch3x3_2a": (384, 384, *wide),
        "branch3x3_2b": (384, 384, *tall),
        "branch3x3dbl_1": (inputs, 448, 1),
        "branch3x3dbl_2": (448, 384, 3, 1, 1),
        "branch3x3dbl_3a": (384, 384, *wide),
        "branch3x3dbl_3b": (384, 384, *tall),
        "branch_pool": (inputs, 192, 1),
    }
    single = ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")]
    doubled = ["branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")]
    return Mixed(layers, [["branch1x1"], single, doubled, [pool, "branch_pool"]])
