"""Networks drawn at random from what networks are made of: a seed is a network."""

import random

import torch
from torch import nn
from torch.nn import functional as F

from dsn_models.functional import choose_filters, where_open

ACTIVATIONS = (F.relu, F.relu6, F.silu, F.hardswish, torch.sigmoid, F.hardsigmoid, torch.tanh)


class Convolution(nn.Module):
    """A convolution with or without a bias, batch norm and activation behind it, or a BN-ReLU in front."""

    def __init__(self, draw, inputs, outputs, stride=1, shape=None):
        super().__init__()
        kernel = draw.choice([(1, 1), (1, 1), (3, 3), (3, 3), (5, 5), (1, 3), (3, 1)])
        dilation = draw.choice([1, 1, 1, 2])
        groups = draw.choice([g for g in (1, 1, 1, 2, 4) if inputs % g == 0 and outputs % g == 0])
        if draw.random() < 0.15 and outputs == inputs:
            groups = inputs
        padding = tuple(dilation * (k // 2) for k in kernel)
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        self.conv = nn.Conv2d(inputs, outputs, kernel, bias=draw.random() < 0.5, **options)
        self.norm = nn.BatchNorm2d(outputs) if draw.random() < 0.6 else nn.Identity()
        self.before = nn.BatchNorm2d(inputs) if draw.random() < 0.2 else None
        self.activation = draw.choice([*ACTIVATIONS, F.relu, F.relu, nn.Identity(), nn.Identity(), nn.Identity()])

    def forward(self, x):
        if self.before is not None:
            x = self.before(x).relu()
        return self.activation(self.norm(self.conv(x)))


class Factor(nn.Module):
    """Squeeze and excitation: a factor for each channel from the pooled map."""

    def __init__(self, draw, channels):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.activation, self.factor = draw.choice([F.relu, F.silu]), draw.choice([torch.sigmoid, F.hardsigmoid])

    def forward(self, x):
        return x * self.factor(self.expand(self.activation(self.reduce(x.mean((2, 3), keepdim=True)))))


class Decision(nn.Module):
    """Open or shut for each image, or for each of several filters, from a pooled map."""

    def __init__(self, draw, channels, count=1):
        super().__init__()
        self.kind, self.count = draw.choice(["linear", "mlp", "conv"]), count
        self.sigmoid = draw.random() < 0.5
        if self.kind == "linear":
            self.net = nn.Linear(channels, count)
        elif self.kind == "mlp":
            self.net = nn.Sequential(nn.Linear(channels, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, count))
        else:
            self.net = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, count, 1))
        for parameter in self.net.parameters():
            nn.init.normal_(parameter, 0, 1)

    def forward(self, x):
        x = self.net(x).mean((2, 3)) if self.kind == "conv" else self.net(x.mean((2, 3)))
        open = x.sigmoid() > 0.5 if self.sigmoid else x > 0
        return open.squeeze(1) if self.count == 1 else open


class Gated(nn.Module):
    """One or two modules that a gate decides on, computed before or after it, with a sum in it or not."""

    def __init__(self, draw, channels, depth=0):
        super().__init__()
        self.body = nn.ModuleList([Convolution(draw, channels, channels) for _ in range(draw.choice([1, 2]))])
        if depth == 0 and draw.random() < 0.3:
            self.body.append(Gated(draw, channels, 1))
        self.decision = Decision(draw, channels)
        self.first, self.adds, self.activation = (draw.random() < 0.5 for _ in range(3))

    def forward(self, x, otherwise=None):
        otherwise = x if otherwise is None else otherwise
        open = self.decision(x) if self.first else None
        y = x
        for module in self.body:
            y = module(y)
        if self.adds:
            y = x + y
        if self.activation:
            y = y.relu()
        return where_open(self.decision(x) if open is None else open, y, otherwise)


class Chosen(nn.Module):
    """A convolution whose filters a mask chooses: before or after its batch norm and ReLU."""

    def __init__(self, draw, inputs, outputs):
        super().__init__()
        kernel = draw.choice([1, 3])
        self.conv, self.norm = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.BatchNorm2d(outputs)
        self.decision = Decision(draw, inputs, outputs)
        self.late, self.activated = draw.random() < 0.5, draw.random() < 0.5

    def forward(self, x):
        mask, y = self.decision(x), self.norm(self.conv(x))
        if self.activated and self.late:
            return choose_filters(y.relu(), mask)
        y = choose_filters(y, mask)
        return y.relu() if self.activated else y


class RandomNetwork(nn.Module):
    """``steps`` of the vocabulary, each of values drawn among those before; what nobody reads goes into the outputs.

    Args:
        seed: draws everything but the weights' values, which torch's generator gives.
        gates: whether there are gate words.
    """

    def __init__(self, seed, steps=18, gates=True):
        super().__init__()
        draw = self.draw = random.Random(seed)
        torch.manual_seed(seed)
        self.parts = nn.ModuleList()
        self.steps = []
        self.shapes = [(3, 12, 10)]
        self.unread = {0}
        self.add("module", [0], Convolution(draw, 3, 8), (8, 12, 10))
        kinds = (
            ["conv"] * 6 + ["add"] * 4 + ["cat"] * 3 + ["split", "shuffle", "factor", "factor", "pool", "down", "up"]
        )
        kinds += ["norm", "activation", "number", "slice"] + (["gated"] * 4 + ["other", "chosen"] if gates else [])
        while len(self.steps) < steps:
            getattr(self, f"draw_{draw.choice(kinds)}")()
        self.draw_outputs()

    def add(self, kind, inputs, what, shape):
        self.unread -= set(inputs)
        if isinstance(what, nn.Module):
            self.parts.append(what)
            what = len(self.parts) - 1
        self.steps.append((kind, inputs, what))
        self.shapes.append(shape)
        self.unread.add(len(self.shapes) - 1)

    def pick(self):
        """A value: more often one of the last."""
        count = len(self.shapes)
        return self.draw.choice([self.draw.randrange(1, count), max(1, count - 1 - int(self.draw.expovariate(0.5)))])

    def alike(self, value, whole=True):
        shape = self.shapes[value]
        return [i for i, other in enumerate(self.shapes) if i and (other == shape if whole else other[1:] == shape[1:])]

    def draw_conv(self):
        x = self.pick()
        channels, *size = self.shapes[x]
        outputs = self.draw.choice([channels, channels, channels, 4, 8, 12])
        self.add("module", [x], Convolution(self.draw, channels, outputs), (outputs, *size))

    def draw_down(self):
        x = self.pick()
        channels, height, width = self.shapes[x]
        if min(height, width) >= 5:
            shape = (channels, -(-height // 2), -(-width // 2))
            self.add("module", [x], Convolution(self.draw, channels, channels, stride=2), shape)

    def draw_add(self):
        x = self.pick()
        terms = [x, *self.draw.choices(self.alike(x), k=self.draw.choice([1, 1, 2, 3]))]
        self.draw.shuffle(terms)
        self.add("add", terms, self.draw.random() < 0.4, self.shapes[x])

    def draw_cat(self):
        x = self.pick()
        terms = [x, *self.draw.choices(self.alike(x, whole=False), k=self.draw.choice([1, 1, 2, 3]))]
        self.draw.shuffle(terms)
        channels = sum(self.shapes[i][0] for i in terms)
        if channels <= 40:
            self.add("cat", terms, None, (channels, *self.shapes[x][1:]))

    def draw_split(self):
        x = self.pick()
        channels, *size = self.shapes[x]
        if channels % 2 == 0:
            for half in range(2):
                self.add("slice", [x], (half * channels // 2, channels // 2), (channels // 2, *size))

    def draw_slice(self):
        x = self.pick()
        channels, *size = self.shapes[x]
        first = self.draw.randrange(channels)
        count = self.draw.randint(1, channels - first)
        self.add("slice", [x], (first, count), (count, *size))

    def draw_shuffle(self):
        x = self.pick()
        channels = self.shapes[x][0]
        if channels % 2 == 0 and channels > 2:
            self.add("shuffle", [x], None, self.shapes[x])

    def draw_factor(self):
        x = self.pick()
        self.add("module", [x], Factor(self.draw, self.shapes[x][0]), self.shapes[x])

    def draw_norm(self):
        x = self.pick()
        self.add("module", [x], nn.BatchNorm2d(self.shapes[x][0]), self.shapes[x])

    def draw_activation(self):
        x = self.pick()
        self.add("activation", [x], self.draw.choice(ACTIVATIONS), self.shapes[x])

    def draw_number(self):
        x = self.pick()
        self.add("number", [x], (self.draw.choice([0.5, 1.5, -1.0]), self.draw.choice([0.0, 0.25])), self.shapes[x])

    def draw_pool(self):
        x = self.pick()
        channels, height, width = self.shapes[x]
        kernel, stride = self.draw.choice([(2, 2), (3, 2), (3, 1), (3, 3)])
        if min(height, width) < 5:
            return
        options = {"padding": self.draw.choice([0, kernel // 2]), "ceil_mode": self.draw.random() < 0.4}
        pool = nn.MaxPool2d if self.draw.random() < 0.5 else nn.AvgPool2d
        if pool is nn.AvgPool2d:
            options["count_include_pad"] = self.draw.random() < 0.5
        module = pool(kernel, stride, **options)
        shape = tuple(module(torch.zeros(1, channels, height, width)).shape[1:])
        self.add("module", [x], module, shape)

    def draw_up(self):
        x = self.pick()
        channels, height, width = self.shapes[x]
        if height <= 12:
            self.add("module", [x], nn.Upsample(scale_factor=2), (channels, 2 * height, 2 * width))

    def draw_gated(self):
        x = self.pick()
        self.add("module", [x], Gated(self.draw, self.shapes[x][0]), self.shapes[x])

    def draw_other(self):
        x = self.pick()
        other = self.draw.choice(self.alike(x))
        self.add("module", [x, other], Gated(self.draw, self.shapes[x][0]), self.shapes[x])

    def draw_chosen(self):
        x = self.pick()
        channels, *size = self.shapes[x]
        self.add("module", [x], Chosen(self.draw, channels, 8), (8, *size))

    def draw_outputs(self):
        ends = sorted(self.unread - {0})
        self.map = self.draw.choice([None, None, self.pick()])
        self.ends = ends
        self.heads = nn.ModuleList([nn.Linear(self.shapes[i][0], 3) for i in ends])

    def forward(self, image):
        values = [image]
        for kind, inputs, what in self.steps:
            read = [values[i] for i in inputs]
            values.append(getattr(self, f"run_{kind}")(what, *read))
        logits = [head(values[i].mean((2, 3))) for head, i in zip(self.heads, self.ends, strict=True)]
        return logits if self.map is None else [*logits, values[self.map]]

    def run_module(self, part, *read):
        return self.parts[part](*read)

    def run_add(self, relu, *terms):
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total.relu() if relu else total

    def run_cat(self, _, *terms):
        return torch.cat(terms, 1)

    def run_slice(self, range, x):
        return x[:, range[0] : range[0] + range[1]]

    def run_shuffle(self, _, x):
        first, second = x.chunk(2, 1)
        return torch.cat([second, first], 1)

    def run_activation(self, function, x):
        return function(x)

    def run_number(self, numbers, x):
        return x * numbers[0] + numbers[1]
