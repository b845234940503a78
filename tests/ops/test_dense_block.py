import copy
import dataclasses

import pytest
import torch
from device_checks import BLOCKS, PATTERNS, block_gates, forced_gates, images
from hypothesis import given, settings
from hypothesis import strategies as st
from references import make_block

from dsn_kernels import Part, ops
from dsn_kernels.graph import count_macs
from dsn_models.errors import UserError
from tests.checks import assert_as_exact_as_torch, assert_gates_agree


@pytest.mark.parametrize("case", BLOCKS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_equals_masked_reference(case, pattern, threads):
    block = make_block(**BLOCKS[case])
    layers, batch = len(block.layers), 3
    x = images(batch, BLOCKS[case]["channels"], 8, 8)
    forced = forced_gates(pattern, batch, layers)
    y, taken, scores = Part(block)(x, 0.5, forced)
    exact = copy.deepcopy(block).double()
    reference, _, reference_scores = exact(x.double(), 0.5, taken)
    assert_as_exact_as_torch(y, block(x, 0.5, taken)[0], reference)
    if pattern == "own":
        assert_gates_agree(taken, scores, reference_scores, 0.5)
    else:
        assert torch.equal(taken, forced)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (2, 2), (7, 7), (5, 33), (14, 14), (31, 32), (9, 70)])
@pytest.mark.parametrize("bottleneck", [True, False])
def test_odd_sizes(size, bottleneck, threads):
    block = make_block(channels=8, layers=3, growth=6, bottleneck=bottleneck)
    x = images(3, 8, *size)
    forced = torch.tensor([[1, 0, 1], [0, 1, 1], [0, 0, 1]], dtype=torch.uint8)
    y, _, _ = Part(block)(x, 0.5, forced)
    exact = copy.deepcopy(block).double()
    assert_as_exact_as_torch(y, block(x, 0.5, forced)[0], exact(x.double(), 0.5, forced)[0])


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 3),
    channels=st.integers(1, 20),
    growth=st.integers(1, 14),
    layers=st.integers(1, 4),
    height=st.integers(1, 19),
    width=st.integers(1, 19),
    bottleneck=st.booleans(),
    seed=st.integers(0, 99),
)
@pytest.mark.long
def test_any_shape(batch, channels, growth, layers, height, width, bottleneck, seed):
    block = make_block(channels, layers, growth, bottleneck)
    x, forced = images(batch, channels, height, width), block_gates(batch, layers, seed)
    y, taken, _ = Part(block)(x, 0.5, forced)
    assert y.shape == (batch, channels + layers * growth, height, width)
    assert torch.equal(taken, forced)
    if batch:
        exact = copy.deepcopy(block).double()
        assert_as_exact_as_torch(y, block(x, 0.5, forced)[0], exact(x.double(), 0.5, forced)[0])


@pytest.mark.long
@pytest.mark.parametrize("isa", ["generic", "avx2"])
def test_lower_instruction_sets_agree(isa, subprocess_python):
    """The same library in a process limited to a lower instruction set."""
    subprocess_python(
        """
        import copy, torch
        from dsn_kernels import _C, Part
        from references import make_block, make_head, make_transition
        from tests.checks import assert_as_exact_as_torch
        for bottleneck in (True, False):
            block = make_block(24, 3, bottleneck=bottleneck)
            x, forced = torch.randn(3, 24, 9, 16), torch.tensor([[1, 0, 1]] * 3, dtype=torch.uint8)
            y, exact = Part(block)(x, 0.5, forced)[0], copy.deepcopy(block).double()
            assert_as_exact_as_torch(y, block(x, 0.5, forced)[0], exact(x.double(), 0.5, forced)[0])
        for module in (make_transition(24, 20), make_head(24, 5)):
            for size in ((16, 16), (9, 14)):
                x = torch.randn(2, 24, *size)
                assert_as_exact_as_torch(Part(module)(x), module(x), copy.deepcopy(module).double()(x.double()))
        print(_C.build_info()["isa"])
        """,
        expect=isa,
        DSN_ISA=isa,
    )


def test_non_contiguous_input():
    block = make_block(channels=8, layers=2)
    x = images(4, 16, 8, 9)[::2, ::2].transpose(2, 3)
    fast = Part(block)
    assert torch.equal(fast(x)[0], fast(x.contiguous())[0])


def test_skipped_slices_are_zero():
    block = make_block(channels=8, layers=2)
    y, _, _ = Part(block)(images(2, 8, 6, 6), 0.5, torch.tensor([[0, 1], [1, 0]], dtype=torch.uint8))
    assert not y[0, 8:20].any() and y[0, 20:].any()
    assert y[1, 8:20].any() and not y[1, 20:].any()


def test_threshold_decides():
    block = make_block(channels=8, layers=3)
    x, fast = images(4, 8, 6, 6), Part(block)
    _, _, scores = fast(x, 0.5)
    assert torch.equal(fast(x, 1.0)[1], torch.zeros(4, 3, dtype=torch.uint8))  # no score exceeds 1
    first = scores[0, 0].item()
    assert fast(x, first)[1][0, 0] == 0, "a score that ties with the threshold does not exceed it"


def test_same_result_for_any_number_of_threads():
    block = make_block(channels=24, layers=4)
    fast, x, before = Part(block), images(3, 24, 16, 16), torch.get_num_threads()
    results = []
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        results.append(fast(x))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def arguments(block, x, forced=None):
    """Of the operator, by name."""
    runner = Part(block).runner
    sized = runner.sized(*x.shape[-2:])
    limits = torch.full((sized.graph.gates,), 0.5)
    return {"image": x, "weights": runner.weights, "thresholds": limits, "forced_gates": forced,
            "plan": sized.words, **sized.sizes}  # fmt: skip


@pytest.mark.long
def test_opcheck():
    block = make_block(channels=8, layers=2)
    for forced in (None, block_gates(2, 2)):
        given = arguments(block, images(2, 8, 5, 5), forced)
        rest = {"count": None, "element": 0, "timed": False}
        torch.library.opcheck(torch.ops.dsn.run_plan.default, (), {**given, **rest})


def test_nan_stays_nan():
    block = make_block(channels=8, layers=1)
    x = images(1, 8, 4, 4)
    x[0, 0, 0, 0] = float("nan")
    y, _, _ = Part(block)(x, 0.5, torch.ones(1, 1, dtype=torch.uint8))
    assert y[0, 8:].isnan().any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": images(8, 5, 5)}, r"run_plan: image must have shape \[any, any, any, any\], got \[8, 5, 5\]"),
        ({"image": images(2, 8, 5, 5).double()}, "run_plan: image must be Float, got Double"),
        ({"weights": torch.zeros(3)}, "run_plan: weights hold 3 floats"),
        ({"thresholds": torch.full((3,), 0.5)}, r"run_plan: thresholds must have shape \[2\], got \[3\]"),
        ({"thresholds": torch.tensor([0.5, 1.5])}, r"run_plan: thresholds must lie in \[0, 1\], got 1.5"),
        ({"thresholds": torch.tensor([0.5, float("nan")])}, r"run_plan: thresholds must lie in \[0, 1\], got"),
        (
            {"forced_gates": torch.zeros(2, 3, dtype=torch.uint8)},
            r"forced_gates must have shape \[2, 2\], got \[2, 3\]",
        ),
        ({"forced_gates": torch.zeros(2, 2)}, "run_plan: forced_gates must be Byte, got Float"),
        (
            {"forced_gates": torch.full((2, 2), 3, dtype=torch.uint8)},
            "must hold 0 .skip. or 1 .run., got 3",
        ),
        ({"layers": -1}, "run_plan: "),
        ({"out_channels": 0}, "run_plan: "),
        ({"bottleneck": -4}, "run_plan: "),
    ],
)
def test_bad_arguments_are_named_in_one_line(change, message):
    """Of the operator, and of the instruction in its plan."""
    block, x = make_block(channels=8, layers=2), images(2, 8, 5, 5)
    fields = {name: change[name] for name in change.keys() & {"layers", "out_channels", "bottleneck"}}
    given = arguments(block, x) | {name: value for name, value in change.items() if name not in fields}
    if fields:
        runner = Part(block).runner
        load, code, store = runner.plan.code
        plan = dataclasses.replace(runner.plan, code=[load, code | fields, store])
        given["plan"] = plan.words(runner.graph.resized(5, 5))
    with pytest.raises(RuntimeError, match=message) as error:
        ops.run_plan(**given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": images(8, 5, 5)}, r"x has shape \[8, 5, 5\]; expected a batch of maps"),
        ({"threshold": 1.5}, r"threshold is 1.5; expected a number in \[0, 1\]"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"forced": torch.full((2, 2), 3, dtype=torch.uint8)}, "forced gates hold 3; expected 0 .skip. and 1 .run."),
    ],
)
def test_a_users_mistake_is_told_in_one_line(given, message):
    stage = Part(make_block(channels=8, layers=2))
    with pytest.raises(UserError, match=message) as error:
        stage(**{"x": images(2, 8, 5, 5), **given})
    assert "\n" not in str(error.value)


def test_what_the_last_call_did():
    stage, forced = Part(make_block(channels=8, layers=2)), torch.tensor([[1, 0], [0, 0]], dtype=torch.uint8)
    _, taken, scores = stage(images(2, 8, 5, 5), forced=forced)
    assert torch.equal(stage.last_gates, forced) and torch.equal(taken, forced)
    assert torch.equal(stage.last_scores, scores)
    assert torch.equal(stage.last_macs, count_macs(stage.runner.graph.resized(5, 5), forced))
    assert stage.last_macs[0] > stage.last_macs[1]


@pytest.mark.long
def test_compiles_with_its_gates():
    stage, x = Part(make_block(channels=8, layers=2)), images(3, 8, 5, 5)
    compiled = torch.compile(stage, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(compiled(x), stage(x), strict=True))
    assert torch.equal(compiled.last_gates, stage.last_gates)
