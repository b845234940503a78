"""The kernels of plans by themselves: right as they are, and found out with any barrier or wait left out."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

HALF = torch.float16


def tensor(*shape, seed=0, dtype=HALF):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(0.3).to(dtype)


def packed(weight):
    """[O, I, taps] to [taps, groups, O, 4]."""
    return weight.unflatten(1, (-1, 4)).permute(3, 1, 0, 2).contiguous()


class Case:
    """A launch of each kernel: ``run(variant)`` gives what it wrote, ``expected`` what it should have."""

    def __init__(self, simt):
        self.simt = simt

    def call(self, name, *arrays):
        getattr(self.simt, name)(*(self.simt.output(a, f"argument {i}") for i, a in enumerate(arrays)))

    def conv2d(self, variant):
        x, weight, bias = tensor(8, 8, 32), tensor(16, 32, 9, seed=1), tensor(16, seed=2, dtype=torch.float32)
        out, pooled = torch.full((8, 8, 16), torch.nan, dtype=HALF), torch.full((16,), torch.nan)
        scratch = torch.zeros(1 + 2 * 16)
        self.call(f"conv2d_{variant}", out, x, packed(weight), bias, pooled, scratch, torch.zeros(1).long())
        image = x.double().permute(2, 0, 1)[None]
        exact = F.conv2d(image, weight.double().reshape(16, 32, 3, 3), bias.double(), padding=1).relu()[0]
        return torch.cat([out.double().flatten(), pooled]), torch.cat(
            [exact.permute(1, 2, 0).flatten(), exact.mean((1, 2))]
        )

    def gradual_layer(self, variant):
        state = tensor(8, 8, 32)
        units = [
            (tensor(16, 32, 1, seed=i), tensor(16, 16, 9, seed=i + 1), tensor(16, 16, 1, seed=i + 2)) for i in (3, 6)
        ]
        bias = tensor(16, seed=9, dtype=torch.float32)
        weights = torch.cat([packed(w).flatten() for unit in units for w in unit])
        words = torch.cat([weights.view(torch.uint8), bias.view(torch.uint8)])
        exact = state.double().permute(2, 0, 1)[None]
        self.call(f"gradual_layer_{variant}", state, words, torch.zeros(1).long())
        for i, (first, conv, last) in enumerate(units):
            y = F.conv2d(exact, first.double()[..., None], bias.double()).relu()
            y = F.conv2d(y, conv.double().reshape(16, 16, 3, 3), bias.double(), padding=1).relu()
            exact = exact.clone()
            exact[:, 16 * i : 16 * i + 16] += F.conv2d(y, last.double()[..., None], bias.double())
        return state.double(), exact[0].permute(1, 2, 0)

    def unit_gate(self, variant):
        pooled, weights = tensor(16, dtype=torch.float32), tensor(172 + 851, seed=1, dtype=torch.float32)
        hidden, threshold = tensor(20, seed=4, dtype=torch.float32), torch.tensor([1.0, 0.0])
        exact, state, scores = weights.double(), hidden.double().clone(), []
        taken, score = torch.full((2,), 7, dtype=torch.uint8), torch.full((2,), torch.nan)
        words, macs = torch.zeros(2).long(), torch.zeros(1).long()
        self.call(f"unit_gate_{variant}", pooled, weights, hidden, threshold, taken, score, words, macs)
        w = exact[172:]
        for _ in range(2):
            z = exact[:160].reshape(10, 16) @ pooled.double() + exact[160:170]
            gates = w[:400].reshape(40, 10) @ z + w[400:800].reshape(40, 10) @ state[:10] + w[800:840]
            take, keep, new, out = gates.split(10)
            cell = keep.sigmoid() * state[10:] + take.sigmoid() * new.tanh()
            state = torch.cat([out.sigmoid() * cell.tanh(), cell])
            scores.append((w[840:850] @ state[:10] + w[850]).sigmoid())
        exact = torch.cat([state, torch.stack(scores), torch.tensor([0.0, 1, 0, 1, 2 * 970])])
        return torch.cat([hidden.double(), score, taken, words, macs]), exact

    def pool_sums(self, variant):
        x, pooled, scratch = tensor(70, 8), torch.full((8,), torch.nan), torch.zeros(1 + 2 * 8)
        self.call(f"pool_sums_{variant}", x, pooled, scratch, torch.zeros(1).long())
        return pooled.double(), x.double().mean(0)


KERNELS = ["conv2d", "gradual_layer", "unit_gate", "pool_sums"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_intact(simt, kernel):
    actual, exact = getattr(Case(simt), kernel)("intact")
    np.testing.assert_allclose(actual.numpy(), exact.numpy(), rtol=2e-3, atol=4e-3)


RACE = r"race: (reads|writes) \d+ bytes at "
COPY = "where an asynchronous copy started at .* has not been waited"
FAULTS = [
    *((kernel, "without_barriers", f"{RACE}|{COPY}") for kernel in KERNELS),
    ("conv2d", "without_copy_waits", COPY),
    ("gradual_layer", "without_copy_waits", COPY),
    ("gradual_layer", "without_cluster_waits", RACE),
    *((kernel, "without_dependency_waits", "grid_dependency_wait") for kernel in KERNELS),
]


@pytest.mark.parametrize(("kernel", "fault", "message"), FAULTS, ids=[f"{f[0]}-{f[1]}" for f in FAULTS])
def test_a_fault_is_found(simt, kernel, fault, message):
    with pytest.raises(simt.Error, match=message):
        getattr(Case(simt), kernel)(fault)
