"""Accelerated residual networks, SkipNets, GaterNets and GUNNs against the reference models in float64."""

import concurrent.futures
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import dsn_kernels
from dsn_models.errors import UserError
from tests.checks import check_network
from tests.networks import VARIED, make_images, make_varied

torch.manual_seed(0)


def patterns(fast: nn.Module, batch: int):
    """None, all open, all shut, one open, random."""
    yield None
    for name, count in fast.layers.items():
        for probability in (1.0, 0.0, 0.5):
            yield {name: (torch.rand(batch, count) < probability).to(torch.uint8)}
        single = torch.zeros(batch, count, dtype=torch.uint8)
        single[:, count // 2] = 1
        yield {name: single}


@pytest.mark.parametrize("name", VARIED)
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_the_reference(name, batch):
    model = make_varied(name)
    fast, images = dsn_kernels.accelerate(model), make_images(model, batch)
    for forced in patterns(fast, batch):
        check_network(model, fast, images, forced=forced)


@pytest.mark.parametrize("name", VARIED)
def test_results_do_not_depend_on_threads(name):
    """Nor on the batch, be it smaller than the number of threads, equal to it or a little larger."""
    fast = dsn_kernels.accelerate(make_varied(name))
    images = make_images(fast, 5)
    threads, outputs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            outputs.append((fast(images), fast.last_macs))
            for batch in range(1, 5):
                scores = fast(images[:batch]), fast.last_macs
                assert all(torch.equal(own, whole[:batch]) for own, whole in zip(scores, outputs[-1], strict=True))
    finally:
        torch.set_num_threads(threads)
    for logits, macs in outputs[1:]:
        assert torch.equal(logits, outputs[0][0])
        assert torch.equal(macs, outputs[0][1])


@pytest.mark.long
@pytest.mark.parametrize("isa", ["avx2", "generic"])
def test_what_one_machine_packed_another_runs(isa, tmp_path):
    """The packed weights say how a convolution is computed; a lesser instruction set follows them."""
    fast = dsn_kernels.accelerate(make_varied("skipnet-32"))
    images = make_images(fast, 2)
    torch.save({"fast": fast, "images": images, "logits": fast(images)}, tmp_path / "fast.pt")
    code = """
import sys, torch
saved = torch.load(sys.argv[1], weights_only=False)
torch.testing.assert_close(saved["fast"](saved["images"]), saved["logits"], rtol=1e-4, atol=1e-4)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "fast.pt")],
        env={**os.environ, "DSN_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", VARIED)
def test_four_python_threads_at_once(name):
    fast = dsn_kernels.accelerate(make_varied(name))
    batches = [make_images(fast, batch) for batch in (1, 2, 3, 4)]
    expected = [fast(images) for images in batches]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for actual, wanted in zip(pool.map(fast, batches), expected, strict=True):
                assert torch.equal(actual, wanted)


@pytest.mark.parametrize("name", ["resnet-pad", "resnet-preact", "gunn", "skipnet-rnn", "gaternet-last"])
def test_open_gates_cost_what_the_dense_network_costs(name):
    fast = dsn_kernels.accelerate(make_varied(name))
    gates = {key: torch.ones(1, count, dtype=torch.uint8) for key, count in fast.layers.items()}
    extra = int(fast.macs(gates)) - fast.dense_macs
    assert extra >= 0
    if not fast.layers:
        assert extra == 0  # nothing but the network


def test_a_bypassed_unit_costs_its_gate_alone():
    fast = dsn_kernels.accelerate(make_varied("skipnet-rnn"))
    count = fast.layers["units"]
    shut = torch.zeros(count + 1, count, dtype=torch.uint8)
    shut[1:] = torch.eye(count, dtype=torch.uint8)
    fast(make_images(fast, count + 1), forced_gates={"units": shut})
    units = fast.last_macs[1:] - fast.last_macs[0]
    assert (units > 0).all()
    pixels, width = 16 * 16, 16
    assert int(units[0]) == 2 * 9 * width * width * pixels


def test_a_filter_that_is_off_costs_nothing():
    fast = dsn_kernels.accelerate(make_varied("gaternet-last"))
    count = fast.layers["filters"]
    gates = torch.ones(2, count, dtype=torch.uint8)
    gates[1, 0] = 0  # one filter of the first unit's last convolution, 3x3 over 16 channels and 32 x 32 pixels
    fast(make_images(fast, 2), forced_gates={"filters": gates})
    assert int(fast.last_macs[0] - fast.last_macs[1]) == 9 * 16 * 32 * 32


@pytest.mark.parametrize("name", ["resnet-pad", "skipnet-rnn", "gaternet-last", "gunn"])
def test_compiles_and_takes_an_empty_batch(name):
    fast = dsn_kernels.accelerate(make_varied(name))
    images = make_images(fast, 2)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(images), fast(images), atol=1e-5)
    assert fast(images[:0]).shape == (0, fast.config.classes)


def test_bad_input_is_refused():
    fast = dsn_kernels.accelerate(make_varied("skipnet-rnn"))
    images = make_images(fast, 2)
    with pytest.raises(UserError, match="images have shape"):
        fast(images[:, :1])
    with pytest.raises(UserError, match="forced_gates"):
        fast(images, forced_gates={"units": torch.ones(2, 1, dtype=torch.uint8)})
    with pytest.raises(UserError, match="threshold"):
        fast(images, thresholds=1.5)
    dense = dsn_kernels.accelerate(make_varied("resnet-pad"))
    with pytest.raises(UserError, match="forced_gates is .*expected a mapping with nothing: the network has no gates"):
        dense(images, forced_gates={"units": torch.ones(2, 1, dtype=torch.uint8)})
    with pytest.raises(UserError, match="thresholds are for networks whose gates have them"):
        dense(images, thresholds=0.5)


@pytest.mark.parametrize("name", ["skipnet-rnn", "gaternet-last", "gunn"])
def test_shows_itself_as_a_table(name):
    model = make_varied(name)
    fast = dsn_kernels.accelerate(model)
    before = fast._repr_html_()
    fast(make_images(model, 2))
    after = fast._repr_html_()
    assert fast.config.name in before and f"{sum(p.numel() for p in model.parameters()):,}" in before
    assert "last call</td>" not in before and f"{fast.last_macs.double().mean() / 1e6:,.2f} M" in after
    for key, count in fast.layers.items():
        share = f"{100 * fast.last_gates[key].double().mean().item():.1f} %"
        assert f"<td>{key}</td><td>{count:,}</td><td>{fast.thresholds[0]:.3g}</td><td>{share}</td>" in after
