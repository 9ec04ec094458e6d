"""Commands about the platform: up, down, status."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from flows.terminal import errors_told

app = typer.Typer()


@app.command()
def up(
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay in this terminal, container or service; end on SIGTERM or Ctrl-C.")] = False,
    serve: Annotated[str | None, typer.Option(help="Also an endpoint for this model, such as models:/modelyard@champion, or a YAML file of its options; MODELYARD_SERVE.")] = None,
) -> None:
    """Start the platform (Prefect, MLflow, workers, watchers, dashboard, page for rankings) and keep it running; again = register what changed."""
    with errors_told():
        from flows.platform import up as platform
        from flows.platform.settings import Settings

        if serve:
            os.environ["MODELYARD_SERVE"] = serve  # the supervisor reads the environment too
        settings = Settings.read()
        if not settings.is_local:
            print(f"NOTE: MODELYARD_HOST={settings.host}: other machines reach these servers. Accounts are on; traffic is not encrypted: put a proxy with TLS before them.")
        if foreground:
            raise typer.Exit(platform.run_in_foreground(settings, print))
        found = platform.up(settings, print)
        addresses = {"Prefect": found.prefect_url.removesuffix("/api"), "MLflow": found.mlflow_url, "Dashboard": found.dashboard_url, "Feedback": found.feedback_url, "Metrics": found.metrics_url, "Endpoint": found.serving_url and f"{found.serving_url}/v1"}
        print("\n".join(f"{name:<10} {address}" for name, address in addresses.items() if address))
        print("Next: open Prefect, choose a deployment and fill in its form; or modelyard run recipes/tiny.yaml. See how it is: modelyard status. End it: modelyard down")


@app.command()
def down() -> None:
    """End the platform. Runs that are under way stop at a checkpoint and go on at the next `modelyard up`."""
    with errors_told():
        from flows.platform.up import down as stop

        print("The platform is down. Start it again: modelyard up" if stop(print) else "No platform was running.")


@app.command()
def status(as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False) -> None:
    """Say how the platform is: processes, addresses, queue, slots. Exit code 1 where something is not as it should be."""
    with errors_told():
        from flows.platform import status as platform

        told = platform.status()
        print(json.dumps(told) if as_json else "\n".join(platform.lines(told)))
        raise typer.Exit(0 if told["healthy"] else 1)
