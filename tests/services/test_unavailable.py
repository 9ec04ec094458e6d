"""A stage for which MLflow does not answer is tried again, and goes on when MLflow is there."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.services.rig import Rig
from tests.services.stack import free_port

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]


def test_a_stage_waits_for_an_mlflow_that_comes_back(tmp_path: Path) -> None:
    port = free_port()
    rig = Rig.in_folder(tmp_path, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}", MLFLOW_HTTP_REQUEST_MAX_RETRIES="1", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    code = (
        "import sys; from components.schema.jobs import Run; from components.schema.recipe import Recipe\n"
        "from flows.data import prepare_data; from tests.flows.project import MICRO\n"
        "prepare_data(Recipe.load('recipes/tiny.yaml', MICRO).data, Run())\n"
    )
    try:
        rig.start("server")
        flow = subprocess.Popen([sys.executable, "-c", code], cwd=rig.project.folder, env=rig.env(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        rig.wait(lambda: _said(rig, "Trying again in"), "the flow to say that it tries again", 200)
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"]
        with (tmp_path / "mlflow.log").open("wb") as log:
            rig.parts["mlflow"] = subprocess.Popen(command, cwd=tmp_path, env=rig.env(), stdout=log, stderr=subprocess.STDOUT)
        said, _ = flow.communicate(timeout=400)
        assert flow.returncode == 0, said[-3000:]
        lines = [line for line in _said(rig, "Trying again in")]
        assert "does not answer" in lines[0] and "Trying again in 2 s (1 of 12)" in lines[0]
    finally:
        rig.stop()


def _said(rig: Rig, words: str) -> list[str]:
    time.sleep(1)
    return [log["message"] for log in rig.api("POST", "/logs/filter", {"limit": 200, "sort": "TIMESTAMP_ASC"}) if words in log["message"]]
