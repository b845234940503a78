"""The one reader of images: a file of any kind and mode to 8-bit RGB, upright."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from ..errors import UserError
from ..files import foreign

#: What a file of images is named, in small letters.
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .bmp .dib .webp .gif .tif .tiff .ppm .pgm .pbm .pnm .jp2 .j2k .avif .tga".split()
)
# What Pillow may read them as. Others are left out since it asks other programs for help with some of them.
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_WHITE = 255


def read_image(
    source: str | Path | IO[bytes], name: str | None = None, formats: tuple[str, ...] = _FORMATS
) -> Image.Image:
    """An image as 8-bit RGB, turned upright as its EXIF orientation says; of several frames the first.

    Args:
        source: path, or an open file.
        name: what a message calls it; the path if not given.
        formats: Pillow's names of those that are read.

    Raises:
        UserError: it is damaged, cut short or no image, larger than twice Pillow's limit (179 million pixels), or
            :func:`to_rgb` refuses it.
    """
    name = name or str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice as large is refused
            with Image.open(source, formats=formats) as file:
                return to_rgb(ImageOps.exif_transpose(file), name)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} is too large an image ({error}); make it smaller") from error
    except Exception as error:  # a decoder of damaged bytes raises whatever it stumbled over
        what = foreign(source) if isinstance(source, str | Path) and Path(source).exists() else None
        if what is not None:
            raise UserError(f"{name} cannot be read as an image: it is {what}") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name} cannot be read as an image ({reason}); replace or remove it") from error


def to_rgb(image: Image.Image, name: str = "image") -> Image.Image:
    """An image of any mode as 8-bit RGB.

    - 1, L, RGB, RGBX, P: as they are, grey in three equal channels.
    - LA, PA, RGBA, La, RGBa (premultiplied), and any image with a transparent colour or palette entry: laid over white.
    - CMYK, YCbCr, HSV, LAB: converted, without colour profile.
    - I;16 in any byte order: 0 to 65535 to 0 to 255, rounded; I (32 bits) likewise, F: 0 to 1 to 0 to 255.

    Raises:
        UserError: an image of mode I or F holds values outside of these.
    """
    mode = image.mode
    if mode in _SIXTEEN_BITS or mode in ("I", "F"):
        return _scaled(np.asarray(image), 1.0 if mode == "F" else 65535.0, name, mode)
    if mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (_WHITE,) * 4)
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _scaled(pixels: np.ndarray, limit: float, name: str, mode: str) -> Image.Image:
    values = pixels.astype(np.float64)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= limit):
        raise UserError(
            f"{name} holds values from {low:g} to {high:g} (Pillow's mode {mode}); "
            f"expected 0 to {limit:g}: scale them, or save it with 8 or 16 bits"
        )
    return Image.fromarray(np.rint(values * (255 / limit)).astype(np.uint8)).convert("RGB")
