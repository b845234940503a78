"""Accelerated residual networks, SkipNets, GaterNets and GUNNs against the reference models in float64."""

import concurrent.futures
import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import dsn_kernels
import dsn_models
from dsn_models.errors import UserError

torch.manual_seed(0)

SMALL = {"stage_units": (2, 2, 2), "image_size": 16}
MODELS = {
    "resnet-pad": ("resnet-20", SMALL),
    "resnet-projection": ("resnet-20", {**SMALL, "shortcut": "projection", "image_size": 13}),
    "resnet-preact": ("resnet-164", {**SMALL, "image_size": 9}),
    "resnet-bottleneck": ("resnet-50", {"stage_units": (1, 2), "stage_widths": (64, 128), "image_size": 56}),
    # Rows of 28, 14 and 7 pixels, then of 30, 15 and 8; weights that threads share.
    "resnet-28": ("resnet-20", {**SMALL, "image_size": 28}),
    "resnet-30": ("resnet-20", {**SMALL, "image_size": 30}),
    "resnet-heavy": ("resnet-50", {"stage_units": (1, 1), "stage_widths": (256, 512), "image_size": 56}),
    "skipnet-rnn": ("skipnet-38-rnn", SMALL),
    "skipnet-32": ("skipnet-38-rnn", {"stage_units": (2, 2, 2)}),
    "skipnet-pad": ("skipnet-32-rnn", {**SMALL, "image_size": 15}),
    "skipnet-ff-1": ("skipnet-38-ff", SMALL),
    "skipnet-ff-2": ("skipnet-110-ff", {**SMALL, "image_size": 11}),
    "skipnet-imagenet": (
        "skipnet-18-rnn-imagenet",
        {"stage_units": (2, 2), "stage_widths": (64, 128), "image_size": 49},
    ),
    "gaternet-last": (
        "gaternet-resnet-20",
        {"backbone_options": {**{"stage_units": (2, 2, 2)}, "shortcut": "projection"}},
    ),
    "gaternet-all": (
        "gaternet-resnet-20",
        {"backbone_options": {"stage_units": (2, 2, 2), "shortcut": "pad"}, "gated": "all", "image_size": 17},
    ),
    "gaternet-preact": ("gaternet-resnet-164", {"backbone_options": {"stage_units": (2, 2, 2)}, "gated": "all"}),
    "gaternet-densenet": (
        "gaternet-densenet-100-12",
        {"backbone_options": {"block_layers": (2, 3), "growth_rate": 8}, "gated": "all", "image_size": 18},
    ),
    "gaternet-shake": (
        "gaternet-shake-shake-64d",
        {"backbone_options": {"stage_units": (1, 1), "width": 8, "stem_width": 8}, "gated": "all", "image_size": 17},
    ),
    "shake-shake": ("shake-shake-64d", {"stage_units": (2, 1), "width": 8, "stem_width": 8, "image_size": 15}),
    "densenet": ("densenet-40", {"block_layers": (2, 3), "image_size": 13}),
    "lenet": ("lenet", {"image_size": 28}),
    "gunn": ("gunn-15", {"widths": (24, 36), "segments": (2, 3), "image_size": 16}),
    "gunn-uneven": ("gunn-15", {"widths": (12, 20), "segments": (12, (1, 7, 12)), "image_size": 9}),
    "gunn-narrow": ("gunn-15", {"widths": (40, 36), "segments": (40, (1,) * 30 + (6,)), "image_size": 9}),
    "gunn-narrow-imagenet": ("gunn-18", {"widths": (40, 60), "segments": (40, 4), "image_size": 32, "classes": 10}),
    "sunn": ("sunn-15", {"widths": (24, 36), "segments": (2, 3), "image_size": 16}),
    "gunn-stacked": ("gunn-24", {"widths": (24, 36), "segments": (2, 3), "image_size": 16}),
    "gunn-imagenet": ("gunn-18", {"widths": (40, 80), "segments": (2, 4), "image_size": 32, "classes": 10}),
}


def make(name: str) -> nn.Module:
    zoo_name, options = MODELS[name]
    torch.manual_seed(sum(map(ord, name)))
    model = dsn_models.create(zoo_name, **options).eval()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.0)
            module.bias.data.normal_(0, 0.3)
    return model


def images_for(model: nn.Module, batch: int) -> torch.Tensor:
    config = model.config
    return torch.randn(batch, config.in_channels, config.image_size, config.image_size)


def patterns(fast: nn.Module, batch: int):
    """None, all open, all shut, one open, random."""
    yield None
    for name, count in fast.layers.items():
        for probability in (1.0, 0.0, 0.5):
            yield {name: (torch.rand(batch, count) < probability).to(torch.uint8)}
        single = torch.zeros(batch, count, dtype=torch.uint8)
        single[:, count // 2] = 1
        yield {name: single}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_the_reference(name, batch):
    model = make(name)
    fast = dsn_kernels.accelerate(model)
    exact = copy.deepcopy(model).double()
    images = images_for(model, batch)
    for forced in patterns(fast, batch):
        keywords = {} if not fast.layers else {"forced_gates": forced}
        logits = fast(images, **keywords)
        taken = {} if not fast.layers else {"forced_gates": fast.last_gates}
        with torch.no_grad():
            truth, plain = exact(images.double(), **taken), model(images, **taken)
        scale = truth.abs().max()
        allowed = max(2 * (plain - truth).abs().max(), 4e-6 * scale)
        assert (logits - truth).abs().max() <= allowed
        for key, scores in fast.last_scores.items():
            assert torch.allclose(
                scores.double(), exact.last_scores[key], atol=2e-5 * max(1, exact.last_scores[key].abs().max())
            )
            if forced is not None:
                assert torch.equal(fast.last_gates[key], forced[key])
        assert torch.equal(fast.last_macs, fast.macs(fast.last_gates).expand(batch))


@pytest.mark.parametrize("name", MODELS)
def test_results_do_not_depend_on_threads(name):
    """Nor on the batch, be it smaller than the number of threads, equal to it or a little larger."""
    fast = dsn_kernels.accelerate(make(name))
    images = images_for(fast, 5)
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


@pytest.mark.parametrize("isa", ["avx2", "generic"])
def test_what_one_machine_packed_another_runs(isa, tmp_path):
    """The packed weights say how a convolution is computed; a lesser instruction set follows them."""
    fast = dsn_kernels.accelerate(make("skipnet-32"))
    images = images_for(fast, 2)
    torch.save({"twin": fast, "images": images, "logits": fast(images)}, tmp_path / "twin.pt")
    code = """
import sys, torch
saved = torch.load(sys.argv[1], weights_only=False)
torch.testing.assert_close(saved["twin"](saved["images"]), saved["logits"], rtol=1e-4, atol=1e-4)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "twin.pt")],
        env={**os.environ, "DSN_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", MODELS)
def test_four_python_threads_at_once(name):
    fast = dsn_kernels.accelerate(make(name))
    batches = [images_for(fast, batch) for batch in (1, 2, 3, 4)]
    expected = [fast(images) for images in batches]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for actual, wanted in zip(pool.map(fast, batches), expected, strict=True):
                assert torch.equal(actual, wanted)


@pytest.mark.parametrize("name", ["resnet-pad", "resnet-preact", "gunn", "skipnet-rnn", "gaternet-last"])
def test_open_gates_cost_what_the_dense_network_costs(name):
    fast = dsn_kernels.accelerate(make(name))
    gates = {key: torch.ones(1, count, dtype=torch.uint8) for key, count in fast.layers.items()}
    extra = int(fast.macs(gates)) - fast.dense_macs
    assert extra >= 0
    if not fast.layers:
        assert extra == 0  # nothing but the network


def test_a_bypassed_unit_costs_its_gate_alone():
    fast = dsn_kernels.accelerate(make("skipnet-rnn"))
    count = fast.layers["units"]
    shut = torch.zeros(count + 1, count, dtype=torch.uint8)
    shut[1:] = torch.eye(count, dtype=torch.uint8)
    fast(images_for(fast, count + 1), forced_gates={"units": shut})
    units = fast.last_macs[1:] - fast.last_macs[0]
    assert (units > 0).all()
    pixels, width = 16 * 16, 16
    assert int(units[0]) == 2 * 9 * width * width * pixels


def test_a_filter_that_is_off_costs_nothing():
    fast = dsn_kernels.accelerate(make("gaternet-last"))
    count = fast.layers["filters"]
    gates = torch.ones(2, count, dtype=torch.uint8)
    gates[1, 0] = 0  # one filter of the first unit's last convolution, 3x3 over 16 channels and 32 x 32 pixels
    fast(images_for(fast, 2), forced_gates={"filters": gates})
    assert int(fast.last_macs[0] - fast.last_macs[1]) == 9 * 16 * 32 * 32


@pytest.mark.parametrize("name", ["resnet-pad", "skipnet-rnn", "gaternet-last", "gunn"])
def test_compiles_and_takes_an_empty_batch(name):
    fast = dsn_kernels.accelerate(make(name))
    images = images_for(fast, 2)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(images), fast(images), atol=1e-5)
    assert fast(images[:0]).shape == (0, fast.config.classes)


def test_bad_input_is_refused():
    fast = dsn_kernels.accelerate(make("skipnet-rnn"))
    images = images_for(fast, 2)
    with pytest.raises(UserError, match="images have shape"):
        fast(images[:, :1])
    with pytest.raises(UserError, match="forced_gates"):
        fast(images, forced_gates={"units": torch.ones(2, 1, dtype=torch.uint8)})
    with pytest.raises(UserError, match="threshold"):
        fast(images, thresholds=1.5)
    dense = dsn_kernels.accelerate(make("resnet-pad"))
    with pytest.raises(UserError, match="forced_gates is .*expected a mapping with nothing: the network has no gates"):
        dense(images, forced_gates={"units": torch.ones(2, 1, dtype=torch.uint8)})
    with pytest.raises(UserError, match="thresholds are for networks whose gates have them"):
        dense(images, thresholds=0.5)


@pytest.mark.parametrize("name", ["skipnet-rnn", "gaternet-last", "gunn"])
def test_shows_itself_as_a_table(name):
    model = make(name)
    fast = dsn_kernels.accelerate(model)
    before = fast._repr_html_()
    fast(images_for(model, 2))
    after = fast._repr_html_()
    assert fast.config.name in before and f"{sum(p.numel() for p in model.parameters()):,}" in before
    assert "last call</td>" not in before and f"{fast.last_macs.double().mean() / 1e6:,.2f} M" in after
    for key, count in fast.layers.items():
        share = f"{100 * fast.last_gates[key].double().mean().item():.1f} %"
        assert f"<td>{key}</td><td>{count:,}</td><td>{fast.thresholds[0]:.3g}</td><td>{share}</td>" in after
