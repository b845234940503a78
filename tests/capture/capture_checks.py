"""The rule for captured networks: the kernels and the emitted graph against the model in float64, gates against what
its gate words are given, MACs against the formula."""

import collections
import copy
import math

import torch
from graph_reference import run_graph
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import dsn_kernels
from dsn_kernels.capture.exported import export, read
from dsn_kernels.capture.translate import module_of
from dsn_kernels.graph import count_macs
from dsn_kernels.runtime import CapturedModel, Target
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
                    if tensor is None:
                        continue
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
    """A model, and the same captured and run on the CPU, which ``check`` compares.

    Attributes:
        fast: the accelerated model.
        plans: of the captured network, with weights.
        gates: of all plans, the module that each belongs to.
        gives, leaves: names of the model's outputs, and of what leaves each plan.
        words: of each gate word of the model, in the order in which it says them, the columns of its gates.
        outer: of each gate, the one by which it is decided, or -1.
    """

    def __init__(self, model, x):
        self.model, self.double = model, copy.deepcopy(model).double()
        exported = export(model, [x])
        captured = read(exported)
        structure, target = exported.call_spec.out_spec, Target("cpu", torch.float32)
        again = lambda shapes: read(export(model, [x.new_empty(0, *shapes[0])]))  # noqa: E731
        self.fast = CapturedModel(captured, (tuple(x.shape[1:]),), again, structure, target)
        self.whole = len(captured.sections) == len(captured.plans) == 1
        self.gives, self.leaves = captured.gives, [plan.gives for plan in captured.plans]
        self.plans = [plan.emitted for plan in captured.plans]
        self.gates = [name for plan in self.plans for name in plan.gates]
        left = collections.defaultdict(list)
        for i, name in enumerate(self.gates):
            left[name].append(i)
        self.words = []
        for node in exported.graph.nodes:
            if node.target in _WEIGHT:
                shape = node.args[_WEIGHT[node.target]].meta["val"].shape
                own = left[
                    module_of(node) or node.target._opname.removesuffix("_open").replace("choose_filters", "conv")
                ]
                self.words.append([own.pop(0) for _ in range(shape[1] if len(shape) > 1 else 1)])
        self.outer = [-1] * len(self.gates)
        first = 0
        for plan in self.plans:
            for node in plan.graph.nodes:
                if node.op in ("decide", "gate") and node.only_if >= 0:
                    count = node.in_channels if node.op == "decide" else 1
                    for gate in range(node.first_gate, node.first_gate + count):
                        self.outer[first + gate] = first + node.only_if
            first += len(plan.gates)

    def by_word(self, columns):
        """[B, L] of all gates as the model's gate words are given them."""
        return [columns[:, own] for own in self.words]

    def joined(self, named):
        """[B, L] of all gates of what ``fast`` has by name."""
        left = {name: list(part.unbind(1)) for name, part in named.items()}
        columns = [left[name].pop(0) for name in self.gates]
        return torch.stack(columns, 1) if columns else torch.zeros(len(self.fast.last_macs), 0, dtype=torch.uint8)

    def named(self, columns):
        """What ``fast`` takes by name of [B, L] of all gates."""
        names = self.gates
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
        for own, said in zip(self.words, given, strict=True):
            for column, decided in zip(own, said.unbind(1), strict=True):
                outer = self.outer[column]
                runs = gates[:, outer] if outer >= 0 else torch.ones_like(decided)
                assert torch.equal(gates[:, column], decided & runs), f"gate {column} of {self.gates[column]}"
        self._check_counts(gates)
        if self.whole and not self.plans[0].given:
            self._check_graph(x, columns, leaves[2], gates, scores)
        return actual

    def _check_counts(self, gates):
        counts = [len(plan.gates) for plan in self.plans]
        macs = [count_macs(p.graph, own) for p, own in zip(self.plans, gates.split(counts, 1), strict=True)]
        assert torch.equal(self.fast.last_macs, sum(macs)), "the kernels count what the formula says"

    def _check_graph(self, x, columns, exact, gates, scores):
        """The only plan's graph as it was captured, in float64."""
        (plan,) = self.plans
        reference = run_graph(plan.graph, x, torch.tensor(plan.thresholds, dtype=torch.float64), columns)
        left = {n: output_of(reference, output) for n, output in zip(self.leaves[0], plan.outputs, strict=True)}
        for name, e in zip(self.gives, exact, strict=True):
            torch.testing.assert_close(left[name], e, rtol=1e-9, atol=1e-9)
        assert torch.equal(gates, reference.gates)
        assert_scores_agree(scores, reference.scores)


def output_of(reference, output):
    """One that leaves a plan, of what ``run_graph`` gives."""
    values = reference.map.flatten(1) if output.stored else reference.logits
    return values[:, output.first : output.first + math.prod(output.shape)].view(-1, *output.shape)


def check_capture(model, x):
    """Captures ``model``, checks it on images ``x``, and returns what was compared."""
    checked = Checked(model, x)
    checked.check(x)
    return checked


class Hidden(torch.nn.Module):
    """A network within a class that nobody knows: it is captured by export."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)


@torch.no_grad()
def check_on(place, model, x, whole=True):
    """A captured network on another backend, ``whole`` in one plan: the outputs, and the CPU's gates and counts."""
    hidden = Hidden(model)
    fast, on_cpu = (
        dsn_kernels.accelerate(hidden, example=x, backend=backend, verify=False) for backend in (place.backend, "cpu")
    )
    actual, _ = fast(x.to(place.device)), on_cpu(x)
    same, exact = hidden(x), copy.deepcopy(hidden).double()(x.double())
    for a, s, e in zip(*map(tree_leaves, (actual, same, exact)), strict=True):
        assert_as_exact_as_torch(a.cpu(), s, e)
    assert fast.kernel_share == 1 and (list(fast.parts) == [""]) == whole
    assert torch.equal(fast.last_macs.cpu(), on_cpu.last_macs)
    for name, taken in on_cpu.last_gates.items():
        assert torch.equal(fast.last_gates[name].cpu(), taken)
