"""Which MLflow is meant, and a client for it.

With MLFLOW_TRACKING_URI unset, everything is embedded: a SQLite file and a folder of artifacts under MODELYARD_HOME, by
absolute path, so that any working directory sees the same. Making that database takes seconds (MLflow replays some sixty
migrations): `prepare` does it ahead of need, and a file lock keeps two processes from making it at once.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from components.registry import views
from components.schema.config import Unavailable
from components.schema.records import home

if TYPE_CHECKING:
    from mlflow import MlflowClient

P, T = ParamSpec("P"), TypeVar("T")

EXPERIMENT = "modelyard"
# Told before mlflow is imported. A store that is away must cost a call seconds, not minutes; whoever set these keeps them.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def store_uri() -> str:
    """Where runs and registered models are kept."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home()}/mlflow/mlflow.db"


def is_embedded() -> bool:
    return not os.environ.get("MLFLOW_TRACKING_URI")


def client() -> MlflowClient:
    """A client for the store, which is made where it does not exist yet. Errors: Unavailable where a server does not answer."""
    uri = store_uri()
    found = _client(uri)
    _aim_mlflow_at(uri)
    return found


def experiment_id() -> str:
    """The one experiment all runs are in; made where it does not exist yet."""
    return _experiment_id(store_uri())


def prepare() -> None:
    """Make the store and the experiment ahead of need; safe in a thread, and in several processes at once."""
    experiment_id()


@cache
def _client(uri: str) -> MlflowClient:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # a line for each of its migrations
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with locked(), answering(uri):
        if is_embedded():
            _make_database(home() / "mlflow" / "mlflow.db")
        return MlflowClient(tracking_uri=uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri)


def _make_database(path: Path) -> None:
    """Make the tables where a write costs nothing, and move the file into place whole: a kill leaves no half-made database."""
    if path.exists():
        return
    from mlflow import MlflowClient

    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as scratch:
        MlflowClient(tracking_uri=f"sqlite:///{scratch}/mlflow.db", registry_uri=f"sqlite:///{scratch}/mlflow.db")
        arriving = path.with_suffix(".arriving")
        shutil.copyfile(f"{scratch}/mlflow.db", arriving)
        arriving.replace(path)


@cache
def _experiment_id(uri: str) -> str:
    from mlflow.exceptions import MlflowException

    store = _client(uri)
    with locked(), answering(uri):
        if found := store.get_experiment_by_name(EXPERIMENT):
            if found.lifecycle_stage == "deleted":
                store.restore_experiment(found.experiment_id)
            return _with_pages(store, found.experiment_id, found.tags)
        try:
            made = store.create_experiment(EXPERIMENT, artifact_location=str(home() / "mlflow" / "artifacts") if is_embedded() else None)
            return _with_pages(store, made, {})
        except MlflowException:  # another process, on a server, was faster
            if found := store.get_experiment_by_name(EXPERIMENT):
                return found.experiment_id
            raise


def _with_pages(store: MlflowClient, experiment: str, kept: Mapping[str, str]) -> str:
    """The experiment, with the pages prepared in it as this version has them."""
    for name, text in views.outdated(kept, experiment).items():
        store.set_experiment_tag(experiment, name, text)
    return experiment


def _aim_mlflow_at(uri: str) -> None:
    """Parts of MLflow ask its global setting, whatever their client was made with; else they make a database where we stand."""
    import mlflow

    given = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    if given is None:  # MLflow sets it, and we could no longer tell embedded from given
        os.environ.pop("MLFLOW_TRACKING_URI", None)


@contextmanager
def locked() -> Iterator[None]:
    """One process at a time makes things in the embedded store; a server does its own locking."""
    if not is_embedded():
        yield
        return
    folder = home() / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """A server that does not answer, or that says that it cannot (5xx: its database or its store is away), is no traceback of ours; it may come back."""
    from mlflow.exceptions import MlflowException, RestException
    from requests import RequestException

    try:
        yield
    except (MlflowException, RequestException) as error:
        gone = "API request to" in str(error) or not isinstance(error, MlflowException)
        if not gone and not (isinstance(error, RestException) and error.get_http_status_code() >= 500):
            raise
        raise Unavailable(
            f"tracking: MLflow at {uri} does not answer ({str(error).splitlines()[0][:160]}), so nothing could be recorded. "
            "Start it, or unset MLFLOW_TRACKING_URI to keep records in this project"
        ) from None


def asks_store(work: Callable[P, T]) -> Callable[P, T]:
    """A function that asks the store throughout: Unavailable where its server is away at any of its calls."""

    @wraps(work)
    def asking(*args: P.args, **kwargs: P.kwargs) -> T:
        with answering(store_uri()):
            return work(*args, **kwargs)

    return asking
