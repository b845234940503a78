"""From core ATen, as ``torch.export`` gives it, to values; what has no counterpart among them says why."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from ..graph import Window
from .values import Shape, Value, decided_before


class Foreign(Exception):
    """An operation that no kernel has; its text is the reason."""


class Zeros:
    """A tensor of zeros, whatever its shape."""


class Stack:
    """Maps of one shape, one beside another along a new dimension."""

    def __init__(self, parts: list[Value]) -> None:
        self.parts = parts


class Step:
    """A vector as the only one of a sequence, [1, B, C] or [B, 1, C]."""

    def __init__(self, value: Value) -> None:
        self.value = value


_OPS: dict[Any, Callable[..., Any]] = {}
_ATEN: Any = torch.ops.aten


def translates(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enters a function as the translation of operators, named ``"conv2d"`` or ``"add.Tensor"``."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            packet, _, overload = name.partition(".")
            packet = getattr(_ATEN, packet)
            for each in [overload] if overload else packet.overloads():
                _OPS[getattr(packet, each)] = function
        return function

    return enter


class Call:
    """An operation that is translated: its node, and values made for it.

    Attributes:
        batch: the size of the batch, a symbol.
    """

    def __init__(self, node: fx.Node, batch: Any) -> None:
        self.node, self.batch = node, batch

    @property
    def dims(self) -> int:
        """Dimensions of what it gives, the batch counted."""
        return len(self.node.meta["val"].shape)

    @property
    def shape(self) -> Shape:
        return sample_shape(self.node.meta["val"], self.batch)

    def shapes(self) -> list[Shape]:
        """Of each of several tensors that it gives."""
        return [sample_shape(value, self.batch) for value in self.node.meta["val"]]

    @property
    def is_step(self) -> bool:
        """Whether it gives a sequence of one vector for each sample."""
        shape = getattr(self.node.meta["val"], "shape", ())
        if len(shape) != 3:
            return False
        sizes = [getattr(getattr(n, "node", None), "expr", n) for n in shape[:2]]
        return self.batch.node.expr in sizes and 1 in sizes

    @property
    def where(self) -> str:
        return module_of(self.node)

    def make(self, op: str, *inputs: Value, **fields: Any) -> Value:
        return Value(op, list(inputs), fields.pop("shape", None) or self.shape, self.where, **fields)


def module_of(node: fx.Node) -> str:
    """The path of the module in which an operation is."""
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed([path for path, _ in stack.values()]), "")


def sample_shape(value: Any, batch: Any) -> Shape:
    """The shape of one sample's part of a tensor; of a single number, (1,)."""
    if not isinstance(value, Tensor):
        raise Foreign("it gives no single tensor")
    first, *others = value.shape or (0,)
    if isinstance(first, int) or first.node.expr != batch.node.expr or not all(isinstance(n, int) for n in others):
        raise Foreign(f"its result {list(value.shape)} is not one of each sample of a batch")
    return tuple(others) or (1,)


def translate(node: fx.Node, args: Any, kwargs: Any, batch: Any) -> Any:
    """The value that a node gives, or several; ``args`` hold values, constants and numbers in the place of nodes.

    Raises:
        Foreign: nothing has a kernel for it.
    """
    if node.target is operator.getitem:
        if args[1] >= len(args[0]):
            raise Foreign("it gives the places of maxima")
        return args[0][args[1]]
    function, call = _OPS.get(node.target), Call(node, batch)
    if function is None:
        raise Foreign("no kernel has this operation")
    if function is _slice and _same_shape(node):
        return args[0]
    if function in (_view, _identity, _converted, _select, _slice) and args:
        if isinstance(args[0], Zeros):
            return args[0]
        if isinstance(args[0], Step) or (isinstance(args[0], Value) and call.is_step):
            return _as_step(call, args[0])
    by_shape = function in (_view, _zeros, _repeated, _upsample, _upsample_smoothly)  # they read the one that they give
    if not by_shape and any(isinstance(x, fx.Node) for x in tree_leaves((args, kwargs))):
        raise Foreign("it computes with a size")
    return function(call, *args, **kwargs)


def _same_shape(node: fx.Node) -> bool:
    given: Any = node.args[0]
    return given.meta["val"].shape == node.meta["val"].shape


def _as_step(call: Call, x: Any) -> Any:
    x = x.value if isinstance(x, Step) else _value(x, (1, 3))
    if not x.is_vector:
        raise Foreign("it makes a sequence of a map")
    if call.is_step:
        return Step(x)
    if call.shape in ((x.channels,), (x.channels, 1, 1)):
        return call.make("view", x)
    raise Foreign("it takes a sequence apart")


def _value(x: Any, dims: Sequence[int] = (3,)) -> Value:
    if not isinstance(x, Value):
        raise Foreign("it is not of a sample's map")
    if x.op == "open":
        raise Foreign("it computes with what a gate decides")
    if x.op == "flatten":
        raise Foreign("it reads a flattened map")
    if len(x.shape) not in dims:
        raise Foreign(f"it reads a tensor of {len(x.shape) + 1} dimensions")
    return x


def _constant(x: Any, what: str) -> Tensor:
    if not isinstance(x, Tensor):
        raise Foreign(f"its {what} is computed by the network")
    return x.detach().double()


def _pair(x: int | Sequence[int]) -> tuple[int, int]:
    both = [x, x] if isinstance(x, int) else list(x)
    return int(both[0]), int(both[-1])


def _alike(x: int | Sequence[int], what: str) -> int:
    rows, columns = _pair(x)
    if rows != columns:
        raise Foreign(f"its {what} differs by direction, {rows} and {columns}")
    return rows


@translates("conv2d.default", "convolution.default")
def _conv2d(
    call: Call,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    *others: Any,
) -> Value:
    if len(others) == 3:  # of aten.convolution
        transposed, _, groups = others
        if transposed:
            raise Foreign("it is a transposed convolution")
    else:
        (groups,) = others or (1,)
    if len(_pair(stride)) == len(_pair(padding)) and isinstance(weight, Tensor) and weight.dim() != 4:
        raise Foreign(f"it is a convolution in {weight.dim() - 2} dimensions")
    return _convolve(call, x, weight, bias, stride, _pair(padding), (0, 0), dilation, groups)


@translates("conv2d.padding")
def _conv2d_padding(
    call: Call, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: str = "valid", dilation: Any = 1,
    groups: int = 1,
) -> Value:  # fmt: skip
    if padding == "valid":
        return _convolve(call, x, weight, bias, stride, (0, 0), (0, 0), dilation, groups)
    apart = _alike(dilation, "dilation")
    total = [apart * (size - 1) for size in _constant(weight, "weight").shape[2:]]
    before = (total[0] // 2, total[1] // 2)
    more = (total[0] - 2 * before[0], total[1] - 2 * before[1])
    return _convolve(call, x, weight, bias, stride, before, more, dilation, groups)


def _convolve(
    call: Call, x: Any, weight: Any, bias: Any, stride: Any, pad: tuple[int, int], more: tuple[int, int], dilation: Any,
    groups: int,
) -> Value:  # fmt: skip
    x, weight = _value(x), _constant(weight, "weight")
    if weight.dim() != 4:
        raise Foreign(f"it is a convolution in {weight.dim() - 2} dimensions")
    stride, one = _alike(stride, "stride"), x.op == "max_pool" and x.window is not None and x.window.taps == 1
    if one and weight.shape[2:] == (1, 1) and not any(pad):  # it strides in its reader's place
        assert x.window is not None
        x, stride = x.source, stride * x.window.stride
    if x.op == "pad":
        x, pad, more = x.source, *_padded(x, pad, more)
    dilation = _alike(dilation, "dilation")
    window = Window(weight.shape[2], weight.shape[3], stride, *pad, dilation, *more)
    bias = weight.new_zeros(len(weight)) if bias is None else _constant(bias, "bias")
    op = "depthwise" if groups == x.channels == len(weight) and groups > 1 else "conv"
    return call.make(op, x, weight=weight, bias=bias, window=window, groups=groups)


def _padded(x: Value, pad: tuple[int, int], more: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The zeros before and beyond those behind a map, those of a padding in front counted."""
    assert x.window is not None
    own = x.window
    before = (pad[0] + own.pad_rows, pad[1] + own.pad_columns)
    return before, (more[0] + own.more_rows, more[1] + own.more_columns)


_READ_PADDED = (_ATEN.conv2d.default, _ATEN.convolution.default, _ATEN.slice.Tensor)


@translates("constant_pad_nd.default", "pad.default")
def _pad(call: Call, x: Any, pad: Sequence[int], *others: Any) -> Value:
    x = _value(x)
    mode, value = (*others, 0)[:2] if others and isinstance(others[0], str) else ("constant", (*others, 0)[0])
    if len(pad) == 6 and not any(pad[:4]) and min(pad) >= 0 and mode == "constant" and not float(value or 0):
        return call.make("widen", x, number=int(pad[4]))
    left, right, top, bottom = (*map(int, pad), 0, 0)[:4]
    convolved = all(user.target in _READ_PADDED for user in call.node.users)
    if mode != "constant" or float(value or 0) or len(pad) > 4 or not convolved:
        raise Foreign("it pads with something else than zeros for a convolution")
    return call.make("pad", x, window=Window(1, 1, 1, top, left, 1, bottom - top, right - left))


@translates("_native_batch_norm_legit_no_training.default")
def _norm(
    call: Call, x: Any, weight: Any, bias: Any, mean: Any, variance: Any, momentum: float, eps: float
) -> tuple[Value, ...]:
    x = _value(x, (1, 3))
    mean, variance = _constant(mean, "mean"), _constant(variance, "variance")
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * _constant(weight, "weight")
    shift = -mean * scale
    if bias is not None:
        shift = shift + _constant(bias, "bias")
    return (call.make("affine", x, weight=scale, bias=shift, shape=x.shape),)


@translates("batch_norm.default")
def _batch_norm(
    call: Call, x: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float,
    *_: Any,
) -> Value:  # fmt: skip
    if training or mean is None:
        raise Foreign("it normalises by the batch at hand")
    return _norm(call, x, weight, bias, mean, variance, momentum, eps)[0]


_ACTIVATIONS = {
    _ATEN.relu.default: "relu",
    _ATEN.relu6.default: "relu6",
    _ATEN.sigmoid.default: "sigmoid",
    _ATEN.hardsigmoid.default: "hardsigmoid",
    _ATEN.silu.default: "silu",
    _ATEN.hardswish.default: "hardswish",
    _ATEN.tanh.default: "tanh",
}


@translates(*(f"{name}.default" for name in ("relu", "relu6", "sigmoid", "hardsigmoid", "silu", "hardswish", "tanh")))
def _activation(call: Call, x: Any) -> Value:
    return _activated(call, x, _ACTIVATIONS[call.node.target])


def _activated(call: Call, x: Any, kind: str) -> Value:
    if isinstance(x, Value) and x.op == "flatten":
        made = _activated(call, x.source, kind)
        return call.make("flatten", made)
    x = _value(x, (1, 3))
    return call.make("activation", x, activation=kind, shape=x.shape)


@translates("hardtanh.default", "clamp.default", "clamp_min.default")
def _clamp(call: Call, x: Any, low: Any = None, high: Any = None) -> Value:
    if call.node.target == _ATEN.hardtanh.default:
        low, high = -1 if low is None else low, 1 if high is None else high
    kind = {(0.0, 6.0): "relu6", (0.0, None): "relu"}.get((low, None if high is None else float(high)))
    if (low, high) == (0, 1):  # hardsigmoid(y) = clamp(y / 6 + 1 / 2, 0, 1)
        return _activated(call, _affine(call, _value(x, (1, 3)), 6.0, -3.0), "hardsigmoid")
    if kind is None:
        raise Foreign(f"it clamps to {low} and {high}")
    return _activated(call, x, kind)


@translates("add.Tensor", "add.Scalar", "add_.Tensor")
def _add(call: Call, a: Any, b: Any, alpha: Any = 1) -> Value:
    if alpha != 1:
        raise Foreign(f"it adds {alpha} times a tensor")
    if not isinstance(a, Value):
        a, b = b, a
    if isinstance(b, Value):
        if _value(a, (1, 3)).shape == _value(b, (1, 3)).shape:
            return call.make("add", a, b)
        raise Foreign("it adds tensors of different shapes")
    return _affine(call, _value(a, (1, 3)), 1.0, b)


@translates("sub.Tensor", "sub.Scalar")
def _sub(call: Call, a: Any, b: Any, alpha: Any = 1) -> Value:
    if isinstance(b, Value) or not isinstance(a, Value) or alpha != 1:
        raise Foreign("it subtracts maps")
    return _affine(call, _value(a, (1, 3)), 1.0, -b)


@translates("div.Tensor", "div.Scalar")
def _div(call: Call, a: Any, b: Any) -> Value:
    if isinstance(b, Value) or not isinstance(a, Value):
        raise Foreign("it divides by a map")
    if not isinstance(b, Tensor) and b == 0:
        raise Foreign("it divides by 0")
    scale = b.detach().double().reciprocal() if isinstance(b, Tensor) else 1 / b
    return _affine(call, _value(a, (1, 3)), scale, 0.0)


@translates("mul.Tensor", "mul.Scalar")
def _mul(call: Call, a: Any, b: Any) -> Value:
    if not isinstance(a, Value):
        a, b = b, a
    if isinstance(a, Stack) and isinstance(b, Stack) and len(a.parts) == len(b.parts):
        return Stack([_scaled(call, x, f) for x, f in zip(a.parts, b.parts, strict=True)])  # type: ignore[return-value]
    if not isinstance(b, Value):
        return _affine(call, _value(a, (1, 3)), b, 0.0)
    return _scaled(call, a, b)


def _scaled(call: Call, a: Any, b: Any) -> Value:
    a, b = _value(a, (1, 3)), _value(b, (1, 3))
    if a.is_vector and not b.is_vector:
        a, b = b, a
    for x, y in ((a, b), (b, a)):  # x sigmoid(x), as some write SiLU
        kind = {"sigmoid": "silu", "hardsigmoid": "hardswish"}.get(y.activation)
        if y.op == "activation" and y.source is x and kind:
            return call.make("activation", x, activation=kind, shape=x.shape)
    if len(a.shape) != 3 or b.channels != a.channels or not b.is_vector or len(b.shape) == 1:
        raise Foreign("it multiplies maps")
    return call.make("scale", a, b, shape=a.shape)


def _affine(call: Call, x: Value, scale: Any, shift: Any) -> Value:
    """x times a number or a number for each channel, plus another."""

    def by_channel(number: Any) -> Tensor:
        if not isinstance(number, Tensor):
            if not isinstance(number, (int, float)):
                raise Foreign("it combines a map with several")
            return torch.full((x.channels,), float(number), dtype=torch.float64)
        number = number.detach().double()
        wanted = [1, x.channels, *[1] * (len(x.shape) - 1)]
        if list(number.shape) not in (wanted, wanted[1:], []):
            raise Foreign(f"it combines a map with a constant of {list(number.shape)}")
        return number.reshape(-1).expand(x.channels)

    return call.make("affine", x, weight=by_channel(scale), bias=by_channel(shift), shape=x.shape)


@translates("max_pool2d.default", "max_pool2d_with_indices.default")
def _max_pool(
    call: Call, x: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False
) -> Any:
    if _alike(dilation, "dilation") != 1:
        raise Foreign("it is a dilated pool")
    window = Window(*_pair(kernel), _alike(stride or kernel, "stride"), *_pair(padding), ceil=ceil)
    several = call.node.target == _ATEN.max_pool2d_with_indices.default
    shape = call.shapes()[0] if several else call.shape
    pooled = call.make("max_pool", _value(x), window=window, shape=shape)
    return (pooled,) if several else pooled


@translates("avg_pool2d.default")
def _avg_pool(
    call: Call, x: Any, kernel: Any, stride: Any = (), padding: Any = 0, ceil: bool = False, counts: bool = True,
    divisor: Any = None,
) -> Value:  # fmt: skip
    x = _value(x)
    if divisor is not None:
        raise Foreign("it divides by a number of its own")
    if call.shape[1:] == (1, 1) and _pair(kernel) == x.shape[1:] and _pair(padding) == (0, 0):
        return call.make("mean", x)
    window = Window(*_pair(kernel), _alike(stride or kernel, "stride"), *_pair(padding), ceil=ceil)
    return call.make("avg_pool", x, window=window, counts_padding=bool(counts))


@translates("adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default")
def _adaptive_avg_pool(call: Call, x: Any, size: Any) -> Value:
    return _adaptive(call, _value(x), "avg_pool")


@translates("adaptive_max_pool2d.default")
def _adaptive_max_pool(call: Call, x: Any, size: Any) -> tuple[Value, ...]:
    return (_adaptive(call, _value(x), "max_pool", call.shapes()[0]),)


def _adaptive(call: Call, x: Value, op: str, shape: Shape | None = None) -> Value:
    shape = shape or call.shape
    if shape == x.shape:
        return x
    if shape[1:] == (1, 1) and op == "avg_pool":
        return call.make("mean", x, shape=shape)
    rows, columns = x.shape[1] // shape[1], x.shape[2] // shape[2]
    stride = rows if rows == columns or shape[1:] == (1, 1) else 0
    if x.shape[1] % shape[1] or x.shape[2] % shape[2] or not stride:
        raise Foreign(f"it pools {x.shape[1]} x {x.shape[2]} pixels to {shape[1]} x {shape[2]}, in uneven windows")
    return call.make(op, x, window=Window(rows, columns, stride), shape=shape)


@translates("mean.dim")
def _mean(call: Call, x: Any, dims: Any, keepdim: bool = False, **_: Any) -> Value:
    x = _value(x)
    if sorted(d % 4 for d in dims) != [2, 3]:
        raise Foreign(f"it takes the mean over dimensions {dims}")
    return call.make("mean", x)


@translates("linear.default")
def _linear(call: Call, x: Any, weight: Any, bias: Any = None) -> Value:
    weight = _constant(weight, "weight")
    bias = weight.new_zeros(len(weight)) if bias is None else _constant(bias, "bias")
    if isinstance(x, Value) and x.op == "flatten":
        source = x.source
        rows, columns = source.shape[1:]
        whole, weight = Window(rows, columns), weight.view(-1, *source.shape)
        made = call.make("conv", source, weight=weight, bias=bias, window=whole, shape=(len(weight), 1, 1))
        return call.make("view", made)
    return call.make("linear", _value(x, (1,)), weight=weight, bias=bias)


@translates("cat.default")
def _cat(call: Call, tensors: Sequence[Any], dim: int = 0) -> Value:
    values = [_value(x, (1, 3)) for x in tensors]
    if dim % (len(values[0].shape) + 1) != 1:
        raise Foreign(f"it joins along dimension {dim}")
    return call.make("cat", *values)


@translates("stack.default")
def _stack(call: Call, tensors: Sequence[Any], dim: int = 0) -> Stack:
    if dim % call.dims != 1:
        raise Foreign(f"it stacks along dimension {dim}")
    return Stack([_value(x) for x in tensors])


@translates("sum.dim_IntList")
def _sum(call: Call, x: Any, dims: Any, keepdim: bool = False, **_: Any) -> Value:
    if not isinstance(x, Stack) or [d % 5 for d in dims] != [1] or keepdim:
        raise Foreign("it sums over a dimension")
    total = x.parts[0]
    for part in x.parts[1:]:
        total = call.make("add", total, part)
    return total


@translates("softmax.int", "_softmax.default")
def _softmax(call: Call, x: Any, dim: int, *_: Any) -> Stack:
    """Of two branches of one linear map W: sigmoid of the difference of both halves of W, and of its negative."""
    if isinstance(x, Value) and x.shape == (2,) and dim % 2 == 1:
        x = Stack([call.make("slice", x, number=i, shape=(1,)) for i in range(2)])
    if not isinstance(x, Stack) or len(x.parts) != 2 or dim % call.dims != 1:
        raise Foreign("it is a softmax over anything but two branches")
    sources = {part.source for part in x.parts}
    if len(sources) != 1 or any(part.op != "slice" for part in x.parts):
        raise Foreign("it is a softmax of what no linear map gives")
    made = sources.pop()
    if made.op == "linear" and made.weight is not None and made.bias is not None:
        (first, second), (b, c) = made.weight.chunk(2), made.bias.chunk(2)
        differences = ((first - second, b - c), (second - first, c - b))
        fields = {"activation": "sigmoid", "shape": x.parts[0].shape}
        return Stack([call.make("linear", made.source, weight=w, bias=b, **fields) for w, b in differences])
    if (
        made.op != "conv"
        or made.weight is None
        or made.bias is None
        or made.window is None
        or made.window.taps != 1
        or made.groups != 1
    ):
        raise Foreign("it is a softmax of what no linear map gives")
    (first, second), (b, c) = made.weight.chunk(2), made.bias.chunk(2)
    shape = x.parts[0].shape
    linear = {"window": made.window, "activation": "sigmoid", "shape": shape}
    return Stack(
        [
            call.make("conv", made.source, weight=first - second, bias=b - c, **linear),
            call.make("conv", made.source, weight=second - first, bias=c - b, **linear),
        ]
    )


@translates("split.Tensor", "split_with_sizes.default", "chunk.default")
def _split(call: Call, x: Any, sizes: Any, dim: int = 0) -> list[Value]:
    x = _value(x, (1, 3))
    if dim % (len(x.shape) + 1) != 1:
        raise Foreign(f"it splits along dimension {dim}")
    parts, start = [], 0
    for shape in call.shapes():
        parts.append(call.make("slice", x, number=start, shape=shape))
        start += shape[0]
    return parts


@translates("slice.Tensor")
def _slice(call: Call, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    if isinstance(x, Value) and x.op == "open" and dim % 2 == 1 and step == 1:
        first = x.first + max(int(start or 0), -x.channels) % x.channels
        return call.make("open", x.source, number=x.number, first=first)
    x = _value(x, (1, 3))
    if call.shape == x.shape:
        return x
    if dim % (len(x.shape) + 1) in (2, 3) and step > 1 and not start:
        return _strided(call, x, dim % 4, step)
    if dim % (len(x.shape) + 1) != 1 or step != 1:
        raise Foreign(f"it takes a part along dimension {dim}")
    first = 0 if start is None else int(start)
    return call.make("slice", x, number=first + x.channels if first < 0 else first)


def _strided(call: Call, x: Value, dim: int, step: int) -> Value:
    """Every step-th row, or column: of both it is a pool of one pixel."""
    if call.shape[dim - 1] != -(-x.shape[dim - 1] // step):
        raise Foreign(f"it takes a part along dimension {dim}")
    if x.op == "lines" and (x.number, x.first) == (step, 5 - dim):
        return call.make("max_pool", x.source, window=Window(1, 1, step))
    return call.make("lines", x, number=step, first=dim)


@translates("slice_scatter.default")
def _slice_scatter(
    call: Call, x: Any, part: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    x, part = _value(x, (1, 3)), _value(part, (1, 3))
    if part.shape == x.shape:
        return part
    first = max(int(start or 0), -x.channels) % x.channels
    if dim % (len(x.shape) + 1) != 1 or step != 1:
        raise Foreign(f"it overwrites a part along dimension {dim}")
    if part.op == "slice" and part.source is x and part.number == first:
        return x  # as `x[:, a:b] += y` ends
    if part.op == "add":
        for own, update in (part.inputs, part.inputs[::-1]):
            if own.op == "slice" and own.source is x and own.number == first:
                return call.make("update", x, update, number=first)
    behind = first + part.channels
    parts = [
        call.make("slice", x, number=n, shape=(m - n, *x.shape[1:])) for n, m in ((0, first), (behind, x.channels))
    ]
    return call.make("cat", *(p for p in (parts[0], part, parts[1]) if p.channels))


@translates("select.int")
def _select(call: Call, x: Any, dim: int, index: int) -> Value:
    if isinstance(x, Stack) and dim % (call.dims + 1) == 1:
        return x.parts[index]
    x = _value(x, (1,))
    if dim % 2 != 1:
        raise Foreign("it takes one sample")
    return call.make("slice", x, number=index % x.channels) if x.channels > 1 else call.make("view", x)


@translates("upsample_nearest2d.vec", "upsample_nearest2d.default")
def _upsample(call: Call, x: Any, *_: Any) -> Value:
    x = _value(x)
    factor = call.shape[1] // x.shape[1]
    if call.shape[1:] != (x.shape[1] * factor, x.shape[2] * factor):
        raise Foreign(f"it enlarges {x.shape[1]} x {x.shape[2]} pixels to {call.shape[1]} x {call.shape[2]}")
    return call.make("upsample", x, number=factor)


@translates("upsample_bilinear2d.vec", "upsample_bilinear2d.default")
def _upsample_smoothly(call: Call, x: Any, size: Any, align_corners: bool, *_: Any) -> Value:
    if align_corners:
        raise Foreign("it aligns corners")
    return call.make("bilinear", _value(x))


@translates("view.default", "reshape.default", "_unsafe_view.default", "flatten.using_ints", "squeeze.dim",
             "squeeze.dims", "squeeze.default", "unsqueeze.default")  # fmt: skip
def _view(call: Call, x: Any, *_: Any) -> Any:
    if isinstance(x, Value) and x.op == "open" and call.shape in ((x.channels,), (x.channels, 1, 1)):
        return x
    x = _value(x, (1, 2, 3))
    if len(call.shape) == 4 and x.is_vector and call.shape[2:] == (1, 1):
        count, part = call.shape[0], (call.shape[1], 1, 1)  # one for each of the branches of a stack
        return Stack([call.make("slice", x, number=i * part[0], shape=part) for i in range(count)])
    given: Any = call.node.args[0]
    if call.shape == x.shape and call.dims == given.meta["val"].dim():
        return x
    if x.is_vector and call.shape in ((x.channels,), (x.channels, 1), (x.channels, 1, 1)):
        return call.make("view", x)
    if len(x.shape) == 3 and len(call.shape) == 1:
        return call.make("flatten", x)
    raise Foreign(f"it makes {list(call.shape)} of {list(x.shape)}")


@translates("dropout.default", "feature_dropout.default")
def _dropout(call: Call, x: Any, p: float, train: bool) -> Any:
    if train and p > 0:
        raise Foreign("it drops values in evaluation too")
    return x


@translates("zeros.default", "zeros_like.default", "new_zeros.default")
def _zeros(call: Call, *_: Any, **__: Any) -> Zeros:
    return Zeros()


@translates("expand.default", "repeat.default")
def _repeated(call: Call, x: Any, *_: Any, **__: Any) -> Zeros:
    if isinstance(x, Zeros) or (isinstance(x, Tensor) and not x.any()):
        return Zeros()
    raise Foreign("it repeats a tensor")


@translates("clone.default", "alias.default", "contiguous.default", "detach.default", "lift_fresh_copy.default")
def _identity(call: Call, x: Any, *_: Any, **__: Any) -> Any:
    return x


@translates("copy.default")
def _copied(call: Call, x: Any, source: Any, *_: Any) -> Value:
    if _value(x, (1, 3)).shape != _value(source, (1, 3)).shape:
        raise Foreign("it copies a tensor of another shape")
    return source  # type: ignore[no-any-return]


@translates("_to_copy.default", "to.dtype", "_assert_tensor_metadata.default", "type_as.default")
def _converted(call: Call, x: Any, *_: Any, **__: Any) -> Any:
    gate = isinstance(x, Value) and x.op == "open"
    given: Any = call.node.args[0]
    if not gate and call.node.meta["val"].dtype != given.meta["val"].dtype:
        raise Foreign("it changes the dtype")
    return x


@translates("gt.Scalar")
def _gt(call: Call, x: Any, threshold: float) -> Value:
    x = _value(x, (1, 3))
    if not x.is_vector:
        raise Foreign("it compares a map")
    if not 0 <= threshold <= 1:  # beyond which thresholds of a plan do not go
        x, threshold = _affine(call, x, 1.0, -threshold), 0
    return call.make("open", x, number=float(threshold), shape=(x.channels,))


@translates("ne.Scalar")
def _ne(call: Call, x: Any, number: float) -> Value:
    if not isinstance(x, Value) or x.op != "open" or number != 0:
        raise Foreign("it compares a map")
    return x


def _gates(gate: Any, count: int) -> Value:
    """What opens so many gates; of numbers that enter a plan, those that are not zero."""
    if not isinstance(gate, Value) or gate.channels != count or not gate.is_vector:
        raise Foreign("its gate is no number for each sample")
    if gate.op == "input":
        gate = decided_before(gate)
    if gate.op != "open":
        raise Foreign("its gate is no comparison with a threshold")
    return gate


def gate_words() -> None:
    """Enters the two gate words, once they are defined."""
    from dsn_models import functional  # noqa: F401  (defines them)

    if torch.ops.dsn.where_open.default in _OPS:
        return

    def where_open(call: Call, open: Any, computed: Any, otherwise: Any) -> Value:
        open = _gates(open, 1)
        computed = _value(computed, (1, 3))
        if isinstance(otherwise, Zeros):
            otherwise = call.make("zeros", shape=computed.shape)
        return call.make("where", open, computed, _value(otherwise, (1, 3)))

    def choose_filters(call: Call, x: Any, mask: Any) -> Value:
        return call.make("choose", _value(x), _gates(mask, x.channels))

    _OPS[torch.ops.dsn.where_open.default] = where_open
    _OPS[torch.ops.dsn.choose_filters.default] = choose_filters
