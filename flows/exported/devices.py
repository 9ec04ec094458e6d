"""What the devices of this machine do: its processor and memory, and each GPU by NVML, with whether a stage holds its slot.

A GPU that is held and idle is the dearest thing on a platform, and nothing else shows it.
"""

from __future__ import annotations

from collections.abc import Iterator

import psutil
from prometheus_client.core import GaugeMetricFamily, Metric

from components import slots
from components.cost.energy import Nvidia, held_gpus

GPU = {
    "busy": ("modelyard_gpu_busy_share", "Share of the time in which a kernel ran on the GPU, over the driver's last sample."),
    "memory_used": ("modelyard_gpu_memory_used_bytes", "Memory of the GPU that is taken."),
    "memory": ("modelyard_gpu_memory_bytes", "Memory of the GPU."),
    "watts": ("modelyard_gpu_power_watts", "Power that the GPU draws."),
    "watts_limit": ("modelyard_gpu_power_limit_watts", "Power that the GPU may draw."),
    "celsius": ("modelyard_gpu_temperature_celsius", "Temperature of the GPU."),
}


class Devices:
    """This machine's; `collect` looks once."""

    def __init__(self, gpus: Nvidia | None = None, names: tuple[str, ...] | None = None) -> None:
        """`names` of the GPUs, as the slots call them. Both are found out where they are not given."""
        self.names = slots.gpus() if names is None else names
        self.gpus = gpus or (held_gpus("auto", len(self.names), {"CUDA_VISIBLE_DEVICES": ",".join(self.names)}) if self.names else None)
        psutil.cpu_percent()  # shares are since the last look

    def collect(self) -> list[Metric]:
        return [*self._machine(), *self._held(), *self._gpus()]

    def _machine(self) -> Iterator[Metric]:
        memory = psutil.virtual_memory()
        for name, what, value in (
            ("modelyard_machine_cpu_share", "Share of the machine's processor that was busy since the last look.", psutil.cpu_percent() / 100),
            ("modelyard_machine_cores", "Cores of the machine.", psutil.cpu_count() or 1),
            ("modelyard_machine_memory_bytes", "Memory of the machine.", memory.total),
            ("modelyard_machine_memory_used_bytes", "Memory that programs hold and cannot be given to others.", memory.total - memory.available),
        ):
            yield _family(name, what, (), {(): value})

    def _held(self) -> Iterator[Metric]:
        held = {(row["kind"], row["name"]): float(bool(row["holder"])) for row in slots.holders()}
        yield _family("modelyard_device_held", "1 where a stage's process holds this slot of the machine (a GPU, or a share of the processor).", ("kind", "device"), held)

    def _gpus(self) -> Iterator[Metric]:
        looked = dict(zip(self.names, self.gpus.looks(), strict=False)) if self.gpus else {}
        for key, (name, what) in GPU.items():
            yield _family(name, what, ("device", "name"), {(gpu, seen.name): getattr(seen, key) for gpu, seen in looked.items() if getattr(seen, key) is not None})


def _family(name: str, what: str, labels: tuple[str, ...], values: dict[tuple[str, ...], float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, what, labels=labels)
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family
