"""What MLflow needs on disk before it starts: its database in this home's place, and accounts where they are asked for."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

from flows.platform.settings import Settings

ACCOUNTS = """[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/accounts.db
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


def prepare(settings: Settings) -> None:
    """Make what is not there yet."""
    if settings.mlflow_given:
        return
    folder = settings.home / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    if settings.mlflow_account:
        if not (folder / "accounts.ini").exists():
            (folder / "accounts.ini").write_text(ACCOUNTS.format(folder=folder))
        os.environ.setdefault("MLFLOW_FLASK_SERVER_SECRET_KEY", _secret(folder / "secret"))
    if settings.is_local and not os.environ.get("MLFLOW_BACKEND_STORE_URI") and not os.environ.get("MLFLOW_ARTIFACTS_DESTINATION") and not (folder / "mlflow.db").exists():
        _prepare_embedded()


def _secret(file: Path) -> str:
    """Signs what MLflow's pages hand back; the same after a restart."""
    if not file.exists():
        with os.fdopen(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as out:
            out.write(secrets.token_hex(32))
    return file.read_text()


def _prepare_embedded() -> None:
    """The store of `modelyard run` without servers, made by it: its artifacts are a folder that both reach, and history is one.

    Where other machines reach the server, it makes its own: artifacts then travel through it.
    """
    env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    subprocess.run([sys.executable, "-c", "from components.registry.store import prepare; prepare()"], env=env, check=True)
