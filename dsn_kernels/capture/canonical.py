"""A module as its class builds it, with the tensors of the one given: what a capture may read.

A capture knows what a class computes, not what has been done to one of its objects. So nothing is captured from the
object given: :func:`canonical` builds a fresh one by the class's constructor, walks both, and takes over the tensors.
What the walk cannot match (another norm, another padding, a hook, an own ``forward``) is refused by its path and name.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod

from dsn_models.errors import UserError

from .registry import FAMILIES, NOTHING, family_of, flat

# Equal in evaluation to what a class builds; the tensors have the same names.
_EQUAL: dict[type, tuple[type, ...]] = {nn.SyncBatchNorm: (nn.BatchNorm1d, nn.BatchNorm2d)}
# What a subclass may define anew: nothing of it changes what evaluation computes.
_HARMLESS = {"train", "extra_repr", "state_dict", "load_state_dict"}
_CALLED = {"__call__", "__getattr__", "__getattribute__"}
# Attributes of an object that evaluation does not read, or that hold its tensors and modules, which are walked.
_UNREAD = {
    "training", "momentum", "inplace", "p", "device", "dtype", "recompute", "gate_dropout", "last_gates", "last_scores",
    "affine", "process_group", "compute", "noise", "binary", "_compiled_call_impl", *vars(nn.Module()),
}  # fmt: skip


M = TypeVar("M", bound=nn.Module)


def canonical(module: M, path: str = "") -> M:
    """A fresh object of the family of ``module``, in ``eval()``, that shares its tensors and computes what it does.

    Served beside the family's own: subclasses that change nothing of what evaluation computes, SyncBatchNorm, batch
    norms without weights, parametrised tensors (their value), dropout and identities anywhere, and sequences that come
    to the same modules. Floating tensors are float32 in it, whatever they were.

    Args:
        module: of one of :data:`.registry.FAMILIES`, or of a subclass.
        path: where it lies in the user's model, for messages.

    Raises:
        UserError: what ``module`` computes in evaluation is, or may be, something else. The message names the place.
    """
    family = family_of(module)
    if family is None:
        raise UserError(f"{_place(path, module)} is of no family that has kernels")
    _refuse_hooks(module, path)
    _refuse_overrides(module, family, path)
    try:
        with torch.device("meta"):
            fresh = FAMILIES[family].blueprint(module)
    except UserError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{_place(path, module)} is not built as {_a(family)} is: {reason}") from error
    fresh.eval().requires_grad_(False)
    _take_over(module, fresh, path)
    return cast(M, fresh)


def overrides(module: nn.Module, family: type) -> list[str]:
    """What the class of ``module``, a subclass of ``family`` or itself, defines anew of what its objects compute."""
    kinds = parametrize.type_before_parametrizations(module).__mro__
    own = {name for kind in kinds[: kinds.index(family)] for name in vars(kind)} - _HARMLESS
    code = {
        name for name in own if not name.startswith("__") or name in ("__call__", "__getattr__", "__getattribute__")
    }
    held = {*module._modules, *module._parameters, *module._buffers}  # which a name of the class hides
    return sorted(name for name in code if hasattr(family, name) or name in held)


def _take_over(given: Any, fresh: Any, path: str) -> None:
    """Moves what ``fresh`` needs from ``given``, of which it is the blueprint, and refuses what does not match."""
    given = _unwrapped(given, fresh)
    _refuse_kind(given, fresh, path)
    _refuse_attributes(given, fresh, path)
    _take_tensors(given, fresh, path)
    if isinstance(fresh, nn.Sequential):
        theirs, ours = list(flat(given)), list(flat(fresh))
        if len(theirs) != len(ours):
            wanted, found = (", ".join(type(m).__name__ for _, m in parts) or "nothing" for parts in (ours, theirs))
            raise UserError(f"{path or 'model'} is a sequence of {found}; the kernels compute {wanted}")
        for (name, theirs_), (_, ours_) in zip(theirs, ours, strict=True):
            _take_over(theirs_, ours_, _join(path, name))
        return
    if isinstance(fresh, nn.ModuleList) and len(given) != len(fresh):
        raise UserError(f"{path or 'model'} has {len(given)} modules; the kernels compute {len(fresh)}")
    for name, child in fresh.named_children():
        theirs_child = given._modules.get(name)
        if theirs_child is None:
            if isinstance(child, NOTHING):
                continue
            raise UserError(f"{_join(path, name)} is missing; the kernels compute {_a(type(child))} there")
        _take_over(theirs_child, child, _join(path, name))


def _unwrapped(given: nn.Module, fresh: nn.Module) -> nn.Module:
    """What a sequence of one module and of others that do nothing comes to, where ``fresh`` is no sequence."""
    if isinstance(fresh, nn.Sequential) or type(given) is not nn.Sequential:
        return given
    parts = list(flat(given))
    if not parts and isinstance(fresh, NOTHING):
        return nn.Identity()
    return parts[0][1] if len(parts) == 1 else given


def _refuse_kind(given: nn.Module, fresh: nn.Module, path: str) -> None:
    kind, wanted = parametrize.type_before_parametrizations(given), type(fresh)
    nothing = isinstance(fresh, NOTHING) and kind in NOTHING  # a subclass may do something
    if not (nothing or issubclass(kind, wanted) or wanted in _EQUAL.get(kind, ())):
        same = kind.__name__ == wanted.__name__
        place = f"{path or 'model'} is a {kind.__module__}.{kind.__name__}" if same else _place(path, given)
        raise UserError(f"{place}; the kernels compute {_a(wanted)} there")
    if issubclass(kind, wanted):
        _refuse_overrides(given, wanted, path)


def _refuse_hooks(module: nn.Module, path: str) -> None:
    for name, part in module.named_modules():
        for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values()):
            where = _place(_join(path, name) if name else path, part)
            raise UserError(f"{where} with a hook that the kernels would not call: {_hook_advice(hook)}")


def _refuse_overrides(module: nn.Module, family: type, path: str) -> None:
    if changed := overrides(module, family):
        raise UserError(
            f"{_place(path, module)}, which overrides {', '.join(changed)} of {family.__name__}; the kernels compute "
            f"what {family.__name__} does"
        )


def _refuse_attributes(given: Any, fresh: Any, path: str) -> None:
    """What the class's code reads from the object must be what the constructor leaves there; eps goes along."""
    theirs, ours = vars(given), vars(fresh)
    for name in theirs.keys() - ours.keys() - _UNREAD:
        if hasattr(type(fresh), name):  # hides what the class defines
            raise UserError(f"{_place(path, given)} with a {name} of its own; the kernels compute what its class does")
    for name in ours.keys() - _UNREAD:
        if name == "eps":
            fresh.eps = given.eps
        elif not _same(found := theirs.get(name, given._modules.get(name)), ours[name]):
            found = type(found).__name__ if isinstance(found, nn.Module) else repr(found)
            raise UserError(
                f"{_place(path, given)} with {name} {found}; the kernels compute {name} {ours[name]!r}, as the model's "
                "configuration or class says"
            )


def _take_tensors(given: nn.Module, fresh: nn.Module, path: str) -> None:
    norm = isinstance(fresh, nn.modules.batchnorm._BatchNorm)
    for store in (fresh._parameters, fresh._buffers):
        for name, blank in store.items():
            try:
                value = getattr(given, name)
            except AttributeError:
                value = None
            where = _join(path, name)
            if value is None and blank is not None and norm and name in ("weight", "bias"):
                neutral = float(name == "weight")  # affine=False
                value = torch.full(blank.shape, neutral, dtype=torch.float32, device="cpu")
            if value is None and blank is None:
                continue
            if value is None or blank is None:
                found = "missing" if value is None else f"there, of shape {list(value.shape)}"
                raise UserError(f"{where} is {found}; {_wanted(fresh, blank)}")
            if not isinstance(value, Tensor) or value.shape != blank.shape:
                found = f"{list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise UserError(f"{where} has shape {found}; {_wanted(fresh, blank)}")
            store[name] = _float32(value, where, isinstance(blank, nn.Parameter))


def _wanted(fresh: nn.Module, blank: Tensor | None) -> str:
    wanted = "none" if blank is None else f"one of shape {list(blank.shape)}"
    return f"the {type(fresh).__name__} that the configuration asks for has {wanted}"


def _float32(value: Tensor, where: str, parameter: bool) -> Any:
    value = value.detach()
    if value.is_floating_point():
        if value.element_size() == 1:
            raise UserError(f"{where} is {value.dtype}; expected float32, float64, float16 or bfloat16")
        value = value.float()
    elif value.dtype.is_complex or value.is_quantized:
        raise UserError(f"{where} is {value.dtype}; expected a floating type")
    return nn.Parameter(value, requires_grad=False) if parameter else value


def _hook_advice(hook: Any) -> str:
    if isinstance(hook, BasePruningMethod):
        return f"make the pruning permanent with torch.nn.utils.prune.remove(module, {hook._tensor_name!r})"
    name = getattr(hook, "__qualname__", type(hook).__name__)
    if name in ("WeightNorm", "SpectralNorm"):
        return f"take {name} off with torch.nn.utils.remove_{'weight' if name == 'WeightNorm' else 'spectral'}_norm"
    return f"remove {name}"


def _same(given: Any, wanted: Any) -> bool:
    """Whether two hyperparameters are equal, a number being as good as a tuple of it."""
    if isinstance(given, (tuple, list)) != isinstance(wanted, (tuple, list)):
        many, one = (given, wanted) if isinstance(given, (tuple, list)) else (wanted, given)
        return len(many) > 0 and all(type(x) is type(one) and x == one for x in many)
    try:
        return bool(given == wanted)
    except (RuntimeError, TypeError, ValueError):
        return False


def _place(path: str, module: nn.Module) -> str:
    return f"{path or 'model'} is {_a(parametrize.type_before_parametrizations(module))}"


def _a(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
