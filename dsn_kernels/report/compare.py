"""What a report times: the dense network, as baselines run it, every gate open, and skipping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from typing import Any

from torch import Tensor

from ..measure.baselines import build_all
from ..measure.latency import InterleavedTimer
from ..measure.networks import dense_network, open_gates, run
from ..measure.noise import Noise


def compare(
    model: Any,
    fast: Any,
    images: Tensor,
    batches: Sequence[int],
    seconds: float,
    on_step: Callable[[str, float], None],
    against: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Times a network on ``images``, in turns; every call takes the next batch of them.

    Args:
        model: the reference.
        fast: the same, accelerated.
        images: float32 [N, C, H, W].
        batches: sizes.
        seconds: of timing per contestant and batch size.
        on_step: told what is going on, and which part of it is done.
        against: baselines of the dense network beside eager PyTorch, names of ``baselines.BASELINES``.

    Returns:
        Per batch size, milliseconds as ``Latency.as_dict``: ``dense_ms`` of the dense network in eager PyTorch,
        ``baselines_ms`` of it run otherwise, ``open_ms`` of ``fast`` with every gate open, ``skipping_ms`` as the gates
        decide; ``missing``, why a baseline is not among them; and three ratios of medians, each with its 95 % interval
        (``NAME_interval``) and whether it is more than noise (``NAME_called``): ``gates``, of every gate open over
        skipping; ``kernels``, of the fastest of the former, ``fastest``, over every gate open; ``speedup``, both.
    """
    dense = dense_network(model).eval()
    rows = []
    for batch in batches:
        parts = [part for part in images.split(batch) if len(part) == batch]
        on_step(f"building what batch {batch} is compared with", 0.0)
        baselines, missing = build_all(against, dense, parts[0])
        contestants: dict[str, Callable[[Tensor], object]] = {
            "dense": dense,
            **baselines,
            "open": partial(run, fast, gates=open_gates(model, batch)),
            "skipping": partial(run, fast),
        }
        timer = InterleavedTimer({name: _next_of(call, parts) for name, call in contestants.items()})
        timer.run(seconds, on_round=partial(on_step, f"timing batch {batch}"))
        times = {name: latency.as_dict() for name, latency in timer.latencies().items()}
        fastest = min(("dense", *baselines), key=lambda name: times[name]["median"])
        noise = Noise(timer.turns)
        row: dict[str, Any] = {"batch": batch, **{f"{name}_ms": times[name] for name in ("dense", "open", "skipping")}}
        row |= {"baselines_ms": {name: times[name] for name in baselines}, "missing": missing, "fastest": fastest}
        compared = {"gates": ("skipping", "open"), "kernels": ("open", fastest), "speedup": ("skipping", fastest)}
        for key, (ours, other) in compared.items():
            ratio = noise.ratio(times[other]["median"] / times[ours]["median"], ours, other)
            row |= {key: ratio.value, f"{key}_interval": ratio.interval, f"{key}_called": ratio.called}
        rows.append(row)
    return rows


def _next_of(call: Callable[[Tensor], object], parts: list[Tensor]) -> Callable[[], object]:
    queue = cycle(parts)
    return lambda: call(next(queue))
