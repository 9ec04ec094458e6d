"""The meter of a stage: what its process and all below it use, looked at every two seconds by a thread of the stage's own.

    with Meter(out, run="tiny-1a2b", machine=Machine.here(resources)) as meter:
        ...
    meter.used                 # a Usage; what earlier attempts used is in the ledger under `out`

CPU time is that of the process and everything below it. Energy of the processors is RAPL's, of which the stage is given the share of the machine's
busy time that was its own; a GPU belongs to one stage at a time, so its whole energy counts. Where no counter may be read,
energy is busy time multiplied by a stated power, and is marked as estimated.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

from components.cost import ledger
from components.cost.energy import Gpus, Rapl, held_gpus, processor
from components.schema.cost import JOULES_PER_KWH, Prices, Usage
from components.schema.recipe import Resources

EVERY_S = 2.0


@dataclass
class Machine:
    """What is metered, and with what; `Machine.here` finds it out, a test gives its own."""

    rapl: Rapl | None = None
    gpus: Gpus | None = None
    watts_per_core: float = Prices.model_fields["watts_per_core"].default
    watts_per_gpu: float = Prices.model_fields["watts_per_gpu"].default
    nodes: int = 1
    """Machines that do the same; those that are not this one are taken to use as much, and their energy counts as estimated."""
    name: str = field(default_factory=processor)

    @classmethod
    def here(cls, resources: Resources, prices: Prices | None) -> Self:
        gpus = held_gpus(resources.accelerator, resources.processes)
        stated = {"watts_per_core": prices.watts_per_core, "watts_per_gpu": prices.watts_per_gpu} if prices else {}
        name = f"{len(gpus.names)} x {gpus.names[0]}" if gpus else processor()
        return cls(rapl=Rapl() or None, gpus=gpus, nodes=resources.nodes, name=name, **stated)


class Meter:
    """Measures from `with` to its end; leaves what it saw in the ledger of `out` all along."""

    def __init__(self, out: Path, run: str, machine: Machine, watch: Callable[[Usage], None] = lambda used: None, every_s: float | None = None) -> None:
        """`watch` hears of every look, in the meter's thread."""
        self.out, self.run, self.machine, self.watch = out, run, machine, watch
        self.every_s = every_s or float(os.environ.get("MODELYARD_METER_SECONDS", EVERY_S))
        self.attempt = f"{time.time():.0f}-{os.getpid()}"
        self.used = Usage()
        self._process = psutil.Process()
        self._looked = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go_on_looking, name="meter", daemon=True)
        self._one = threading.Lock()

    def __enter__(self) -> Self:
        self._cpu_before, self._busy = 0.0, _machine_busy()
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> Usage:
        """Look once more and write no more; gives what this attempt used."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            self.look()
        return self.used

    def look(self) -> None:
        """Add what was used since the last look, and leave the sum in the ledger."""
        with self._one:
            self.used = self.used + self._since_last()
            with contextlib.suppress(OSError):  # a full disk is told by the work itself
                ledger.write(self.out, self.attempt, self.run, self.used)
            self.watch(self.used)

    def _go_on_looking(self) -> None:
        while not self._stop.wait(self.every_s):
            self.look()

    def _since_last(self) -> Usage:
        now, machine = time.monotonic(), self.machine
        passed, self._looked = now - self._looked, now
        (cpu_now, memory), busy_now = _tree(self._process), _machine_busy()
        cpu = max(0.0, cpu_now - self._cpu_before)  # a child that left without being waited for takes its time along
        busy = max(busy_now - self._busy, cpu, 1e-9)
        self._cpu_before, self._busy = max(cpu_now, self._cpu_before), busy_now
        measured, estimated = self._joules(cpu, cpu / busy, passed)
        others = machine.nodes - 1
        names = machine.gpus.names if machine.gpus else []
        return Usage(
            seconds=passed,
            cpu_seconds=cpu * machine.nodes,
            gpu_seconds={name: passed * names.count(name) * machine.nodes for name in names},
            kwh=(measured + estimated) * machine.nodes / JOULES_PER_KWH,
            kwh_estimated=(estimated + (measured + estimated) * others) / JOULES_PER_KWH,
            memory_mb=memory,
            gpu_memory_mb=machine.gpus.memory_mb() if machine.gpus else 0.0,
        )

    def _joules(self, cpu_seconds: float, share: float, passed: float) -> tuple[float, float]:
        """Measured and estimated."""
        machine, measured, estimated = self.machine, 0.0, 0.0
        if machine.rapl:
            measured += machine.rapl.joules() * min(1.0, share)
        else:
            estimated += cpu_seconds * machine.watts_per_core
        if machine.gpus:
            joules = machine.gpus.joules()
            if joules is None:
                estimated += passed * machine.watts_per_gpu * len(machine.gpus.names)
            else:
                measured += joules
        return measured, estimated


def _tree(process: psutil.Process) -> tuple[float, float]:
    """CPU seconds of a process and all below it, those that ended included; MB of memory that they hold, or held at their most."""
    seconds, held = 0.0, 0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = one.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
            held += one.memory_info().rss
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return seconds, max(held / 2**20, most / 1024)


def _machine_busy() -> float:
    """Seconds that this machine's cores were busy since it started."""
    times = psutil.cpu_times()
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
