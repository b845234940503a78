"""The document of a bench run: its schema, its fractions, and what interrupts or refuses it."""

import itertools
import json

import pytest
import torch

import dsn_kernels
import dsn_models
from dsn_kernels.measure import energy, machine
from dsn_kernels.measure.bench import BenchSettings, WrongAnswer, bench
from dsn_kernels.measure.energy import Counter, EnergyMeter
from dsn_kernels.measure.flops import count_dense
from dsn_kernels.measure.gates import GateSetting
from dsn_models import UserError

TOP = {
    "schema",
    "model",
    "baseline_model",
    "macs_dense",
    "device",
    "threads",
    "affinity",
    "torch",
    "commit",
    "machine",
    "energy",
    "seed",
    "missing",
    "rows",
}
ROW = {
    "batch": int,
    "gates": str,
    "draws": int,
    "dtype": str,
    "backend": str,
    "ours_ms": dict,
    "ours_open_ms": dict,
    "baselines_ms": dict,
    "best_baseline": str,
    "speedup_vs_best": float,
    "speedup_interval": list,
    "speedup_called": bool,
    "open_speedup": float,
    "open_speedup_interval": list,
    "open_speedup_called": bool,
    "macs_dense": int,
    "macs_open": float,
    "macs_executed": float,
    "macs_saved": float,
    "latency_saved": float,
    "latency_saved_interval": list,
    "latency_saved_called": bool,
    "realised_fraction": float,
    "gflops": float,
    "rounds": int,
    "noise": float,
    "energy_mj": float,
    "baselines_energy_mj": dict,
}


@pytest.fixture(autouse=True)
def counters(monkeypatch):
    """A counter of energy that gains a joule whenever it is read."""
    joules = itertools.count()
    meter = EnergyMeter([Counter("package-0", lambda: float(next(joules)))])
    monkeypatch.setattr(energy, "rapl", lambda: meter)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return dsn_models.create("dsn-navon", image_size=16, block_layers=(1, 2)).eval()


def settings(gates, **options):
    options = {"batches": (1, 3), "against": ("eager", "channels_last"), "seconds": 0.0, **options}
    return BenchSettings(gates=[GateSetting(g) for g in gates], **options)


def test_schema(model):
    rows = []
    document = bench(model, "tiny", settings(["open", "random:0.5", "trained"]), on_row=rows.append)
    assert set(document) == TOP and document["schema"] == 1 and document["rows"] == rows
    assert set(document["machine"]) == {"cpu", "cores"}
    assert document == json.loads(json.dumps(document, allow_nan=False))
    assert [(r["batch"], r["gates"]) for r in rows] == [
        (b, g) for b in (1, 3) for g in ("open", "random:0.5", "trained")
    ]
    for row in rows:
        assert set(row) == set(ROW)
        for key, kind in ROW.items():
            assert isinstance(row[key], kind) or (key == "realised_fraction" and row["macs_saved"] == 0), key
        for latency in (row["ours_ms"], row["ours_open_ms"], *row["baselines_ms"].values()):
            assert 0 < latency["p10"] <= latency["median"] <= latency["p90"]
        assert set(row["baselines_ms"]) == set(row["baselines_energy_mj"]) == {"eager", "channels_last"}
        assert row["speedup_interval"][0] <= row["speedup_vs_best"] <= row["speedup_interval"][1]
        assert row["latency_saved_interval"][0] <= row["latency_saved"] <= row["latency_saved_interval"][1]
        assert row["rounds"] >= 5 and row["noise"] >= 0 and row["energy_mj"] > 0
    assert document["energy"] == {"counters": ["package-0"]} and document["affinity"] == machine.affinity()


def test_fractions(model):
    document = bench(model, "tiny", settings(["open", "shut"], batches=(2,)))
    opened, shut = document["rows"]
    fast = dsn_kernels.accelerate(model)
    none = {name: torch.zeros(2, 3, dtype=torch.uint8) for name in ("coarse", "fine")}
    assert shut["macs_executed"] == fast.macs(none)[0].item() < shut["macs_open"] == opened["macs_executed"]
    assert shut["macs_dense"] == fast.dense_macs
    assert shut["macs_saved"] == pytest.approx(1 - shut["macs_executed"] / shut["macs_open"])
    ours, all_open = shut["ours_ms"]["median"], shut["ours_open_ms"]["median"]
    assert shut["latency_saved"] == pytest.approx(1 - ours / all_open)
    assert shut["realised_fraction"] == pytest.approx(shut["latency_saved"] / shut["macs_saved"])
    best = min(shut["baselines_ms"], key=lambda name: shut["baselines_ms"][name]["median"])
    assert shut["best_baseline"] == best
    assert shut["speedup_vs_best"] == pytest.approx(shut["baselines_ms"][best]["median"] / ours)
    assert shut["gflops"] == pytest.approx(2 * shut["macs_executed"] * 2 / (ours * 1e-3) / 1e9)
    assert opened["macs_saved"] == opened["latency_saved"] == 0 and opened["realised_fraction"] is None
    assert opened["ours_ms"] == opened["ours_open_ms"] == shut["ours_open_ms"]


def test_open_is_measured_even_if_not_asked_for(model):
    (row,) = bench(model, "tiny", settings(["shut"], batches=(1,), against=()))["rows"]
    assert row["gates"] == "shut" and row["ours_open_ms"]["median"] > 0
    assert row["best_baseline"] is None and row["speedup_vs_best"] is None and row["baselines_ms"] == {}


def test_small_batches_and_equal_patterns_are_measured_on_several_draws(model):
    rows = bench(model, "tiny", settings(["open", "random:0.5", "equal:0.5"], batches=(2, 9), against=()))["rows"]
    draws = {(row["batch"], row["gates"]): row["draws"] for row in rows}
    expected = {"open": (1, 1), "random:0.5": (8, 1), "equal:0.5": (8, 8)}
    assert draws == {(b, gates): counts[b == 9] for gates, counts in expected.items() for b in (2, 9)}
    by_gates = {row["gates"]: row for row in rows if row["batch"] == 2}
    assert by_gates["random:0.5"]["macs_executed"] * 16 == pytest.approx(
        round(by_gates["random:0.5"]["macs_executed"] * 16)
    )
    assert 0.2 < by_gates["random:0.5"]["macs_saved"] < 0.8 and by_gates["open"]["macs_saved"] == 0


FAMILIES = {
    "skipnet-38-rnn": {"stage_units": (1, 2, 1)},
    "gaternet-resnet-20": {"backbone_options": {"shortcut": "projection", "stage_units": (1, 1, 1)}},
    "lsn-navon": {"image_size": 16, "block_layers": (1, 2)},
}


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_every_gated_family(name):
    torch.manual_seed(0)
    model = dsn_models.create(name, **FAMILIES[name])
    document = bench(model, name, settings(["open", "random:0.5", "trained"], batches=(2,), against=("eager",)))
    rows = {row["gates"]: row for row in document["rows"]}
    assert document["macs_dense"] == count_dense(model)
    assert 0 < rows["random:0.5"]["macs_executed"] < rows["open"]["macs_executed"]
    assert rows["open"]["best_baseline"] == "eager"


GRADUAL = {"widths": (24, 30, 36), "segments": (4, 5, 6)}


@pytest.mark.long
@pytest.mark.parametrize("name, options", [("resnet-20", {}), ("gunn-15", GRADUAL)])
def test_families_without_gates(name, options):
    model = dsn_models.create(name, **options)
    (row,) = bench(model, name, settings(["open"], batches=(1,), against=("eager",)))["rows"]
    assert row["macs_executed"] == row["macs_open"] == row["macs_dense"] == count_dense(model)
    with pytest.raises(UserError, match="has no gates"):
        bench(model, name, settings(["random:0.5"]))


@pytest.mark.long
def test_baseline_of_another_model():
    gunn, sunn = (dsn_models.create(name, **GRADUAL).eval() for name in ("gunn-15", "sunn-15"))
    document = bench(gunn, "gunn", settings(["open"], batches=(1,), against=("eager",)), baseline_model=sunn)
    assert document["baseline_model"] == "sunn-15" and document["rows"][0]["baselines_ms"]["eager"]["median"] > 0
    with pytest.raises(UserError, match=r"the baseline takes images \[1, 64, 64\]; gunn takes \[3, 32, 32\]"):
        bench(gunn, "gunn", settings(["open"]), baseline_model=dsn_models.create("dsn-navon"))


def test_images_of_the_caller(model):
    seen = []

    def images(batch, n):
        seen.append((batch, n))
        return torch.rand(batch, 1, 16, 16)

    bench(model, "tiny", settings(["trained"], batches=(4,), against=()), images=images)
    assert {(4, n) for n in range(8)} <= set(seen)


def test_missing_baseline_is_in_the_document(model, monkeypatch):
    from dsn_kernels.measure import baselines

    def fails(dense, images):
        raise RuntimeError("will not")

    monkeypatch.setitem(baselines.BASELINES, "openvino", fails)
    document = bench(model, "tiny", settings(["open"], batches=(1,), against=("eager", "openvino")))
    assert document["missing"] == {"openvino": "batch 1: RuntimeError: will not"}
    assert list(document["rows"][0]["baselines_ms"]) == ["eager"]


def test_memory_and_energy_where_they_cannot_be_had(model, monkeypatch):
    def refuse():
        raise energy.EnergyUnavailable("no counter")

    monkeypatch.setattr(energy, "rapl", refuse)
    found = {"ours": {"mib": 7.0}, "eager": {"not_available": "no /proc"}}
    monkeypatch.setattr("dsn_kernels.measure.bench.peak_memory", lambda name, network, images: found[name])
    document = bench(model, "tiny", settings(["open"], batches=(1,), against=("eager",), memory=True))
    (row,) = document["rows"]
    assert row["peak_memory_mib"] == {"ours": 7.0, "eager": None}
    assert document["missing"] == {"memory of eager": "batch 1: no /proc"}
    assert document["energy"] == {"not_available": "no counter"}
    assert row["energy_mj"] is None and row["baselines_energy_mj"] == {"eager": None}


def test_interruption_returns_what_there_is(model):
    def interrupt(row):
        raise KeyboardInterrupt

    document = bench(model, "tiny", settings(["open"]), on_row=interrupt)
    assert document["interrupted"] is True and [row["batch"] for row in document["rows"]] == [1]


def test_wrong_answer_is_not_timed(model, monkeypatch):
    fast = dsn_kernels.accelerate(model)
    forward = fast.forward
    fast.forward = lambda *args, **kwargs: tuple(y + 1 for y in forward(*args, **kwargs))
    monkeypatch.setattr(dsn_kernels, "accelerate", lambda *args, **kwargs: fast)
    with pytest.raises(WrongAnswer, match="nothing was timed"):
        bench(model, "tiny", settings(["open"]))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batches": (0,)}, "batch is"),
        ({"batches": ()}, "batch is"),
        ({"against": ("fast",)}, "unknown baseline 'fast'"),
        ({"seconds": -1.0}, "seconds is"),
        ({"dtype": torch.float16}, "dtype is"),
        ({"backend": "abacus"}, "backend is"),
    ],
)
def test_refuses(model, options, message):
    with pytest.raises(UserError, match=message):
        bench(model, "tiny", settings(["open"], **options))


def test_the_reference_is_not_timed_against_itself():
    with pytest.raises(UserError, match="backend 'reference' has no kernels"):
        bench(dsn_models.create("lenet"), "lenet", settings(["open"], backend="reference"))


def test_refuses_what_has_no_paper_ratio_before_any_work():
    steps = []
    with pytest.raises(UserError, match="no skip ratio"):
        bench(
            dsn_models.create("concat-40", block_layers=(1, 1, 1)),
            "concat-40",
            settings(["paper"]),
            on_step=lambda *step: steps.append(step),
        )
    assert steps == []
