"""What a file is, told by its first bytes, for the cases in which it is not what was expected."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

_HEAD = 1024
# What a file begins with, what that is, and what to do about it.
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer", "fetch the file itself with git lfs pull"),
    (b"\x1f\x8b", "a gzip archive", "unpack it"),
    (b"BZh", "a bzip2 archive", "unpack it"),
    (b"\xfd7zXZ\x00", "an xz archive", "unpack it"),
    (b"(\xb5/\xfd", "a Zstandard archive", "unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes", "export its weights from there"),
    (b"\x93NUMPY", "a NumPy array", "choose another file"),
    (b"GGUF", "a GGUF file", "choose another file"),
)
_WEB = (b"<!doctype html", b"<html", b"<head", b"<?xml")
_TORCH_ZIP, _TORCHSCRIPT = "data.pkl", "constants.pkl"
_TORCH_TAR = {"pickle", "storages", "tensors"}  # members of what torch.save wrote before version 0.1.10
_TAR_MAGIC = slice(257, 262)
_SAFETENSORS_HEADER = 100_000_000  # bytes; the format's own limit


def foreign(path: str | Path) -> str | None:
    """What a file is and what to do, such as ``"a gzip archive; unpack it"``; None where nothing here tells it.

    Files of PyTorch and safetensors are not foreign, unless they hold no weights or no weights alone.
    """
    path = Path(path)
    if path.is_dir():
        return "a folder; name a file in it"
    if is_safetensors(path):  # the length that they begin with may look like anything
        return None
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return "empty; copy it again"
    for signature, what, todo in _SIGNATURES:
        if head.startswith(signature):
            return f"{what}; {todo}"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_WEB):
        return "a web page; download the file itself"
    if zipfile.is_zipfile(path):
        return _in_zip(path)
    if head[_TAR_MAGIC] == b"ustar":
        return _in_tar(path)
    return None


def _in_zip(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        members = [Path(name).name for name in archive.namelist()]
    if _TORCHSCRIPT in members:
        return "a TorchScript program; save the state_dict of the network alone"
    if _TORCH_ZIP in members:
        return None
    if members and all(name.endswith(".npy") for name in members):
        return "a NumPy archive; choose another file"
    return "a zip archive; unpack it"


def _in_tar(path: Path) -> str:
    try:
        with tarfile.open(path) as archive:
            members = {Path(name).name for name in archive.getnames()}
    except tarfile.TarError:
        members = set()
    if members >= _TORCH_TAR:
        return "in the first format of torch.save, which cannot be read safely; save it anew with PyTorch 1.6 or later"
    return "a tar archive; unpack it"


def is_safetensors(path: str | Path) -> bool:
    """Whether a file begins as safetensors do: the length of a header, then JSON."""
    with Path(path).open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and 0 < int.from_bytes(head[:8], "little") <= _SAFETENSORS_HEADER


def is_torch(path: str | Path) -> bool:
    """Whether a file is one of ``torch.save``: a zip archive that is whole, or begins as a pickle does."""
    path = Path(path)
    if is_safetensors(path):
        return False
    with path.open("rb") as file:
        head = file.read(2)
    return zipfile.is_zipfile(path) or head[:1] == b"\x80" and head[1:] in (b"\x02", b"\x03", b"\x04", b"\x05")
