"""Dense layers with gates as one block, and the transitions behind blocks, in anybody's network.

In a block a layer that is shut is saved twice: by itself, and in all that would have read what it leaves.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ..graph import Affine, DenseLayer, Window
from .gating import Gating
from .placing import is_point
from .values import Block, Program, Unserved, Value, in_order

_GATES = {"sigmoid": ("soft", 1.0), "hardsigmoid": ("hard", 6.0)}  # kinds, and the factor of the score's linear map


class _Layer(NamedTuple):
    """A dense layer as values: ``x`` is joined with ``choice``, what its gate lets run or zeros."""

    x: Value
    choice: Value
    kind: str
    shape: tuple[int, int]  # of its bottleneck, 0 without, and its growth
    made: DenseLayer


def join_layers(program: Program) -> None:
    """Makes a value of each run of dense layers whose outputs follow their inputs, and whose gates are hard or soft
    ones of the pooled input. Dual Skipping Networks, section 3.1."""
    users, outer = program.users(), Gating(program)
    layers = {value: layer for value in program.values if (layer := _layer(value, users, program)) is not None}
    behind = {layer.x: value for value, layer in layers.items()}

    def next_of(value: Value) -> Value | None:
        """What the layer behind is joined in, if nobody else reads what they share."""
        found = behind.get(value)
        if found is None or (layers[found].kind, layers[found].shape) != (layers[value].kind, layers[value].shape):
            return None
        return found if len(users[value]) == 3 and value not in program.outputs else None

    inner = {found for value in layers if (found := next_of(value)) is not None}
    for value, first in layers.items():
        if value in inner or first.x.may_lack or outer.of(value) >= 0:
            continue
        run, last = [first], value
        while (found := next_of(last)) is not None:
            last = found
            run.append(layers[last])
        names = tuple(layer.choice.where or layer.choice.op for layer in run)
        gates = tuple(layer.choice.inputs[0] for layer in run)
        last.op, last.inputs = "dense_block", [first.x]
        last.block = Block(tuple(layer.made for layer in run), first.kind, names, gates)


def _layer(value: Value, users: dict[Value, list[Value]], program: Program) -> _Layer | None:
    """The dense layer whose output is joined in a value, if it is one."""

    def alone(x: Value, *readers: Value) -> bool:
        return set(users[x]) == set(readers) and x not in program.outputs

    if value.op != "cat" or len(value.inputs) != 2 or value.inputs[1].op != "where":
        return None
    x, choice = value.inputs
    gate, computed, otherwise = choice.inputs
    if otherwise.op != "zeros" or gate.op != "open" or len(x.shape) != 3:
        return None
    score, first = gate.source, _first(computed)
    if score.activation not in _GATES or score.op not in ("linear", "conv") or score.channels != 1 or first is None:
        return None
    pooled, convolutions = score.source, [first] if first is computed else [first, computed]
    plain = pooled.op == "mean" and pooled.source is x and first.source is x and all(map(_is_plain, convolutions))
    served = plain and (score.op == "linear" or is_point(score))
    if not (
        served
        and alone(pooled, score)
        and alone(score, gate)
        and alone(gate, choice)
        and alone(computed, choice)
        and (first is computed or alone(first, computed))
        and alone(choice, value)
    ):
        return None
    assert first.before is not None and first.weight is not None and computed.weight is not None
    assert score.weight is not None and score.bias is not None
    kind, factor = _GATES[score.activation]
    reduce = None if first is computed else first
    made = DenseLayer(
        norm=Affine(*first.before),
        reduce=None if reduce is None else reduce.weight,
        reduce_bias=None if reduce is None else reduce.bias,
        conv=computed.weight,
        conv_bias=None,
        expand=None,
        gate=score.weight.flatten() / factor,
        gate_bias=score.bias / factor,
    )
    return _Layer(x, choice, kind, (0 if reduce is None else reduce.channels, computed.channels), made)


def _is_plain(conv: Value) -> bool:
    return conv.groups == 1 and len(conv.inputs) == 1


def _first(last: Value) -> Value | None:
    """The first convolution of a dense layer that ends in ``last``."""
    wide = last.op == "conv" and last.window == Window(3, 3, 1, 1, 1) and last.activation == "none"
    if not wide or last.bias is None or last.bias.any():
        return None
    if last.before is not None:
        return last
    reduce = last.source
    narrow = reduce.op == "conv" and reduce.window == Window(1, 1) and reduce.before is not None
    return reduce if narrow and reduce.activation == "relu" else None


def give_stems(program: Program) -> None:
    """A plain 3x3 convolution of the image in front of blocks is one of each block's own: branches then share nothing,
    so that threads may walk them side by side, and a GPU's kernels fill a block's state with it."""
    users = program.users()
    blocks = [value for value in program.values if value.op == "dense_block"]
    for block in blocks:
        conv = block.source
        plain = conv.op == "conv" and conv.window == Window(3, 3, 1, 1, 1) and conv.before is None and _is_plain(conv)
        whole = conv.activation == "none" and conv.bias is not None and not conv.bias.any()
        readers = [user for user in users[conv] if user.op != "dense_block"]
        if plain and whole and not readers and program.inputs == [conv.source] and conv not in program.outputs:
            block.inputs = [replace(conv, op="stem")]
    program.values = in_order(program.outputs)


def join_transitions(program: Program) -> None:
    """A BN-ReLU-1x1 convolution and the average pool of 2x2 behind it: the pool comes first, and the 1x1 costs a
    quarter. What it reads may be a map and, behind its channels, a smaller one, enlarged bilinearly: a guide.

    Raises:
        Unserved: of maps that are enlarged so for anything else.
    """
    users, gating = program.users(), Gating(program)
    for pool in program.values:
        if pool.op != "avg_pool" or pool.window != Window(2, 2, 2) or gating.of(pool) >= 0:
            continue
        conv = pool.source
        plain = conv.op == "conv" and conv.window == Window(1, 1) and conv.before is not None and _is_plain(conv)
        alone = users[conv] == [pool] and conv not in program.outputs
        if plain and alone and conv.activation == "none" and not (conv.bias is not None and conv.bias.any()):
            pool.op, pool.inputs, pool.weight, pool.before = "transition", conv.inputs, conv.weight, conv.before
            both = conv.source
            guided = both.op == "cat" and len(both.inputs) == 2 and both.inputs[1].op == "bilinear"
            if guided and users[both] == [conv] and both not in program.outputs:
                x, guide = both.inputs
                if guide.source.shape[1] <= x.shape[1] and guide.source.shape[2] <= x.shape[2]:
                    pool.inputs = [x, guide.source]
    program.prune()
    if found := [value for value in program.values if value.op == "bilinear"]:
        raise Unserved(found, "it enlarges a map bilinearly for no transition")


def join_heads(program: Program) -> None:
    """BN-ReLU, the mean and a linear map that leaves: over the channels that hold data alone."""
    users, gating = program.users(), Gating(program)
    for linear in program.outputs:
        if linear.op != "linear" or users[linear] or linear.activation != "none" or gating.of(linear) >= 0:
            continue
        pooled = linear.source
        norm = pooled.source if pooled.op == "mean" else pooled
        if (
            norm.op == "affine"
            and norm.activation == "relu"
            and [users[x] for x in (norm, pooled)] == [[pooled], [linear]]
        ):
            assert norm.weight is not None and norm.bias is not None
            if norm not in program.outputs and pooled not in program.outputs:
                linear.op, linear.inputs, linear.before = "head", [norm.source], (norm.weight, norm.bias)
