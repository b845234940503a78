"""What may follow a node's sum, as one choice that is made when a kernel is compiled."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(x, KIND: tl.constexpr):
    """``KIND(x)``, float32: one of :data:`dsn_kernels.graph.ACTIVATIONS`. A NaN stays NaN, as in torch."""
    y = x
    if KIND == "relu":
        y = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif KIND == "relu6":
        y = _clip(x)
    elif KIND == "sigmoid":
        y = tl.sigmoid(x)
    elif KIND == "hardsigmoid":
        y = _clip(x + 3.0) / 6.0
    elif KIND == "silu":
        y = x * tl.sigmoid(x)
    elif KIND == "hardswish":
        y = x * _clip(x + 3.0) / 6.0
    elif KIND == "tanh":
        y = 2 * tl.sigmoid(2 * x) - 1
    else:
        tl.static_assert(KIND == "none")
    return y


@triton.jit
def _clip(x):
    """Between 0 and 6."""
    positive = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(positive, 6.0, propagate_nan=tl.PropagateNan.ALL)
