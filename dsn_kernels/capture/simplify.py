"""Algebra on values: what is linear becomes one convolution, what follows a sum becomes its activation."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dsn_models.errors import UserError

from ..graph import KEEP_ZERO, Window
from .blocks import give_stems, join_heads, join_layers, join_transitions
from .gating import Gating
from .recurrent import join_gates
from .values import Program, Unserved, Value, ancestors, in_order

# What an activation may follow within one instruction.
_ACTIVATED = ("conv", "depthwise", "linear", "affine", "scale", "add", "upsample")
_LINEAR = ("conv", "depthwise", "linear")


def simplify(program: Program) -> None:
    """Folds and fuses what comes to the same in exact arithmetic; the order of values stays.

    Raises:
        UserError: a mask chooses from what no convolution made.
        Unserved: an LSTM that decides no gate as SkipNet's does.
    """
    for step in (_drop_views, _serve_lines, _add_what_is_skipped, _pool_what_is_joined, _fold_affine, _name_activations,
                 _choose_filters, _merge_parallel, _fuse_activations, join_gates, _take_in_norms, join_layers,
                 give_stems, join_transitions, join_heads, _fill_zeros):  # fmt: skip
        step(program)
        program.prune()


def _drop_views(program: Program) -> None:
    """A vector is one, with or without the dimensions of a pixel; what leaves has its shape noted."""
    users = program.users()
    for value in program.values:
        if value.op == "view":
            program.replace(value, value.source, users)


def _serve_lines(program: Program) -> None:
    """Every other row alone, or zeros around a map that no convolution reads, has no kernel."""
    if found := [value for value in program.values if value.op in ("lines", "pad")]:
        raise Unserved(found, "it takes a part, or pads, for no convolution")


def _add_what_is_skipped(program: Program) -> None:
    """x plus what a gate lets run, or zeros: the gate chooses between x and the sum, so that adding moves no data."""
    users = program.users()
    for total in program.values:
        for x, skipped in (total.inputs, total.inputs[::-1]) if total.op == "add" else ():
            zeros = skipped.op == "where" and skipped.inputs[2].op == "zeros" and x is not skipped
            if total.op == "add" and zeros and _only_user(skipped, users, program):
                gate, computed, _ = skipped.inputs
                total.op, total.inputs = "where", [gate, skipped, x]
                skipped.op, skipped.inputs = "add", [x, computed]
                total.where, skipped.where = skipped.where, total.where
    program.values = in_order(program.outputs)


def _pool_what_is_joined(program: Program) -> None:
    """Means of maps side by side are the mean of the maps side by side, if these are joined too."""
    joins = [value for value in program.values if value.op == "cat"]
    joined = {tuple(value.inputs): value for value in joins}
    for value in joins:
        means = all(part.op == "mean" for part in value.inputs)
        whole = joined.get(tuple(part.source for part in value.inputs)) if means else None
        if whole is not None:
            value.op, value.inputs = "mean", [whole]
    program.values = in_order(program.outputs)


def _fill_zeros(program: Program) -> None:
    """Zeros that stand where a gate is shut: 0 times a map of the same size that is always there."""
    gating, at = Gating(program), {value: i for i, value in enumerate(program.values)}
    for value in [value for value in program.values if value.op == "zeros"]:
        (where,) = (user for user in program.values if value in user.inputs)
        near = [
            x
            for x in ancestors(where.inputs[:2])
            if x.shape[1:] == value.shape[1:] and x.channels >= value.channels and gating.of(x) == gating.of(where)
        ]
        near = [x for x in near if x.op not in ("open", "lstm", "zeros")]
        if not near:
            raise Unserved([where], "zeros stand for what it computes where its gate is shut, and no map has its size")
        source = min(near, key=lambda x: at.get(x, len(at)))
        part = Value("slice", [source], value.shape, value.where) if source.channels > value.channels else source
        nothing = torch.zeros(value.channels, dtype=torch.float64)
        value.op, value.inputs, value.weight, value.bias = "affine", [part], nothing, nothing
    program.values = in_order(program.outputs)


def _fold_affine(program: Program) -> None:
    """A scale and shift behind a convolution, a linear map or another of its kind goes into its weights."""
    users = program.users()
    for value in program.values:
        if value.op != "affine":
            continue
        made, scale, shift = value.source, _tensor(value.weight), _tensor(value.bias)
        if made.op not in (*_LINEAR, "affine") or made.activation != "none" or not _only_user(made, users, program):
            continue
        weight, bias = _tensor(made.weight), _tensor(made.bias)
        made.weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
        made.bias = bias * scale + shift
        program.replace(value, made, users)


def _only_user(value: Value, users: dict[Value, list[Value]], program: Program) -> bool:
    return len(users[value]) == 1 and value not in program.outputs


def _name_activations(program: Program) -> None:
    """relu6(x + 3) / 6 is a hard sigmoid."""
    users = program.users()
    for value in program.values:
        if value.op != "affine" or value.source.op != "activation" or value.source.activation != "relu6":
            continue
        clamped, before = value.source, value.source.source
        if before.op != "affine" or not (_only_user(clamped, users, program) and _only_user(before, users, program)):
            continue
        moved = _is(before.weight, 1) and _is(before.bias, 3)
        if moved and _is(value.weight, 1 / 6) and _is(value.bias, 0):
            value.op, value.activation, value.inputs = "activation", "hardsigmoid", [before.source]
            value.weight = value.bias = None
    for value in program.values:
        if value.op != "scale":
            continue
        x, factor = value.inputs
        kind = {"sigmoid": "silu", "hardsigmoid": "hardswish"}.get(factor.activation)
        if factor.op == "activation" and factor.source is x and kind:
            value.op, value.activation, value.inputs = "activation", kind, [x]


def _is(tensor: Tensor | None, number: float) -> bool:
    return tensor is not None and bool((tensor - number).abs().max() < 1e-7)


def _choose_filters(program: Program) -> None:
    """A mask on what a convolution gives chooses its filters; on what is joined, those of each that a convolution or
    pool gives."""
    _choose_what_is_joined(program)
    users = program.users()
    for value in program.values:
        if value.op != "choose":
            continue
        made, mask = value.inputs
        if made.op == "activation" and made.activation in KEEP_ZERO and _only_user(made, users, program):
            value.activation, made = made.activation, made.source
        if made.op in ("max_pool", "avg_pool") and value.activation == "none" and len(made.inputs) == 1:
            if _only_user(made, users, program):
                value.op, value.inputs, value.window = made.op, [made.source, mask], made.window
                value.counts_padding = made.counts_padding
                continue
        if made.op != "conv" or made.groups != 1 or not _only_user(made, users, program):
            raise UserError(
                f"{value.where or 'choose_filters'} chooses from a {made.op}, which is no convolution that it alone "
                "reads; expected choose_filters(convolution, mask), a batch norm between them or not"
            )
        value.op, value.inputs = "conv", [made.source, mask]
        value.weight, value.bias, value.window = made.weight, made.bias, made.window


def _choose_what_is_joined(program: Program) -> None:
    users = program.users()
    while joins := [value for value in program.values if value.op == "choose" and value.source.op == "cat"]:
        for value in joins:
            (made, mask), parts, first = value.inputs, list[Value](), 0
            if not mask.inputs or not _only_user(made, users, program):
                raise UserError(f"{value.where or 'choose_filters'}: {_WHOLE_MASK}")
            for part in made.inputs:
                own = replace(mask, shape=(part.channels,), first=mask.first + first, inputs=mask.inputs)
                parts.append(Value("choose", [part, own], part.shape, value.where))
                first += part.channels
            value.op, value.inputs = "cat", parts
        program.values = in_order(program.outputs)
        users = program.users()


_WHOLE_MASK = "what is joined is masked by what torch decides, or read unmasked too; expected a mask for each part"


def _merge_parallel(program: Program) -> None:
    """A sum of convolutions of one map that leave as many channels of one size is one convolution (RepVGG)."""
    users = program.users()
    for value in program.values:
        if value.op != "add":
            continue
        a, b = (_as_convolution(x, users, program) for x in value.inputs)
        if a is None or b is None or a.source is not b.source or a.groups != b.groups:
            continue
        joined = _sum_of(a, b)
        if joined is not None:
            value.op, value.inputs, value.groups = "conv", [a.source], a.groups
            value.weight, value.bias, value.window = joined.weight, joined.bias, joined.window
            users = program.users()


def _as_convolution(x: Value, users: dict[Value, list[Value]], program: Program) -> Value | None:
    """x, if it is a convolution without what may not be added; a norm of a map as a 1x1."""
    if not _only_user(x, users, program) or x.activation != "none" or x.before is not None:
        return None
    if x.op == "conv" and len(x.inputs) == 1:
        return x
    if x.op == "affine" and len(x.shape) == 3 and x.shape[1:] != (1, 1):
        weight = torch.diag(_tensor(x.weight))[:, :, None, None]
        return replace(x, op="conv", weight=weight, window=Window(1, 1), activation="none")
    return None


def _sum_of(a: Value, b: Value) -> Value | None:
    if a.window is None or b.window is None or a.window.taps == b.window.taps == 1:
        return None
    if a.window.taps < b.window.taps:
        a, b = b, a
    large, small = a.window, b.window
    assert large is not None and small is not None
    rows, columns = large.rows - small.rows, large.columns - small.columns
    centred = (large.pad_rows - small.pad_rows, large.pad_columns - small.pad_columns) == (rows // 2, columns // 2)
    plain = large.dilation == small.dilation == 1 and large[6:] == small[6:] and large.stride == small.stride
    if not (plain and centred and rows % 2 == columns % 2 == 0 and rows >= 0 and columns >= 0):
        return None
    spread = F.pad(_tensor(b.weight), (columns // 2, columns // 2, rows // 2, rows // 2))
    return replace(a, weight=_tensor(a.weight) + spread, bias=_tensor(a.bias) + _tensor(b.bias))


def _fuse_activations(program: Program) -> None:
    users = program.users()
    for value in program.values:
        if value.op != "activation":
            continue
        made = value.source
        masked = made.op == "conv" and len(made.inputs) > 1
        fits = made.op in _ACTIVATED and (value.activation in KEEP_ZERO or not masked)
        if fits and made.activation == "none" and _only_user(made, users, program):
            made.activation = value.activation
            program.replace(value, made, users)


def _take_in_norms(program: Program) -> None:
    """A BN-ReLU, or a ReLU alone, whose readers are all convolutions is done by each of them as it reads."""
    users = program.users()
    for value in program.values:
        norm = value.op == "affine" and value.activation == "relu"
        if not (norm or (value.op == "activation" and value.activation == "relu")) or value in program.outputs:
            continue
        readers = users[value]
        if len(value.shape) != 3 or not all(_takes_norm(reader, value) for reader in readers):
            continue
        one = torch.ones(value.channels, dtype=torch.float64)
        scale = _tensor(value.weight) if norm else one
        shift = _tensor(value.bias) if norm else torch.zeros_like(one)
        for reader in readers:
            reader.before, reader.inputs = (scale, shift), [value.source, *reader.inputs[1:]]
        others = (user for user in users[value.source] if user is not value)
        users[value.source] = list(dict.fromkeys([*others, *readers]))
        users[value], value.inputs = [], []


def _takes_norm(reader: Value, value: Value) -> bool:
    plain = reader.op == "conv" and reader.groups == 1 and reader.before is None
    served = not value.source.may_lack or (reader.window is not None and reader.window.taps == 1)
    return plain and served and reader.source is value and reader.inputs.count(value) == 1


def _tensor(x: Tensor | None) -> Tensor:
    assert x is not None
    return x
