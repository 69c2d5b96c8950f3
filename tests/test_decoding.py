"""The one decoder: what a file shows is what a person sees, whatever wrote it."""

import io

import numpy as np
import pytest
from PIL import Image

from hf_i2i_unlearn import ImageReader, InputError
from hf_i2i_unlearn.data.decoding import Decoder, Unreadable

RAMP = np.tile(np.linspace(0, 1, 64), (64, 1))


def file(picture: Image.Image, kind="PNG", **options) -> dict:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": f"picture.{kind.lower()}"}


def mean(picture: Image.Image) -> float:
    return np.asarray(picture, dtype=np.float64).mean() / 255


def grey(values, dtype) -> Image.Image:
    return Image.fromarray(values.astype(dtype))


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize(
    "image",
    [
        file(grey(RAMP * 65535, np.uint16)),
        file(grey(RAMP * 65535, np.uint16), "TIFF"),
        file(grey(RAMP * (2**31 - 1), np.int32), "TIFF"),
        file(grey(RAMP, np.float32), "TIFF"),
        file(grey(RAMP * 255, np.float32), "TIFF"),
        file(grey(RAMP * 255, np.uint8)),
    ],
    ids=["png 16", "tiff 16", "tiff 32", "float to 1", "float to 255", "8"],
)
def test_greys_are_scaled_by_their_depth(image, channels, mode):
    picture = Decoder(channels)(image)
    assert picture.mode == mode and mean(picture) == pytest.approx(0.5, abs=0.01)
    assert np.abs(np.asarray(picture.convert("L"), dtype=float) / 255 - RAMP).max() < 0.01


def test_a_dark_deep_grey_stays_dark():
    """By the depth, not by the values: an underexposed picture is dark."""
    assert mean(Decoder(1)(file(grey(RAMP * 6553, np.uint16)))) == pytest.approx(0.05, abs=0.005)


def ink(mode="RGBA"):
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[4:12, 4:12, 3] = 255  # a black square on clear
    return Image.fromarray(pixels).convert(mode)


def palette_with_transparency():
    pixels = np.zeros((16, 16), np.uint8)
    pixels[4:12, 4:12] = 1
    picture = Image.fromarray(pixels, "P")
    picture.putpalette([10, 20, 30, 0, 0, 0])
    return file(picture, transparency=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "image",
    [file(ink()), file(ink("LA")), palette_with_transparency(), file(ink(), "WEBP", lossless=True)],
    ids=["RGBA", "LA", "palette", "webp"],
)
def test_transparency_lies_on_the_background(image, channels):
    assert mean(Decoder(channels)(image)) == pytest.approx(0.75, abs=0.01)
    assert mean(Decoder(channels, "black")(image)) == pytest.approx(0.0, abs=0.01)
    red = np.asarray(Decoder(3, "#ff0000")(image))
    assert red[0, 0].tolist() == [255, 0, 0] and red[8, 8].tolist() == [0, 0, 0]


def test_grey_with_a_transparent_value():
    image = file(Image.fromarray(np.full((8, 8), 7, np.uint8)), transparency=7)
    assert mean(Decoder(1)(image)) == 1.0


def test_cmyk_with_and_without_adobes_inversion():
    """The same colour, whether the file says that it is Adobe's, who store it inverted, or not."""
    picture = Image.new("RGB", (32, 32), (200, 60, 30)).convert("CMYK")
    adobe = file(picture, "JPEG", quality=100, subsampling=0)
    marker = adobe["bytes"].index(b"Adobe") - 4  # FF EE, two bytes of length, then the name
    assert adobe["bytes"][marker : marker + 2] == b"\xff\xee"
    bare = adobe["bytes"][:marker] + adobe["bytes"][marker + 16 :]
    inverted = Image.open(io.BytesIO(adobe["bytes"]))
    inverted = Image.merge("CMYK", [band.point(lambda v: 255 - v) for band in inverted.split()])
    plain = file(inverted, "JPEG", quality=100, subsampling=0)["bytes"]
    start = plain.index(b"Adobe") - 4
    plain = plain[:start] + plain[start + 16 :]
    for data in (adobe["bytes"], plain):
        colour = np.asarray(Decoder(3)({"bytes": data, "path": None})).reshape(-1, 3).mean(0)
        assert np.abs(colour - [200, 60, 30]).max() < 12, colour
    assert bare != adobe["bytes"]


def test_exif_orientation_and_first_frames():
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    turned = Decoder(3)(file(Image.fromarray(pixels), "PNG", exif=exif))
    assert turned.size == (8, 16) and np.asarray(turned)[:8].min() == 255 and np.asarray(turned)[8:].max() == 0
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    image = file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(Decoder(3)(image))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["1", "P", "L", "RGB", "CMYK", "YCbCr"])
def test_other_modes(mode):
    picture = Image.fromarray((RAMP * 255).astype(np.uint8)).convert("RGB").convert(mode)
    written = file(picture, "TIFF", compression="tiff_lzw")  # some versions of Pillow cannot read their own raw YCbCr
    assert Decoder(3)(written).mode == "RGB"
    assert mean(Decoder(1)(written)) == pytest.approx(0.5, abs=0.03)


def test_huge_jpegs_are_reduced_while_they_are_decoded():
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
    image = file(small.resize((2048, 2048), Image.Resampling.BICUBIC), "JPEG", quality=95)
    whole, reduced = Decoder(3)(image), Decoder(3, side=32)(image)
    assert whole.size == (2048, 2048) and 128 <= reduced.size[0] <= 256
    one, two = (np.asarray(p.resize((32, 32), Image.Resampling.BICUBIC), dtype=float) for p in (whole, reduced))
    assert np.abs(one - two).max() < 0.05 * 255
    assert Decoder(3, side=512)(image).size == (2048, 2048)  # nothing to gain


@pytest.mark.parametrize(
    "image, words",
    [
        (None, "no picture"),
        ({"bytes": None, "path": None}, "no picture"),
        ({"bytes": b"", "path": "empty.png"}, "UnidentifiedImageError"),
        ({"bytes": file(ink())["bytes"][:60], "path": "cut.png"}, ""),
        ({"bytes": None, "path": "nowhere/a.png"}, "FileNotFoundError"),
        (file(grey(np.full((4, 4), np.nan), np.float32), "TIFF"), "no finite numbers"),
    ],
)
def test_what_cannot_be_decoded_is_unreadable(image, words, processor):
    with pytest.raises(Unreadable, match=words):
        Decoder(3)(image)
    with pytest.raises(InputError, match="Cannot read .* skip such pictures with on_corrupt='skip'"):
        ImageReader(processor, 3).decode({"image": image})
    assert ImageReader(processor, 3, on_corrupt="skip").decode({"image": image}) is None


def test_a_bomb_is_unreadable(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Unreadable, match="DecompressionBombError"):
        Decoder(3)(file(Image.new("RGB", (20, 20))))


def test_a_background_that_is_no_colour():
    with pytest.raises(InputError, match="'wite' is no colour .* white, or #rrggbb"):
        Decoder(3, "wite")
