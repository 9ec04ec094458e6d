"""Meters that a machine may have: RAPL's counters of its processors, NVML's of its NVIDIA GPUs.

RAPL counts the energy of whole processor packages (and of their memory, where that is a counter of its own) in microjoules, in
files that only root may read on most machines; each counter wraps around after some minutes or hours. NVML counts the energy
of a GPU in millijoules since its driver was loaded, from Volta on; older ones tell their power, which is multiplied by time.

    python -m components.cost.energy        # what can be read here
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

POWERCAP = Path("/sys/class/powercap")
COUNTED = ("package", "dram")  # `core` and `uncore` are parts of a package, and `psys` holds the packages


class Rapl:
    """Energy of this machine's processors and their memory, all programs' together."""

    def __init__(self, root: Path = POWERCAP) -> None:
        self.zones = [zone for zone in sorted(root.glob("*-rapl:*")) if _named(zone).startswith(COUNTED)]
        self.zones = [zone for zone in self.zones if _integer(zone / "energy_uj") is not None]
        self._last = {zone: _integer(zone / "energy_uj") or 0 for zone in self.zones}

    def __bool__(self) -> bool:
        """Whether there is a counter that may be read."""
        return bool(self.zones)

    def joules(self) -> float:
        """Used since this was last asked. A counter that stands lower than before has wrapped around once."""
        used = 0
        for zone in self.zones:
            now, before = _integer(zone / "energy_uj"), self._last[zone]
            if now is None:
                continue
            used += now - before if now >= before else now + (_integer(zone / "max_energy_range_uj") or before) - before
            self._last[zone] = now
        return used / 1e6


class Gpus(Protocol):
    """GPUs that a stage holds: their names, what they used, what stands in their memory."""

    names: list[str]

    def joules(self) -> float | None:
        """Used since this was last asked; None where a device does not tell."""

    def memory_mb(self) -> float: ...


@dataclass(frozen=True)
class Look:
    """What a GPU does now; None where it does not tell."""

    name: str
    busy: float | None
    """Share of the driver's last sample (a sixth of a second to a second) in which a kernel ran."""
    memory_used: float | None
    """Bytes."""
    memory: float | None
    """Bytes."""
    watts: float | None
    watts_limit: float | None
    celsius: float | None


class Nvidia:
    """Some of this machine's NVIDIA GPUs, through NVML: that never makes a CUDA context, so it takes none of their memory."""

    def __init__(self, nvml: Any, handles: list[Any]) -> None:
        self.nvml, self.handles = nvml, handles
        self.names = [_text(nvml.nvmlDeviceGetName(handle)) for handle in handles]
        self._energy = [self._counter(handle) for handle in handles]
        self._asked = time.monotonic()

    def joules(self) -> float | None:
        now = time.monotonic()
        passed, self._asked = now - self._asked, now
        parts = [self._used(place, passed) for place in range(len(self.handles))]
        return None if any(part is None for part in parts) else sum(part for part in parts if part is not None)

    def memory_mb(self) -> float:
        return sum(self._ask("nvmlDeviceGetMemoryInfo", handle, lambda found: found.used / 2**20, 0.0) for handle in self.handles)

    def looks(self) -> list[Look]:
        """Each device as it is now."""
        return [self._look(name, handle) for name, handle in zip(self.names, self.handles, strict=True)]

    def _look(self, name: str, handle: Any) -> Look:
        memory = self._ask("nvmlDeviceGetMemoryInfo", handle, lambda found: (found.used, found.total), (None, None))
        return Look(
            name=name,
            busy=self._ask("nvmlDeviceGetUtilizationRates", handle, lambda found: found.gpu / 100, None),
            memory_used=memory[0],
            memory=memory[1],
            watts=self._ask("nvmlDeviceGetPowerUsage", handle, lambda milliwatts: milliwatts / 1e3, None),
            watts_limit=self._ask("nvmlDeviceGetEnforcedPowerLimit", handle, lambda milliwatts: milliwatts / 1e3, None),
            celsius=self._ask("nvmlDeviceGetTemperature", handle, float, None, 0),  # 0 = NVML_TEMPERATURE_GPU, the die
        )

    def _used(self, place: int, passed: float) -> float | None:
        before, self._energy[place] = self._energy[place], self._counter(self.handles[place])
        now = self._energy[place]
        if now is not None and before is not None and now >= before:
            return (now - before) / 1e3
        return self._ask("nvmlDeviceGetPowerUsage", self.handles[place], lambda milliwatts: milliwatts / 1e3 * passed, None)

    def _counter(self, handle: Any) -> int | None:
        return self._ask("nvmlDeviceGetTotalEnergyConsumption", handle, int, None)

    def _ask(self, question: str, handle: Any, read: Any, otherwise: Any, *more: Any) -> Any:
        """A device that does not know an answer (NVMLError_NotSupported, a MIG slice) must not end a stage."""
        try:
            return read(getattr(self.nvml, question)(handle, *more))
        except self.nvml.NVMLError:
            return otherwise


def held_gpus(accelerator: str, processes: int, environment: Mapping[str, str] = os.environ, nvml: Any = None) -> Nvidia | None:
    """The GPUs that a stage holds: those that CUDA_VISIBLE_DEVICES names, else the first `processes`; None where it computes on the CPU."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if accelerator == "cpu" or (visible is not None and visible.strip() in ("", "-1", "NoDevFiles")):
        return None
    if nvml is None and (nvml := _nvml()) is None:
        return None
    try:
        nvml.nvmlInit()
        names = [name.strip() for name in visible.split(",")] if visible else [str(place) for place in range(nvml.nvmlDeviceGetCount())]
        handles = [_handle(nvml, name) for name in names[:processes]]
    except nvml.NVMLError:
        return None
    return Nvidia(nvml, handles) if handles else None


def processor() -> str:
    """The processor's name, as the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown processor"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor")


def _nvml() -> Any:
    """NVML's Python module (the extra `gpu`); None where it is not installed."""
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


def _handle(nvml: Any, name: str) -> Any:
    """`name`: a number, or a UUID (GPU-..., MIG-...)."""
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _named(zone: Path) -> str:
    try:
        return (zone / "name").read_text().strip()
    except OSError:
        return ""


def _integer(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def main() -> None:
    rapl, gpus = Rapl(), held_gpus("auto", 1024)
    print(f"processor {processor()}: " + (f"RAPL, {len(rapl.zones)} counters" if rapl else f"no counter of {POWERCAP} may be read: its energy is estimated"))
    for name in gpus.names if gpus else ():
        print(f"GPU {name}: NVML")
    if not gpus:
        print("no GPU that NVML knows")


if __name__ == "__main__":
    main()
