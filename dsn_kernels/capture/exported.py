"""A network as ``torch.export`` sees it: plans, and between them what torch computes."""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import TreeSpec, tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from dsn_models.errors import UserError

from .emit import Emitted, emit
from .kept import kept_export
from .simplify import simplify
from .translate import Foreign, Step, Zeros, gate_words, module_of, sample_shape, translate
from .values import Program, Unserved, Value, decided_before, in_order

_EXAMPLE = 3  # samples with which a network is exported: a number that it is unlikely to fix


class Decided(NamedTuple):
    """Gates of a plan that leave as a tensor: its name, the first of them, one sample's shape, and its dtype."""

    name: str
    first: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class PlanSection(NamedTuple):
    """A graph, the names of the tensors that it takes and that it gives, and its gates that it gives too."""

    emitted: Emitted
    takes: list[str]
    gives: list[str]
    decided: list[Decided]


class TorchSection(NamedTuple):
    """What torch computes: a module from the batch's size and the tensors ``takes`` to the tuple ``gives``.

    Attributes:
        reasons: why, of each operation.
        macs: multiply-accumulates of a sample.
    """

    module: fx.GraphModule
    takes: list[str]
    gives: list[str]
    reasons: list[str]
    macs: int


@dataclass(frozen=True)
class Captured:
    """A network: what is computed one after another, by names of tensors.

    Attributes:
        sections: of plans and of torch.
        takes: the network's own inputs.
        gives: its outputs.
    """

    sections: list[PlanSection | TorchSection]
    takes: list[str]
    gives: list[str]

    @property
    def plans(self) -> list[PlanSection]:
        return [section for section in self.sections if isinstance(section, PlanSection)]


def capture_model(
    model: nn.Module, example: Sequence[Tensor], cache: Path | None = None, fresh: bool = False
) -> tuple[Captured, TreeSpec, Callable[[Sequence[tuple[int, ...]]], Captured], bool]:
    """A module, whatever its class, as plans and what torch computes between them.

    Args:
        model: in evaluation it is the function that is captured. It is copied, not kept.
        example: what its forward takes, each [B, ...]; their values are not used.
        cache: a folder in which the export is kept, and perhaps found. See :func:`.kept.kept_export`.
        fresh: export, whatever is in the folder.

    Returns:
        the network for tensors of these shapes; how the model structures its outputs; what captures it for others,
        given the shape of one sample of each; and whether the export was found in the folder.

    Raises:
        UserError: ``torch.export`` refuses the model, a gate that it has would be lost, or the folder cannot be used;
            the message says where and why.
    """
    kept = copied(model).eval().requires_grad_(False)

    def at(shapes: Sequence[tuple[int, ...]]) -> Captured:
        return read(export(kept, [x.new_empty(0, *shape) for x, shape in zip(example, shapes, strict=True)]))

    if cache is None:
        exported, found = export(kept, example), False
    else:
        exported, found = kept_export(kept, example, cache, export, fresh)
    structure = exported.call_spec.out_spec
    assert structure is not None
    return read(exported), structure, at, found


def copied(model: nn.Module) -> nn.Module:
    """A copy; of tensors that a module keeps of its last call, the values alone."""
    kept = [x for module in model.modules() for x in tree_leaves(vars(module)) if isinstance(x, Tensor)]
    return copy.deepcopy(model, {id(x): x.detach() for x in kept if not x.is_leaf})


def export(model: nn.Module, example: Sequence[Tensor]) -> ExportedProgram:
    """``model`` in evaluation as a program of core ATen for a batch of any size.

    Args:
        model: any module; its mode is as before when this returns.
        example: what its forward takes, each [B, ...].

    Raises:
        UserError: ``torch.export`` refuses the model: it branches on data, for one. The message is its own first line.
    """
    gate_words()
    training = {module: module.training for module in model.modules()}
    inputs = tuple(x.new_zeros(_EXAMPLE, *x.shape[1:]) for x in example)
    sizes = [{0: torch.export.Dim.AUTO} for _ in inputs]
    takes_any = any(p.kind == p.VAR_POSITIONAL for p in _parameters(model))
    logged = logging.root.manager.disable
    logging.disable(logging.ERROR)  # torch logs a traceback of what is then raised
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            dynamic: Any = {"args": tuple(sizes)} if takes_any else tuple(sizes)
            program = torch.export.export(model.eval(), inputs, strict=False, dynamic_shapes=dynamic)
            return program if _functionalise(program.graph) else program.run_decompositions({})
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{type(model).__name__} cannot be captured by torch.export: {reason.strip()}") from error
    finally:
        logging.disable(logged)
        for module, was in training.items():
            module.training = was


# What may give another view of the tensor that it reads.
_VIEWS = (
    "view", "reshape", "flatten", "squeeze", "unsqueeze", "select", "slice", "split", "chunk", "narrow", "permute", "t",
    "transpose", "expand", "getitem", "unbind", "detach", "alias", "contiguous", "to", "dropout", "clone", "as_strided",
)  # fmt: skip


def _functionalise(graph: fx.Graph) -> bool:
    """Puts operations that give a new tensor in the place of those that work in place; says whether that is all there
    is to it. It is not where another name of the tensor is changed too: then torch has to sort it out, which takes as
    long as the export.
    """
    at = {node: i for i, node in enumerate(graph.nodes)}
    changing = [node for node in graph.nodes if getattr(getattr(node.target, "_schema", None), "is_mutable", False)]
    for node in changing:
        changed, name = node.args[0], node.target._opname  # type: ignore[union-attr]
        plain = getattr(torch.ops.aten, name.rstrip("_"), None)
        names = [n for n in (changed, *changed.users) if n is not node] if isinstance(changed, fx.Node) else []
        known = plain is not None and name == f"{plain._qualified_op_name.split('::')[1]}_"
        if not known or not names or changed.op == "placeholder" or any(_opname(n) in _VIEWS for n in names):
            return False
        changed.replace_all_uses_with(node, lambda user, own=node: at[user] > at[own])
        node.target = getattr(plain, node.target._overloadname)  # type: ignore[union-attr]
    return True


def _opname(node: fx.Node) -> str:
    return getattr(node.target, "_opname", getattr(node.target, "__name__", "")).rstrip("_")


def _parameters(model: nn.Module) -> list[Any]:
    return list(inspect.signature(model.forward).parameters.values())


def read(exported: ExportedProgram) -> Captured:
    """The sections of an exported program.

    Raises:
        UserError: its batch is of one size alone, or a gate governs what torch computes.
    """
    foreign: dict[fx.Node, str] = {}
    floors: dict[fx.Node, int] = {}
    while True:
        reader = _Reader(exported, foreign, floors)
        refused = reader.scattered()
        sunk = {} if refused else reader.sink()
        refused = refused if refused or sunk else reader.small_plans()
        if not refused and not sunk:
            try:
                return reader.captured()
            except Unserved as found:
                refused = dict.fromkeys(reader.nodes_of(found.values), str(found))
        foreign |= refused
        floors |= sunk


@dataclass(eq=False)
class _Level:
    """What is computed together: values of a plan, or nodes of torch.

    Attributes:
        program: of a plan.
        entered: the nodes whose tensors are inputs of the plan.
        nodes: of torch, in order.
    """

    program: Program = field(default_factory=Program)
    entered: dict[fx.Node, Value] = field(default_factory=dict)
    nodes: list[fx.Node] = field(default_factory=list)


class _Reader:
    """Reads a program node by node. What a kernel has goes into the plan of the lowest level that comes after all that
    it is computed from; plans have even levels, what torch computes has odd ones.

    Args:
        exported: the program.
        foreign: nodes that torch is to compute, and why.
        floors: the lowest levels at which some nodes may be.
    """

    def __init__(self, exported: ExportedProgram, foreign: dict[fx.Node, str], floors: dict[fx.Node, int]) -> None:
        self.exported, self.foreign, self.floors = exported, foreign, floors
        self.reasons: dict[fx.Node, str] = {}
        self.known: dict[fx.Node, Any] = {}  # what a node gives: values, or constants
        self.level: dict[fx.Node, int] = {}  # of nodes that a plan or torch computes; -1 of inputs
        self.levels: dict[int, _Level] = {}
        self.inputs: list[fx.Node] = []
        self.outputs: list[fx.Node] = []
        self.governed: dict[fx.Node, set[fx.Node]] = {}  # by each where_open, once it was asked for
        constants = {**exported.state_dict, **exported.constants}
        kinds = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
        for node in reversed(exported.graph.nodes):
            if node.target is torch.ops.aten._assert_tensor_metadata.default:  # would keep what nobody else reads
                exported.graph.erase_node(node)
        exported.graph.eliminate_dead_code()
        self.reads = {node: node.all_input_nodes for node in exported.graph.nodes}
        for node in exported.graph.nodes:
            if node.op == "placeholder":
                if kinds[node.name].kind == InputKind.USER_INPUT:
                    self.inputs.append(node)
                    self.level[node] = -1
                else:
                    self.known[node] = constants[kinds[node.name].target]
            elif node.op == "call_function":
                self._read(node)
            elif node.op == "output":
                self.outputs = [x for x in node.args[0] if isinstance(x, fx.Node)]

    @property
    def batch(self) -> Any:
        size = self.inputs[0].meta["val"].shape[0] if self.inputs else 0
        if isinstance(size, int) or size.node.expr.is_number:
            raise UserError(
                f"the model runs on a batch of {size} alone; expected one of any size: x.shape[0], not len(x)"
            )
        return size

    def _is_batch(self, node: fx.Node) -> bool:
        """Whether a size is that of the batch, whatever it is; others may depend on values."""
        size = node.meta["val"]
        return isinstance(size, torch.SymInt) and size.node.expr == self.batch.node.expr

    def _read(self, node: fx.Node) -> None:
        if not isinstance(node.meta["val"], (Tensor, tuple, list)):
            return  # a size
        needed = [n for n in node.all_input_nodes if n in self.level]
        if node not in self.foreign:
            level = max([self.floors.get(node, 0), *(self.level[n] + self.level[n] % 2 for n in needed)])
            try:
                args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self._enter(n, level))
                made = translate(node, args, kwargs, self.batch)
                if isinstance(made, Zeros) and any(user.op == "output" for user in node.users):
                    raise Foreign("it gives zeros")
                self.known[node] = made
                if not isinstance(made, Zeros):  # which are known everywhere
                    self.level[node] = level
                return
            except Foreign as reason:
                self.reasons[node] = f"{module_of(node) or 'the model'}: {node.target}: {reason}"
        needed = [n for n in self._torch_reads(node) if n in self.level]
        level = max([1, *(self.level[n] + 1 - self.level[n] % 2 for n in needed)])
        self.level[node] = level
        self._at(level).nodes.append(node)

    def _torch_reads(self, node: fx.Node) -> list[fx.Node]:
        """What torch needs for a node: zeros are made where they are read, like what gives their shape."""
        found, left = [], list(node.all_input_nodes)
        while left:
            read = left.pop()
            zeros = isinstance(self.known.get(read), Zeros)
            left += read.all_input_nodes if zeros else ()
            found += [] if zeros else [read]
        return found

    def _at(self, level: int) -> _Level:
        return self.levels.setdefault(level, _Level())

    def _enter(self, node: fx.Node, level: int) -> Any:
        """What a node gives, for a plan of a level: its value there, or a tensor that enters the plan."""
        if self.level.get(node, level) == level and node in self.known:
            return self.known[node]
        if node not in self.level:
            return node  # a size, which no translation asks for
        at = self._at(level)
        if node not in at.entered:
            shape = sample_shape(node.meta["val"], self.batch)
            if len(shape) not in (1, 3):
                raise Foreign(f"it reads a tensor of {len(shape) + 1} dimensions")
            dtype = node.meta["val"].dtype
            entered = Value("input", [], shape)
            at.entered[node] = entered if dtype.is_floating_point else decided_before(entered)
        return at.entered[node]

    def sink(self) -> dict[fx.Node, int]:
        """The nodes that belong into the plan of a gate word, which is a later one because torch decides its gate: what
        only the gate lets run, and the convolution whose filters it chooses."""
        found: dict[fx.Node, int] = {}
        for word, level in self.level.items():
            if word in self.known and getattr(word.target, "namespace", "") == "dsn":
                governed = self._governed(word) if _opname(word) == "where_open" else self._masked(word)
                if any(self.level.get(node, 0) % 2 and node not in self.inputs for node in governed):
                    self._refuse_lost(word)
                found |= {node: level for node in governed if node in self.level and 0 <= self.level[node] < level}
        return found

    def _governed(self, word: fx.Node) -> set[fx.Node]:
        if word not in self.governed:
            self.governed[word] = self._find_governed(word)
        return self.governed[word]

    def _find_governed(self, word: fx.Node) -> set[fx.Node]:
        needed, left = set[fx.Node](), list(self.outputs)
        while left:
            node = left.pop()
            if node not in needed:
                needed.add(node)
                left += [n for n in self.reads[node] if node is not word or n in (word.args[0], word.args[2])]
        governed, left = set[fx.Node](), [n for n in word.args[1:2] if isinstance(n, fx.Node)]
        while left:
            node = left.pop()
            if node not in needed and node not in governed:
                governed.add(node)
                left += self.reads[node]
        return governed

    def _masked(self, word: fx.Node) -> set[fx.Node]:
        chain, node = set[fx.Node](), word.args[0]
        while isinstance(node, fx.Node) and node in self.level and len(node.users) == 1:
            chain.add(node)
            if "conv" in _opname(node):
                return chain
            node = node.args[0]
        return set()

    def scattered(self) -> dict[fx.Node, str]:
        """Nodes that torch must compute too, and why: it takes single tensors alone from a plan."""
        found = {}
        for node in self.known:
            single = isinstance(self.known[node], (Value, Tensor)) or node not in self.level
            leaves = any(user in self.level and self.level[user] != self.level.get(node) for user in node.users)
            if not single and (leaves or node in self.outputs):
                found[node] = "torch reads several tensors of it"
        return found

    def small_plans(self) -> dict[fx.Node, str]:
        """As :meth:`scattered`: a plan without a convolution is not worth entering."""
        convolved = {self.level[n] for n in self.level if "conv" in str(getattr(n.target, "_opname", n.target))}
        small = [node for node in self.level if node in self.known and self.level[node] not in convolved]
        return dict.fromkeys(small, "there is no convolution beside it")

    def nodes_of(self, values: Sequence[Value]) -> list[fx.Node]:
        """The nodes that compute values."""
        found: dict[Any, fx.Node] = {}
        for node, made in self.known.items():
            for value in made if isinstance(made, (tuple, list)) else [made]:
                found.setdefault(value.value if isinstance(value, Step) else value, node)
        return [found[value] for value in values]

    def captured(self) -> Captured:
        """The sections.

        Raises:
            UserError: a gate would be lost.
            Unserved: a step of an LSTM is no gate of a plan.
        """
        sections: list[PlanSection | TorchSection] = []
        for level in sorted({*self.levels, *(n for n in self.level.values() if n >= 0)}):
            section = self._plan(level) if level % 2 == 0 else self._torch(level)
            if section is not None:
                sections.append(section)
        return Captured(sections, [n.name for n in self.inputs], [self._origin(n).name for n in self.outputs])

    def _origin(self, node: fx.Node) -> fx.Node:
        """The node whose tensor another passes on as it is."""
        value, own = self.known.get(node), node.meta["val"]
        entered = self._at(self.level[node]).entered if node in self.level else {}
        for n, v in entered.items():
            other = n.meta["val"]
            if v is value and n is not node and (other.dtype, other.shape) == (own.dtype, own.shape):
                return self._origin(n)
        return node

    def _leaving(self, level: int) -> list[fx.Node]:
        """The nodes of a level whose tensors others read."""
        own = [node for node, at in self.level.items() if at == level and self._origin(node) is node]
        passed: dict[fx.Node, set[int]] = {}
        for node in self.level:
            for read in self._torch_reads(node) if self.level[node] % 2 else node.all_input_nodes:
                passed.setdefault(self._origin(read), set()).add(self.level[node])
        wanted = {self._origin(node) for node in self.outputs}
        return [node for node in own if node in wanted or passed.get(node, {level}) != {level}]

    def _plan(self, level: int) -> PlanSection | None:
        at, leaving = self._at(level), [n for n in self._leaving(level) if isinstance(self.known[n], Value)]
        gates = [node for node in leaving if self.known[node].op == "open"]
        leaving = [node for node in leaving if node not in gates]
        if not leaving:
            if gates:
                raise Unserved([self.known[node] for node in gates], "torch reads a gate by which nothing runs")
            return None
        program = at.program
        values = [self.known[node] for node in leaving]
        program.outputs = [value.source if value.op == "flatten" else value for value in values]
        program.shapes = [tuple(node.meta["val"].shape[1:]) for node in leaving]  # () of a number for each sample
        program.gates = [self.known[node] for node in gates]
        entered = {value.source if value.op == "open" else value: node for node, value in at.entered.items()}
        program.inputs = list(entered)
        program.values = in_order(program.outputs)
        simplify(program)
        program.inputs = [value for value in program.inputs if value in program.values]
        takes = [self._origin(entered[value]).name for value in program.inputs]
        emitted = emit(program)
        self._refuse_lost_gates(level)
        decided = [
            Decided(node.name, first, tuple(node.meta["val"].shape[1:]), node.meta["val"].dtype)
            for node, first in zip(gates, emitted.left, strict=True)
        ]
        return PlanSection(emitted, takes, [node.name for node in leaving], decided)

    def _refuse_lost_gates(self, level: int) -> None:
        """All that a gate governs must be in its own plan: elsewhere it would run whatever the gate says."""
        for word in [node for node, at in self.level.items() if at == level and _opname(node) == "where_open"]:
            if any(self.level.get(node, -1) not in (-1, level) for node in self._governed(word)):
                self._refuse_lost(word)

    @staticmethod
    def _refuse_lost(word: fx.Node) -> None:
        where = module_of(word) or _opname(word)
        raise UserError(f"{where}: torch computes a part of what its gate governs; {_LOST}")

    def _torch(self, level: int) -> TorchSection | None:
        nodes, leaving = self._at(level).nodes, self._leaving(level)
        for node in nodes:
            if getattr(node.target, "namespace", "") == "dsn":
                raise UserError(f"{self.reasons.get(node, node.name)}; {_LOST}")
        graph, copies, takes = fx.Graph(), dict[fx.Node, fx.Node](), list[str]()
        root = nn.Module()
        batch = graph.placeholder("batch")

        def enter(node: fx.Node) -> fx.Node:
            if node not in copies:
                if node in self.level:
                    node = self._origin(node)
                if node in copies:
                    return copies[node]
                if node in self.level:
                    takes.append(node.name)
                    copies[node] = graph.placeholder(node.name)
                elif isinstance(self.known.get(node), Tensor):
                    name = f"constant_{len(copies)}"
                    root.register_buffer(name, self.known[node])
                    copies[node] = graph.get_attr(name)
                elif node.target is torch.ops.aten.sym_size.int and self._is_batch(node):
                    copies[node] = batch
                elif node.target is torch.ops.aten.sym_size.int and node.args[0] not in copies:
                    raise UserError(
                        f"{module_of(node) or 'the model'}: a size that is not the batch's is read behind a plan, "
                        "which is not served: run the model itself (backend='reference')"
                    )
                else:
                    copies[node] = graph.node_copy(node, enter)
            return copies[node]

        for node in nodes:
            copies[node] = graph.node_copy(node, enter)
        graph.output(tuple(copies[node] for node in leaving))
        _placeholders_first(graph)
        reasons = [self.reasons.get(node) or self.foreign.get(node, "") for node in nodes]
        module = fx.GraphModule(root, graph)
        macs = sum(map(_macs, nodes))
        return TorchSection(module, takes, [node.name for node in leaving], [r for r in reasons if r], macs)


_LOST = "a gate would be lost: run the model itself (backend='reference'), or replace what no kernel has"


def _macs(node: fx.Node) -> int:
    """Multiply-accumulates of a sample in an operation that torch computes, by torch's own counter.

    Run anew without memory on the shapes that it was exported with; sizes that depend on values count as the batch.
    """

    def plain(x: Any) -> Any:
        if isinstance(x, Tensor):
            return torch.empty([plain(n) for n in x.shape], dtype=x.dtype, device=x.device)
        if isinstance(x, torch.SymInt):
            return _EXAMPLE if x.node.hint is None else x.node.hint
        return x

    with FakeTensorMode(shape_env=ShapeEnv()), FlopCounterMode(display=False) as counter:
        args, kwargs = tree_map(plain, fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"]))
        node.target(*args, **kwargs)  # type: ignore[operator]  # of a call_function
    return counter.get_total_flops() // (2 * _EXAMPLE)


def _placeholders_first(graph: fx.Graph) -> None:
    first = next(iter(graph.nodes))
    for node in [node for node in graph.nodes if node.op == "placeholder" and node is not first]:
        first.append(node)
        first = node
