"""The rule for captured networks: the kernels and the emitted graph against the model in float64, gates against what the
model's gate words are given, MACs against the formula."""

import copy

import torch
from graph_reference import run_graph
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import dsn_kernels
from dsn_kernels.capture.emit import emit
from dsn_kernels.capture.exported import export, read
from dsn_kernels.capture.regions import Gating, gate_of
from dsn_kernels.graph import count_macs
from tests.checks import assert_as_exact_as_torch, assert_scores_agree

_WEIGHT = {torch.ops.dsn.where_open.default: 0, torch.ops.dsn.choose_filters.default: 1}


class GateWords(TorchDispatchMode):
    """What the gate words are given while a model runs: ``given``, uint8 [B, L] each, in the order in which they are
    said. ``forced``, a list of the same form, takes its place, if any.
    """

    def __init__(self, forced=None):
        super().__init__()
        self.given, self.forced = [], forced

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in _WEIGHT:
            at = _WEIGHT[func]
            weight = args[at] if self.forced is None else self.forced[len(self.given)].view(args[at].shape)
            self.given.append((weight != 0).view(len(weight), weight.shape[1:].numel()).to(torch.uint8))
            args = tuple(weight if i == at else x for i, x in enumerate(args))
        return func(*args, **(kwargs or {}))


def settle(model, seed=0):
    """``model`` in evaluation; its batch norms have statistics and weights that are neither 0 nor 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                for tensor, low, high in (
                    (module.running_mean, -0.3, 0.3),
                    (module.running_var, 0.5, 1.5),
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.3, 0.3),
                ):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model.eval()


def make_images(batch=3, size=(12, 10), channels=3, seed=1):
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def run_model(model, x, forced=None):
    """Outputs of a model, and what its gate words were given."""
    with GateWords(forced) as words:
        return model(x), words.given


class Checked:
    """A model, and the same captured and accelerated on the CPU, which ``check`` compares.

    Attributes:
        fast: the accelerated model.
        emitted: its graph as captured, with weights.
        words: the first gate of each gate word, and how many it has, in the order in which the model says them.
    """

    def __init__(self, model, x):
        self.model, self.double = model, copy.deepcopy(model).double()
        self.fast = dsn_kernels.accelerate(model, example=x, backend="cpu")
        program = read(export(model, [x]))
        said = [value for value in program.values if gate_of(value) is not None]
        self.emitted = emit(program)
        gating = Gating(program)
        self.words = [(gating.first[value], 1 if value.op == "where" else value.channels) for value in said]
        self.outer = [gating.of(value) for value in said]

    def by_word(self, columns):
        """[B, L] of all gates as the model's gate words are given them."""
        return [columns[:, first : first + count] for first, count in self.words]

    def joined(self, named):
        """[B, L] of all gates of what ``fast`` has by name."""
        left = {name: list(part.unbind(1)) for name, part in named.items()}
        columns = [left[name].pop(0) for name in self.emitted.gates]
        return torch.stack(columns, 1) if columns else torch.zeros(len(self.fast.last_macs), 0, dtype=torch.uint8)

    def named(self, columns):
        """What ``fast`` takes by name of [B, L] of all gates."""
        names = self.emitted.gates
        return {name: columns[:, [i for i, n in enumerate(names) if n == name]] for name in self.fast.layers}

    @torch.no_grad()
    def check(self, x, columns=None):
        """Compares all there is to compare for images ``x``, with gates forced to ``columns``, uint8 [B, L], or as they
        decide; returns the outputs."""
        forced = None if columns is None else self.by_word(columns)
        actual = self.fast(x, forced_gates=None if columns is None else self.named(columns))
        exact, given = run_model(self.double, x.double(), forced)
        same, said = run_model(self.model, x, forced)
        assert all(map(torch.equal, given, said)), "a score is within rounding of its threshold: take another seed"
        shapes = [tree_map(lambda t: tuple(t.shape), outputs) for outputs in (actual, exact)]
        assert shapes[0] == shapes[1]
        leaves = [tree_leaves(outputs) for outputs in (actual, same, exact)]
        for a, s, e in zip(*leaves, strict=True):
            assert a.dtype == torch.float32
            if e.numel():
                assert_as_exact_as_torch(a, s, e)

        gates, scores = self.joined(self.fast.last_gates), self.joined(self.fast.last_scores)
        graph, limits = self.emitted.graph, torch.tensor(self.emitted.thresholds, dtype=torch.float64)
        reference = run_graph(graph, x, limits, columns)
        for output, e in zip(self.emitted.outputs, leaves[2], strict=True):
            at = slice(output.first, output.first + output.shape[0])
            got = reference.map if output.first < 0 else reference.logits[:, at]
            torch.testing.assert_close(got.flatten(1), e.flatten(1), rtol=1e-9, atol=1e-9)
        assert torch.equal(gates, reference.gates)
        assert_scores_agree(scores, reference.scores)
        for own, said, outer in zip(self.by_word(gates), given, self.outer, strict=True):
            runs = gates[:, outer : outer + 1] if outer >= 0 else torch.ones_like(own)
            assert torch.equal(own, said & runs)
        assert torch.equal(self.fast.last_macs, count_macs(graph, gates)), "the kernels count what the formula says"
        return actual


def check_capture(model, x):
    """Accelerates ``model``, checks it on images ``x``, and returns what was compared."""
    checked = Checked(model, x)
    checked.check(x)
    return checked
