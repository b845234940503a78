"""What the modules of a network do in one call: the shapes they map, their MACs, and whether they are residual."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from .errors import UserError

#: "auto", a name, a pattern or several of them, or a function of a module's name and the module.
Units = str | Sequence[str] | Callable[[str, nn.Module], bool]


@dataclass
class Call:
    """What a module did in one call of its network.

    Attributes:
        name: its path.
        times: how often it ran; what follows is of its last time.
        inputs, outputs: all tensors, in order; None for what is no tensor.
        macs: of all its times, for one image.
        in_place: it wrote to its first input.
        order: how many other modules had begun before it.
    """

    name: str
    module: nn.Module
    order: int
    times: int = 0
    inputs: tuple[Any, ...] = ()
    output: Any = None
    macs: int = 0
    in_place: bool = False
    _begun: list[tuple[int, int]] = field(default_factory=list)

    def why_not(self) -> str | None:
        """Why this module cannot be skipped; None if it can."""
        if self.times != 1:
            return f"runs {self.times} times in a call; expected once"
        if len(self.inputs) != 1 or not isinstance(self.inputs[0], Tensor) or not isinstance(self.output, Tensor):
            return "maps something else than one tensor to one; expected a map to a map"
        given, left = self.inputs[0], self.output
        if given.dim() != 4 or given.shape != left.shape or given.dtype != left.dtype:
            return f"maps {[*given.shape]} to {[*left.shape]}; expected a map [B, C, H, W] to one of the same shape"
        if not self.macs:
            return "has no convolution or linear layer; expected one that costs MACs"
        return None

    def is_residual(self) -> bool:
        """Whether what this module leaves is its input and something that its convolutions and linear layers add.

        With every operation muted that costs MACs (it leaves zeros), such a module leaves its input plus a constant,
        whatever joins the branches, however the module is written. Two inputs whose values are so large and positive
        that an activation after the addition passes them on must then differ by as much after it as before. Neither a
        layer nor a squeeze-and-excitation, which leaves half of its input, does so, nor a unit that permutes channels
        or one whose last activation is bounded.
        """
        shape, dtype = self.inputs[0].shape, self.inputs[0].dtype
        generator = torch.Generator().manual_seed(0)
        inputs = [
            (_LARGE * (1 + torch.rand(shape, generator=generator))).to(self.inputs[0].device, dtype) for _ in range(2)
        ]
        with _Muted():
            first, second = (self.module(x.clone()) for x in inputs)
        off = (first - second) - (inputs[0] - inputs[1])
        return bool((off.abs() <= 32 * _LARGE * torch.finfo(dtype).eps).all())


_LARGE = 512.0


class _Muted(TorchDispatchMode):
    """Operations that cost MACs, by torch's own list of them, leave zeros."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return torch.utils._pytree.tree_map_only(Tensor, torch.zeros_like, out) if _costs_macs(func) else out


def _costs_macs(func: Any) -> bool:
    return func._overloadpacket in flop_registry


@contextlib.contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """``model.eval()`` for a while; then each module is in the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def record_calls(model: nn.Module, example: tuple[Tensor, ...]) -> tuple[dict[str, Call], int]:
    """What each module did in a call with one image, by path, and the MACs of the whole.

    Args:
        model: in ``eval()``.
        example: its inputs, of which the first image is taken.
    """
    calls: dict[str, Call] = {}
    counter = FlopCounterMode(display=False)

    def begin(name: str):
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = calls.setdefault(name, Call(name, module, len(calls)))
            call.times += 1
            call.inputs = (*args, *kwargs.values())
            version = args[0]._version if args and isinstance(args[0], Tensor) else 0
            call._begun.append((counter.get_total_flops(), version))

        return hook

    def end(name: str):
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            call = calls[name]
            flops, version = call._begun.pop()
            call.macs += (counter.get_total_flops() - flops) // 2
            call.in_place = bool(args) and isinstance(args[0], Tensor) and args[0]._version != version
            call.output = output

        return hook

    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            if name:
                hooks.callback(module.register_forward_pre_hook(begin(name), with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(end(name)).remove)
        with counter:
            model(*(x[:1] for x in example))
    return calls, counter.get_total_flops() // 2


@torch.no_grad()
def residual_units(calls: dict[str, Call]) -> list[Call]:
    """The innermost residual modules, in the order in which they ran: units, not the stages that hold them.

    A ``Sequential`` is a stage even where its units are none that can be skipped: it adds nothing itself.
    """
    found: list[Call] = []
    for call in reversed(calls.values()):  # what is within a module began after it
        holds_units = isinstance(call.module, nn.Sequential) or any(u.name.startswith(f"{call.name}.") for u in found)
        if not holds_units and call.why_not() is None and call.is_residual():
            found.append(call)
    return found[::-1]


def chosen_units(model: nn.Module, calls: dict[str, Call], units: Units) -> list[Call]:
    """The modules that ``units``, names, patterns or a function, choose; the outermost of those within each other.

    Raises:
        UserError: nothing matches, or what matches cannot be skipped.
    """
    if callable(units):
        chosen = [call for call in calls.values() if call.why_not() is None and units(call.name, call.module)]
        if not chosen:
            raise UserError(f"units chose no module that can be skipped in the {type(model).__name__}; {_EXPECTED}")
    else:
        chosen = []
        for pattern in [units] if isinstance(units, str) else units:
            chosen += _matching(model, calls, pattern, Call.why_not)
    names = {call.name for call in chosen}
    return sorted(
        {c.name: c for c in chosen if not any(c.name.startswith(f"{name}.") for name in names)}.values(),
        key=lambda call: call.order,
    )


def _matching(
    model: nn.Module, calls: dict[str, Call], pattern: str, why_not: Callable[[Call], str | None]
) -> list[Call]:
    """The modules that a name or pattern chooses and that fit; a pattern leaves out those that do not."""
    paths = [name for name, _ in model.named_modules() if name]
    matched = [path for path in paths if _matches(path, pattern)]
    if not matched:
        near = difflib.get_close_matches(pattern, paths, 1)
        hint = f"did you mean {near[0]!r}?" if near else "expected a name of model.named_modules() or a pattern"
        raise UserError(f"units has {pattern!r}, which matches no module of the {type(model).__name__}; {hint}")
    fitting = [calls[path] for path in matched if path in calls and why_not(calls[path]) is None]
    if not fitting:
        path = next((path for path in matched if path in calls), matched[0])
        why = why_not(calls[path]) if path in calls else "is not called itself; expected one that is"
        raise UserError(f"units has {pattern!r}, but {path} {why}")
    return fitting


def _matches(path: str, pattern: str) -> bool:
    parts, wanted = path.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def chosen_filters(model: nn.Module, calls: dict[str, Call], units: Units) -> list[tuple[Call, Call]]:
    """The chosen convolutions whose output a batch norm reads, with those batch norms, in the order in which they ran.

    Raises:
        UserError: nothing matches, or what matches is no such convolution.
    """
    convs = {id(call.output): call for call in calls.values() if isinstance(call.module, nn.Conv2d) and call.times == 1}
    norms = [call for call in calls.values() if isinstance(call.module, nn.BatchNorm2d) and call.times == 1]
    pairs = {conv.name: (conv, norm) for norm in norms if (conv := convs.get(id(norm.inputs[0])))}

    def why_not(call: Call) -> str | None:
        return None if call.name in pairs else "is no convolution whose output a batch norm reads, once in a call"

    if units == "auto":
        names = {name for name, (conv, _) in pairs.items() if not _is_depthwise(conv.module)}
    elif callable(units):
        names = {name for name, (conv, _) in pairs.items() if units(name, conv.module)}
    else:
        patterns = [units] if isinstance(units, str) else units
        names = {call.name for pattern in patterns for call in _matching(model, calls, pattern, why_not)}
    if not names:
        raise UserError(
            f"the {type(model).__name__} has no convolution to choose filters of; "
            "expected one whose output a batch norm reads, once in a call"
        )
    return sorted((pairs[name] for name in names), key=lambda pair: pair[0].order)


def _is_depthwise(conv: Any) -> bool:
    return conv.groups > 1 and conv.groups == conv.in_channels


_EXPECTED = "expected modules that map a map [B, C, H, W] to one of the same shape, once in a call, and cost MACs"
