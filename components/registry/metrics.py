"""Metrics on their way to MLflow: buffered, sent every two seconds, never in training's way.

    sink = MetricSink(run_id)
    sink.log({"loss": 2.1}, step=10)
    sink.close()

A run that was killed logs again some steps it had logged before; the sink drops what is stored already, so the curve is
one line without doubles. A store that is away for a while costs nothing: the metrics wait.
"""

from __future__ import annotations

import threading
import time
import warnings
from typing import TYPE_CHECKING

from components.registry.store import client

if TYPE_CHECKING:
    from mlflow.entities import Metric

EVERY_S = 2.0
BATCH = 1000  # MLflow's limit for one call
LAST_TRIES = 3


class MetricSink:
    """Takes metrics for one run. `log` only appends; a thread of its own sends."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._client = client()
        self._waiting: list[Metric] = []
        self._last_step: dict[str, int] = {}  # by metric: greatest step in the store
        self._lock = threading.Lock()  # around _waiting
        self._sending = threading.Lock()  # one sender at a time
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._warned = False

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Keep for sending. Never blocks and never raises for what the store does."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        with self._lock:
            self._waiting += [Metric(name, float(value), now, step) for name, value in metrics.items()]
            if self._thread is None:
                self._stop.clear()
                self._thread = threading.Thread(target=self._run, name="mlflow-metrics", daemon=True)
                self._thread.start()

    def flush(self) -> bool:
        """Send everything that waits. False where the store did not take it: it goes on waiting."""
        with self._sending:
            while True:
                with self._lock:
                    batch = self._waiting[:BATCH]
                if not batch:
                    return True
                try:
                    self._send(batch)
                except Exception as error:  # whatever a network or a database can raise: training goes on
                    self._last_step.clear()  # part of it may have arrived: look again before the next try
                    self._warn(error)
                    return False
                with self._lock:
                    del self._waiting[: len(batch)]

    def close(self) -> None:
        """Send the rest and end the thread. May be used again afterwards."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for attempt in range(LAST_TRIES):
            if self.flush():
                return
            time.sleep(attempt)
        warnings.warn(f"tracking: {len(self._waiting)} metrics of run {self.run_id} could not be sent and are lost; the record keeps the figures", stacklevel=2)

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            self.flush()

    def _send(self, batch: list[Metric]) -> None:
        new = []
        for metric in batch:
            if metric.step > self._stored_up_to(metric.key):
                new.append(metric)
                self._last_step[metric.key] = metric.step
        if new:
            self._client.log_batch(self.run_id, metrics=new)

    def _stored_up_to(self, key: str) -> int:
        """The greatest step of a metric in the store; -1 where it has none."""
        if key not in self._last_step:
            history = self._client.get_metric_history(self.run_id, key)
            self._last_step[key] = max((metric.step for metric in history), default=-1)
        return self._last_step[key]

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            text = str(error).splitlines()[0][:200]
            warnings.warn(f"tracking: MLflow did not take metrics ({text}); they wait here and training goes on", stacklevel=2)
