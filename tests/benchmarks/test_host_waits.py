"""Host waits in traces as torch's profiler writes them."""

import pytest

from benchmarks.gpu.waits import host_waits


def event(cat, name, ts, correlation=None, dur=1.0):
    args = {} if correlation is None else {"correlation": correlation}
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "args": args}


def trace(*calls):
    """A range from 100 to 200 with a launch, and what a profiler adds around it: it waits when it begins and ends."""
    return {
        "traceEvents": [
            {"ph": "M", "name": "process_name"},
            event("cuda_runtime", "cudaDeviceSynchronize", 50.0),
            event("user_annotation", "dsn call", 100.0, dur=100.0),
            event("cuda_runtime", "cudaLaunchKernelExC", 110.0, 1),
            *calls,
            event("cuda_runtime", "cudaDeviceSynchronize", 300.0),
        ]
    }


def test_the_profilers_own_waits_are_not_of_the_call():
    assert host_waits(trace()) == []


@pytest.mark.parametrize(
    "name",
    [
        "cudaDeviceSynchronize",
        "cudaStreamSynchronize",
        "cudaEventSynchronize",
        "cuCtxSynchronize",
        "cudaMemcpy",
        "cudaMemcpy2D",
        "cudaMalloc",
        "cudaFree",
        "cudaHostAlloc",
        "cuMemFree_v2",
    ],
)
def test_calls_that_wait(name):
    cat = "cuda_runtime" if name.startswith("cuda") else "cuda_driver"
    assert host_waits(trace(event(cat, name, 150.0))) == [name]


@pytest.mark.parametrize(
    "name",
    [
        "cudaGraphLaunch",
        "cudaStreamWaitEvent",
        "cudaEventRecord",
        "cudaMemsetAsync",
        "cudaMallocAsync",
        "cuLaunchKernel",
    ],
)
def test_calls_that_do_not(name):
    assert host_waits(trace(event("cuda_runtime", name, 150.0))) == []


@pytest.mark.parametrize(
    ("direction", "waits"),
    [
        ("Memcpy DtoD (Device -> Device)", False),
        ("Memcpy HtoD (Pinned -> Device)", False),
        ("Memcpy HtoD (Pageable -> Device)", True),
        ("Memcpy DtoH (Device -> Pageable)", True),
        ("Memcpy DtoH (Device -> Pinned)", True),
    ],
)
def test_asynchronous_copies_by_their_direction(direction, waits):
    found = host_waits(
        trace(event("cuda_runtime", "cudaMemcpyAsync", 150.0, 7), event("gpu_memcpy", direction, 400.0, 7))
    )
    assert found == ([f"cudaMemcpyAsync: {direction}"] if waits else [])


def test_a_copy_of_unknown_direction_counts():
    found = host_waits(
        trace(
            event("cuda_runtime", "cudaMemcpyAsync", 150.0, 7),
            event("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 400.0, 8),
        )
    )
    assert found == ["cudaMemcpyAsync: direction unknown"]


def test_each_reason_once():
    twice = [event("cuda_runtime", "cudaStreamSynchronize", ts) for ts in (120.0, 130.0)]
    assert host_waits(trace(*twice, event("cuda_runtime", "cudaFree", 140.0))) == ["cudaFree", "cudaStreamSynchronize"]


def test_nothing_observed_is_no_proof():
    with pytest.raises(ValueError, match="no range 'dsn call'"):
        host_waits({"traceEvents": []})
    empty = {"traceEvents": [event("user_annotation", "dsn call", 100.0, dur=100.0)]}
    with pytest.raises(ValueError, match="no launch within 'dsn call'"):
        host_waits(empty)
