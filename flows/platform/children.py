"""What a platform runs: one specification for each child, as plain data that follows from the settings."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flows.platform.settings import Settings
from flows.platform.state import MARK
from flows.server import QUIET

POOL = "modelyard"

# What every process of a platform is told, unless the environment says otherwise.
SHARED = {
    **QUIET,
    "PREFECT_LOGGING_LEVEL": "INFO",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PYTHONUNBUFFERED": "1",
}
# The server keeps slots' leases in files: a restart of it neither frees a slot that is taken nor keeps one that is free.
PREFECT_SERVER = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"}
MLFLOW_SERVER = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # else eight more processes
WORKER = {
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",
    "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # the least that Prefect takes; seconds
    "PREFECT_CLIENT_MAX_RETRIES": "10",
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500,502,503,504",
}


@dataclass(frozen=True)
class Child:
    """One process that is kept running."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """What it is told beside the supervisor's own environment."""
    address: str | None = None
    health: str | None = None
    after: tuple[str, ...] = ()
    """Children that must be ready before it is started for the first time."""
    grace_s: float = 15.0
    """Seconds between SIGTERM and SIGKILL when the platform ends."""
    keeps_descendants: bool = False
    """Whether what it started may outlive it: a worker's flow runs go on when the worker is lost."""


def children(settings: Settings, environ: Mapping[str, str] = os.environ) -> tuple[Child, ...]:
    """In the order in which they start; they end the other way round."""
    servers = [*([] if settings.prefect_given else [_prefect(settings)]), *([] if settings.mlflow_given else [_mlflow(settings)])]
    after = tuple(server.name for server in servers)
    rest = [_worker(settings, number, after) for number in range(1, settings.workers + 1)]
    rest.append(_module("watching", "flows.watching", after, grace_s=10))
    if settings.ports["metrics"]:
        rest.append(_module("exporter", "flows.exporter", after, grace_s=5, address=f"{settings.url('metrics')}/metrics", health=f"{settings.url('metrics')}/metrics"))
    if settings.ports["dashboard"]:
        rest.append(_dashboard(settings, after))
    return tuple(servers) + tuple(child for child in rest if _is_there(child, settings))


def environment(settings: Settings, platform_id: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What every child has in its environment; whoever set one of SHARED keeps it."""
    told = {
        MARK: platform_id,
        "MODELYARD_PROJECT": str(settings.project),
        "MODELYARD_HOME": str(settings.home),
        "PREFECT_HOME": str(settings.home / "prefect"),
        "PREFECT_API_URL": settings.prefect_url,
        "MLFLOW_TRACKING_URI": settings.mlflow_url,
    }
    if settings.prefect_account:
        told["PREFECT_API_AUTH_STRING"] = settings.prefect_account
    return {**SHARED, **environ, **told}


def _prefect(settings: Settings) -> Child:
    port = settings.ports["prefect"]
    env = {**PREFECT_SERVER, "PREFECT_SERVER_UI_API_URL": settings.prefect_url}
    if settings.prefect_account:
        env["PREFECT_SERVER_API_AUTH_STRING"] = settings.prefect_account
    command = (sys.executable, "-m", "prefect", "server", "start", "--host", settings.host, "--port", str(port))
    return Child("prefect", command, env, settings.url("prefect"), f"{settings.prefect_url}/health", grace_s=20)


def _mlflow(settings: Settings) -> Child:
    folder = settings.home / "mlflow"
    store = os.environ.get("MLFLOW_BACKEND_STORE_URI") or f"sqlite:///{folder}/mlflow.db"
    artifacts = os.environ.get("MLFLOW_ARTIFACTS_DESTINATION") or str(folder / "artifacts")
    env = {**MLFLOW_SERVER, "MLFLOW_BACKEND_STORE_URI": store, "MLFLOW_ARTIFACTS_DESTINATION": artifacts}  # by environment: a command line is seen by everybody
    command = (sys.executable, "-m", "mlflow", "server", "--host", settings.host, "--port", str(settings.ports["mlflow"]), "--workers", "1")
    return Child("mlflow", command, env, settings.url("mlflow"), f"{settings.url('mlflow')}/health")


def _worker(settings: Settings, number: int, after: tuple[str, ...]) -> Child:
    name = f"{os.uname().nodename}-{number}"
    command = (sys.executable, "-m", "prefect", "--no-prompt", "worker", "start", "--pool", POOL, "--type", "process", "--name", name)
    return Child(f"worker-{number}", command, WORKER, after=after, grace_s=45, keeps_descendants=True)


def _dashboard(settings: Settings, after: tuple[str, ...]) -> Child:
    options = {"address": settings.host, "port": settings.ports["dashboard"], "headless": "true", "fileWatcherType": "none", "runOnSave": "false"}
    command = (sys.executable, "-m", "streamlit", "run", "dashboards/app.py", "--browser.gatherUsageStats", "false", *(f"--server.{key}={value}" for key, value in options.items()))
    return Child("dashboard", command, address=settings.url("dashboard"), health=f"{settings.url('dashboard')}/_stcore/health", after=after)


def _module(name: str, module: str, after: tuple[str, ...], grace_s: float, address: str | None = None, health: str | None = None) -> Child:
    return Child(name, (sys.executable, "-m", module), address=address, health=health, after=after, grace_s=grace_s)


def _is_there(child: Child, settings: Settings) -> bool:
    if child.name == "dashboard":
        return (settings.project / "dashboards" / "app.py").exists()
    return child.name not in ("watching", "exporter") or importlib.util.find_spec(f"flows.{child.name}") is not None


def start_folder(settings: Settings) -> Path:
    """Where every child starts."""
    return settings.project
