"""A network as ``torch.export`` sees it, translated into values."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import TreeSpec

from dsn_models.errors import UserError

from .emit import Emitted, emit
from .simplify import simplify
from .translate import Foreign, gate_words, per_sample, translate
from .values import Program, Value

BATCH = 3  # with which a network is exported: no size that a network is likely to have otherwise


def capture_model(model: nn.Module, example: Tensor) -> tuple[Emitted, TreeSpec, Callable[[int, int], Emitted]]:
    """A module of one batch of images, whatever its class, as a graph.

    Args:
        model: in evaluation it is the function that is captured. It is copied, not kept.
        example: images [B, C, H, W] of the first size; their values are not used.

    Returns:
        the graph for images of that size; how the model structures its outputs; and what captures it for another height
        and width.

    Raises:
        UserError: ``torch.export`` refuses the model, or an operation has no kernel; the message says where and why.
    """
    kept = copy.deepcopy(model).eval().requires_grad_(False)

    def at(height: int, width: int) -> Emitted:
        return emit(read(export(kept, [example.new_empty(0, example.shape[1], height, width)])))

    exported = export(kept, [example])
    structure = exported.call_spec.out_spec
    assert structure is not None
    return emit(read(exported)), structure, at


def export(model: nn.Module, example: Sequence[Tensor]) -> ExportedProgram:
    """``model`` in evaluation as a program of core ATen for a batch of :data:`BATCH`.

    Args:
        model: any module; its mode is as before when this returns.
        example: what its forward takes, each [B, ...].

    Raises:
        UserError: ``torch.export`` refuses the model: it branches on data, for one. The message is its own first line.
    """
    gate_words()
    training = {module: module.training for module in model.modules()}
    inputs = tuple(x.new_zeros(BATCH, *x.shape[1:]) for x in example)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(model.eval(), inputs, strict=False)
            return program.run_decompositions({})
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{type(model).__name__} cannot be captured by torch.export: {reason.strip()}") from error
    finally:
        for module, was in training.items():
            module.training = was


def read(exported: ExportedProgram) -> Program:
    """The values of an exported program, simplified.

    Raises:
        UserError: an operation has no kernel; the message names it, its module and the reason.
    """
    reader = _Reader(exported)
    simplify(reader.program)
    return reader.program


class _Reader:
    def __init__(self, exported: ExportedProgram) -> None:
        self.program = Program()
        self.known: dict[fx.Node, Any] = {}
        constants = {**exported.state_dict, **exported.constants}
        kinds = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
        for node in exported.graph.nodes:
            if node.op == "placeholder":
                spec = kinds[node.name]
                if spec.kind == InputKind.USER_INPUT:
                    self.known[node] = self._input(node)
                else:
                    self.known[node] = constants[spec.target]
            elif node.op == "call_function":
                self.known[node] = self._translated(node)
            elif node.op == "output":
                self.program.outputs = [self._output(x, node) for x in node.args[0]]
                self.program.shapes = [tuple(int(n) for n in x.meta["val"].shape[1:]) for x in node.args[0]]

    def _input(self, node: fx.Node) -> Value:
        value = Value("input", [], per_sample(node, BATCH))
        self.program.inputs.append(value)
        self.program.values.append(value)
        return value

    def _translated(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self.known[n])
        try:
            made = translate(node, args, kwargs, BATCH)
        except Foreign as reason:
            stack = node.meta.get("nn_module_stack") or {}
            path = next(reversed([path for path, _ in stack.values()]), "")
            where = f"{path}: " if path else ""
            raise UserError(f"{where}{node.target} is not served: {reason}") from reason
        self._enter(made)
        return made

    def _enter(self, made: Any) -> None:
        if isinstance(made, Value):
            known = set(self.program.values)
            self.program.values += [v for v in _in_order(made, known) if v not in known]
        elif isinstance(made, (list, tuple)):
            for each in made:
                self._enter(each)
        elif hasattr(made, "parts"):
            self._enter(made.parts)

    def _output(self, x: Any, node: fx.Node) -> Value:
        value = self.known[x] if isinstance(x, fx.Node) else x
        if not isinstance(value, Value):
            raise UserError(f"the model gives {type(value).__name__}; expected tensors of a batch")
        return value


def _in_order(value: Value, known: set[Value]) -> list[Value]:
    """What is not known yet of that which a value is computed from, itself last."""
    found: list[Value] = []
    for read in value.inputs:
        if read not in known:
            found += [v for v in _in_order(read, known) if v not in found]
    return [*found, value]
