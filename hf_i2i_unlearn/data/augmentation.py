"""Augmentations of pictures in training."""

import random

import numpy as np
from PIL import Image


def flip(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Half of the pictures mirrored."""
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else picture


def flip_and_crop(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Half of the pictures mirrored, a random crop of 20-100% of the area and aspect 3/4..4/3 (the reference's)."""
    picture = flip(picture, rng)
    width, height = picture.size
    area = rng.uniform(0.2, 1) * width * height
    aspect = (3 / 4) ** rng.uniform(-1, 1)
    w, h = min(width, round((area * aspect) ** 0.5)), min(height, round((area / aspect) ** 0.5))
    left, top = rng.randint(0, width - w), rng.randint(0, height - h)
    return picture.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))


def jitter(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Small rotation (12 deg), shear (0.15), scale (+-15%) and shift (7%): for digits, which must not be mirrored."""
    width, height = picture.size
    angle, shear = np.deg2rad(rng.uniform(-12, 12)), rng.uniform(-0.15, 0.15)
    scale = 1 / rng.uniform(0.85, 1.15)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ [[1, shear], [0, 1]]
    centre = np.array([width / 2, height / 2])
    shift = centre - turn @ (centre + [rng.uniform(-0.07, 0.07) * width, rng.uniform(-0.07, 0.07) * height])
    matrix = (*turn[0], shift[0], *turn[1], shift[1])
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def shift(picture: Image.Image, rng: random.Random) -> Image.Image:
    """A shift by whole pixels, up to 7% of the sides, onto black: for digits.

    Nothing is blurred, unlike under `jitter`, so that pictures shown with and without it cannot be told apart.
    """
    width, height = picture.size
    across, down = (rng.randint(-round(0.07 * side), round(0.07 * side)) for side in (width, height))
    return picture.transform(picture.size, Image.Transform.AFFINE, (1, 0, across, 0, 1, down), Image.Resampling.NEAREST)


AUGMENTATIONS = {"none": None, "flip": flip, "flip_and_crop": flip_and_crop, "jitter": jitter, "shift": shift}
