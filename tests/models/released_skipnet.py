"""SkipNets as their authors release them: the keys, and the formula written out. Independent of dsn_models."""

import torch
from torch import nn
from torch.nn import functional as F


class ReleasedUnit(nn.Module):
    def __init__(self, inputs, outputs, stride, bottleneck):
        super().__init__()
        widths = [outputs // 4, outputs // 4, outputs] if bottleneck else [outputs, outputs]
        kernels = [1, 3, 1] if bottleneck else [3, 3]
        strided = 2 if bottleneck else 1
        self.count, channels = len(widths), inputs
        for n, (width, kernel) in enumerate(zip(widths, kernels, strict=True), 1):
            step = stride if n == strided else 1
            setattr(self, f"conv{n}", nn.Conv2d(channels, width, kernel, step, kernel // 2, bias=False))
            setattr(self, f"bn{n}", nn.BatchNorm2d(width))
            channels = width
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = x
        for n in range(1, self.count + 1):
            y = getattr(self, f"bn{n}")(getattr(self, f"conv{n}")(y))
            if n < self.count:
                y = F.relu(y)
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ReleasedFeedForward(nn.Module):
    def __init__(self, channels, first):
        super().__init__()
        self.first = first
        self.conv1 = nn.Conv2d(channels, channels, 3, 1 if first else 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        if first:
            self.conv2 = nn.Conv2d(channels, channels, 3, 2, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(channels)
        self.linear_layer = nn.Conv2d(channels, 2, 1)

    def forward(self, x):
        if self.first:
            x = F.max_pool2d(x, 2)
        x = F.relu(self.bn1(self.conv1(x)))
        if self.first:
            x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(x, x.shape[2:])
        return F.softmax(self.linear_layer(x).flatten(1), 1)[:, 1]


class ReleasedControl(nn.Module):
    def __init__(self, pointwise):
        super().__init__()
        self.rnn = nn.LSTM(10, 10)
        self.proj = nn.Conv2d(10, 1, 1) if pointwise else nn.Linear(10, 1)

    def forward(self, x, hidden):
        out, hidden = self.rnn(x.view(1, len(x), -1), hidden)
        out = out[0][:, :, None, None] if isinstance(self.proj, nn.Conv2d) else out[0]
        return torch.sigmoid(self.proj(out)).flatten(), hidden


class ReleasedSkipNet(nn.Module):
    """``gate``: "rnn", "ff-1" or "ff-2". In ``eval()``; images one at a time, a bypassed unit is not computed."""

    def __init__(self, stage_units, stage_widths, stem_width, classes, gate="rnn", imagenet=False, bottleneck=False):
        super().__init__()
        self.stage_units, self.gate, self.imagenet = stage_units, gate, imagenet
        self.conv1 = nn.Conv2d(3, stem_width, *((7, 2, 3) if imagenet else (3, 1, 1)), bias=False)
        self.bn1 = nn.BatchNorm2d(stem_width)
        channels = stem_width
        for stage, (count, width) in enumerate(zip(stage_units, stage_widths, strict=True), 1):
            for i in range(count):
                unit = ReleasedUnit(channels, width, 2 if stage > 1 and i == 0 else 1, bottleneck)
                if unit.downsample is not None:
                    setattr(self, f"group{stage}_ds{i}", unit.downsample)
                setattr(self, f"group{stage}_layer{i}", unit)
                embedding = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 10, 1))
                own = embedding if gate == "rnn" else ReleasedFeedForward(width, gate == "ff-1")
                setattr(self, f"group{stage}_gate{i}", own)
                channels = width
        if gate == "rnn":
            self.control = ReleasedControl(imagenet)
        self.fc = nn.Linear(channels, classes)

    def forward(self, images, forced=None):
        results = [self._one(images[b : b + 1], None if forced is None else forced[b]) for b in range(len(images))]
        return torch.cat([logits for logits, _ in results]), torch.tensor([gates for _, gates in results])

    def _one(self, x, forced):
        x = F.relu(self.bn1(self.conv1(x)))
        if self.imagenet:
            x = F.max_pool2d(x, 3, 2, 1)
        hidden, keep, gates = None, True, []
        for stage, count in enumerate(self.stage_units, 1):
            for i in range(count):
                downsample = getattr(self, f"group{stage}_ds{i}", None)
                shortcut = x if downsample is None else downsample(x)
                x = getattr(self, f"group{stage}_layer{i}")(x) if keep else shortcut
                score = getattr(self, f"group{stage}_gate{i}")(x)
                if self.gate == "rnn":
                    score, hidden = self.control(score, hidden)
                keep = bool(score > 0.5) if forced is None or len(gates) == len(forced) else bool(forced[len(gates)])
                gates.append(int(keep))
        return self.fc(x.mean((2, 3))), gates[:-1]


def make_released(config, seed=0):
    """A released network of a configuration's shape whose batch norms have seen data; float64, in ``eval()``."""
    torch.manual_seed(seed)
    network = ReleasedSkipNet(
        config.stage_units, config.stage_widths, config.stem_width, config.classes, config.gate,
        config.stem == "imagenet", config.unit == "bottleneck",
    ).double()  # fmt: skip
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, nn.LSTM | nn.Linear):
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -1, 1)
    return network.eval()


def released_state(network, counters=False, prefix=True, copies=True):
    """The state dict as released: float32, prefixed, with copies of the projections, without counters."""
    state = {}
    for key, tensor in network.state_dict().items():
        if ("num_batches" in key and not counters) or ("_ds" in key and not copies):
            continue
        state[f"module.{key}" if prefix else key] = tensor.float() if tensor.is_floating_point() else tensor
    return state
