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


def joined(*fields):
    """The bytes of a layer's weights, field after field."""
    return torch.cat([field.contiguous().flatten().view(torch.uint8) for field in fields])


class Case:
    """A launch of each kernel: ``run(variant)`` gives what it wrote, ``expected`` what it should have."""

    def __init__(self, simt):
        self.simt = simt

    def call(self, name, *arrays, last=()):
        getattr(self.simt, name)(*(self.simt.output(a, f"argument {i}") for i, a in enumerate(arrays)), *last)

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

    def shared_conv2d(self, variant):
        x, weight, bias = tensor(2, 64, 64), tensor(16, 64, 1, seed=1), tensor(16, seed=2, dtype=torch.float32)
        out, macs = tensor(2, 64, 16, seed=3), torch.zeros(2).long()
        exact = out.double() + x.double() @ weight[..., 0].double().T + bias
        self.call(f"shared_conv2d_{variant}", out, x, packed(weight), bias, macs)
        assert macs.tolist() == [64 * 64 * 16] * 2
        return out.double(), exact

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

    def resident_stage(self, variant, in_place=False):
        state, hidden, threshold = tensor(8, 8, 32), tensor(20, seed=4, dtype=torch.float32), torch.tensor([0.0])
        convs = [tensor(32, 32, 9, seed=i).mul(0.2).half() for i in range(1, 7)]
        shortcut, bias = tensor(32, 32, 1, seed=7), tensor(32, seed=8, dtype=torch.float32)
        words = joined(*map(packed, (*convs, shortcut)), bias, tensor(332 + 852, seed=9, dtype=torch.float32))
        next_map, pooled = torch.full((4, 4, 32), torch.nan, dtype=HALF), torch.full((32,), torch.nan)
        exact, maps = state.double().permute(2, 0, 1)[None], []
        outputs = torch.full((1,), 7, dtype=torch.uint8), torch.full((1,), torch.nan), torch.zeros(1).long()
        macs = torch.zeros(1).long()
        arrays = (state, next_map, pooled, words, hidden, threshold, *outputs, macs)
        self.call(f"resident_stage_{variant}", *arrays, last=[in_place])
        for i in range(3):
            inner, outer = (weight.double().reshape(32, 32, 3, 3) for weight in convs[2 * i : 2 * i + 2])
            y = F.conv2d(exact, inner, bias.double(), stride=1 + i // 2, padding=1).relu()
            same = exact if i < 2 else F.conv2d(exact, shortcut[..., None].double(), bias.double(), stride=2)
            exact = (same + F.conv2d(y, outer, bias.double(), padding=1)).relu()
            maps.append(exact[0].permute(1, 2, 0))
        convolutions = 4 * 64 * 9 * 32**2 + 16 * 19 * 32**2
        assert [int(x) for x in (*outputs[::2], macs)] == [1, 1, convolutions + 10 * 32 + 810]
        found = torch.cat([state.double().flatten(), next_map.double().flatten(), pooled])
        return found, torch.cat([maps[1].flatten(), maps[2].flatten(), maps[2].mean((0, 1))])

    def resident_bottleneck(self, variant, one_frame=False):
        state, bias, fields = tensor(8, 8, 32), tensor(32, seed=9, dtype=torch.float32), []
        on = [torch.tensor(chosen) for chosen in ([0, 2, 3, 7, 8, 9, 11, 14, 15], [1, 4, 12], list(range(0, 32, 3)))]
        lists, counts = torch.zeros(64, dtype=torch.int16), torch.tensor([len(chosen) for chosen in on]).int()
        for at, chosen in zip((0, 16, 32), on, strict=True):
            lists[at : at + len(chosen)] = chosen
        exact = state.double().permute(2, 0, 1)[None]
        for unit, masks in enumerate(([torch.arange(16), torch.arange(16), torch.arange(32)], on)):
            norm = torch.stack([tensor(32, seed=10 * unit + 1), tensor(32, seed=10 * unit + 2)])  # scale, shift
            convs = [tensor(16, 32, 1, seed=10 * unit + 3), tensor(16, 16, 9, seed=10 * unit + 4)]
            convs.append(tensor(32, 16, 1, seed=10 * unit + 5))
            fields += [norm.unflatten(1, (-1, 4)).transpose(0, 1), *map(packed, convs)]
            scale, shift = norm.double()[..., None, None]
            y = (scale * exact + shift).relu()
            for conv, chosen in zip(convs, masks, strict=True):
                side = int(conv.shape[2] ** 0.5)
                z = F.conv2d(y, conv.double().unflatten(2, (side, side)), bias[: len(conv)].double(), padding=side // 2)
                y = torch.zeros_like(z)
                y[:, chosen] = z[:, chosen] if len(conv) == 32 else z[:, chosen].relu()
            exact = exact + y
        macs = torch.zeros(1).long()
        self.call(f"resident_bottleneck_{variant}", state, joined(*fields, bias), lists, counts, macs, last=[one_frame])
        first, conv, last = map(len, on)
        assert macs.item() == 64 * (2 * 16 * 32 + 9 * 16**2 + 32 * first + 9 * first * conv + conv * last)
        return state.double(), exact[0].permute(1, 2, 0)

    def dense(self, kernel, variant):
        state, macs = torch.full((48 * 64,), torch.nan, dtype=HALF), torch.zeros(1).long()
        first = tensor(8, 8, 16)
        state[: 16 * 64] = first.flatten()
        exact, fields = first.double().permute(2, 0, 1)[None], []
        for layer in range(2):
            channels, seed = 16 + 16 * layer, 10 * layer
            norm = torch.stack([tensor(channels, seed=seed + 1), tensor(channels, seed=seed + 2)])  # scale, shift
            reduce, bias = tensor(48, channels, 1, seed=seed + 3), tensor(48, seed=seed + 4, dtype=torch.float32)
            conv = tensor(16, 48, 9, seed=seed + 5)
            constants = torch.full((layer, 48), torch.nan)  # of a slice that is skipped: none is
            fields += [norm.unflatten(1, (-1, 4)).transpose(0, 1), packed(reduce), bias, constants, packed(conv)]
            scale, shift = norm.double()[..., None, None]
            y = F.conv2d((scale * exact + shift).relu(), reduce.double()[..., None], bias.double()).relu()
            exact = torch.cat([exact, F.conv2d(y, conv.double().reshape(16, 48, 3, 3), padding=1)], 1)
        words = joined(*fields)
        pooled = torch.full((48,), torch.nan)
        pooled[:16] = first.float().mean((0, 1))
        taken, score = torch.ones(2, dtype=torch.uint8), torch.zeros(2)
        self.call(f"{kernel}_{variant}", state, words, pooled, taken, score, torch.zeros(34), macs)
        slices = state.double().reshape(3, 64, 16)
        return slices, exact[0].reshape(3, 16, 64).transpose(1, 2)

    def stem(self, variant):
        image, weight = tensor(2, 10, 8).float(), tensor(16, 2, 9, seed=1)
        depth = F.pad(weight.flatten(1), (0, 32 - 18))[..., None]  # channels and taps, to whole k-steps
        out, pooled = torch.full((80, 16), torch.nan, dtype=HALF), torch.full((16,), torch.nan)
        self.call(f"stem_{variant}", out, image, packed(depth), pooled, torch.zeros(33), torch.zeros(1).long())
        exact = F.conv2d(image.double()[None], weight.double().reshape(16, 2, 3, 3), padding=1)[0].flatten(1)
        return torch.cat([out.double(), pooled[None]]), torch.cat([exact.T, exact.mean(1)[None]])

    def transition(self, variant):
        first, state = tensor(2, 320, 16), torch.full((3, 320, 16), torch.nan, dtype=HALF)
        state[:2], taken = first, torch.tensor([1, 0], dtype=torch.uint8)  # the second slice is skipped
        norm, weight = tensor(2, 48, seed=1).float(), tensor(16, 48, 1, seed=2)
        constants = torch.stack([torch.full((16,), torch.nan), tensor(16, seed=3).float()])
        out, pooled = torch.full((80, 16), torch.nan, dtype=HALF), torch.full((16,), torch.nan)
        grouped = norm.unflatten(1, (-1, 4)).transpose(0, 1).contiguous()
        arrays = (out, state, taken, grouped, packed(weight), constants, pooled, torch.zeros(33), torch.zeros(1).long())
        self.call(f"transition_{variant}", *arrays)
        scale, shift = norm[:, :32, None, None].double()
        image = first.double().transpose(1, 2).reshape(1, 32, 20, 16)
        y = F.avg_pool2d((scale * image + shift).relu(), 2)
        exact = F.conv2d(y, weight[:, :32, :, None].double(), constants[1].double())[0].flatten(1)
        return torch.cat([out.double(), pooled[None]]), torch.cat([exact.T, exact.mean(1)[None]])

    def plain_layer(self, variant):
        live, state = tensor(2, 64, 16), torch.full((4, 64, 16), torch.nan, dtype=HALF)
        state[0], state[2], taken = *live, torch.tensor([0, 1], dtype=torch.uint8)  # the first slice is skipped
        norm, conv = tensor(2, 48, seed=1), tensor(16, 48, 9, seed=2)
        constants = torch.full((2, 9, 16), torch.nan)
        constants[0] = tensor(9, 16, seed=3)
        pooled = torch.full((16,), torch.nan)
        words = joined(norm.unflatten(1, (-1, 4)).transpose(0, 1), constants, packed(conv))
        self.call(f"plain_layer_{variant}", state, words, taken, pooled, torch.zeros(33), torch.zeros(1).long())
        read = torch.cat([torch.arange(16), torch.arange(32, 48)])
        scale, shift = norm[:, read, None, None].double()
        image = live.double().transpose(1, 2).reshape(1, 32, 8, 8)
        exact = F.conv2d((scale * image + shift).relu(), conv[:, read].double().reshape(16, 32, 3, 3), padding=1)
        borders = constants[0].double().T.reshape(16, 1, 3, 3)  # what is skipped is constant inside the map
        exact = (exact + F.conv2d(torch.ones(1, 1, 8, 8).double(), borders, padding=1))[0].flatten(1)
        return torch.cat([state[3].double(), pooled[None]]), torch.cat([exact.T, exact.mean(1)[None]])

    def residual_layer(self, variant, copy_stride=64 * 16):
        state, norm = torch.full((2, 64, 16), torch.nan, dtype=HALF), tensor(2, 16, seed=1)
        state[0] = tensor(64, 16)
        reduce, conv, expand = tensor(16, 16, 1, seed=2), tensor(16, 16, 9, seed=3), tensor(16, 16, 1, seed=4)
        bias, conv_bias = tensor(16, seed=5).float(), tensor(16, seed=6).float()
        grouped = norm.unflatten(1, (-1, 4)).transpose(0, 1)
        words = joined(grouped, packed(reduce), bias, packed(conv), conv_bias, packed(expand))
        x, (scale, shift) = state[0].double().T.reshape(1, 16, 8, 8), norm.double()[..., None, None]
        y = F.conv2d((scale * x + shift).relu(), reduce.double()[..., None], bias.double()).relu()
        y = F.conv2d(y, conv.double().reshape(16, 16, 3, 3), conv_bias.double(), padding=1).relu()
        exact = (x + F.conv2d(y, expand.double()[..., None]))[0].flatten(1)
        pooled = torch.full((16,), torch.nan)
        arrays = (state, words, pooled, torch.zeros(33), torch.zeros(1).long())
        self.call(f"residual_layer_{variant}", *arrays, last=[copy_stride])
        return torch.cat([state[1].double(), pooled[None]]), torch.cat([exact.T, exact.mean(1)[None]])

    def dense_layer(self, variant):
        return self.dense("dense_layer", variant)

    def dense_block(self, variant):
        return self.dense("dense_block", variant)

    def head(self, variant):
        x, weight, bias = tensor(64, 16), tensor(10, 16, seed=1).float(), tensor(10, seed=2).float()
        scale, shift = tensor(16, seed=3).float(), tensor(16, seed=4).float()
        norm = torch.stack([scale.reshape(4, 4), shift.reshape(4, 4)], 1)
        logits = torch.full((10,), torch.nan)
        self.call(f"head_{variant}", logits, x, norm, weight, bias, torch.zeros(1).long())
        return logits.double(), ((scale * x + shift).relu().mean(0) @ weight.T + bias).double()

    def filter_lists(self, variant):
        patterns = (torch.rand(3, 70, generator=torch.Generator().manual_seed(0)) < 0.5).byte()
        masks = patterns[torch.tensor([0, 1, 0, 2, 1])]
        lists, counts = torch.full((5, 70), -1, dtype=torch.int16), torch.full((5,), -1, dtype=torch.int32)
        first, order = torch.full((5,), -1, dtype=torch.int32), torch.full((5,), -1)
        self.call(f"filter_lists_{variant}", masks, lists, counts, first, order, last=[5])
        for row, mask in zip(lists, masks, strict=True):
            on = mask.nonzero()[:, 0]
            torch.testing.assert_close(row[: len(on)].long(), on)
        found = torch.cat([counts, first, order]).double()
        return found, torch.cat([masks.sum(1), torch.tensor([0, 1, 0, 3, 1]), torch.tensor([0, 2, 1, 4, 3])]).double()

    def pool_sums(self, variant):
        x, pooled, scratch = tensor(70, 8), torch.full((8,), torch.nan), torch.zeros(1 + 2 * 8)
        self.call(f"pool_sums_{variant}", x, pooled, scratch, torch.zeros(1).long())
        return pooled.double(), x.double().mean(0)


CLUSTERS = ["gradual_layer", "dense_block", "resident_stage", "resident_bottleneck", "shared_conv2d"]
KERNELS = [*CLUSTERS, "conv2d", "unit_gate", "pool_sums", "dense_layer", "head", "filter_lists"]
STATE_KERNELS = ["stem", "transition", "plain_layer", "residual_layer"]


@pytest.mark.parametrize("kernel", KERNELS + STATE_KERNELS)
def test_intact(simt, kernel):
    actual, exact = getattr(Case(simt), kernel)("intact")
    np.testing.assert_allclose(actual.numpy(), exact.numpy(), rtol=2e-3, atol=4e-3)


RACE = r"race: (reads|writes) \d+ bytes at "
COPY = "where an asynchronous copy started at .* has not been waited"
FAULTS = [
    *((kernel, "without_barriers", f"{RACE}|{COPY}") for kernel in KERNELS + STATE_KERNELS),
    *((kernel, "without_own_barriers", RACE) for kernel in STATE_KERNELS if kernel != "stem"),  # which has none
    ("conv2d", "without_copy_waits", COPY),
    *((kernel, "without_copy_waits", COPY) for kernel in (*CLUSTERS, "dense_layer")),
    *((kernel, "without_cluster_waits", f"{RACE}|which has ended") for kernel in CLUSTERS),
    *((kernel, "without_dependency_waits", "grid_dependency_wait") for kernel in KERNELS),
]


@pytest.mark.parametrize(("kernel", "fault", "message"), FAULTS, ids=[f"{f[0]}-{f[1]}" for f in FAULTS])
def test_a_fault_is_found(simt, kernel, fault, message):
    with pytest.raises(simt.Error, match=message):
        getattr(Case(simt), kernel)(fault)


def test_a_residual_layer_in_place_is_found(simt):
    """A tile's neighbour reads what the tile writes: the new state must not lie where the old one is."""
    with pytest.raises(simt.Error, match=r"race: (reads|writes) \d+ bytes at argument 0 .*another block"):
        Case(simt).residual_layer("intact", copy_stride=0)


def test_frames_of_a_stage_on_one_another_are_found(simt):
    """A unit's own map and the one between its convolutions live side by side."""
    with pytest.raises(simt.Error, match=f"{RACE}|{COPY}"):
        Case(simt).resident_stage("intact", in_place=True)


def test_one_frame_for_the_middles_of_two_units_is_found(simt):
    """A neighbour that is ahead writes its edge while the unit before is still read."""
    with pytest.raises(simt.Error, match=RACE):
        Case(simt).resident_bottleneck("intact", one_frame=True)
