"""Joules that a machine counts itself: RAPL of a processor, NVML of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class EnergyUnavailable(Exception):
    """There is no counter here; the text says why."""


@dataclass(frozen=True)
class Counter:
    """A counter of energy.

    Attributes:
        name: such as ``"package-0"``.
        read: joules so far.
        wraps_at: joules at which it begins again from 0; 0 if it does not.
    """

    name: str
    read: Callable[[], float]
    wraps_at: float = 0.0


class EnergyMeter:
    """Reads several counters as one.

    Args:
        counters: of parts that do not hold each other.
    """

    def __init__(self, counters: Sequence[Counter]) -> None:
        self.counters = counters

    @property
    def names(self) -> list[str]:
        return [counter.name for counter in self.counters]

    def read(self) -> list[float]:
        """Joules of each counter so far."""
        return [counter.read() for counter in self.counters]

    def joules_since(self, before: Sequence[float]) -> float:
        """Joules of all counters since ``before``, in which time each began again at most once."""
        passed = zip(self.counters, self.read(), before, strict=True)
        return sum(now - then + (counter.wraps_at if now < then else 0.0) for counter, now, then in passed)


def _joules(file: Path) -> float:
    return int(file.read_text()) / 1e6


def rapl(root: Path = POWERCAP) -> EnergyMeter:
    """Of the processor's packages, by the kernel's powercap files; a package holds its cores.

    Raises:
        EnergyUnavailable: there are none, or they may not be read.
    """
    counters = []
    for zone in sorted(root.glob("intel-rapl:*")):  # AMD's are called so too
        if zone.name.count(":") > 1:
            continue  # cores or memory of a package
        try:
            name = (zone / "name").read_text().strip()
            limit = int((zone / "max_energy_range_uj").read_text())
            file = zone / "energy_uj"
            int(file.read_text())
        except PermissionError as error:
            raise EnergyUnavailable(f"{error.filename} is for root alone; chmod a+r it or run as root") from None
        except (OSError, ValueError):
            continue
        if name.startswith("package"):
            counters.append(Counter(name, partial(_joules, file), limit / 1e6))
    if not counters:
        raise EnergyUnavailable(f"no package under {root} counts its energy; a virtual machine seldom has one")
    return EnergyMeter(counters)


def nvml(index: int = 0) -> EnergyMeter:
    """Of a GPU, by NVIDIA's management library.

    Raises:
        EnergyUnavailable: the package nvidia-ml-py, the driver or the counter is missing.
    """
    try:
        import pynvml
    except ImportError:
        raise EnergyUnavailable("not installed: pip install nvidia-ml-py") from None
    try:
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(index)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
    except pynvml.NVMLError as error:
        raise EnergyUnavailable(f"NVML: {error}") from None
    name = f"cuda:{index}"
    return EnergyMeter([Counter(name, lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1e3)])


def find(device: str = "cpu") -> tuple[EnergyMeter | None, dict[str, object]]:
    """The meter of a device, and what a document says of it: ``counters``, or ``not_available`` and why."""
    try:
        meter = rapl() if device == "cpu" else nvml()
    except EnergyUnavailable as reason:
        return None, {"not_available": str(reason)}
    return meter, {"counters": meter.names}
