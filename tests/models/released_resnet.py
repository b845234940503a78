"""Residual networks as other programs write and run them: a state dict by its names, and its logits in float64."""

import torch
from torch.nn import functional as F


def released(units=(1, 1, 1), widths=(4, 8, 8), *, name="layer{}.{}", projection="shortcut", classifier="linear",
             stem=4, kernel=3, channels=3, classes=10, bottleneck=False, counters=False, seed=0):  # fmt: skip
    """A state dict as programs that name a unit ``name`` write it; ``projection`` None pads shortcuts."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def conv(key, outputs, inputs, size):
        state[f"{key}.weight"] = (
            torch.randn(outputs, inputs, size, size, generator=generator) / (inputs * size**2) ** 0.5
        )

    def norm(key, width):
        for leaf, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            state[f"{key}.{leaf}"] = low + torch.rand(width, generator=generator)
        if counters:
            state[f"{key}.num_batches_tracked"] = torch.tensor(7)

    conv("conv1", stem, channels, kernel)
    norm("bn1", stem)
    inputs = stem
    for stage, (count, width) in enumerate(zip(units, widths, strict=True), 1):
        for i in range(count):
            unit = name.format(stage, i)
            inner = width // 4 if bottleneck else width
            for n, (outputs, size) in enumerate(
                [(inner, 1), (inner, 3), (width, 1)] if bottleneck else [(width, 3)] * 2, 1
            ):
                before = inputs if n == 1 else inner
                conv(f"{unit}.conv{n}", outputs, before, size)
                norm(f"{unit}.bn{n}", outputs)
            if projection and i == 0 and (stage > 1 or inputs != width):
                conv(f"{unit}.{projection}.0", width, inputs, 1)
                norm(f"{unit}.{projection}.1", width)
            inputs = width
    state[f"{classifier}.weight"] = torch.randn(classes, inputs, generator=generator)
    state[f"{classifier}.bias"] = torch.randn(classes, generator=generator)
    return state


def run(state, images, units, name="layer{}.{}", projection="shortcut", classifier="linear", bottleneck=False):
    """The logits of such a state dict, in float64."""
    state = {key: value.double() for key, value in state.items()}

    def norm(x, key):
        return F.batch_norm(x, *(state[f"{key}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")))

    weight = state["conv1.weight"]
    x = F.relu(
        norm(
            F.conv2d(images.double(), weight, stride=1 if weight.shape[-1] == 3 else 2, padding=weight.shape[-1] // 2),
            "bn1",
        )
    )
    if weight.shape[-1] == 7:
        x = F.max_pool2d(x, 3, 2, 1)
    for stage, count in enumerate(units, 1):
        for i in range(count):
            unit, y = name.format(stage, i), x
            stride = 2 if stage > 1 and i == 0 else 1
            for n in (1, 2, 3) if bottleneck else (1, 2):
                weight = state[f"{unit}.conv{n}.weight"]
                strided = stride if n == (2 if bottleneck else 1) else 1
                y = norm(F.conv2d(y, weight, stride=strided, padding=weight.shape[-1] // 2), f"{unit}.bn{n}")
                y = F.relu(y) if n < (3 if bottleneck else 2) else y
            if f"{unit}.{projection}.0.weight" in state:
                x = norm(F.conv2d(x, state[f"{unit}.{projection}.0.weight"], stride=stride), f"{unit}.{projection}.1")
            elif stride == 2 or x.shape[1] != y.shape[1]:
                added = y.shape[1] - x.shape[1]
                x = F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, added // 2, added - added // 2))
            x = F.relu(x + y)
    return F.linear(x.mean((2, 3)), state[f"{classifier}.weight"], state[f"{classifier}.bias"])
