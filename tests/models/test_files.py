"""What a file is, told by its first bytes."""

import struct

import pytest
import torch
from safetensors.torch import save_file

from dsn_models.files import foreign, is_safetensors, is_torch


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 0x8B1F, 0x4B50, 0x685A42, 0x21726152])
def test_the_length_of_a_header_is_no_signature(tmp_path, length):
    """640 is how a pickle begins, 0x8B1F a gzip archive, 0x4B50 a zip archive, the last two bzip2 and RAR."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", min(length, 10**8)) + b'{"a":' + b" " * 2000)
    assert is_safetensors(path) and not is_torch(path) and foreign(path) is None


def test_files_of_weights_are_not_foreign(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    torch.save({"a": torch.ones(2)}, tmp_path / "a.th", _use_new_zipfile_serialization=False)
    told = {path.name: (is_safetensors(path), is_torch(path), foreign(path)) for path in tmp_path.iterdir()}
    assert told == {
        "a.safetensors": (True, False, None),
        "a.pth": (False, True, None),
        "a.th": (False, True, None),
    }
    assert foreign(tmp_path) == "a folder; name a file in it"


def test_bytes_that_tell_nothing(tmp_path):
    for content in (b"\0" * 10240, b"nothing", b"PK\3\4" + b"x" * 100, b"\x80"):
        (tmp_path / "a").write_bytes(content)
        assert foreign(tmp_path / "a") is None and not is_torch(tmp_path / "a") and not is_safetensors(tmp_path / "a")
