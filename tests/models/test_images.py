"""The reader of images: the right value of every mode of Pillow, orientation, transparency, and files that are none."""

import io

import numpy as np
import pytest
from PIL import Image

from dsn_models import UserError
from dsn_models.data.images import read_image, to_rgb

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def first(image):
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


# Mode, value of a pixel, and the RGB that it stands for.
MODES = [
    ("1", 0, BLACK),
    ("1", 255, WHITE),
    ("L", 100, (100, 100, 100)),
    ("LA", (100, 255), (100, 100, 100)),
    ("LA", (0, 51), (204, 204, 204)),  # a fifth of black over white
    ("La", (0, 51), (204, 204, 204)),
    ("RGB", (10, 20, 30), (10, 20, 30)),
    ("RGBX", (10, 20, 30, 0), (10, 20, 30)),
    ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
    ("RGBA", (10, 20, 30, 0), WHITE),
    ("RGBA", (0, 255, 0, 102), (153, 255, 153)),
    ("RGBa", (0, 102, 0, 102), (153, 255, 153)),
    ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
    ("CMYK", (0, 0, 0, 255), BLACK),
    ("YCbCr", (100, 128, 128), (100, 100, 100)),
    ("YCbCr", (76, 85, 255), (254, 0, 0)),
    ("HSV", (85, 255, 255), (0, 255, 0)),
    ("LAB", (128, 128, 128), (119, 119, 119)),  # half of the lightness is a grey of 119 in sRGB
    ("I", 0, BLACK),
    ("I", 65535, WHITE),
    ("I", 25700, (100, 100, 100)),
    ("I;16", 65535, WHITE),
    ("I;16", 25700, (100, 100, 100)),
    ("I;16L", 25700, (100, 100, 100)),
    ("I;16B", 25700, (100, 100, 100)),
    ("I;16N", 25700, (100, 100, 100)),
    ("F", 0.0, BLACK),
    ("F", 1.0, WHITE),
    ("F", 0.4, (102, 102, 102)),
]


@pytest.mark.parametrize(("mode", "value", "expected"), MODES)
def test_every_mode(mode, value, expected):
    assert first(to_rgb(Image.new(mode, (3, 2), value))) == expected


def test_palettes():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    assert [to_rgb(image).getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (200, 100, 0)]
    image.info["transparency"] = 1
    assert [to_rgb(image).getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), WHITE]
    image.info["transparency"] = bytes([51, 255])
    assert first(to_rgb(image)) == (206, 208, 210)
    assert first(to_rgb(Image.new("PA", (1, 1), (0, 0)))) == WHITE


def test_a_transparent_colour():
    for mode, value, other in (("L", 7, 8), ("RGB", (1, 2, 3), (1, 2, 4))):
        image = Image.new(mode, (2, 1), value)
        image.putpixel((1, 0), other)
        image.info["transparency"] = value
        shown = to_rgb(image)
        assert first(shown) == WHITE and shown.getpixel((1, 0)) == to_rgb(Image.new(mode, (1, 1), other)).getpixel(
            (0, 0)
        )


@pytest.mark.parametrize(
    ("mode", "value", "said"),
    [
        ("I", 65536, r"holds values from 65536 to 65536 \(Pillow's mode I\); expected 0 to 65535"),
        ("I", -1, "holds values from -1 to -1"),
        ("F", 200.0, r"holds values from 200 to 200 \(Pillow's mode F\); expected 0 to 1"),
        ("F", float("nan"), "holds values from nan to nan"),
    ],
)
def test_values_of_an_unknown_scale_are_refused(mode, value, said):
    with pytest.raises(UserError, match=said):
        to_rgb(Image.new(mode, (2, 2), value), "scan.tif")


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_of_grey_are_scaled_not_clipped(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None]
    path = tmp_path / f"ramp.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5\n256 1\n65535\n" + ramp.astype(">u2").tobytes())
    else:
        Image.fromarray(ramp).save(path)
    assert np.array_equal(np.asarray(read_image(path))[0, :, 0], np.arange(256))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_stands_upright_whatever_its_orientation(tmp_path, suffix, orientation):
    """The sides of a picture, stored as each of the eight orientations has them."""
    upright = np.full((24, 48, 3), 255, np.uint8)
    upright[:8, :, :], upright[:, :8, 1:] = (0, 0, 0), 0  # black above, red on the left below it
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.swapaxes(0, 1), 6: np.rot90(upright),
        7: np.rot90(upright, 2).swapaxes(0, 1), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **({"quality": 100} if suffix != "png" else {}))
    found = np.asarray(read_image(path)).astype(int)
    assert found.shape == upright.shape and np.abs(found - upright).mean() < 8


def test_of_several_frames_the_first(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("#ff0000", "#0000ff")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert first(read_image(tmp_path / "a.gif")) == (255, 0, 0)


def encoded(kind, size=(40, 30)):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM"])
def test_a_file_cut_anywhere_is_one_line_that_names_it(tmp_path, kind):
    """Or it is the whole image, where only what ends the file is missing."""
    data, path = encoded(kind), tmp_path / "cut.img"
    whole = np.asarray(read_image(io.BytesIO(data)))
    for cut in range(0, len(data) - 8, max(1, len(data) // 40)):
        path.write_bytes(data[:cut])
        try:
            found = read_image(path)
        except UserError as error:
            assert str(error).startswith(f"{path} cannot be read as an image") and "\n" not in str(error)
        else:
            assert np.array_equal(np.asarray(found), whole)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "it is a Git LFS pointer; fetch the file itself",
        ),
        (b"<!DOCTYPE html><title>404</title>", "it is a web page; download the file itself"),
        (b"", "it is empty; copy it again"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n",
            "cannot identify image file",
        ),  # no other program is asked
    ],
)
def test_foreign_files_are_called_what_they_are(tmp_path, content, said):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_image(tmp_path / "a.jpg")


def test_an_image_beyond_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    with pytest.raises(UserError, match="a.png is too large an image .*; make it smaller"):
        read_image(tmp_path / "a.png")


@pytest.mark.filterwarnings("error")
def test_an_image_beyond_what_pillow_reads_is_refused_and_a_large_one_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for width in (15, 30):
        Image.new("1", (width, 10), 1).save(tmp_path / f"{width}.png")
    assert read_image(tmp_path / "15.png").size == (15, 10)
    with pytest.raises(UserError, match=r"30.png is too large an image \(.*300 pixels.*\); make it smaller") as refusal:
        read_image(tmp_path / "30.png")
    assert "\n" not in str(refusal.value)
