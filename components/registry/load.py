"""What the machine does while a stage runs: processor, memory, disk, network, GPUs, as MLflow's page "System metrics" shows them.

MLflow's own monitor ends for good when its server does not answer once, and says nothing; this one hands its numbers to a MetricSink, which waits.
The step is seconds since the stage was first begun, so that a stage that was killed and goes on has one line.

    MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL=10      seconds
    MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false      none
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import Any

from components.registry.metrics import MetricSink
from components.registry.store import client

EVERY_S = 10.0


class SystemLoad:
    """A thread that looks every ten seconds, about 5 ms each time; `stop` sends what waits."""

    def __init__(self, run_id: str) -> None:
        self.sink = MetricSink(run_id)
        self.every_s = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or EVERY_S)
        self._began = client().get_run(run_id).info.start_time / 1000
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> SystemLoad:
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").lower() not in ("false", "0") and self.every_s > 0:
            self._thread = threading.Thread(target=self._run, name="system-load", daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """Look no more. May be called again."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=self.every_s)
            self._thread = None
            self.sink.close()

    def _run(self) -> None:
        monitors = _monitors()
        for monitor in monitors:  # shares of time are since the last look, and there is none before this
            with suppress(Exception):
                monitor.collect_metrics()
                monitor.clear_metrics()
        while not self._stop.wait(self.every_s):
            seen: dict[str, float] = {}
            for monitor in monitors:
                with suppress(Exception):  # a device or a counter that is gone costs its number, never the stage
                    monitor.collect_metrics()
                    seen |= monitor.aggregate_metrics()
                    monitor.clear_metrics()
            self.sink.log({f"system/{name}": value for name, value in {**seen, **_own()}.items()}, int(time.time() - self._began))


def _monitors() -> list[Any]:
    """MLflow's own, so that names and units are the ones that its pages know."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found = []
    for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
        with suppress(Exception):  # no NVIDIA driver, no network counters
            found.append(kind())
    return found


def _own() -> dict[str, float]:
    """Memory of this stage's processes, beside the machine's."""
    import psutil

    total = 0
    with suppress(psutil.Error):
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            with suppress(psutil.Error):
                total += process.memory_info().rss
    return {"stage_memory_usage_megabytes": total / 1e6} if total else {}
