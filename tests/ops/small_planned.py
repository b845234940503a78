"""Small networks of every kind that plans without gated dense blocks serve."""

import copy
import dataclasses

import torch
from dsn_kernels.nn.packing import Packer, pack_conv2d, pack_gate, pack_linear
from dsn_kernels.nn.plan_runner import make_runner
from dsn_kernels.ops.network import Plan
from torch import nn

from dsn_kernels import _C


@dataclasses.dataclass
class ResidualUnits:
    """Units of two 3x3 on one map, x += conv2(relu(conv1(x))), then ReLU; some behind a gate on the pooled map."""

    plan: Plan
    packer: Packer
    convs: list[tuple[nn.Conv2d, nn.Conv2d]]
    gates: list[nn.Linear | None]

    def runner(self, dtype, backend):
        return make_runner(self.plan, self.packer.tensor(), dtype, backend)

    def reference(self, image, taken, dtype):
        """The map and, of each gate, its logit, with the gates of ``taken`` [B, gates] open."""
        x, logits, columns = image.to(dtype), [], iter(taken.bool().T)
        for convs, gate in zip(self.convs, self.gates, strict=True):
            first, last = (copy.deepcopy(conv).to(dtype) for conv in convs)
            y = (x + last(first(x).relu())).relu()
            if gate is None:
                x = y
                continue
            logits.append(copy.deepcopy(gate).to(dtype)(x.mean((2, 3)))[:, 0])
            x = torch.where(next(columns)[:, None, None, None], y, x)
        return x, torch.stack(logits, 1) if logits else taken.to(dtype)


def residual_units(channels: int, size: tuple[int, int], gated: tuple[bool, ...]) -> ResidualUnits:
    """A plan that loads a map, keeps its pooled vector, runs units and stores it."""
    torch.manual_seed(0)
    packer, plan = Packer(), Plan()
    x, inner = plan.buffer(channels, *size), plan.buffer(channels, *size)
    plan.add("load", dst=x, in_channels=channels)
    plan.add("pool_sums", src=x, in_channels=channels)
    weights = pack_linear(packer, nn.Linear(channels, 1))
    plan.add("linear", src=x, in_channels=channels, out_channels=1, weights=weights)  # so that the sums are kept
    relu, ends = _C.FLAGS["relu"], sum(_C.FLAGS[name] for name in ("accumulate", "relu", "pool"))
    units = ResidualUnits(plan, packer, [], [])
    for has_gate in gated:
        number = sum(gate is not None for gate in units.gates) if has_gate else -1
        units.gates.append(nn.Linear(channels, 1).requires_grad_(False) if has_gate else None)
        convs = tuple(nn.Conv2d(channels, channels, 3, padding=1).requires_grad_(False) for _ in range(2))
        units.convs.append(convs)
        if has_gate:
            weights = pack_gate(packer, units.gates[-1].weight, units.gates[-1].bias)
            plan.add("gate", src=x, in_channels=channels, gate=_C.GATES["soft"], first_gate=number, weights=weights)
        for conv, src, dst, flags in zip(convs, (x, inner), (inner, x), (relu, ends), strict=True):
            plan.add("conv2d", src=src, dst=dst, only_if=number, flags=flags, **pack_conv2d(packer, conv, None))
    plan.add("store", src=x, in_channels=channels)
    return units
