"""The two gate words: what they compute, their gradients, and that export and compile see them as one node each."""

import pytest
import torch
from torch import nn

from dsn_models import UserError
from dsn_models.functional import choose_filters, where_open

SHAPES = [(5, 3, 4, 6), (1, 7, 1, 1), (4, 3), (3,), (0, 2, 3, 3), (3, 0, 2, 2)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
KINDS = ["hard", "soft", "bool", "uint8"]
OPS = {where_open: "where_open", choose_filters: "choose_filters"}


def make_weight(kind, shape, dtype=torch.float64):
    """0 and 1 in turn, or numbers within (0, 1) between them."""
    numbers = torch.arange(torch.Size(shape).numel()).reshape(shape)
    if kind == "soft":
        return torch.where(numbers % 3 == 0, 0.3, numbers % 3 - 1).to(dtype)
    return (numbers % 2).to({"hard": dtype, "bool": torch.bool, "uint8": torch.uint8}[kind])


def spread(weight, over):
    return weight.reshape(*weight.shape, *(1,) * (over.dim() - weight.dim()))


def make_arguments(op, kind, shape=(5, 3, 4, 6), dtype=torch.float64, grad=False):
    torch.manual_seed(0)
    sides = [torch.randn(shape, dtype=dtype) for _ in range(2 if op is where_open else 1)]
    weight = make_weight(kind, shape[: 1 if op is where_open else 2], dtype)
    arguments = [weight, *sides] if op is where_open else [*sides, weight]
    return [x.requires_grad_(grad and x.is_floating_point()) for x in arguments]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_where_open_is_the_formula_and_exact_at_both_ends(shape, kind, dtype):
    open, computed, otherwise = make_arguments(where_open, kind, shape, dtype)
    found = where_open(open, computed, otherwise)
    w = spread(open, computed).double()
    expected = w * computed.double() + (1 - w) * otherwise.double()
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
    for value, side in ((1, computed), (0, otherwise)):
        assert torch.equal(found[open == value], side[open == value])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if len(shape) > 1])
def test_choose_filters_is_the_product_and_exact_at_both_ends(shape, kind, dtype):
    x, mask = make_arguments(choose_filters, kind, shape, dtype)
    found = choose_filters(x, mask)
    expected = x.double() * spread(mask, x).double()
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=0)
    assert torch.equal(found[mask == 1], x[mask == 1]) and not found[mask == 0].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_not_chosen_does_not_reach_the_result_or_the_other_side(kind, bad):
    open, computed, otherwise = make_arguments(where_open, kind)
    computed[open == 0], otherwise[open == 1] = bad, bad
    computed.requires_grad_(), otherwise.requires_grad_()
    found = where_open(open, computed, otherwise)
    found.backward(torch.where(spread(open, found) == 0, 2.0, 3.0).expand_as(found))
    assert found.isfinite().all()
    assert (computed.grad[open == 0] == 0).all() and (otherwise.grad[open == 1] == 0).all()

    x, mask = make_arguments(choose_filters, kind)
    x[mask == 0] = bad
    found = choose_filters(x.requires_grad_(), mask)
    found.sum().backward()
    assert found.isfinite().all() and (x.grad[mask == 0] == 0).all()


def test_an_infinite_gradient_stays_on_the_side_that_was_chosen():
    open, computed, otherwise = make_arguments(where_open, "hard", grad=True)
    where_open(open.detach(), computed, otherwise).backward(torch.full_like(computed, float("inf")))
    assert (computed.grad[open == 0] == 0).all() and (otherwise.grad[open == 1] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", OPS, ids=OPS.values())
def test_gradients(op, kind):
    arguments = make_arguments(op, kind, (3, 2, 2, 3), grad=True)
    torch.autograd.gradcheck(op, arguments)
    torch.autograd.gradgradcheck(op, arguments)


@pytest.mark.parametrize("weight", [torch.float32, torch.float64])
def test_the_gradient_of_a_weight_is_summed_in_its_own_type(weight):
    x = torch.ones(1, 1, 100, 100, dtype=torch.bfloat16)
    mask = torch.ones(1, 1, dtype=weight, requires_grad=True)
    (choose_filters(x, mask) * torch.ones_like(x)).sum().backward()
    assert mask.grad.dtype == weight and mask.grad.item() == 10_000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (0, 2, 3, 3), (4, 3)])
@pytest.mark.parametrize("op", OPS, ids=OPS.values())
def test_opcheck(op, shape, kind):
    overload = getattr(torch.ops.dsn, OPS[op]).default
    torch.library.opcheck(overload, make_arguments(op, kind, shape, torch.float32, grad=True))


@pytest.mark.parametrize("op", OPS, ids=OPS.values())
def test_channels_last_stays(op):
    arguments = [x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for x in make_arguments(op, "soft")]
    assert op(*arguments).is_contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(getattr(torch.ops.dsn, OPS[op]).default, arguments, test_utils="test_faketensor")


class Both(nn.Module):
    """A unit that may be skipped, of a convolution whose filters are chosen."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.gate, self.mask = nn.Linear(4, 1), nn.Linear(4, 4)

    def forward(self, x):
        pooled = x.mean((2, 3))
        kept = choose_filters(self.conv(x), self.mask(pooled) > 0)
        return where_open(self.gate(pooled).squeeze(1).sigmoid(), x + kept, x)


@pytest.mark.parametrize("batch", [None, torch.export.Dim("batch", min=1, max=64)])
def test_each_is_one_node_of_an_exported_program(batch):
    torch.manual_seed(0)
    model, x = Both().eval(), torch.randn(3, 4, 6, 6)
    shapes = None if batch is None else ({0: batch},)
    program = torch.export.export(model, (x,), dynamic_shapes=shapes, strict=False).run_decompositions()
    targets = [node.target for node in program.module().graph.nodes if node.op == "call_function"]
    for name in OPS.values():
        assert targets.count(getattr(torch.ops.dsn, name).default) == 1
    torch.testing.assert_close(program.module()(x), model(x))
    if batch is not None:
        torch.testing.assert_close(program.module()(x[:2]), model(x[:2]))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_sees_a_full_graph_and_trains(dynamic):
    torch.manual_seed(0)
    model, x = Both(), torch.randn(3, 4, 6, 6)
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    results = []
    for network in (model, compiled):
        model.zero_grad()
        out = network(x)
        out.square().sum().backward()
        results.append([out.detach(), model.conv.weight.grad.clone(), model.gate.weight.grad.clone()])
    torch.testing.assert_close(results[1], results[0])


def test_under_autocast_the_wider_type_wins():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(4, 4, 3, padding=1), torch.randn(2, 4, 5, 5, requires_grad=True)
    open = torch.tensor([0.0, 1.0], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        computed = conv(x)
        found, chosen = where_open(open, computed, x), choose_filters(computed, torch.ones(2, 4))
    assert computed.dtype == chosen.dtype == torch.bfloat16 and found.dtype == torch.float32
    assert torch.equal(found[1], computed[1].float()) and torch.equal(found[0], x[0])
    found.sum().backward()
    assert x.grad.dtype == open.grad.dtype == conv.weight.grad.dtype == torch.float32


X, B = torch.ones(2, 3, 4, 4), torch.ones(2)
BAD = [
    (where_open, (B, X, X[:, :1]), r"where_open: otherwise is \[2, 1, 4, 4\]; expected \[2, 3, 4, 4\]"),
    (where_open, (B, X, X[..., 0]), r"where_open: otherwise is \[2, 3, 4\]; expected \[2, 3, 4, 4\]"),
    (where_open, (B[:1], X, X), r"where_open: open is \[1\]; expected \[2\], a value for each image"),
    (where_open, (B[:, None], X, X), r"where_open: open is \[2, 1\]; expected \[2\]"),
    (where_open, (B.long(), X, X), "where_open: open is int64; expected floating point, bool or uint8"),
    (where_open, (B, X.int(), X.int()), "where_open: computed is int32; expected floating point"),
    (where_open, (B, X, X.to("meta")), "where_open: otherwise is on meta; expected cpu, where computed is"),
    (where_open, (B, X.sum(), X.sum()), r"where_open: computed has no dimension; expected \[B, ...\]"),
    (choose_filters, (X, B), r"choose_filters: mask is \[2\]; expected \[2, 3\], a value for each image and channel"),
    (choose_filters, (X, X[:, :1, 0, 0]), r"choose_filters: mask is \[2, 1\]; expected \[2, 3\]"),
    (choose_filters, (X, X[..., 0, 0].int()), "choose_filters: mask is int32; expected floating point, bool or uint8"),
    (choose_filters, (X.int(), X[..., 0, 0]), "choose_filters: x is int32; expected floating point"),
    (choose_filters, (B, B), r"choose_filters: x is \[2\]; expected \[B, C, ...\]"),
    (choose_filters, (X, X[..., 0, 0].to("meta")), "choose_filters: mask is on meta; expected cpu, where x is"),
]


@pytest.mark.parametrize(("op", "arguments", "message"), BAD)
def test_what_does_not_fit_is_refused_in_one_line(op, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        op(*arguments)
    assert "\n" not in str(error.value)


def test_an_export_of_shapes_that_differ_says_so():
    class Wrong(nn.Module):
        def forward(self, x):
            return where_open(x[:, 0, 0, 0], x, x[:, :1])

    with pytest.raises(Exception, match=r"where_open: otherwise is \[2, 1, 4, 4\]; expected \[2, 3, 4, 4\]"):
        torch.export.export(Wrong(), (X,), strict=False)


def test_types_that_differ_are_refused_by_the_operator_itself():
    with pytest.raises(UserError, match="where_open: otherwise is float64; expected float32, as computed is"):
        torch.ops.dsn.where_open(B, X, X.double())
