"""What the environment asks of the platform. Nothing else configures it, so a service file, a container and a shell say the same.

    Settings.read(os.environ)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from components.schema.addresses import is_loopback
from components.schema.config import BadInput
from components.schema.records import home
from components.schema.serving import ServeConfig

PORTS = {"prefect": ("MODELYARD_PREFECT_PORT", 4200), "mlflow": ("MODELYARD_MLFLOW_PORT", 5000), "dashboard": ("MODELYARD_DASHBOARD_PORT", 8501), "feedback": ("MODELYARD_FEEDBACK_PORT", 8700), "metrics": ("MODELYARD_METRICS_PORT", 9464), "serving": ("MODELYARD_SERVE_PORT", 8000)}
OPTIONAL = ("dashboard", "feedback", "metrics", "serving")  # port 0 = not started
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True)
class Settings:
    """Where the platform listens, what it starts, and what it only uses."""

    project: Path
    """Folder with dvc.yaml and recipes; workers start flows there."""
    home: Path
    """What runs leave behind (MODELYARD_HOME), as an absolute path."""
    host: str
    """Address that servers bind to."""
    ports: Mapping[str, int]
    """By name; 0 = that one is not started."""
    workers: int
    """Worker processes of the pool; 0 = only servers."""
    prefect_given: str | None
    """Address of a Prefect API that runs elsewhere; None = ours."""
    mlflow_given: str | None
    """Address of an MLflow server that runs elsewhere; None = ours."""
    prefect_account: str | None
    """user:password that Prefect's API asks for; None = it asks for none."""
    mlflow_account: tuple[str, str] | None
    """User and password that MLflow asks for; None = it asks for none."""
    serve: str | None = None
    """Model that the endpoint serves (models:/NAME@champion), or a YAML file of its options; None = no endpoint."""

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ, project: Path | None = None) -> Settings:
        """Errors: BadInput, with every problem at once."""
        problems: list[str] = []
        ports = {name: _number(environ, variable, default, problems, highest=65535) for name, (variable, default) in PORTS.items()}
        ports["serving"] *= bool(environ.get("MODELYARD_SERVE"))  # where no model is named, nothing listens
        found = cls(
            project=(project or Path.cwd()).absolute(),
            home=home(),
            host=environ.get("MODELYARD_HOST") or "127.0.0.1",
            ports=ports,
            workers=_number(environ, "MODELYARD_WORKERS", 1, problems, highest=256),
            prefect_given=environ.get("PREFECT_API_URL") or None,
            mlflow_given=environ.get("MLFLOW_TRACKING_URI") or None,
            prefect_account=environ.get("PREFECT_SERVER_API_AUTH_STRING") or environ.get("PREFECT_API_AUTH_STRING") or None,
            mlflow_account=_mlflow_account(environ, problems),
            serve=environ.get("MODELYARD_SERVE") or None,
        )
        problems += found._problems(environ)
        if problems:
            raise BadInput("\n".join(f"platform: {problem}" for problem in problems))
        return found

    @property
    def reach(self) -> str:
        """The host as a client on this machine writes it."""
        host = EVERYWHERE.get(self.host, self.host)
        return f"[{host}]" if ":" in host else host

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the servers."""
        return is_loopback(self.host)

    def url(self, name: str) -> str:
        """Address of one of our servers, without a slash at the end."""
        return f"http://{self.reach}:{self.ports[name]}"

    def page(self, name: str) -> str:
        """The same as a person on another machine would write it, where they can reach it."""
        return f"http://{os.uname().nodename}:{self.ports[name]}" if self.host in EVERYWHERE else self.url(name)

    @property
    def prefect_url(self) -> str:
        """Prefect's API, ours or the given one."""
        return self.prefect_given or f"{self.url('prefect')}/api"

    @property
    def mlflow_url(self) -> str:
        """MLflow, ours or the given one."""
        return self.mlflow_given or self.url("mlflow")

    @property
    def served(self) -> tuple[str, ...]:
        """Names of the ports that this platform listens on."""
        given = {"prefect": self.prefect_given, "mlflow": self.mlflow_given}
        return tuple(name for name in PORTS if self.ports[name] and not given.get(name))

    def _problems(self, environ: Mapping[str, str]) -> list[str]:
        problems = []
        if not (self.project / "dvc.yaml").exists():
            problems.append(f"{self.project} has no dvc.yaml, so workers started there would find no project. Change to the project's folder first")
        for name in ("prefect", "mlflow"):
            if not self.ports[name] and not {"prefect": self.prefect_given, "mlflow": self.mlflow_given}[name]:
                problems.append(f"{PORTS[name][0]} is 0 and no {name} server elsewhere is named, so nothing could be reached. Give it a port")
        used = [self.ports[name] for name in self.served]
        if twice := sorted({port for port in used if used.count(port) > 1}):
            problems.append(f"port {twice[0]} is asked for by {' and '.join(PORTS[name][0] for name in self.served if self.ports[name] == twice[0])}, and only one server can listen there. Give each its own")
        if not self.is_local:
            problems += self._open_problems()
        if self.serve:
            try:
                ServeConfig.asked("MODELYARD_SERVE", model=self.serve)
            except BadInput as error:
                problems.append(str(error))
        return problems

    def _open_problems(self) -> list[str]:
        """Servers that other machines reach ask for an account, or they are not started."""
        missing = []
        if not self.prefect_given and not self.prefect_account:
            missing.append("PREFECT_SERVER_API_AUTH_STRING=user:password")
        if not self.mlflow_given and not self.mlflow_account:
            missing.append("MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (12 characters or more)")
        where = f"MODELYARD_HOST={self.host} lets other machines reach the servers"
        return [f"{where}, and anyone there could run code here without an account. Set {' and '.join(missing)}, or leave MODELYARD_HOST at 127.0.0.1"] if missing else []


def _number(environ: Mapping[str, str], variable: str, default: int, problems: list[str], highest: int) -> int:
    text = environ.get(variable) or str(default)
    if text.isdigit() and int(text) <= highest:
        return int(text)
    problems.append(f"{variable}={text!r} is not a whole number from 0 to {highest}, so it cannot be used. Correct or unset it (default {default})")
    return default


def _mlflow_account(environ: Mapping[str, str], problems: list[str]) -> tuple[str, str] | None:
    user, password = environ.get("MLFLOW_TRACKING_USERNAME"), environ.get("MLFLOW_TRACKING_PASSWORD")
    if user and password:
        return user, password
    if user or password:
        there, missing = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD") if user else ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_USERNAME")
        problems.append(f"{there} is set and {missing} is not, so nobody could sign in to MLflow. Set both or neither")
    return None
