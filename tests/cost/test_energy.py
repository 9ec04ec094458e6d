"""Energy counters: RAPL over made-up sysfs trees, NVML over a made-up driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.cost import energy
from components.cost.energy import Rapl, held_gpus


def zone(root: Path, folder: str, name: str, microjoules: int, largest: int = 1_000_000) -> Path:
    made = root / folder
    made.mkdir(parents=True)
    (made / "name").write_text(f"{name}\n")
    (made / "energy_uj").write_text(f"{microjoules}\n")
    (made / "max_energy_range_uj").write_text(f"{largest}\n")
    return made


def test_packages_and_their_memory_add_up_and_parts_of_them_do_not_count_twice(tmp_path: Path) -> None:
    zones = {name: zone(tmp_path, folder, name, 0) for folder, name in (("intel-rapl:0", "package-0"), ("intel-rapl:1", "package-1"), ("intel-rapl:0:0", "core"), ("intel-rapl:0:2", "dram"), ("intel-rapl:2", "psys"))}
    rapl = Rapl(tmp_path)
    for name, used in {"package-0": 300_000, "package-1": 200_000, "core": 250_000, "dram": 50_000, "psys": 900_000}.items():
        (zones[name] / "energy_uj").write_text(str(used))
    assert rapl.joules() == pytest.approx(0.55)
    assert rapl.joules() == 0.0


def test_a_counter_that_wrapped_around_goes_on_from_its_largest_value(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 900_000, largest=1_000_000)
    rapl = Rapl(tmp_path)
    (package / "energy_uj").write_text("150000")
    assert rapl.joules() == pytest.approx(0.25)


def test_a_counter_that_may_not_be_read_is_no_counter(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 5)
    (package / "energy_uj").unlink()
    (package / "energy_uj").mkdir()  # reading it fails, for root too
    assert not Rapl(tmp_path)
    assert not Rapl(tmp_path / "nowhere")


class Driver:
    """NVML as pynvml shows it, of two GPUs and one MIG slice that knows nothing but its name."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.millijoules = {"GPU-a": 1_000_000, "GPU-b": 5_000_000}
        self.milliwatts = {"GPU-a": 300_000, "GPU-b": 250_000}
        self.order = ["GPU-a", "GPU-b"]

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return len(self.order)

    def nvmlDeviceGetHandleByIndex(self, place: int) -> str:
        if place >= len(self.order):
            raise self.NVMLError("Invalid Argument")
        return self.order[place]

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:
        return name

    def nvmlDeviceGetName(self, handle: str) -> bytes:
        return b"NVIDIA H200" if handle == "GPU-a" else b"NVIDIA A100-SXM4-80GB"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> object:
        return type("Info", (), {"used": 3 * 2**30})

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return self._known(self.millijoules, handle)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return self._known(self.milliwatts, handle)

    def _known(self, table: dict[str, int], handle: str) -> int:
        if handle not in table:
            raise self.NVMLError("Not Supported")
        return table[handle]


def test_a_stage_holds_the_gpus_that_it_was_given_and_no_other() -> None:
    driver = Driver()
    assert held_gpus("auto", 1, {"CUDA_VISIBLE_DEVICES": "1"}, driver).names == ["NVIDIA A100-SXM4-80GB"]
    assert held_gpus("auto", 2, {"CUDA_VISIBLE_DEVICES": "GPU-b,GPU-a"}, driver).names == ["NVIDIA A100-SXM4-80GB", "NVIDIA H200"]
    assert held_gpus("auto", 1, {}, driver).names == ["NVIDIA H200"]
    assert held_gpus("cpu", 1, {}, driver) is None
    assert held_gpus("auto", 1, {"CUDA_VISIBLE_DEVICES": ""}, driver) is None
    assert held_gpus("auto", 1, {"CUDA_VISIBLE_DEVICES": "7"}, driver) is None


def test_gpu_energy_is_what_the_counters_say() -> None:
    driver = Driver()
    gpus = held_gpus("auto", 2, {}, driver)
    driver.millijoules = {"GPU-a": 1_004_000, "GPU-b": 5_001_500}
    assert gpus.joules() == pytest.approx(5.5)
    assert gpus.memory_mb() == 6 * 1024


def test_a_gpu_without_a_counter_is_asked_for_its_power(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, clock = Driver(), [100.0]
    monkeypatch.setattr(energy.time, "monotonic", lambda: clock[0])
    driver.millijoules = {}
    gpus = held_gpus("auto", 1, {}, driver)
    clock[0] = 102.0
    assert gpus.joules() == pytest.approx(600.0)  # 300 W for two seconds


def test_a_slice_that_tells_nothing_is_said_to_tell_nothing() -> None:
    assert held_gpus("auto", 1, {"CUDA_VISIBLE_DEVICES": "MIG-c"}, Driver()).joules() is None
