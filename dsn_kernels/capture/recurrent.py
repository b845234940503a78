"""Recurrent gates, as in SkipNet: an LSTM goes one step for each gate, with the pooled map in front of it.

Its state goes on where a gate is shut, too: what an image skipped decides what it skips next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dsn_models.skipnet import EMBEDDING

from ..graph import Recurrence
from .placing import is_point
from .translate import Call, Foreign, Step, Zeros, translates
from .values import Cell, Program, Unserved, Value

_SIZE = EMBEDDING


class _CellState:
    """What an LSTM's step hands to the next one beside its output."""

    def __init__(self, step: Value) -> None:
        self.step = step


@translates("lstm_cell.default")
def _lstm_cell(
    call: Call, x: Any, state: Sequence[Any], input: Any, hidden: Any, input_bias: Any = None, hidden_bias: Any = None
) -> tuple[Any, Any]:
    step = _step(call, x, state, [input, hidden, input_bias, hidden_bias])
    return step, _CellState(step)


@translates("lstm.input")
def _lstm(
    call: Call, x: Any, state: Sequence[Any], weights: Sequence[Any], has_biases: bool, layers: int, dropout: float,
    training: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Any, Any, Any]:  # fmt: skip
    if layers != 1 or bidirectional or len(weights) != (4 if has_biases else 2):
        raise Foreign("it is an LSTM of several layers, of both directions or with a projection of its own")
    given: Any = call.node.args[0]
    if not isinstance(x, Step) or given.meta["val"].shape[1 if batch_first else 0] != 1:
        raise Foreign("it reads a sequence of more than one vector")
    before = [s.value if isinstance(s, Step) else s for s in state]
    step = _step(call, x.value, before, [*weights, None, None][:4])
    return Step(step), Step(step), _CellState(step)


def _step(call: Call, x: Any, state: Sequence[Any], weights: Sequence[Any]) -> Value:
    if not all(w is None or isinstance(w, Tensor) for w in weights):
        raise Foreign("its weights are computed by the network")
    input, hidden, *biases = (w.detach().double() for w in weights if w is not None)
    if [*input.shape] != [4 * _SIZE, _SIZE] or [*hidden.shape] != [4 * _SIZE, _SIZE]:
        raise Foreign(f"it is an LSTM of {input.shape[1]} and {hidden.shape[1]} numbers; kernels have {_SIZE} of each")
    if not isinstance(x, Value) or not x.is_vector or x.op in ("open", "flatten"):
        raise Foreign("it reads no vector of each sample")
    bias = sum(biases, input.new_zeros(4 * _SIZE))
    before: list[Value] = []
    h, c = state
    if isinstance(h, Zeros) and isinstance(c, Zeros):
        pass
    elif isinstance(h, Value) and h.op == "lstm" and isinstance(c, _CellState) and c.step is h:
        before = [h]
    else:
        raise Foreign("its state is neither zeros nor that of the step before")
    return call.make("lstm", x, *before, cell=Cell(input, hidden, bias), shape=(_SIZE,))


def join_gates(program: Program) -> None:
    """Makes of each LSTM's step, the linear map in front of it, and the linear map and sigmoid behind it one value,
    which opens a gate.

    Raises:
        Unserved: a step that is no such gate, or one of a second LSTM: a plan has the state of one.
    """
    users = program.users()
    before: Value | None = None
    for step in [value for value in program.values if value.op == "lstm"]:
        if step.inputs[1:] != ([] if before is None else [before]):
            raise Unserved([step], "it is one of several LSTMs, or of steps that do not follow one another")
        before = _join(step, users, program, before)


def _join(step: Value, users: dict[Value, list[Value]], program: Program, before: Value | None) -> Value:
    def only_user(value: Value) -> Value | None:
        found = [user for user in users[value] if value is not step or user.op != "lstm"]
        return found[0] if len(found) == 1 and value not in program.outputs else None

    embedding, score = step.source, only_user(step)
    gate = score and only_user(score)
    where = gate and only_user(gate)
    if where is None or where.op != "where" or where.inputs[0] is not gate:
        raise Unserved([step], "its state decides anything but the gate of one where_open")
    assert score is not None and gate is not None and isinstance(step.cell, Cell)
    if not _is_linear(score) or score.activation != "sigmoid" or gate.op != "open":
        raise Unserved([step], "its gate is not the sigmoid of a linear map, compared with a number")
    if not _is_linear(embedding) or embedding.activation != "none" or users[embedding] != [step]:
        raise Unserved([step], "it reads anything but a linear map of a pooled vector")
    weight, bias = _weights(score)
    shared = Recurrence(*step.cell, projection=weight[0], projection_bias=bias)
    if before is not None:
        known = before.cell
        assert isinstance(known, Recurrence)
        if not all(map(torch.equal, known, shared)):
            raise Unserved([step], "its weights are not those of the step before")
        shared = known  # packed once
    step.weight, step.bias = _weights(embedding)
    step.cell, step.inputs = shared, [embedding.source, *step.inputs[1:]]
    gate.inputs = [step]
    return step


def _is_linear(value: Value) -> bool:
    """Whether it is a linear map of one vector alone."""
    return value.source.is_vector and (value.op == "linear" or (is_point(value) and len(value.inputs) == 1))


def _weights(value: Value) -> tuple[Tensor, Tensor]:
    assert value.weight is not None and value.bias is not None
    return value.weight.flatten(1), value.bias
