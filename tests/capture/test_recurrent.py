"""Recurrent gates in anybody's network: one plan where the LSTM is SkipNet's, torch's between plans where it is not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dsn_models.errors import UserError
from dsn_models.functional import where_open
from tests.capture.capture_checks import Checked, make_images, settle

WIDTHS = (8, 8, 12, 12)


class Unit(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1, self.norm1 = (
            nn.Conv2d(inputs, outputs, 3, 1 + (inputs != outputs), 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.down = nn.Conv2d(inputs, outputs, 1, 2) if inputs != outputs else nn.Identity()

    def forward(self, x):
        return self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))


class Skipping(nn.Module):
    """A ResNet whose units are skipped as ``decide(network, pooled embedding, state)`` says, which gives a gate and the
    state; ``options``: of what decides."""

    def __init__(self, decide, size=10, **options):
        super().__init__()
        self.decide, self.size = decide, size
        self.stem, self.head = nn.Conv2d(3, WIDTHS[0], 3, 1, 1), nn.Linear(WIDTHS[-1], 5)
        self.units = nn.ModuleList(map(Unit, (WIDTHS[0], *WIDTHS), WIDTHS))
        self.embed = nn.ModuleList(nn.Linear(width, size) for width in (WIDTHS[0], *WIDTHS[:-1]))
        recurrent = {"cell": nn.LSTMCell, "lstm": nn.LSTM, "gru": nn.GRUCell}[options.pop("kind")]
        self.rnn = recurrent(size, size, **options)
        self.other = nn.LSTMCell(size, size)
        self.proj, self.start = nn.Linear(size, 1), nn.Parameter(torch.zeros(1, size))
        for linear in self.embed:
            nn.init.normal_(linear.weight, 0, 2)
        nn.init.normal_(self.proj.weight, 0, 3)

    def score(self, hidden):
        return self.proj(hidden).squeeze(1).sigmoid()

    def forward(self, x):
        x, state = self.stem(x).relu(), None
        for i, (unit, embed) in enumerate(zip(self.units, self.embed, strict=True)):
            open, state = self.decide(self, i, embed(x.mean((2, 3))), state)
            shortcut = unit.down(x)
            x = where_open(open, (shortcut + unit(x)).relu(), shortcut)
        return self.head(x.mean((2, 3)))


def cell(n, i, x, state):
    state = n.rnn(x, state)
    return n.score(state[0]) > 0.5, state


def cell_from_zeros(n, i, x, state):
    state = n.rnn(x, (x.new_zeros(x.shape[0], n.size), torch.zeros_like(x)) if state is None else state)
    return n.score(state[0]) > 0.4, state


def cell_from_repeated_zeros(n, i, x, state):
    state = n.rnn(x, (n.start.repeat(x.shape[0], 1), n.start.expand(x.shape[0], -1)) if state is None else state)
    return n.score(state[0]) > 0.5, state


def sequence(n, i, x, state):
    """As SkipNet's authors write it."""
    out, state = n.rnn(x.view(1, x.shape[0], -1), state)
    return n.proj(out.squeeze(0)).sigmoid()[:, 0] > 0.5, state


def sequence_of_the_last_state(n, i, x, state):
    out, state = n.rnn(x[None], state)
    return n.score(state[0][-1]) > 0.5, state


def batch_first(n, i, x, state):
    out, state = n.rnn(x[:, None], state)
    return n.score(out[:, 0]) > 0.5, state


SERVED = {
    "cell": (cell, {"kind": "cell"}),
    "cell without biases": (cell, {"kind": "cell", "bias": False}),
    "from zeros": (cell_from_zeros, {"kind": "cell"}),
    "from repeated zeros": (cell_from_repeated_zeros, {"kind": "cell"}),
    "sequence": (sequence, {"kind": "lstm"}),
    "sequence without biases": (sequence, {"kind": "lstm", "bias": False}),
    "the last state": (sequence_of_the_last_state, {"kind": "lstm"}),
    "batch first": (batch_first, {"kind": "lstm", "batch_first": True}),
}


def make(decide, **options):
    """With gates that open for some of the images."""
    torch.manual_seed(3)
    model, logits = settle(Skipping(decide, **options)).requires_grad_(False), []
    hook = model.proj.register_forward_hook(lambda module, args, out: logits.append(out))
    model(make_images(6))
    hook.remove()
    ordered = torch.cat(logits).flatten().sort().values
    model.proj.bias -= ordered[len(ordered) // 2 - 1 :][:2].mean()  # none is within rounding
    return model


@pytest.mark.long
@pytest.mark.parametrize("name", SERVED)
def test_a_recurrent_gate_runs_in_the_plan(name):
    decide, options = SERVED[name]
    x = make_images(6)
    checked = Checked(make(decide, **options), x)
    assert checked.whole, checked.fast.summary()
    gates = [node for node in checked.plans[0].graph.nodes if node.op == "gate"]
    assert [gate.follows for gate in gates] == [False, True, True, True]
    assert len({id(gate.recurrence) for gate in gates}) == 1
    checked.check(x)
    taken = checked.joined(checked.fast.last_gates)
    assert 0 < taken.sum() < taken.numel(), "some units are skipped and some are not"
    checked.check(x, torch.randint(2, (6, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)))
    macs = {}
    for value in (0, 1):
        checked.check(x, torch.full((6, 4), value, dtype=torch.uint8))
        macs[value] = checked.fast.last_macs
    units = 120 * 9 * 2 * 8 * 8 * 2 + 30 * 9 * (8 * 12 + 3 * 12 * 12)
    assert torch.equal(macs[1] - macs[0], torch.full((6,), units))


def test_thresholds():
    x = make_images(6)
    checked = Checked(make(cell, kind="cell"), x)
    checked.fast(x)
    scores = checked.joined(checked.fast.last_scores)
    limit = scores[:, 0].median().item()
    checked.fast(x, thresholds=limit)
    assert torch.equal(checked.joined(checked.fast.last_gates)[:, 0], (scores[:, 0] > limit).byte())


def two_that_take_turns(n, i, x, state):
    first, second = state or (None, None)
    if i % 2:
        second = n.other(x, second)
        return n.score(second[0]) > 0.5, (first, second)
    first = n.rnn(x, first)
    return n.score(first[0]) > 0.5, (first, second)


def forgets(n, i, x, state):
    return cell(n, i, x, state if i != 2 else None)


def mixes_states(n, i, x, state):
    h, c = n.rnn(x, None if state is None else state[:2])
    return n.score(h) > 0.5, (h, c if state is None else state[1])


def looks_at_the_state(n, i, x, state):
    h, c = n.rnn(x, state)
    return n.score(h + c) > 0.5, (h, c)


def compares_a_logit(n, i, x, state):
    h, c = n.rnn(x, state)
    return n.proj(h).squeeze(1) > 0.1, (h, c)


def activates_the_embedding(n, i, x, state):
    return cell(n, i, x.tanh(), state)


def goes_along_the_batch(n, i, x, state):
    out, state = n.rnn(x[:, None], state)
    return n.score(out[:, 0]) > 0.5, state


OTHERS = {
    "wider": (cell, {"kind": "cell", "size": 12}),
    "wider, from zeros": (cell_from_zeros, {"kind": "cell", "size": 12}),
    "a GRU": (lambda n, i, x, s: (lambda h: (n.score(h) > 0.5, h))(n.rnn(x, s)), {"kind": "gru"}),
    "two layers": (sequence, {"kind": "lstm", "num_layers": 2}),
    "both directions": (
        lambda n, i, x, s: (lambda out, t: (n.score(out[0, :, :10]) > 0.5, t))(*n.rnn(x[None], s)),
        {"kind": "lstm", "bidirectional": True},
    ),
    "two that take turns": (two_that_take_turns, {"kind": "cell"}),
    "forgets": (forgets, {"kind": "cell"}),
    "mixes states": (mixes_states, {"kind": "cell"}),
    "looks at the state": (looks_at_the_state, {"kind": "cell"}),
    "compares a logit": (compares_a_logit, {"kind": "cell"}),
    "activates the embedding": (activates_the_embedding, {"kind": "cell"}),
}


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_such_gate_is_computed_by_torch(name):
    decide, options = OTHERS[name]
    x = make_images(6)
    checked = Checked(make(decide, **options), x)
    assert not checked.whole and len(checked.gates) == 4
    checked.check(x)
    checked.check(x, torch.randint(2, (6, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)))


def test_a_sequence_along_the_batch_is_refused():
    with pytest.raises(UserError, match="on a batch of 3 alone") as error:
        Checked(make(goes_along_the_batch, kind="lstm"), make_images(6))
    assert "\n" not in str(error.value)


class DecidesTwice(Skipping):
    def forward(self, x):
        x = self.stem(x).relu()
        h, _ = self.rnn(self.embed[0](x.mean((2, 3))), None)
        open = self.score(h) > 0.5
        x = where_open(open, self.units[0](x), x)
        return where_open(open, self.units[1](x), x)


def test_two_parts_of_one_decision():
    torch.manual_seed(3)
    x = make_images(6)
    checked = Checked(settle(DecidesTwice(cell, kind="cell")).requires_grad_(False), x)
    checked.check(x)
