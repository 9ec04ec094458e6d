"""The command `modelyard deploy`: a recipe as a form of its own, with a schedule where one is given."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.terminal import On, RecipePath, Sets, Threads, errors_told, load, root

app = typer.Typer()


@app.command()
def deploy(
    recipe: RecipePath,
    stage: Annotated[str | None, typer.Option(help="Only this stage, as `modelyard stage` runs it; the whole line unless told.")] = None,
    cron: Annotated[str | None, typer.Option(help="When it starts by itself, such as '0 3 * * 1': Mondays at 3. Without it, only by hand.")] = None,
    timezone: Annotated[str, typer.Option(help="Time zone of --cron, such as Europe/Berlin.")] = "UTC",
    sets: Sets = None,
    threads: Threads = 0,
    on: On = None,
) -> None:
    """Offer a recipe in the Prefect UI, its form filled with this recipe's values. Again = with what the file says now."""
    with errors_told():
        from components.schema.recipe import Resources

        resolved = load(recipe, sets)
        root()
        from flows.deployments import deploy as register

        print(register(resolved, str(recipe), Resources.parse(threads, on), stage, bool(sets), cron, timezone))
