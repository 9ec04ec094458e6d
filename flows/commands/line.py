"""Commands about a recipe's line: run, stage, show, doctor."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from components.schema.config import BudgetSpent
from components.schema.jobs import stages
from components.schema.recipe import Recipe, Resources
from components.schema.records import Record, home
from flows.alone import known, run_stage_alone
from flows.planning import print_plan
from flows.terminal import Budget, On, RecipePath, Sets, Threads, errors_told, flows_watched, load, make_console, root

app = typer.Typer()


@app.command()
def run(
    recipe: RecipePath,
    sets: Sets = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what each stage would do and why; run nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a machine-readable summary last.")] = False,
    threads: Threads = 0,
    on: On = None,
    budget: Budget = None,
) -> None:
    """Run a recipe from raw text to a released model. What stands already is reused; what was cut off goes on."""
    with errors_told():
        resolved = load(recipe, sets)
        root()
        resources = Resources.parse(threads, on, budget)
        if plan:
            return print_plan(resolved, resources, as_json)
        run_line(resolved, resources, recipe, as_json)


@app.command()
def stage(
    name: Annotated[str, typer.Argument(help="data, pretrain, sft, reward, cost, judge, ppo, grpo, dpo, best_of_n, evaluate or release: those that the recipe has.")],
    recipe: RecipePath,
    sets: Sets = None,
    threads: Threads = 0,
    on: On = None,
    budget: Budget = None,
) -> None:
    """Run one stage alone, on the results of earlier stages that stand on disk."""
    with errors_told():
        resolved = load(recipe, sets)
        root()
        run_stage_alone(known(name, resolved), resolved, Resources.parse(threads, on, budget))


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="A run (its recipe's name, or the name a report ended with), or a stage's folder name.")] = "latest",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary or record as JSON.")] = False,
) -> None:
    """Show the report of an earlier run, or one stage's record."""
    with errors_told():
        from rich.console import Console

        folder = home() / "stages" / run
        if (folder / "record.json").exists():
            return print(Record.read(folder).model_dump_json(indent=2))
        from flows.summary import summary_named

        summary = summary_named(run)
        if as_json:
            return print(json.dumps(summary))
        from flows.screen import report

        report(summary, {name: Record.read(Path(row["record"]).parent) for name, row in summary["stages"].items()}, Console())


@app.command()
def doctor() -> None:
    """Check this machine and installation; say what is wrong and how to mend it."""
    from flows.doctor import examine

    raise typer.Exit(0 if examine() else 1)


def run_line(recipe: Recipe, resources: Resources, path: Path, as_json: bool) -> None:
    """The whole line, watched by a screen."""
    import threading

    from components.cost import prices
    from flows.screen import cost_table, report

    prices.load(resources)  # a table that cannot be read is told before anything starts
    began = time.time()
    console = make_console()
    console.print(f"[bold]modelyard[/] {recipe.name}: {' → '.join(stages(recipe))}", highlight=False)
    from components.registry import tracking

    threading.Thread(target=tracking.prepare, daemon=True).start()  # a new database takes seconds; the server's start hides them
    from flows.summary import save, spent, summarise

    with flows_watched(console) as (url, screen):
        console.print(f"Prefect UI while it runs: {url.removesuffix('/api')}", style="dim", highlight=False)
        ready = time.time()
        from flows.pipeline import train_and_release

        try:
            train_and_release(recipe, resources)
        except BudgetSpent:
            console.print(cost_table(spent(recipe, resources, screen)))
            raise
        ended = time.time()
    records = {name: event["record"] for name, event in screen.results.items()}
    summary = summarise(recipe, resources, path, screen, round(time.time() - began, 1), round(ready - began, 1), round(ended - ready, 1))
    save(summary)
    report(summary, records, console)
    if as_json:
        print(json.dumps(summary))
