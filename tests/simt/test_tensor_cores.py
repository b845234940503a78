"""mma and ldmatrix against the written layouts of their registers.

The layouts are those of the PTX ISA ("Matrix Fragments for mma.m16n8k16 with floating point type", "... mma.m16n8k8",
"ldmatrix"): groupID = lane >> 2, threadID_in_group = lane % 4. Each function gives (row, column) of element
``i`` of a lane's fragment; 16-bit elements lie two to a register, the even one in the low half.
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


def a_m16n8k8_tf32(lane, i):
    group, t = lane >> 2, lane % 4
    return (group if i in (0, 2) else group + 8), (t if i < 2 else t + 4)


def b_m16n8k8_tf32(lane, i):
    group, t = lane >> 2, lane % 4
    return (t if i == 0 else t + 4), group


def c_m16n8(lane, i):
    group, t = lane >> 2, lane % 4
    return (group if i < 2 else group + 8), t * 2 + (i & 1)


def ldmatrix_register(lane, i):
    """Element ``i`` (0, 1) of the register that a lane receives of one matrix."""
    return lane // 4, 2 * (lane % 4) + i


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


def test_mma_m16n8k8_tf32(simt):
    rng = np.random.default_rng(1)
    a, b, c = small_integers(rng, 16, 8), small_integers(rng, 8, 8), small_integers(rng, 16, 8)
    noise = np.float32(1 + 2**-12)  # below tf32's mantissa: ignored
    a_registers = fragments(a * noise, a_m16n8k8_tf32, 4, np.float32).view(np.uint32)
    b_registers = fragments(b * noise, b_m16n8k8_tf32, 2, np.float32).view(np.uint32)
    d = accumulators(c)
    simt.mma_tf32(simt.output(d, "d"), simt.input(a_registers, "a"), simt.input(b_registers, "b"))
    np.testing.assert_array_equal(d, accumulators(a @ b + c))
    assert simt.counters()["mma_m16n8k8_tf32"] == 1
    assert simt.counters()["mma_macs"] == 16 * 8 * 8


def test_accumulation_is_float32(simt):
    """2048 products of 1 on top of 2^15, which fp16 would swallow, and products that fp16 cannot hold."""
    a, b = np.full((16, 16), 300, np.float16), np.full((16, 8), 300, np.float16)
    d = accumulators(np.ones((16, 8)))
    a_registers = fragments(a.view(np.uint16), a_m16n8k16, 8, np.uint16).view(np.uint32)
    b_registers = fragments(b.view(np.uint16), b_m16n8k16, 4, np.uint16).view(np.uint32)
    simt.mma_half(simt.output(d), simt.input(a_registers, "a"), simt.input(b_registers, "b"))
    np.testing.assert_array_equal(d, 16 * 90000 + 1)


def test_to_tf32(simt):
    """The nearest value with ten bits of mantissa, ties away from zero."""
    step = 2.0**-10
    values = np.array([1, 1 + 0.4 * step, 1 + 0.5 * step, -1 - 0.5 * step, 1 + 0.6 * step, 0, np.inf], np.float32)
    out = np.zeros(len(values), np.float32)
    simt.to_tf32(simt.output(out), simt.input(values))
    np.testing.assert_array_equal(out, np.array([1, 1, 1 + step, -1 - step, 1 + step, 0, np.inf], np.float32))


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


@pytest.mark.parametrize("transposed", [False, True], ids=["", "trans"])
@pytest.mark.parametrize("matrices", [1, 2, 4])
def test_ldmatrix(simt, matrices, transposed):
    """Rows at any 16-byte aligned places; lanes 8i to 8i + 7 give those of matrix i."""
    rng = np.random.default_rng(matrices)
    memory = rng.integers(0, 1 << 16, 1024).astype(np.uint16)
    offsets = (16 * rng.permutation(128)[:32]).astype(np.int32)
    received = np.zeros((32, 4), np.uint32)
    name = f"ldmatrix_x{matrices}{'_trans' if transposed else ''}"
    getattr(simt, name)(
        simt.output(received, "r"), simt.input(memory.view(np.uint32), "in"), simt.input(offsets, "offsets")
    )
    for matrix in range(matrices):
        rows = np.stack([memory[offsets[8 * matrix + row] // 2 :][:8] for row in range(8)])
        expected = fragments(rows.T if transposed else rows, ldmatrix_register, 2, np.uint16).view(np.uint32)[:, 0]
        np.testing.assert_array_equal(received[:, matrix], expected)
    assert simt.counters()["ldmatrix"] == 1
    assert simt.counters()["shared_load_bytes"] == 128 * matrices


@pytest.mark.parametrize("stride, wavefronts", [(16, 1), (32, 2), (128, 8), (144, 1)])
def test_ldmatrix_counts_bank_conflicts(simt, stride, wavefronts):
    """Eight rows of 16 bytes pass at once if they lie in different groups of four of the 32 banks."""
    memory = np.zeros(512, np.uint32)
    offsets = (stride * (np.arange(32) % 8)).astype(np.int32)
    simt.ldmatrix_x4(simt.output(np.zeros(128, np.uint32)), simt.input(memory, "in"), simt.input(offsets, "offsets"))
    assert simt.counters()["ldmatrix_wavefronts"] == 4 * wavefronts
