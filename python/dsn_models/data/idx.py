"""The IDX format in which MNIST is published (http://yann.lecun.com/exdb/mnist), plain or gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from ..errors import UserError

_UINT8 = 0x08


def read_idx(path: str | Path) -> np.ndarray:
    """An IDX file of unsigned bytes as an array uint8 of the dimensions that its header gives.

    Raises:
        UserError: the file is missing, is not IDX of unsigned bytes, or is cut short.
    """
    path = Path(path)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            data = file.read()
    except FileNotFoundError as error:
        raise UserError(f"no file {path}; expected an IDX file, plain or .gz") from error
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); it is cut short or damaged, download it again") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _UINT8 or data[3] == 0:
        raise UserError(f"{path} begins with {data[:4].hex()}; expected an IDX file of unsigned bytes (000008..)")
    start = 4 + 4 * data[3]
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4)]
    expected = start + math.prod(shape)
    if len(data) < start or len(data) != expected:
        raise UserError(f"{path} holds {len(data)} bytes, its header promises {expected}; download it again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_mnist(folder: str | Path, prefix: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Images uint8 [N, 28, 28] and labels uint8 [N] of ``prefix`` ("train" or "t10k"), or None where there are none.

    Raises:
        UserError: one of the two files is missing, damaged, or they do not belong together.
    """
    arrays = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        stem = f"{prefix}-{kind}"
        names = (stem, f"{stem}.gz", stem.replace("-idx", ".idx"))
        found = [Path(folder) / name for name in names if (Path(folder) / name).is_file()]
        arrays.append(read_idx(found[0]) if found else None)
    images, labels = arrays
    if images is None and labels is None:
        return None
    if images is None or labels is None or images.ndim != 3 or labels.shape != images.shape[:1]:
        raise UserError(
            f"{folder} does not hold a matching pair {prefix}-images-idx3-ubyte and {prefix}-labels-idx1-ubyte"
        )
    return images, labels
