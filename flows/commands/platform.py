"""Commands about the platform: up, down, status."""

from __future__ import annotations

import typer

from flows.terminal import errors_told

app = typer.Typer()


@app.command()
def up() -> None:
    """Start the platform (Prefect, MLflow, workers, watchers, dashboard) and keep it running; again = register what changed."""
    with errors_told():
        from flows.platform.settings import Settings
        from flows.platform.up import up as start

        found = start(Settings.read(), print)
        print(f"Prefect    {found.prefect_url.removesuffix('/api')}\nMLflow     {found.mlflow_url}")
        if found.dashboard_url:
            print(f"Dashboard  {found.dashboard_url}")
        print("Next: open Prefect, choose a deployment, fill in its form; or `modelyard run recipes/tiny.yaml`. `modelyard down` ends it")


@app.command()
def down() -> None:
    """End the platform. Runs that are under way stop at a checkpoint and go on at the next `modelyard up`."""
    with errors_told():
        from flows.platform.up import down as stop

        print("The platform is down." if stop(print) else "No platform was running.")
