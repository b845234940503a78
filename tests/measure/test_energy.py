"""Energy counters, on a made-up tree of the kernel's powercap files and a made-up NVML."""

import sys
from types import SimpleNamespace

import pytest

from dsn_kernels.measure import InterleavedTimer, energy
from dsn_kernels.measure.energy import EnergyUnavailable, nvml, rapl


@pytest.fixture
def tree(tmp_path):
    """Two packages, the cores of one, and the whole system: only the packages do not hold each other."""

    def zone(folder, name, joules):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "name").write_text(name + "\n")
        (tmp_path / folder / "max_energy_range_uj").write_text("262143000000\n")
        (tmp_path / folder / "energy_uj").write_text(f"{int(joules * 1e6)}\n")

    zone("intel-rapl:0", "package-0", 100.0)
    zone("intel-rapl:0:0", "core", 60.0)
    zone("intel-rapl:1", "package-1", 5.0)
    zone("intel-rapl:2", "psys", 900.0)
    (tmp_path / "intel-rapl").mkdir()
    return tmp_path


def set_joules(tree, folder, joules):
    (tree / folder / "energy_uj").write_text(f"{int(joules * 1e6)}\n")


def test_packages_are_summed_and_their_parts_not_counted_twice(tree):
    meter = rapl(tree)
    assert meter.names == ["package-0", "package-1"]
    before = meter.read()
    assert before == [100.0, 5.0]
    set_joules(tree, "intel-rapl:0", 103.0)
    set_joules(tree, "intel-rapl:0:0", 70.0)
    set_joules(tree, "intel-rapl:1", 5.5)
    assert meter.joules_since(before) == pytest.approx(3.5)


def test_a_counter_that_began_again(tree):
    set_joules(tree, "intel-rapl:0", 262142.0)
    meter = rapl(tree)
    before = meter.read()
    set_joules(tree, "intel-rapl:0", 2.0)
    assert meter.joules_since(before) == pytest.approx(3.0)


def test_a_timer_meters_the_counted_calls_of_every_turn(tree):
    now, spent = 0.0, 0.0

    def call(seconds, joules):
        def run():
            nonlocal now, spent
            now, spent = now + seconds, spent + joules
            set_joules(tree, "intel-rapl:0", 100 + spent)

        return run

    timer = InterleavedTimer({"a": call(1.0, 2.0), "b": call(0.5, 7.0)}, clock=lambda: now, energy=rapl(tree))
    timer.run(seconds=0, min_rounds=3, turn_seconds=2.0)
    assert timer.joules() == pytest.approx({"a": 2.0, "b": 7.0})


def test_without_a_counter_the_reason_is_told(tmp_path, monkeypatch):
    with pytest.raises(EnergyUnavailable, match="no package under .* counts its energy"):
        rapl(tmp_path)
    monkeypatch.setattr(energy.rapl, "__defaults__", (tmp_path / "none",))
    meter, told = energy.find()
    assert meter is None and "no package under" in told["not_available"]
    assert InterleavedTimer({"a": lambda: None}).joules() == {}


def test_a_counter_for_root_alone(tree, monkeypatch):
    from pathlib import Path

    read = Path.read_text

    def refuse(path, *args, **kwargs):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(EnergyUnavailable, match="energy_uj is for root alone"):
        rapl(tree)


def test_nvml(monkeypatch):
    millijoules = iter([0, 5000, 7500])
    fake = SimpleNamespace(
        NVMLError=type("NVMLError", (Exception,), {}),
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda device: next(millijoules),
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    meter = nvml()
    assert meter.names == ["cuda:0"]
    assert meter.joules_since(meter.read()) == pytest.approx(2.5)

    def fails():
        raise fake.NVMLError("Driver Not Loaded")

    monkeypatch.setattr(fake, "nvmlInit", fails)
    with pytest.raises(EnergyUnavailable, match="NVML: Driver Not Loaded"):
        nvml()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(EnergyUnavailable, match="pip install nvidia-ml-py"):
        nvml()
