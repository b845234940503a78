"""The tiles of a convolution: units of pixels, and the shapes from which a device's tuner chooses."""

from __future__ import annotations

from typing import Any

import triton

from ..graph import Window

# Pixels of a sample that are neighbours in a tile, and whose channel sums are kept together.
UNIT = 16
# Depth of a step at most.
WIDEST = 64

ONE = Window(1, 1)
THREE = Window(3, 3, 1, 1, 1)


def units_of(pixels: int) -> int:
    return triton.cdiv(pixels, UNIT)


def configs() -> list[triton.Config]:
    return [
        triton.Config({"UNITS": units, "BLOCK_N": columns}, num_warps=warps, num_stages=stages)
        for units, columns, warps in [
            (1, 16, 1), (1, 64, 2), (2, 32, 2), (4, 16, 4), (4, 32, 4), (4, 64, 4), (4, 128, 4), (8, 16, 4),
            (8, 32, 4), (8, 64, 4), (8, 128, 8), (16, 64, 8),
        ]
        for stages in (2, 4)
    ]  # fmt: skip


def prune(candidates: list[triton.Config], named_args: dict[str, Any], **meta: Any) -> list[triton.Config]:
    """No tile wider than the filters, none much taller than all the rows there are, none that spills."""
    values = {**named_args, **meta}
    columns = max(16, triton.next_power_of_2(values["FILTERS"]))
    alone = values["PER_SAMPLE"] and not values["BY_PATTERN"]
    units = values["UNIT_COUNT"] * (1 if alone else max(1, values["batch"]))
    wide = 16 if values["src"].element_size() == 4 else 32
    kept = [
        c
        for c in candidates
        if c.kwargs["BLOCK_N"] <= columns
        and c.kwargs["UNITS"] <= max(1, 2 * units)
        and c.kwargs["UNITS"] * c.kwargs["BLOCK_N"] <= wide * 8 * c.num_warps
    ]
    return kept or candidates[:1]
