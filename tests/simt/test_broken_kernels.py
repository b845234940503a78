"""Kernels with one fault each: the runner must find it, under every seed, and say what happened and where."""

import re
from pathlib import Path

import numpy as np
import pytest

SOURCE = (Path(__file__).parent / "kernels" / "broken.cpp").read_text().splitlines()


def line_of(text, kernel):
    """ "broken.cpp:12", of the first line with ``text`` in ``kernel``."""
    start = next(i for i, line in enumerate(SOURCE) if f"void {kernel}_kernel(" in line) + 1
    return (
        f"broken.cpp:{next(i for i in range(start - ('}' in SOURCE[start - 1]), len(SOURCE)) if text in SOURCE[i]) + 1}"
    )


@pytest.fixture
def run(simt, poisoned):
    def call(kernel, size=64):
        out = poisoned(64, np.float32)
        values = np.arange(size, dtype=np.float32)
        getattr(simt, kernel)(simt.output(out, "out"), simt.input(values, "in"))
        return out

    return call


RACE = r"race: (reads|writes) 4 bytes at shared memory \+ \d+, which thread .* (wrote|read) at broken.cpp:\d+, with no"
FAULTS = [
    # kernel, the line it is found at (empty: one of several, by the order of warps), what the message says
    ("missing_barrier", "", RACE),
    ("missing_warp_barrier", "", RACE),
    ("missing_second_barrier", "", RACE),
    ("shared_race", "*sum +=", RACE),
    (
        "block_race",
        "p.out",
        r"race: writes 4 bytes at out \+ \d+, which another block wrote .* in another block of this",
    ),
    (
        "off_by_one",
        "p.out",
        r"thread \(63,0,0\), .* reads 4 bytes out of bounds of global memory, 0 bytes past the end of in",
    ),
    ("shared_off_by_one", "staged[", r"thread \(63,0,0\), .* writes 4 bytes at shared memory \+ 256, out of bounds"),
    ("writes_input", "const_cast", r"writes the input in \+ \d+"),
    ("misaligned", "four", r"misaligned: reads 16 bytes at in \+ 4"),
    ("local_overflow", "values[p.n]", r"undefined behaviour: index 64 out of bounds for type 'float \[4\]'"),
    (
        "divergent_barrier",
        "",
        r"divergent barrier: this thread is at the __syncthreads of line \d+, thread .* line \d+",
    ),
    ("absent_barrier", "", r"divergent barrier, no thread can go on:.* 32 threads.* wait in __syncthreads at"),
    (
        "absent_lane",
        "",
        r"waits for lane 7 of its warp, which has ended|thread \(7,0,0\) has ended, and .* waits for it",
    ),
    ("divergent_warp", "", r"lanes of a warp diverge: lane \d+ is in .* waits in .* at broken.cpp:\d+"),
    (
        "missing_wait",
        "p.out",
        r"reads 4 bytes at .*, where an asynchronous copy started at broken.cpp:\d+ has not been waited",
    ),
    ("wait_without_barrier", "", RACE + "|where an asynchronous copy started at"),
    (
        "misaligned_copy",
        "cp_async",
        r"cp.async of 8 bytes: source and destination must be multiples of it",
    ),
]


@pytest.mark.parametrize("kernel, at, message", FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_fault_is_found_and_told(simt, run, kernel, at, message):
    with pytest.raises(simt.Error, match=message) as error:
        run(kernel)
    text = str(error.value)
    assert re.match(rf".*{kernel}_kernel, block \(\d,0,0\)", text)
    if at:
        assert f", {line_of(at, kernel)}: " in text


def test_a_block_that_ends_before_its_shared_memory_is_read(simt_module, poisoned):
    """Whether the other block has ended depends on the order of warps: some of 16 seeds must show it."""
    found = []
    for seed in range(16):
        simt_module.configure(seed=seed)
        try:
            out, values = poisoned(64, np.float32), np.zeros(64, np.float32)
            simt_module.early_end(simt_module.output(out), simt_module.input(values))
        except simt_module.Error as error:
            found.append(str(error))
    assert any(
        "shared memory of block (1,0,0), which has ended: a cluster_sync before its end is missing" in e for e in found
    )


def test_a_dependent_launch_waits_for_what_it_reads(simt, poisoned):
    first, second = poisoned(64, np.float32), poisoned(64, np.float32)
    values = simt.input(np.arange(64, dtype=np.float32), "in")
    between = simt.output(first, "between")
    simt.plain_copy(between, values)
    simt.copy(simt.output(second, "out"), between)
    np.testing.assert_array_equal(second, np.arange(64))
    simt.plain_copy(between, values)
    with pytest.raises(
        simt.Error, match=r"reads 4 bytes at between .* a kernel that may still run: grid_dependency_wait"
    ):
        simt.missing_dependency_wait(simt.output(second, "out"), between)


def test_every_block_of_a_dependent_launch_waits(simt, run):
    with pytest.raises(simt.Error, match=r"block \(1,0,0\), .*: the block ends without a grid_dependency_wait"):
        run("leaves_without_waiting")


def test_refused_launches(simt, run):
    with pytest.raises(simt.Error, match="invalid configuration: grid, block or cluster size"):
        run("too_many_threads")
    simt.configure(shared_limit=128)
    with pytest.raises(simt.Error, match="more shared memory than a block may have"):
        run("plain_copy")


def test_the_runner_is_usable_after_an_error(simt, run):
    with pytest.raises(simt.Error):
        run("missing_barrier")
    np.testing.assert_array_equal(run("plain_copy"), np.arange(64))


def test_buffers_that_overlap_are_refused(simt):
    whole = np.zeros(64, np.float32)
    held = simt.input(whole, "whole")
    with pytest.raises(ValueError, match="part: overlaps the buffer whole"):
        simt.input(whole[8:], "part")
    assert held.nbytes == 256
