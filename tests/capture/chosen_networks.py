"""Networks that choose filters, or skip, by what they or torch decide on the way: what every backend is held to."""

import torch
from torch import nn

from dsn_models.functional import choose_filters, where_open
from tests.capture.capture_checks import settle


class Chosen(nn.Module):
    """``decide(network, pooled stem)``: masks of two convolutions, and the gate of what lies between."""

    def __init__(self, decide):
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.b, self.c = nn.Conv2d(24, 24, 1), nn.Conv2d(24, 20, 3, padding=1)
        self.scores, self.head, self.decide = nn.Linear(16, 45), nn.Linear(20, 5), decide

    def forward(self, x):
        x = self.stem(x).relu()
        first, second, gate = self.decide(self, x.mean((2, 3)))
        x = choose_filters(self.a(x), first).relu()
        x = where_open(gate, x + self.b(x), x)
        x = choose_filters(self.c(x), second).relu()
        return self.head(x.mean((2, 3)))


def together(network, pooled):
    """All by one list of scores."""
    open = network.scores(pooled) > 0
    return open[:, :24], open[:, 24:44], open[:, 44:].squeeze(1)


def by_torch(network, pooled):
    """By what no kernel has."""
    open = network.scores(pooled).softmax(1) > 1 / 45
    return open[:, :24], open[:, 24:44], open[:, 44:].squeeze(1)


CHOICES = {"together": together, "by torch": by_torch}


class OneByOne(nn.Module):
    """Feature boosting and suppression: each convolution's filters are chosen by what it reads. arXiv:1810.05331."""

    def __init__(self):
        super().__init__()
        sizes = (3, 16, 24, 24)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in zip(sizes, sizes[1:], strict=False))
        self.scores = nn.ModuleList(nn.Linear(size, o) for size, o in zip(sizes[1:], sizes[2:], strict=False))
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = self.convs[0](x).relu()
        for conv, score in zip(self.convs[1:], self.scores, strict=True):
            x = choose_filters(conv(x), score(x.mean((2, 3))) > 0).relu()
        return self.head(x.mean((2, 3)))


def make_chosen(name):
    torch.manual_seed(0)
    return settle(OneByOne() if name == "one by one" else Chosen(CHOICES[name]))
