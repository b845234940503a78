"""The spot check of `accelerate`: a small random batch through what was given and through what stands in its place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from dsn_models.dual_skipping import SkipDenseBlock
from dsn_models.errors import UserError

from .capture.exported import copied

_BATCH = 2
_SIDE = 16  # of the maps that a part is tried on; a part of a network takes any size
# The error allowed, as a part of the outputs' norm. Beyond it float64 tells whether PyTorch's own rounding is as large.
_CLOSE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_NEAR = 1e-3  # of a score to its threshold, where rounding may decide
_WORSE = 4.0  # times the error of same-dtype PyTorch


def check_accelerated(reference: Any, fast: Any, name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Refuses ``fast``, which stands for ``reference``, a network or a part of one, where its outputs on a small
    random batch are others.

    The reference is made to take the gates that the kernels took, so that a score within rounding of its threshold
    decides nothing; the scores are compared too.

    Raises:
        UserError: outputs or scores differ by more than rounding. The message begins with ``name``.
    """
    if hasattr(fast, "run"):
        images = _random(fast.config.in_channels, fast.config.image_size)
        result = _infer(fast.run, images.to(device))
        gates = {branch: taken.cpu() for branch, taken in result.gates.items()}
        options = {"forced_gates": gates} if gates else {}
        ours: Any = (result.outputs, list(result.scores.values()))
    else:
        images = _random(_in_channels(reference), _SIDE)
        ours = _infer(fast, images.to(device))
        options = {"forced": ours[1].cpu()} if isinstance(reference, SkipDenseBlock) else {}

    def run(of: torch.dtype) -> Any:
        model: Any = copy.deepcopy(reference).eval().to(of)
        outputs = _infer(model, images.to(of), **options)
        return (outputs, list(getattr(model, "last_scores", {}).values())) if hasattr(fast, "run") else outputs

    _compare(name, ours, run, dtype)


def check_model(reference: nn.Module, fast: nn.Module, inputs: Any, dtype: torch.dtype, device: torch.device) -> None:
    """As :func:`check_accelerated`, for a whole model on the arguments ``inputs``.

    Raises:
        UserError: the outputs differ by more than rounding, or the accelerated model does not run.
    """

    def moved(to: torch.dtype, where: torch.device | str = "cpu") -> Any:
        return tree_map_only(Tensor, lambda t: t.to(where, to) if t.is_floating_point() else t.to(where), inputs)

    ours = _infer(fast, *tree_map_only(Tensor, lambda t: t.to(device), inputs))
    _compare("model", ours, lambda of: _infer(copy.deepcopy(reference).eval().to(of), *moved(of)), dtype)


def check_captured(
    reference: nn.Module, fast: Any, example: Sequence[Tensor], dtype: torch.dtype, device: torch.device
) -> None:
    """As :func:`check_accelerated`, for a model of any class on two random samples of the example's shapes.

    Where a score lies close to its threshold, rounding may decide a gate, and the outputs are not compared. Of a gate
    that torch decides nobody knows how close it was: then one of three samples must agree.

    Raises:
        UserError: outputs differ by more than rounding. The message begins with the model's class.
    """
    generator = torch.Generator().manual_seed(0)
    for left in reversed(range(3 if any(fast.given) else 1)):
        inputs = [torch.randn(_BATCH, *x.shape[1:], generator=generator, dtype=torch.float32) for x in example]
        ours = _infer(fast, *(x.to(device) for x in inputs))
        scores = list(fast.last_scores.values())
        margins = torch.cat(scores, 1).cpu() - fast.thresholds.cpu() if scores else torch.ones(1)
        if margins.abs().min() < _NEAR:
            return

        def run(of: torch.dtype, inputs: list[Tensor] = inputs) -> Any:
            return _infer(copied(reference).eval().to(of), *(x.to(of) for x in inputs))

        try:
            return _compare(type(reference).__name__, ours, run, dtype)
        except UserError:
            if not left:
                raise


def called_modules(model: nn.Module, inputs: Any) -> set[nn.Module]:
    """The modules that ``model`` calls as a whole when it is called with the arguments ``inputs``.

    Raises:
        UserError: it does not run with them.
    """
    called: set[nn.Module] = set()
    hook = nn.modules.module.register_module_forward_pre_hook(lambda module, args: called.add(module))
    try:
        _infer(model, *inputs)
    finally:
        hook.remove()
    return called


def _infer(call: Any, *arguments: Any, **options: Any) -> Any:
    with torch.inference_mode():
        try:
            return call(*arguments, **options)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            name = type(call).__name__ if isinstance(call, nn.Module) else "the accelerated network"
            raise UserError(f"{name} does not run on the input of the spot check: {reason}") from error


def _random(channels: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_BATCH, channels, side, side, generator=generator, dtype=torch.float32)


def _outputs(result: Any) -> list[Tensor]:
    """The floating tensors of a call's result, on the CPU in float64."""
    return [t.cpu().double() for t in tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point()]


def _compare(name: str, result: Any, run: Callable[[torch.dtype], Any], dtype: torch.dtype) -> None:
    ours, theirs = _outputs(result), _outputs(run(torch.float32))
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        found, wanted = ([list(t.shape) for t in tensors] for tensors in (ours, theirs))
        raise UserError(f"{name}: the kernels give outputs of shapes {found}, the model of {wanted}; {_ADVICE}")
    if max(map(_distance, ours, theirs), default=0.0) <= _CLOSE[dtype]:
        return
    exact, same = _outputs(run(torch.float64)), _outputs(run(dtype))
    for got, truth, rounded in zip(ours, exact, same, strict=True):
        error, allowed = _distance(got, truth), max(_WORSE * _distance(rounded, truth), _CLOSE[dtype])
        if not error <= allowed:
            raise UserError(
                f"{name}: the kernels' outputs differ from the model's by {error:.2g} of their norm, rounding explains "
                f"{allowed:.2g}; {_ADVICE}"
            )


_ADVICE = "run the model itself (backend='reference') and report it"


def _distance(a: Tensor, b: Tensor) -> float:
    """``||a - b|| / ||b||`` over finite values; infinite if one is not finite where the other is."""
    if not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    a, b = a[a.isfinite()], b[b.isfinite()]
    return (a - b).norm().item() / max(b.norm().item(), torch.finfo(torch.float32).tiny)


def _in_channels(part: Any) -> int:
    """Channels that a part of a network reads: those of its first convolution or batch norm, or what it says itself."""
    if hasattr(part, "in_channels"):
        return int(part.in_channels)
    first: Any = next(m for m in part.modules() if isinstance(m, (nn.Conv2d, nn.modules.batchnorm._BatchNorm)))
    return first.in_channels if isinstance(first, nn.Conv2d) else first.num_features
