"""What people do to a network before they hand it over: each function returns it changed, or None if it cannot."""

import types

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

CIRCULAR = ("circular", "reflect", "replicate")


def _put(model, path, module):
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent)._modules[name] = module


def _pick(draw, model, kind):
    """A path of a module of ``kind``, None if there is none."""
    paths = [path for path, module in model.named_modules() if path and isinstance(module, kind)]
    return draw(paths) if paths else None


def sync_batch_norm(model, draw):
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


class _Frozen(nn.BatchNorm2d):
    """As detection networks have it: a norm whose formula is its own."""

    def forward(self, x):
        return 0.5 * super().forward(x)


class _Noise(nn.Dropout):
    """Dropout that stays on, as for uncertainty."""

    def forward(self, x):
        return 1.25 * x


class _Renamed(nn.BatchNorm2d):
    """A subclass that changes nothing."""


def other_norm(model, draw):
    path = _pick(draw, model, nn.BatchNorm2d)
    if path is None:
        return None
    old = model.get_submodule(path)
    channels = old.num_features
    makers = (
        lambda: nn.GroupNorm(1, channels),
        lambda: nn.InstanceNorm2d(channels, affine=True),
        lambda: nn.Identity(),
        lambda: nn.BatchNorm2d(channels, track_running_stats=False),
        lambda: nn.BatchNorm2d(channels, affine=False),
        lambda: nn.BatchNorm2d(channels, eps=0.5),
        lambda: _Frozen(channels),
        lambda: _Renamed(channels),
    )
    _put(model, path, draw(makers)())
    return model


def other_convolution(model, draw):
    path = _pick(draw, model, nn.Conv2d)
    if path is None:
        return None
    old = model.get_submodule(path)
    kept = {"stride": old.stride, "padding": old.padding, "bias": old.bias is not None}
    changes = [{"padding_mode": draw(CIRCULAR)}, {"bias": not kept["bias"]}, {"dilation": 2, "padding": 2}]
    if old.in_channels % 2 == 0 and old.out_channels % 2 == 0:
        changes.append({"groups": 2})
    options = {**kept, **draw(changes)}
    if old.kernel_size == (1, 1) and "dilation" in options:
        options = {**kept, "padding_mode": draw(CIRCULAR)}
    _put(model, path, nn.Conv2d(old.in_channels, old.out_channels, old.kernel_size, **options))
    return model


def hook(model, draw):
    path = draw([path for path, _ in model.named_modules()])
    module = model.get_submodule(path)
    if draw((True, False)):
        module.register_forward_hook(lambda module, args, output: None)
    else:
        module.register_forward_pre_hook(lambda module, args: None)
    return model


def doubling_hook(model, draw):
    model.get_submodule(_pick(draw, model, nn.Conv2d)).register_forward_hook(lambda m, args, output: 2 * output)
    return model


def other_activation_or_pool(model, draw):
    path = _pick(draw, model, (nn.ReLU, nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Tanh, nn.Flatten))
    if path is None:
        return None
    old = model.get_submodule(path)
    if isinstance(old, (nn.AvgPool2d, nn.MaxPool2d)):
        swapped = nn.MaxPool2d if isinstance(old, nn.AvgPool2d) else nn.AvgPool2d
        ceil = type(old)(old.kernel_size, old.stride, old.padding, ceil_mode=True)
        new = draw((swapped(old.kernel_size, old.stride, old.padding), ceil))
    elif isinstance(old, nn.AdaptiveAvgPool2d):
        new = draw((nn.AdaptiveMaxPool2d(1), nn.AdaptiveAvgPool2d((1, 1))))
    elif isinstance(old, nn.Flatten):
        new = nn.Flatten(1, 3)
    else:
        new = draw((nn.SiLU(), nn.LeakyReLU(), nn.ReLU6()))
    _put(model, path, new)
    return model


def other_head(model, draw):
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    path = draw(paths)
    old = model.get_submodule(path)
    makers = (
        lambda: nn.Sequential(nn.Dropout(0.3), old),
        lambda: nn.Sequential(old, nn.Identity()),
        lambda: nn.Sequential(old, nn.ReLU()),
        lambda: nn.Linear(old.in_features, old.out_features + 1),
        lambda: nn.Linear(old.in_features, old.out_features, bias=False),
    )
    _put(model, path, draw(makers)())
    return model


def own_forward(model, draw):
    path = draw([path for path, module in model.named_modules() if not isinstance(module, nn.ModuleList)])
    module = model.get_submodule(path)
    forward = type(module).forward

    def changed(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        return 1.5 * out if isinstance(out, torch.Tensor) else out

    module.forward = types.MethodType(changed, module)
    return model


def subclass(model, draw):
    path = draw([path for path, module in model.named_modules() if not isinstance(module, nn.ModuleList)])
    module, changes = model.get_submodule(path), draw((True, False))
    kind = type(module)

    def forward(self, *args, **kwargs):
        out = kind.forward(self, *args, **kwargs)
        return 1.5 * out if isinstance(out, torch.Tensor) else out

    module.__class__ = type("Users" + kind.__name__, (kind,), {"forward": forward} if changes else {"note": "mine"})
    return model


def reparametrised(model, draw):
    module = model.get_submodule(_pick(draw, model, (nn.Conv2d, nn.Linear)))
    draw((parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal))(module)
    return model


def pruned(model, draw):
    module = model.get_submodule(_pick(draw, model, (nn.Conv2d, nn.Linear)))
    prune.l1_unstructured(module, "weight", 0.5)
    if draw((True, False)):
        prune.remove(module, "weight")
    return model


def wrapped(model, draw):
    path = draw([path for path, _ in model.named_modules() if path])
    module = model.get_submodule(path)
    if isinstance(module, nn.ModuleList):
        return None
    makers = (
        lambda: nn.Sequential(nn.Identity(), module),
        lambda: nn.Sequential(module, nn.Dropout(0.5)),
        lambda: nn.Sequential(module, nn.Tanh()),
        lambda: nn.Sequential(module, _Noise()),
    )
    _put(model, path, draw(makers)())
    return model


def shared(model, draw):
    """One module under two names."""
    path = _pick(draw, model, (nn.Conv2d, nn.BatchNorm2d, nn.Linear))
    module = model.get_submodule(path)
    shapes = [p.shape for p in module.parameters()]
    like = [
        other
        for other, m in model.named_modules()
        if type(m) is type(module) and m is not module and [p.shape for p in m.parameters()] == shapes
    ]
    if not like:
        return None
    _put(model, draw(like), module)
    return model


def other_type(model, draw):
    return model.to(draw((torch.float64, torch.float16, torch.bfloat16)))


def profiled(model, draw):
    """As profilers leave it: buffers that no forward reads."""
    for module in model.modules():
        module.register_buffer("total_ops", torch.zeros(1))
    return model


def dropped(model, draw):
    """A module taken out of its place, or something that only looks like it."""
    path = draw([path for path, module in model.named_modules() if path and not isinstance(module, nn.ModuleList)])
    _put(model, path, draw((nn.Identity, _Noise))())
    return model


ALL = (
    sync_batch_norm, other_norm, other_convolution, hook, doubling_hook, other_activation_or_pool, other_head,
    own_forward, subclass, reparametrised, pruned, wrapped, shared, other_type, profiled, dropped,
)  # fmt: skip
