"""MLflow's pages of training runs in a browser: reached from the list by the prepared links, curves of two recipes first and side by side.

MLflow may read what it keeps of a page (components/registry/views.py) in another way after an update; this is where that would show.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from components.registry import tracking, views
from components.registry.store import experiment_id
from tests.browser.conftest import READY_S, wait
from tests.services.stack import free_port

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]
PAGE_MS = 60_000


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of its own."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("ab") as log, pytest.MonkeyPatch.context() as patch:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            wait(lambda: answers(f"http://127.0.0.1:{port}/health"), READY_S, "the MLflow server", lambda: (folder / "log").read_text()[-3000:])
            patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
            patch.setenv("MODELYARD_HOME", str(folder / "home"))
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def answers(address: str) -> bool:
    with suppress(OSError):
        return urllib.request.urlopen(address, timeout=5).status == 200
    return False


def recipe(name: str, mark: str, losses: list[float]) -> None:
    """A recipe's run with a stage that logged a curve and what a curve is not."""
    parent = tracking.open_pipeline(name, mark * 32, f"name: {name}", {})
    run = tracking.open_stage(parent, "pretrain", mark * 32, {}, {"recipe": name})
    sink = tracking.MetricSink(run)
    for step, loss in enumerate(losses):
        sink.log({"loss": loss, "tokens": 100.0 * (step + 1), "lr": 0.1, "time/data": 0.5}, step)
    sink.close()
    tracking.close_stage(run, "FINISHED", {"cost": {"amount": 1.0}, "parameters": 5})


def test_the_links_above_the_list_lead_to_the_curves_of_all_runs_with_the_loss_first(mlflow: str, page: Any, tmp_path: Path) -> None:
    recipe("slow", "a", [3.0, 2.5, 2.0])
    recipe("fast", "b", [3.0, 1.5, 1.0])
    page.set_default_timeout(PAGE_MS)
    page.goto(f"{mlflow}/#/experiments/{experiment_id()}/runs?{views.TRAINING}")
    page.get_by_text("slow-aaaaaaaa").wait_for()
    with page.context.expect_page() as opened:  # MLflow opens the links of a note in a page of their own
        page.get_by_role("link", name="pretrain", exact=True).first.click()
    curves = opened.value
    curves.set_default_timeout(PAGE_MS)
    for name in ("slow pretrain aaaaaaaa", "fast pretrain bbbbbbbb"):
        curves.get_by_role("link", name=name).first.wait_for()
    cards = curves.locator("[data-testid='experiment-view-compare-runs-card']")
    for at in range(2):
        cards.nth(at).locator("svg.main-svg").first.wait_for()
    seen = [cards.nth(at).inner_text() for at in range(2)]
    curves.screenshot(path=str(tmp_path / "curves.png"))
    assert all(text.startswith("loss") and "slow pretrain" in text and "fast pretrain" in text for text in seen)
    assert "Step" in seen[0] and "tokens" in seen[1]
