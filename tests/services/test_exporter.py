"""The exporter against a real Prefect server and a real Prometheus: what ran is counted, a server that goes away shows, and the alert about it goes off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.services.conftest import need
from tests.services.machines import wait_for
from tests.services.stack import Daemon, answers, free_port

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]

FLOWS = """
from prefect import flow

@flow
def well(): return 1

@flow
def badly(): raise ValueError("on purpose")

well(), well()
try: badly()
except ValueError: pass
"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, int, int]]:
    """A Prefect server, the exporter and Prometheus; gives the server, the exporter's port and Prometheus' port."""
    need("prometheus")
    folder = tmp_path_factory.mktemp("monitoring")
    api, metrics, prometheus = free_port(), free_port(), free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "MODELYARD_"))}
    env |= {"PREFECT_API_URL": f"http://127.0.0.1:{api}/api", "PREFECT_HOME": str(folder / "prefect"), "MODELYARD_HOME": str(folder / "home"), "DO_NOT_TRACK": "1"}
    env |= {"MODELYARD_METRICS_PORT": str(metrics), "MODELYARD_METRICS_EVERY_S": "1", "PYTHONPATH": str(ROOT)}
    config = yaml.safe_load((ROOT / "infra" / "prometheus" / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(folder / "rules.yaml")]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{metrics}"]}]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    rules = (ROOT / "infra" / "prometheus" / "rules" / "modelyard.yaml").read_text()
    (folder / "rules.yaml").write_text(rules.replace("for: 5m", "for: 2s"))
    python = [sys.executable, "-m"]
    daemons = [Daemon("prefect", [*python, "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(api)], folder / "prefect.log", env)]
    try:
        wait_for("Prefect", lambda: answers(f"{env['PREFECT_API_URL']}/health"))
        daemons.append(Daemon("exporter", [*python, "flows.exporter"], folder / "exporter.log", env, cwd=ROOT))
        told = [f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address=127.0.0.1:{prometheus}"]
        daemons.append(Daemon("prometheus", ["prometheus", *told], folder / "prometheus.log"))
        wait_for("the exporter", lambda: "modelyard_workers_online" in scraped(metrics))
        subprocess.run([sys.executable, "-c", FLOWS], env=env, check=True, capture_output=True, timeout=200)
        yield daemons[0], metrics, prometheus
    finally:
        for daemon in reversed(daemons):
            daemon.end(signal.SIGTERM, grace_s=10)


def test_what_ran_is_counted_by_how_it_ended(platform: tuple[Daemon, int, int]) -> None:
    _, metrics, _ = platform
    wait_for("three endings", lambda: 'modelyard_flow_runs_ended_total{deployment="badly (none)",state="Failed"} 1.0' in scraped(metrics))
    lines = scraped(metrics).splitlines()
    assert 'modelyard_flow_runs_ended_total{deployment="well (none)",state="Completed"} 2.0' in lines
    assert 'modelyard_flow_run_seconds_count{deployment="well (none)"} 2.0' in lines
    assert 'modelyard_last_run_ok{deployment="badly (none)"} 0.0' in lines


def test_promtool_finds_nothing_to_say_about_the_metrics(platform: tuple[Daemon, int, int]) -> None:
    done = subprocess.run(["promtool", "check", "metrics"], input=scraped(platform[1]), capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout + done.stderr


def test_a_server_that_goes_away_sets_off_its_alert(platform: tuple[Daemon, int, int]) -> None:
    server, metrics, prometheus = platform
    alert = 'ALERTS{alertname="ModelyardServerAway",source="prefect",alertstate="firing"}'
    wait_for("a server that is well", lambda: asked(prometheus, 'modelyard_up{source="prefect"}') == "1" and asked(prometheus, alert) is None)
    server.end(signal.SIGKILL)
    wait_for("the exporter to notice", lambda: 'modelyard_up{source="prefect"} 0.0' in scraped(metrics))
    assert "modelyard_workers_online" not in scraped(metrics), "an old number must not pass for a new one"
    wait_for("the alert", lambda: asked(prometheus, alert))


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return answer.read().decode()


def asked(port: int, query: str) -> str | None:
    """The value of a query that gives one series; None where it gives none."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}", timeout=5) as answer:
        found = json.load(answer)["data"]["result"]
    return found[0]["value"][1] if found else None
