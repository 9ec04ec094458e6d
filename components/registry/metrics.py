"""Metrics on their way to MLflow: buffered, sent every two seconds, never in training's way.

    sink = MetricSink(run_id)
    sink.log({"loss": 2.1}, step=10)
    sink.close()

A run that was killed logs again some steps it had logged before; the sink drops what is stored already, so the curve is
one line without doubles. A store that is away for a while costs nothing: the metrics wait, and where they have a
journal, they outlive the process too: whoever goes on with the run sends them first.
"""

from __future__ import annotations

import json
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from components.registry.store import client
from components.schema.config import Unavailable

if TYPE_CHECKING:
    from mlflow.entities import Metric

EVERY_S = 2.0
BATCH = 1000  # MLflow's limit for one call
LAST_TRIES = 3


class MetricSink:
    """Takes metrics for one run. `log` only appends; a thread of its own sends."""

    def __init__(self, run_id: str, journal: Path | None = None) -> None:
        """`journal`: a file that keeps what the store has not taken yet."""
        self.run_id = run_id
        self._client = client()
        self._waiting: list[Metric] = _read(journal) if journal else []
        self._journal = _opened(journal) if journal else None
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
            new = [Metric(name, float(value), now, step) for name, value in metrics.items()]
            self._waiting += new
            if self._journal:
                self._journal.write("".join(json.dumps([m.key, m.value, m.timestamp, m.step]) + "\n" for m in new))
                self._journal.flush()
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
                        if self._journal:
                            self._journal.truncate(0)
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
        then = f"wait in {self._journal.name}" if self._journal else "are lost; the record keeps the figures"
        warnings.warn(f"tracking: {len(self._waiting)} metrics of run {self.run_id} could not be sent and {then}", stacklevel=2)

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


def send_unsent(run_id: str, journal: Path) -> None:
    """What a journal still keeps goes to the store. Errors: Unavailable."""
    if journal.is_file() and journal.stat().st_size and not MetricSink(run_id, journal).flush():
        raise Unavailable(f"tracking: MLflow does not take the metrics that wait in {journal}, and without them the run's curves would have a gap. They are sent when the stage is run again")


def _read(journal: Path) -> list[Metric]:
    """What stands in a journal; a line that a kill cut off is none."""
    from mlflow.entities import Metric

    found = []
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else ():
        with suppress(ValueError, TypeError):
            found.append(Metric(*json.loads(line)))
    return found


def _opened(journal: Path) -> TextIO:
    """To be added to, from a new line on."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    file = journal.open("a", encoding="utf-8")
    if file.tell() and not journal.read_bytes().endswith(b"\n"):
        file.write("\n")
    return file
