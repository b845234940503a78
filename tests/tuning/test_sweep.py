"""Sweeps, budgets and operating points, on a network whose gates depend on the image."""

import copy
import json

import pytest
import torch

import dsn_kernels
import dsn_models
from dsn_kernels.measure.networks import count_dense
from dsn_kernels.measure.records import Labelled, Record, read, record
from dsn_kernels.report.plots import check_picture, picture, sweep_figure
from dsn_kernels.tuning.budget import Budget
from dsn_kernels.tuning.operating_point import (
    GateScale,
    gates_per_layer,
    own_thresholds,
    per_gate,
    set_operating_point,
)
from dsn_kernels.tuning.points import Point, pareto
from dsn_kernels.tuning.sweep import sweep
from dsn_kernels.tuning.sweeper import Sweeper, SweepSettings
from dsn_models import UserError
from dsn_models.data import open_dataset
from dsn_models.gates import PooledGate


def make(name="dsn-navon", **options):
    torch.manual_seed(1)
    model = dsn_models.create(name, **options).eval()
    for parameter_name, weight in model.named_parameters():
        if (".gates." in parameter_name or "fc2" in parameter_name) and weight.dim() == 2:
            torch.nn.init.normal_(weight, std=1.0)
    return model


@pytest.fixture
def model():
    return make(image_size=16, block_layers=(2, 2))


@pytest.fixture(scope="module")
def data():
    return read(open_dataset("navon-sklearn", None, False, 60, canvas=16, glyph=4), "both")


def quick(**options):
    return SweepSettings(**{"steps": 2, "seconds": 0.0, **options})


def test_record_counts_what_the_network_did(model, data):
    fast = dsn_kernels.accelerate(model)
    kept = record(fast, data, thresholds={"coarse": 0.3, "fine": 0.7}, batch=25)
    with torch.inference_mode():
        coarse, fine = fast(data.images, thresholds={"coarse": 0.3, "fine": 0.7})
    assert torch.equal(kept.predictions["fine"], fine.argmax(1)) and torch.equal(kept.macs, fast.last_macs.double())
    assert torch.equal(kept.gates["coarse"], fast.last_gates["coarse"])
    wrong = sum((kept.predictions[t] != data.labels[t]).double().mean().item() for t in ("coarse", "fine")) / 2
    assert kept.error == pytest.approx(wrong)
    expected = torch.nn.functional.cross_entropy(coarse.double(), data.labels["coarse"])
    assert kept.losses["coarse"].mean().item() == pytest.approx(expected.item())
    opened = record(fast, data, all_open=True)
    assert all(gates.all() for gates in opened.gates.values()) and (opened.macs >= kept.macs).all()


def test_images_are_spread_over_the_data():
    dataset = open_dataset("navon-sklearn", None, False, 10, canvas=16, glyph=4)
    some = read(dataset, "fine", 5)
    assert list(some.labels) == ["fine"]
    assert torch.equal(some.images, dataset.batch(torch.arange(0, 10, 2))[0])


def point(macs, error):
    labels = torch.zeros(100, dtype=torch.int64)
    predictions = (torch.arange(100) < round(100 * error)).long()
    loss = {"fine": torch.full((100,), error, dtype=torch.float64)}
    return Point({"fine": macs}, Record(loss, {"fine": predictions}, {"fine": labels}, {}, {}, torch.tensor([macs])))


def test_pareto_front_is_what_nothing_beats():
    points = [point(3.0, 0.1), point(1.0, 0.5), point(2.0, 0.5), point(2.0, 0.3), point(4.0, 0.2)]
    assert pareto(points) == [1, 3, 0]


@pytest.mark.long
def test_sweep_document(model, data):
    document = sweep(model, "tiny", data, quick())
    assert document == json.loads(json.dumps(document, allow_nan=False))
    assert document["images"] == {"pick": 30, "check": 30} and document["own_thresholds"] == {
        "coarse": 0.5,
        "fine": 0.5,
    }
    thresholds = [row["thresholds"] for row in document["points"]]
    assert {"coarse": 0.5, "fine": 0.5} in thresholds
    assert len({tuple(t.values()) for t in thresholds}) == len(thresholds)
    fast = dsn_kernels.accelerate(model)
    shut = max(document["points"], key=lambda row: sum(row["thresholds"].values()))
    none = {name: torch.zeros(1, 4, dtype=torch.uint8) for name in ("coarse", "fine")}
    assert shut["macs"]["mean"] == fast.macs(none).item() and shut["skipped"]["fine"]["mean"] == 1.0
    assert shut["macs_fraction"] == pytest.approx(shut["macs"]["mean"] / document["macs_dense"])
    for row in (document["open"], *document["points"]):
        for figures in (*row["error"].values(), *row["skipped"].values(), row["macs"], row["latency_ms"]):
            assert figures["low"] <= figures["mean"] <= figures["high"]
        assert row["macs"]["mean"] <= document["open"]["macs"]["mean"]
    front = [document["points"][i] for i in document["front"]]
    assert [p["macs"]["mean"] for p in front] == sorted(p["macs"]["mean"] for p in front)
    assert all(a["mean_error"] > b["mean_error"] for a, b in zip(front, front[1:], strict=False))
    assert document["latency"]["timed"][0]["point"] is None and "pick" not in document
    for kind, magic in (("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")):
        assert picture(lambda colours: sweep_figure(document, colours), kind).startswith(magic)
    with pytest.raises(UserError, match=r"picture is '.gif'; expected one of .svg, .png, .pdf"):
        check_picture("gif")


def test_budget_of_macs_is_kept_and_refined(model, data):
    picked = sweep(model, "tiny", data, quick(budget=Budget("macs=0.5")))["pick"]
    assert picked["pick"]["macs_fraction"] <= 0.5 and picked["limit"] == 0.5
    assert picked["pick"]["cost"] == picked["pick"]["macs_fraction"]
    assert picked["kept"] == (picked["check"]["cost"] <= 0.5)
    fast = dsn_kernels.accelerate(model)
    again = record(fast, data, thresholds=picked["thresholds"])
    mean = (picked["pick"]["macs"]["mean"] + picked["check"]["macs"]["mean"]) / 2
    assert again.macs.mean().item() == pytest.approx(mean)


@pytest.mark.parametrize("text", ["error=+100pt", "latency=10000ms"])
def test_a_wide_budget_takes_the_best_there_is(model, data, text):
    document = sweep(model, "tiny", data, quick(budget=Budget(text)))
    points, picked = document["points"], document["pick"]
    if text.startswith("error"):
        assert picked["pick"]["macs"]["mean"] == min(p["macs"]["mean"] for p in points)
    else:
        assert picked["pick"]["mean_error"] == min(p["mean_error"] for p in points)
        assert picked["kept"] and picked["check"]["cost"] > 0


@pytest.fixture(scope="module")
def costly():
    """A network and images on which every unit that is skipped costs answers: right is what all units answer."""
    model = make("skipnet-38-ff", stage_units=(3, 3, 3))
    images = images_for(model, 240)
    with torch.inference_mode():
        every = {"units": torch.ones(240, 8, dtype=torch.uint8)}
        labels = dsn_kernels.accelerate(model)(images, forced_gates=every).argmax(1)
    return model, Labelled(images, {"fine": labels})


@pytest.mark.long
def test_macs_land_within_three_percent_of_their_budget_on_fresh_images(costly):
    check = sweep(costly[0], "costly", costly[1], quick(steps=3, budget=Budget("macs=0.8")))["pick"]["check"]
    assert check["cost"] == pytest.approx(0.8, rel=0.03) and check["mean_error"] > 0


@pytest.mark.long
def test_a_latency_lands_within_three_percent_where_it_is_no_line(costly, monkeypatch):
    model, data = costly
    dense = count_dense(model)

    def clock(macs):
        return 0.1 + macs / dense + (macs / dense) ** 4

    def time(sweeper, points, data):
        return [{**dict.fromkeys(("median", "p10", "p90"), clock(p.macs)), "macs": p.macs} for p in points]

    monkeypatch.setattr(Sweeper, "time", time)
    document = sweep(model, "costly", data, quick(steps=3, budget=Budget(f"latency={clock(0.8 * dense):.4f}ms")))
    assert document["latency"]["largest_deviation"] > 0.03
    picked = document["pick"]
    assert picked["kept"] and clock(picked["check"]["macs"]["mean"]) == pytest.approx(picked["limit"], rel=0.03)


@pytest.mark.long
def test_a_latency_may_be_a_share_of_its_own(costly, monkeypatch):
    model, data = costly
    dense = count_dense(model)

    def time(sweeper, points, data):
        return [{**dict.fromkeys(("median", "p10", "p90"), 0.1 + p.macs / dense), "macs": p.macs} for p in points]

    monkeypatch.setattr(Sweeper, "time", time)
    with torch.inference_mode():
        fast = dsn_kernels.accelerate(model)
        fast(data.images)
    picked = sweep(model, "costly", data, quick(steps=3, budget=Budget("latency=95%")))["pick"]
    own = 0.1 + fast.last_macs.double().mean().item() / dense
    assert picked["kept"] and picked["budget"] == "latency=95%"
    assert picked["limit"] == pytest.approx(0.95 * own, rel=0.02)


def test_a_budget_that_nobody_can_keep_names_the_nearest(model, data):
    with pytest.raises(UserError, match=r"budget macs=0.0001 cannot be met; the nearest that can is macs=0\.\d+"):
        sweep(model, "tiny", data, quick(budget=Budget("macs=0.0001")))
    with pytest.raises(UserError, match=r"the nearest that can is latency=[\d.]+ms"):
        sweep(model, "tiny", data, quick(budget=Budget("latency=0ms")))


def test_thresholds_per_layer_are_no_worse_where_they_were_picked(model, data):
    picked = sweep(model, "tiny", data, quick(budget=Budget("macs=0.6"), per_layer=True))["pick"]
    alike, best = picked["one_per_branch"], picked["pick"]
    assert best["macs_fraction"] <= 0.6
    assert (best["mean_error"], best["loss"]) <= (alike["mean_error"], alike["loss"])
    if picked["layer_thresholds"] is None:
        assert best["macs"] == alike["macs"]


SMALL = {
    "dsn-navon": {"image_size": 16, "block_layers": (2, 2)},
    "lsn-navon": {"image_size": 16, "block_layers": (2, 2)},
    "skipnet-38-ff": {"stage_units": (2, 2, 2)},
    "skipnet-38-rnn": {"stage_units": (2, 2, 2)},
    "gaternet-resnet-20": {"gater_options": {"stage_units": (1, 1, 1)}, "bottleneck": 2},
}


def images_for(model, count):
    config = model.config
    return torch.randn(count, config.in_channels, config.image_size, config.image_size)


@pytest.mark.parametrize(
    "name, options",
    [("dsn-navon", {}), ("dsn-navon", {"gate": "soft"}), *((name, {}) for name in SMALL if name.endswith("net-20"))]
    + [(name, {}) for name in SMALL if name.startswith(("skipnet", "lsn"))],
)
def test_layer_thresholds_become_the_networks_own(name, options, tmp_path):
    model = make(name, **SMALL[name], **options)
    counts = gates_per_layer(model)
    images = images_for(model, 16)
    scale = GateScale(model)
    fast = dsn_kernels.accelerate(scale.network(model))
    with torch.inference_mode():
        fast(images)
        layers, first = {}, next(iter(counts))
        for key, sizes in counts.items():
            scores = scale.outer(fast.last_scores[key]).double()
            layers[key] = [unit.flatten().quantile(0.4).item() for unit in scores.split(sizes, 1)]
            never = scores[:, : sizes[0]].max().item() + 1
            layers[key][0] = never if scale.hard or "gater" in name else 1.0
        fast.thresholds.copy_(per_gate(model, {key: [*map(scale.inner, limits)] for key, limits in layers.items()}))
        fast(images)
        expected = {key: rows.clone() for key, rows in fast.last_gates.items()}
        set_operating_point(model, dict.fromkeys(counts, 0.3), layers)
        again = dsn_models.load(dsn_models.save(model, tmp_path / "net.safetensors"))
        for network in (again, dsn_kernels.accelerate(again)):
            network(images)
            for key, rows in expected.items():
                assert rows.any() and not rows.all()
                assert (network.last_gates[key] != rows).double().mean() < 0.05  # a score at its own quantile may flip
            assert not network.last_gates[first][:, : counts[first][0]].any()


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
def test_every_gated_family_is_swept_and_keeps_what_was_picked(name, tmp_path):
    model = make(name, **SMALL[name])
    tasks = ("coarse", "fine") if isinstance(model.config.classes, tuple) else ("fine",)
    data = Labelled(images_for(model, 24), {task: torch.arange(24) % 10 for task in tasks})
    document = sweep(model, name, data, quick(steps=1, budget=Budget("macs=100"), per_layer=True))
    shares = [list(point["skipped"].values())[0]["mean"] for point in document["points"]]
    assert max(shares) == 1.0 and min(shares) == 0.0
    picked = document["pick"]
    set_operating_point(model, picked["thresholds"], picked["layer_thresholds"])
    again = dsn_kernels.accelerate(dsn_models.load(dsn_models.save(model, tmp_path / "net.safetensors")))
    macs = record(again, data).macs.mean().item()
    means = [picked[part]["macs"]["mean"] for part in ("pick", "check")]
    assert macs == pytest.approx(sum(means) / 2, rel=1e-3)


@pytest.fixture(scope="module")
def settled():
    """A dual network whose gates are all far beyond 1, so that thresholds within [0, 1) skip nothing; and images."""
    model = make(image_size=16, block_layers=(3, 3))
    with torch.no_grad():
        for gate in [module for module in model.modules() if isinstance(module, PooledGate)]:
            gate.linear.bias += 6
    images = images_for(model, 240)
    every = {name: torch.ones(240, 6, dtype=torch.uint8) for name in ("coarse", "fine")}
    with torch.inference_mode():
        answers = dsn_kernels.accelerate(model)(images, forced_gates=every)
    labels = [logits.argmax(1) for logits in answers]
    return model, Labelled(images, dict(zip(("coarse", "fine"), labels, strict=True)))


@pytest.mark.long
def test_settled_gates_land_on_a_budget_too(settled):
    model, data = settled
    assert record(dsn_kernels.accelerate(model), data).gates["fine"].all()
    picked = sweep(model, "settled", data, quick(budget=Budget("macs=0.85"), per_layer=True))["pick"]
    alike, best = picked["one_per_branch"], picked["pick"]
    assert best["mean_error"] <= alike["mean_error"] and best["cost"] == pytest.approx(0.85, rel=0.03)
    assert picked["kept"] and picked["check"]["cost"] == pytest.approx(0.85, rel=0.03)
    model = copy.deepcopy(model)
    set_operating_point(model, picked["thresholds"], picked["layer_thresholds"])
    assert 0 <= min(model.config.thresholds) and max(model.config.thresholds) < 1
    macs = record(dsn_kernels.accelerate(model), data).macs.mean().item()
    assert macs == pytest.approx((best["macs"]["mean"] + picked["check"]["macs"]["mean"]) / 2, rel=1e-3)


@pytest.mark.long
def test_where_gates_tell_no_images_apart_the_search_of_layers_begins_by_itself(settled):
    model, data = settled
    model = copy.deepcopy(model)
    for gate in [module for module in model.modules() if isinstance(module, PooledGate)]:
        torch.nn.init.zeros_(gate.linear.weight)
    picked = sweep(model, "alike", data, quick(budget=Budget("macs=0.8")))["pick"]
    assert picked["layer_thresholds"] is not None
    alike, best = picked["one_per_branch"], picked["pick"]
    assert alike["macs_fraction"] < best["cost"] <= 0.8
    assert (best["mean_error"], best["loss"]) < (alike["mean_error"], alike["loss"])


def test_thresholds_per_branch_become_the_networks_own(model):
    set_operating_point(model, {"coarse": 0.25, "fine": 0.75})
    assert own_thresholds(model) == {"coarse": 0.25, "fine": 0.75} == own_thresholds(dsn_kernels.accelerate(model))
    skip = make("skipnet-38-rnn", stage_units=(1, 1, 1), layer_thresholds=(0.1, 0.9))
    set_operating_point(skip, {"units": 0.4})
    assert skip.config.threshold == 0.4 and skip.config.layer_thresholds is None


def test_refuses(model, data):
    with pytest.raises(UserError, match="resnet-20 has no gates; expected a network that skips layers"):
        sweep(dsn_models.create("resnet-20"), "resnet-20", data, quick())
    with pytest.raises(UserError, match="there are 2 images; expected 4 or more for batch 1"):
        sweep(model, "tiny", data.part(torch.arange(2)), quick())
    with pytest.raises(UserError, match="the test data is empty"):
        read(open_dataset("navon-sklearn", None, False, 0, canvas=16, glyph=4), "both")
    for text in ("macs=", "error=x", "time=2ms", "macs=2ms", "error=5%"):
        with pytest.raises(UserError, match="expected latency=2ms, latency=0.8"):
            Budget(text)
    with pytest.raises(UserError, match="expected latency=2ms, or a share"):
        Budget("latency=2")
    assert Budget("error=+0.5pt").limit == 0.005 and Budget("latency=2ms").limit == 2.0
    below = Budget("accuracy=-0.5pt")
    assert (below.kind, below.limit, below.amount(0.01)) == ("error", 0.005, "-1.00pt")
    assert Budget("macs=80%").limit == Budget("macs=0.8").limit == 0.8
    share = Budget("latency=80%", own_ms=5.0)
    assert share.limit == Budget("latency=0.8", own_ms=5.0).limit == 4.0 and share.amount(3.0) == "0.6"
