"""Convolutions in bfloat16 on the CPU: pairs of channels, products as vdpbf16ps makes them, all else float32."""

import copy
import math
import random
import struct

import pytest
import torch

import dsn_kernels
from dsn_kernels import _C
from dsn_models.errors import UserError
from tests.networks import PLANNED, make_images, make_planned, make_small, random_gates

pytestmark = pytest.mark.skipif(not _C.build_info()["bfloat16"], reason="bfloat16 on the CPU needs AVX-512")

NETWORKS = {
    "bottleneck": ("concat-bc-100", {}),
    "odd-slices": ("concat-bc-100", {"growth_rate": 5}),
    "plain": ("concat-40", {}),
    "plain-odd": ("concat-40", {"growth_rate": 7}),
    "add": ("add-166", {}),
    "layer-skippable": ("lsn-concat-bc-100", {}),
    "densenet": ("densenet-bc-100", {}),
    "imagenet-stem": ("dsn-121", {}),
}
_UNGATED = ("resnet", "gunn", "sunn", "shake", "dense", "lenet", "inception")
DENORMAL = 2.0**-130


def bits(x: float) -> int:
    return struct.unpack("<I", struct.pack("<f", x))[0]


def pair(first: float, second: float) -> int:
    """Both are bfloat16 numbers."""
    assert bits(first) & 0xFFFF == bits(second) & 0xFFFF == 0
    return bits(second) & 0xFFFF0000 | bits(first) >> 16


def float32(x: float) -> float:
    """Rounded to the nearest even."""
    return struct.unpack("<f", struct.pack("<f", x))[0]


def test_dot_rounds_each_sum_once_and_takes_the_upper_halves_first():
    draw = random.Random(0)

    def number() -> float:
        return draw.choice((-1, 1)) * draw.randrange(128, 256) * 2.0 ** draw.randrange(-12, 5)

    for _ in range(3000):
        total, a0, a1, b0, b1 = float32(number() * draw.random()), number(), number(), number(), number()
        # Exponents so close that the sums are exact in float64, and rounded once from there.
        expected = float32(float32(total + a1 * b1) + a0 * b0)
        assert _C.dot_bfloat16(total, pair(a0, a1), pair(b0, b1)) == expected
    assert _C.dot_bfloat16(0.0, pair(2.0**-20, 2.0**6), pair(1.0, 1.0)) == 64.0
    # 2^24 + 1 is a tie, which goes to the even 2^24; in the other order a0 and a1 would cancel first.
    assert _C.dot_bfloat16(1.0, pair(-(2.0**24), 2.0**24), pair(1.0, 1.0)) == 0.0


def test_dot_takes_denormals_for_zero():
    one = pair(1.0, 0.0)
    assert _C.dot_bfloat16(DENORMAL, 0, 0) == 0.0
    assert _C.dot_bfloat16(0.0, pair(DENORMAL, 0.0), pair(2.0**100, 0.0)) == 0.0
    assert _C.dot_bfloat16(0.0, pair(2.0**-70, 0.0), pair(2.0**-60, 0.0)) == 0.0
    assert _C.dot_bfloat16(2.0**-126, pair(-(2.0**-127), 0.0), one) == 2.0**-126
    assert _C.dot_bfloat16(0.0, pair(2.0**-63, 0.0), pair(2.0**-63, 0.0)) == 2.0**-126
    assert _C.dot_bfloat16(0.0, pair(math.inf, 0.0), one) == math.inf
    assert math.isnan(_C.dot_bfloat16(0.0, pair(math.inf, 0.0), 0))
    assert torch.tensor([DENORMAL]).mul(1.0).item() == DENORMAL  # the mode is left as it was


def make(name):
    if name in PLANNED:
        return make_planned(name).eval()
    zoo_name, options = NETWORKS[name]
    return make_small(zoo_name, **options)


@pytest.mark.parametrize(
    "name, density",
    [
        *((name, density) for name in NETWORKS for density in (0.0, 0.5, 1.0)),
        *((name, 1.0 if name.startswith(_UNGATED) else 0.5) for name in PLANNED),
    ],
)
def test_as_exact_as_bfloat16_in_torch(name, density):
    model = make(name)
    fast = dsn_kernels.accelerate(model, dtype=torch.bfloat16)
    images = make_images(model, 5)
    gates = random_gates(fast, 5, density) if fast.layers else None
    got = outputs(fast(images, forced_gates=gates) if gates else fast(images))
    exact = run(copy.deepcopy(model).double(), images.double(), gates)
    plain = run(copy.deepcopy(model).bfloat16(), images.bfloat16(), gates)
    for y, reference, rounded in zip(got, exact, plain, strict=True):
        assert y.dtype == torch.float32
        error, torchs = (y - reference).abs().max(), (rounded - reference).abs().max()
        assert error <= 2 * torchs + 1e-3 * reference.abs().max(), f"error {error:.3g}, torch's {torchs:.3g}"
        assert error > 0
    if gates:
        assert torch.equal(fast.last_macs, fast.macs(gates))


def outputs(y):
    return y if isinstance(y, tuple) else (y,)


def run(model, images, gates):
    return [y.double() for y in outputs(model(images, forced_gates=gates) if gates else model(images))]


def test_gates_agree_with_the_reference():
    model = make_small("concat-bc-100")
    fast, images = dsn_kernels.accelerate(model, dtype=torch.bfloat16), make_images(model, 7)
    fast(images)
    exact = copy.deepcopy(model).double()
    exact(images.double(), forced_gates=fast.last_gates)
    for name, scores in exact.last_scores.items():
        assert (fast.last_scores[name] - scores).abs().max() < 0.05
        clear = (scores - 0.5).abs() > 0.05
        assert clear.any() and torch.equal(fast.last_gates[name].bool()[clear], (scores > 0.5)[clear])


def test_same_result_alone_and_in_a_batch(threads):
    model = make_small("concat-bc-100")
    fast, images = dsn_kernels.accelerate(model, dtype=torch.bfloat16), make_images(model, 4)
    together = fast(images)
    for i in range(4):
        for alone, all_of_it in zip(fast(images[i : i + 1]), together, strict=True):
            assert torch.equal(alone, all_of_it[i : i + 1])
    rounded = images.bfloat16()
    assert torch.equal(fast(rounded)[0], fast(rounded.float())[0])


def test_nan_stays_nan():
    model = make_small("concat-bc-100")
    fast, images = dsn_kernels.accelerate(model, dtype=torch.bfloat16), make_images(model, 2)
    images[0, 0, 0, 0] = math.nan
    open_gates = {name: torch.ones(2, count, dtype=torch.uint8) for name, count in fast.layers.items()}
    for y in fast(images, forced_gates=open_gates):
        assert y[0].isnan().all() and y[1].isfinite().all()


def test_refusals(subprocess_python):
    with pytest.raises(UserError, match="dtype is torch.bfloat16; on the CPU it serves .*, not a Sequential"):
        dsn_kernels.accelerate(torch.nn.Sequential(make_small("skipnet-38-rnn")), dtype=torch.bfloat16)
    with pytest.raises(UserError, match=r"dtype is torch.float16; the CPU kernels serve torch.float32, torch.bfloat16"):
        dsn_kernels.accelerate(make_small("concat-bc-100"), dtype=torch.float16)
    code = """
        import torch, dsn_kernels, dsn_models
        try:
            dsn_kernels.accelerate(dsn_models.create("dsn-navon"), dtype=torch.bfloat16)
        except dsn_models.UserError as error:
            print(error)
    """
    subprocess_python(code, "dtype is torch.bfloat16; on the CPU it needs AVX-512, this one has avx2", DSN_ISA="avx2")
