"""Flows as deployments of a rig, and what becomes of their runs."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.services.rig import Rig

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def deploy(rig: Rig, entrypoint: str, name: str, parameters: dict[str, Any] | None = None, rrule: str | None = None) -> str:
    """A flow (FILE:FUNCTION in the project, or MODULE.FUNCTION) as a deployment of the pool `modelyard`, with a schedule where one is given; gives its id."""
    code = (
        "import sys, json; from contextlib import suppress; from prefect.exceptions import ObjectAlreadyExists; from prefect.client.orchestration import get_client; from prefect.client.schemas.actions import WorkPoolCreate, DeploymentScheduleCreate\n"
        "from prefect.client.schemas.schedules import RRuleSchedule; from prefect.flows import load_flow_from_entrypoint; from prefect.workers.process import ProcessWorker\n"
        "from prefect.utilities.callables import parameter_schema\n"
        "folder, entrypoint, name, parameters, rrule = json.loads(sys.argv[1]); flow = load_flow_from_entrypoint(entrypoint)\n"
        "with get_client(sync_client=True) as c:\n"
        "    with suppress(ObjectAlreadyExists):\n"  # a worker that starts makes it too
        "        c.create_work_pool(WorkPoolCreate(name='modelyard', type='process', base_job_template=ProcessWorker.get_default_base_job_template()))\n"
        "    schedules = [DeploymentScheduleCreate(schedule=RRuleSchedule(rrule=rrule), active=True)] if rrule else []\n"
        "    print(c.create_deployment(flow_id=c.create_flow(flow), name=name, work_pool_name='modelyard', entrypoint=entrypoint, path='.', parameters=parameters, schedules=schedules,\n"
        "        parameter_openapi_schema=parameter_schema(flow).model_dump(), pull_steps=[{'prefect.deployments.steps.set_working_directory': {'directory': folder}}], job_variables={'working_dir': folder}))\n"
    )
    given = json.dumps([str(rig.project.folder), entrypoint, name, parameters or {}, rrule])
    return said(rig, code, given).split()[-1]


def said(rig: Rig, code: str, *words: str) -> str:
    """What a bit of Python prints in the rig's project and environment."""
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=rig.project.folder, env=rig.env(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def begin(rig: Rig, deployment: str, **parameters: Any) -> str:
    """Start a deployment; gives the run's id."""
    return rig.api("POST", f"/deployments/{deployment}/create_flow_run", {"parameters": parameters, "state": {"type": "SCHEDULED"}})["id"]


def until(rig: Rig, run_id: str, *names: str) -> dict[str, Any]:
    """The run, once its state has one of these names; a test fails where it ends in another one."""

    def there() -> dict[str, Any] | None:
        run = rig.run(run_id)
        assert run["state"]["name"] in names or run["state"]["type"] not in ENDED, f"{run['state']['name']}: {run['state']['message']}"
        return run if run["state"]["name"] in names else None

    return rig.wait(there, f"{' or '.join(names)} of {run_id}")


def runs_of(rig: Rig, deployment: str) -> list[dict[str, Any]]:
    """Runs of a deployment that are begun or over, oldest first."""
    asked = {"flow_runs": {"deployment_id": {"any_": [deployment]}, "state": {"type": {"not_any_": ["SCHEDULED"]}}}, "sort": "START_TIME_ASC"}
    return [run for run in rig.api("POST", "/flow_runs/filter", asked) if run["state"]["type"] != "SCHEDULED"]
