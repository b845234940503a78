"""mma against the written layouts of its registers.

The layouts are those of the PTX ISA ("Matrix Fragments for mma.m16n8k16 with floating point type"): groupID is
lane >> 2, threadID_in_group is lane % 4. Each function gives (row, column) of element ``i`` of a lane's fragment;
16-bit elements lie two to a register, the even one in the low half.
"""

import numpy as np
import pytest

LANES = range(32)


def a_m16n8k16(lane, i):
    group, t = lane >> 2, lane % 4
    row = group if i in (0, 1, 4, 5) else group + 8
    return row, t * 2 + (i & 1) + (8 if i >= 4 else 0)


def b_m16n8k16(lane, i):
    group, t = lane >> 2, lane % 4
    return t * 2 + (i & 1) + (8 if i >= 2 else 0), group


def c_m16n8(lane, i):
    group, t = lane >> 2, lane % 4
    return (group if i < 2 else group + 8), t * 2 + (i & 1)


def bfloat16_bits(values):
    """Bit patterns of float32 values that bfloat16 holds exactly."""
    bits = values.astype(np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype(np.uint16)


def fragments(matrix, layout, elements, dtype):
    """[32 lanes][elements], each lane's part of a matrix."""
    return np.array([[matrix[layout(lane, i)] for i in range(elements)] for lane in LANES], dtype)


def accumulators(matrix):
    return fragments(matrix, c_m16n8, 4, np.float32)


def small_integers(rng, *shape):
    return rng.integers(-8, 9, shape).astype(np.float32)  # exact in every type, and so are their sums


@pytest.mark.parametrize("kind", ["half", "bfloat16"])
def test_mma_m16n8k16(simt, kind):
    rng = np.random.default_rng(0)
    a, b, c = small_integers(rng, 16, 16), small_integers(rng, 16, 8), small_integers(rng, 16, 8)
    bits = bfloat16_bits if kind == "bfloat16" else lambda values: values.astype(np.float16).view(np.uint16)
    a_registers = fragments(bits(a), a_m16n8k16, 8, np.uint16).view(np.uint32)
    b_registers = fragments(bits(b), b_m16n8k16, 4, np.uint16).view(np.uint32)
    d = accumulators(c)
    run = simt.mma_half if kind == "half" else simt.mma_bfloat16
    run(simt.output(d, "d"), simt.input(a_registers, "a"), simt.input(b_registers, "b"))
    np.testing.assert_array_equal(d, accumulators(a @ b + c))
    counts = simt.counters()
    assert counts[f"mma_m16n8k16_{'f16' if kind == 'half' else 'bf16'}"] == 1
    assert counts["mma_macs"] == 16 * 8 * 16


def test_accumulation_is_float32(simt):
    """2048 products of 1 on top of 2^15, which fp16 would swallow, and products that fp16 cannot hold."""
    a, b = np.full((16, 16), 300, np.float16), np.full((16, 8), 300, np.float16)
    d = accumulators(np.ones((16, 8)))
    a_registers = fragments(a.view(np.uint16), a_m16n8k16, 8, np.uint16).view(np.uint32)
    b_registers = fragments(b.view(np.uint16), b_m16n8k16, 4, np.uint16).view(np.uint32)
    simt.mma_half(simt.output(d), simt.input(a_registers, "a"), simt.input(b_registers, "b"))
    np.testing.assert_array_equal(d, 16 * 90000 + 1)


def seen_by_the_tensor_core(simt, run):
    """A [16, 16] as a kernel that multiplies it by B [16, 8] hands it to the tensor core: seen through unit vectors."""
    codes = np.arange(256, dtype=np.float16).reshape(16, 16)
    halves = []
    for first in (0, 8):
        unit = np.zeros((16, 8), np.float16)
        unit[first : first + 8] = np.eye(8)
        d = np.zeros((16, 8), np.float32)
        run(simt.output(d, "d"), simt.input(codes, "a"), simt.input(unit, "b"))
        halves.append(d)
    return np.concatenate(halves, 1)


def explain_layout(seen):
    """The first elements of A that lie where others belong."""
    wrong = [
        f"A({row}, {column}) is taken for A({int(value) // 16}, {int(value) % 16})"
        for (row, column), value in np.ndenumerate(seen)
        if value != 16 * row + column
    ]
    return f"{len(wrong)} elements misplaced: " + "; ".join(wrong[:2]) if wrong else ""


def test_a_wrong_fragment_layout_is_found_and_told(simt):
    assert explain_layout(seen_by_the_tensor_core(simt, simt.gemm)) == ""
    told = explain_layout(seen_by_the_tensor_core(simt, simt.gemm_wrong_layout))
    assert told == "128 elements misplaced: A(0, 8) is taken for A(8, 0); A(0, 9) is taken for A(8, 1)"
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((16, 16)).astype(np.float16), rng.standard_normal((16, 8)).astype(np.float16)
    truth = a.astype(np.float64) @ b.astype(np.float64)
    right, wrong = np.zeros((16, 8), np.float32), np.zeros((16, 8), np.float32)
    simt.gemm(simt.output(right), simt.input(a, "a"), simt.input(b, "b"))
    simt.gemm_wrong_layout(simt.output(wrong), simt.input(a, "a"), simt.input(b, "b"))
    np.testing.assert_allclose(right, truth, atol=1e-5)
    assert np.abs(wrong - truth).max() > 0.1
