"""What a scheduled run needs to know of its own place: was its time missed, is another one at work, and how it says that it did nothing.

Prefect makes a schedule's runs some days ahead, and after a time out of work it starts every one that was missed. `missed` says which of them
have nothing to do: with `latest` only the last of them runs, with `none` none that is later than it may be.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.states import Completed, State

CatchUp = Literal["latest", "none"]


def missed(catch_up: CatchUp, late_minutes: int) -> str | None:
    """Why this run should not do its work, where a schedule made it and its time has passed; None where it should."""
    context = FlowRunContext.get()
    run = context and context.flow_run
    if not run or not run.deployment_id or not run.auto_scheduled or run.run_count > 1 or not run.expected_start_time:
        return None
    due = run.expected_start_time
    late = (datetime.now(UTC) - due).total_seconds() / 60
    if catch_up == "none" and late > late_minutes:
        return f"its time was {due:%Y-%m-%d %H:%M} UTC, {late:.0f} minutes ago, and what is more than {late_minutes} minutes late is left out (catch_up: none)"
    if (later := _later_than(run.deployment_id, due)) is not None:
        return f"its time was {due:%Y-%m-%d %H:%M} UTC, and the run of {later:%Y-%m-%d %H:%M} UTC is due too: that one does the work of both"
    return None


def _later_than(deployment_id: Any, due: datetime) -> datetime | None:
    """The latest time at which another run of the same schedule was due by now and is not over; None where there is none."""
    asked = {
        "flow_runs": {
            "deployment_id": {"any_": [str(deployment_id)]},
            "state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}},
            "expected_start_time": {"after_": due.isoformat(), "before_": datetime.now(UTC).isoformat()},
        },
        "sort": "EXPECTED_START_TIME_DESC",
        "limit": 20,
    }
    with get_client(sync_client=True) as client:
        runs = client.request("POST", "/flow_runs/filter", json=asked).raise_for_status().json()
    times = [datetime.fromisoformat(run["expected_start_time"].replace("Z", "+00:00")) for run in runs if run["auto_scheduled"]]
    return max((time for time in times if time > due), default=None)


def skipped(reason: str) -> State[Any]:
    """The end of a run that had nothing to do, with why."""
    get_run_logger().info("skipped: %s", reason)
    create_markdown_artifact(markdown=f"Skipped: {reason}.", key="skipped", description="Why nothing was done")
    return Completed(name="Skipped", message=reason, data=reason)


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Wait until no other run holds `name`. A holder that was killed is waited for a minute; a lost lease stops nobody, since stages lock by themselves."""
    limit = f"modelyard-{name}"
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(limit, 1)
    with concurrency(limit, occupy=1, lease_duration=60, raise_on_lease_renewal_failure=False):
        yield
