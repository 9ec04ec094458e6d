"""Tell the Prefect server what there is: pool, deployments, limits, automations, blocks. Telling it twice changes nothing.

    python -m flows.platform.register        # with PREFECT_API_URL set; `modelyard up` does it
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.schema.config import BadInput, Unavailable
from flows.platform.worker import POOL

# Modules with `register(client)`, a coroutine function, in the order in which they are told.
TELLING = ("flows.slots", "flows.notifications", "flows.automations")
DEPLOYED_WITHIN_S = 400


async def register(project: Path) -> list[str]:
    """Lines that say what stands now. Errors: BadInput."""
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        lines = [await _pool(client)]
        if (project / "prefect.yaml").exists():
            lines.append(await asyncio.to_thread(_deploy, project))
        for name in TELLING:
            if importlib.util.find_spec(name) and (told := getattr(importlib.import_module(name), "register", None)):
                lines.append(f"{name.rpartition('.')[2]}: {await told(client) or 'registered'}")
    return lines


async def _pool(client: Any) -> str:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    try:
        await client.read_work_pool(POOL)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        await client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template, description="Workers of Modelyard"), overwrite=True)
    return f"pool: {POOL}"


def _deploy(project: Path) -> str:
    """prefect.yaml's deployments, by Prefect's own command. It sets every schedule back to what the file says, so it is given a file that says what people chose since."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file"]
    try:
        with tempfile.TemporaryDirectory() as folder:
            told = Path(folder) / "prefect.yaml"
            told.write_text(_as_people_left_it((project / "prefect.yaml").read_text(encoding="utf-8")), encoding="utf-8")
            done = subprocess.run([*command, str(told)], cwd=project, capture_output=True, text=True, timeout=DEPLOYED_WITHIN_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"deployments: Prefect did not take prefect.yaml within {DEPLOYED_WITHIN_S} s, so its forms may be old. Run `modelyard up` again when the machine is less busy") from None
    if done.returncode:
        last = "\n".join(f"  | {line}" for line in (done.stdout + done.stderr).strip().splitlines()[-20:])
        raise BadInput(f"deployments: Prefect did not take prefect.yaml, so its forms may be old. Mend it and run `modelyard up` again. What it said:\n{last}")
    return f"deployments: {done.stdout.count('successfully created')} from prefect.yaml"


def _as_people_left_it(text: str) -> str:
    """prefect.yaml with every schedule on or off as it is on the server, and with those that were added there."""
    import yaml
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

    told = yaml.safe_load(text)
    names = [entry["name"] for entry in told["deployments"]]
    with get_client(sync_client=True) as client:
        known = {(there.entrypoint, there.name): there.schedules for there in client.read_deployments(deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=names)))}
    for entry in told["deployments"]:
        entry["schedules"] = schedules_kept(entry.get("schedules", []), known.get((entry["entrypoint"], entry["name"]), []))
    return yaml.safe_dump(told, sort_keys=False, allow_unicode=True)


def schedules_kept(ours: Sequence[dict[str, Any]], there: Sequence[Any]) -> list[dict[str, Any]]:
    """Ours by their slugs, with the times of the file and the switch of the server; then what a person added, which has no slug."""
    switch = {schedule.slug: schedule.active for schedule in there if schedule.slug}
    added = [{**schedule.schedule.model_dump(mode="json", exclude_none=True), "active": schedule.active, "parameters": schedule.parameters} for schedule in there if not schedule.slug]
    return [{**schedule, "active": switch.get(schedule.get("slug"), schedule.get("active", True))} for schedule in ours] + added


if __name__ == "__main__":
    try:
        print("\n".join(asyncio.run(register(Path.cwd()))))
    except BadInput as error:
        sys.exit(f"error: {error}")
