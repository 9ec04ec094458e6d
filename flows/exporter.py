"""What a platform's monitoring reads: Prometheus metrics about runs, queue, slots, workers, training, devices, releases and cost.

    python -m flows.exporter         # http://127.0.0.1:9464/metrics; `modelyard up` starts it

Prefect's own /api/metrics knows no states and no durations of flow runs. This asks the Prefect API and MLflow every MODELYARD_METRICS_EVERY_S
seconds (15) in the background; a scrape reads what was found last. So no number of scrapes costs the servers anything, and a server that is
away shows as `modelyard_up 0`, not as a scrape that hangs. What each metric means: infra/prometheus/README.md.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric

from components.schema.records import home

EVERY_S = 15.0
logger = logging.getLogger("modelyard.exporter")


class Exporter:
    """The newest answer of each source, handed to whoever scrapes."""

    def __init__(self, sources: dict[str, Callable[[], Iterable[Metric]]]) -> None:
        self.sources = sources
        self.found: dict[str, list[Metric]] = {}
        self.up: dict[str, float] = dict.fromkeys(sources, 0.0)
        self.at: dict[str, float] = {}
        self._said: dict[str, str] = {}

    def look(self, name: str) -> None:
        """Ask one source. Where it fails, what it said before is dropped: an old number must not pass for a new one."""
        try:
            self.found[name] = list(self.sources[name]())
            self.up[name], self.at[name], self._said[name] = 1.0, time.time(), ""
        except Exception as error:
            self.up[name] = 0.0
            self.found[name] = []
            if (text := f"{type(error).__name__}: {error}") != self._said.get(name):
                logger.warning("%s: %s", name, text)
                self._said[name] = text

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client calls at a scrape."""
        for name in self.sources:
            yield from self.found.get(name, ())
        up = GaugeMetricFamily("modelyard_up", "1 where a source answered at the last look.", labels=("source",))
        at = GaugeMetricFamily("modelyard_looked_timestamp_seconds", "When a source was last read.", labels=("source",))
        for name in self.sources:
            up.add_metric((name,), self.up[name])
            if name in self.at:
                at.add_metric((name,), self.at[name])
        yield up
        yield at


def of_this_machine() -> list[Metric]:
    """What no server knows: room on the disk, results that are not on the store yet, the canary's history."""
    folder = home()
    folder.mkdir(parents=True, exist_ok=True)
    disk = shutil.disk_usage(folder)
    waiting = len(list((folder / "storage" / "waiting").glob("*.json")))
    return [
        _one("modelyard_home_free_bytes", "Room on the disk of MODELYARD_HOME.", disk.free),
        _one("modelyard_home_size_bytes", "Size of that disk.", disk.total),
        _one("modelyard_results_not_copied", "Finished stages that MODELYARD_STORE does not have yet.", waiting),
        *_canary(_last_line(folder / "canary" / "history.jsonl")),
    ]


def _canary(entry: dict[str, Any] | None) -> Iterator[Metric]:
    if not entry:
        return
    labels = {"recipe": str(entry.get("recipe"))}
    yield _one("modelyard_canary_timestamp_seconds", "When the last canary ran.", datetime.fromisoformat(entry["at"]).timestamp(), labels)
    yield _one("modelyard_canary_changes", "What the last canary found changed.", len(entry.get("changes", ())), labels)
    yield _one("modelyard_canary_seconds", "How long the last canary's line took.", entry["seconds_in_all"], labels)


def _last_line(path: Any) -> dict[str, Any] | None:
    """The last whole line of a JSON-lines file."""
    if not path.is_file():
        return None
    for line in reversed(path.read_text(encoding="utf-8").splitlines()):
        try:
            return json.loads(line)
        except ValueError:
            continue
    return None


def _one(name: str, what: str, value: float, labels: dict[str, str] | None = None) -> Metric:
    family = GaugeMetricFamily(name, what, labels=tuple(labels or ()))
    family.add_metric(tuple((labels or {}).values()), float(value))
    return family


def sources() -> dict[str, Callable[[], Iterable[Metric]]]:
    """Whom this process can ask, by name."""
    from flows.exported.devices import Devices
    from flows.exported.releases import Releases
    from flows.exported.tracker import Tracker
    from flows.exported.training import Training

    found: dict[str, Callable[[], Iterable[Metric]]] = {"machine": of_this_machine, "devices": Devices().collect}
    if os.environ.get("PREFECT_API_URL"):
        from flows.exported.runs import Runs

        found["prefect"] = Runs().collect
    if (tracker := Tracker()).address:
        found["mlflow"] = Releases(tracker).collect
        found["training"] = Training(tracker).collect
    return found


def main() -> None:
    """Serve until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr, force=True)
    for noisy in ("httpx", "prefect"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    stopping, exporter = threading.Event(), Exporter(sources())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    registry = CollectorRegistry(auto_describe=False)
    registry.register(exporter)
    host, port = os.environ.get("MODELYARD_HOST") or "127.0.0.1", int(os.environ.get("MODELYARD_METRICS_PORT") or 9464)
    start_http_server(port, addr=host, registry=registry)
    logger.info("metrics at http://%s:%d/metrics about %s", host, port, ", ".join(exporter.sources))
    every = float(os.environ.get("MODELYARD_METRICS_EVERY_S") or EVERY_S)
    for name in exporter.sources:
        threading.Thread(target=_keep_looking, args=(exporter, name, every, stopping), name=name, daemon=True).start()
    while not stopping.wait(1.0):
        pass


def _keep_looking(exporter: Exporter, name: str, every_s: float, stopping: threading.Event) -> None:
    """Each source in a thread of its own: one that hangs does not stop the others."""
    while not stopping.is_set():
        exporter.look(name)
        stopping.wait(every_s)


if __name__ == "__main__":
    main()
