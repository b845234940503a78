"""Exports kept on disk: found again for the same model, made anew for any other, and never believed unchecked."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import dsn_kernels
from dsn_kernels.capture import exported
from dsn_kernels.capture.kept import _key
from dsn_models import gate
from dsn_models.errors import UserError
from tests.capture.capture_checks import make_images, settle

SCALE = 1.0  # a global variable, which no hash of a model sees


class Unit(nn.Module):
    def __init__(self, slope=0.0, channels=8):
        super().__init__()
        self.conv, self.slope = nn.Conv2d(channels, channels, 3, padding=1), slope
        self.register_buffer("shift", torch.full((channels, 1, 1), 0.25), persistent=False)

    def forward(self, x):
        return x + torch.relu(self.conv(x) + self.shift) * (SCALE + self.slope)


def make_scaled(factor):
    return lambda x: x * factor


def make(**options):
    torch.manual_seed(0)
    return settle(nn.Sequential(nn.Conv2d(3, 8, 3), Unit(**options), nn.AdaptiveAvgPool2d(1), nn.Flatten())).eval()


@pytest.fixture
def exports(monkeypatch):
    """How often torch exported a model."""
    made, export = [], exported.export
    monkeypatch.setattr(exported, "export", lambda *args: (made.append(0), export(*args))[1])
    return made


def run(model, folder, images=None, **options):
    images = make_images() if images is None else images
    fast = dsn_kernels.accelerate(model, example=images, backend="cpu", cache=folder, **options)
    with torch.no_grad():
        torch.testing.assert_close(fast(images), model(images), rtol=1e-4, atol=1e-5)
    return fast


def test_the_next_process_finds_it_whatever_the_weights(tmp_path, exports):
    run(make(), tmp_path / "new")
    assert len(exports) == 1 and len(list((tmp_path / "new").iterdir())) == 1
    other = make()
    with torch.no_grad():
        other[0].weight.mul_(2)
    run(other, tmp_path / "new")
    assert len(exports) == 1


@pytest.mark.parametrize(
    "other",
    [
        lambda: (make(slope=0.5), make_images()),
        lambda: (make(), make_images(size=(9, 9))),
        lambda: (make().append(nn.ReLU()), make_images()),
    ],
)
def test_another_model_or_image_is_exported(tmp_path, exports, other):
    run(make(), tmp_path)
    model, images = other()
    run(model, tmp_path, images)
    assert len(exports) == 2 and len(list(tmp_path.iterdir())) == 2


def test_values_that_are_no_weights_are_told_apart(tmp_path, exports):
    run(make(), tmp_path)
    other = make()
    other[1].shift.fill_(0.5)
    run(other, tmp_path)
    assert len(exports) == 2


def test_what_no_hash_sees_is_found_by_the_outputs(tmp_path, exports, monkeypatch):
    run(make(), tmp_path, verify=False)
    monkeypatch.setattr(f"{__name__}.SCALE", 2.0)
    run(make(), tmp_path, verify=False)
    assert len(exports) == 2
    run(make(), tmp_path, verify=False)
    assert len(exports) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.arange(5000), np.arange(5000) + (np.arange(5000) == 2500)),  # which look alike where they are shortened
        ([partial(max, 1), partial(max, 2)], [partial(max, 1), partial(max, 3)]),
        ([(1,), (2,)], [(1, 2), ()]),
        (torch.ones(2), torch.ones(1, 2)),
        ({"a": 1}, {"a": 2}),
        (lambda x: x + 1, lambda x: x + 2),
        (make_scaled(1), make_scaled(2)),
        (nn.ReLU, nn.SiLU),
    ],
)
def test_attributes_are_told_apart(one, other):
    keys = []
    for value in (one, other, one):
        model = make()
        model[1].told = value
        keys.append(_key(model, [make_images()]))
    assert keys[0] == keys[2] != keys[1]


def test_another_process_finds_it(tmp_path, subprocess_python):
    """The name does not depend on addresses, the order of sets or what was run before."""
    code = """
        from pathlib import Path
        from tests.capture.test_kept import _key, make, make_images, make_scaled
        model = make()
        model[1].told = [{"a", "b", "c"}, make_scaled(3)]
        Path(FILE).write_text(_key(model, [make_images()]))
        print("written")
    """
    for seed in ("1", "2"):
        subprocess_python(code.replace("FILE", repr(str(tmp_path / seed))), "written", PYTHONHASHSEED=seed)
    assert (tmp_path / "1").read_text() == (tmp_path / "2").read_text()


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: bytes(len(b))])
def test_a_damaged_file_is_made_anew(tmp_path, exports, damage):
    run(make(), tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    run(make(), tmp_path)
    assert len(exports) == 2 and len(file.read_bytes()) == len(whole)
    run(make(), tmp_path)
    assert len(exports) == 2


def test_gates_are_kept(tmp_path, exports):
    model, _ = gate(make(), make_images())
    run(model.eval(), tmp_path)
    fast = run(model.eval(), tmp_path)
    assert len(exports) == 1 and sum(fast.layers.values()) == 1


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cache is .*file', which cannot be a folder"):
        run(make(), tmp_path / "file")
