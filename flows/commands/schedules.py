"""The command `modelyard schedule`: a recipe's retraining by the clock."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from components.schema.config import BadInput
from flows.terminal import On, RecipePath, Threads, errors_told, load, root

app = typer.Typer()


@app.command()
def schedule(
    recipe: RecipePath,
    cron: Annotated[str | None, typer.Option(help="When it is trained again, such as '0 3 * * 1': Mondays at 3. Without it, only where its data or its scores change.")] = None,
    timezone: Annotated[str, typer.Option(help="Time zone of --cron, such as Europe/Berlin.")] = "UTC",
    catch_up: Annotated[str, typer.Option(help="latest: of the runs missed while nothing ran, the last one runs. none: what is late is left out.")] = "latest",
    late_minutes: Annotated[int, typer.Option(min=1, help="How late a run may start with --catch-up none, in minutes.")] = 60,
    off: Annotated[bool, typer.Option("--off", help="No longer by the clock; new data and a drop of scores still start it.")] = False,
    threads: Threads = 0,
    on: On = None,
) -> None:
    """Train a recipe again by the clock and where its data changes; skipped where nothing would come out differently."""
    with errors_told():
        from components.schema.recipe import Resources

        resolved = load(recipe, None)
        root()
        if catch_up not in ("latest", "none"):
            raise BadInput(f"schedule: --catch-up {catch_up!r} is neither latest nor none, so it is not said what becomes of missed runs. Choose one of them")
        if off and cron:
            raise BadInput("schedule: --cron and --off contradict each other, so nothing was changed. Leave one of them out")
        from flows.deployments import schedule_retraining

        policy: Literal["latest", "none"] = "latest" if catch_up == "latest" else "none"
        print(schedule_retraining(resolved, str(recipe), Resources.parse(threads, on), cron, timezone, policy, late_minutes))
