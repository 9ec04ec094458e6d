"""`modelyard cost`: what every run here has cost, and one run's stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from components.schema.config import BadInput
from components.schema.recipe import Resources
from flows.terminal import errors_told, make_console

app = typer.Typer()


@app.command()
def cost(
    run: Annotated[str | None, typer.Argument(help="A run, as a report ends with it, or its recipe's name; all of them where none is given.")] = None,
    prices_file: Annotated[Path | None, typer.Option("--prices", help="Price table; recipes/prices/default.yaml unless told.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """What runs have cost so far, unfinished stages and killed attempts included, by today's price table."""
    with errors_told():
        from components.cost import prices
        from components.cost.accounts import accounts
        from components.cost.bill import of_usages
        from components.schema.cost import total

        found = accounts()
        named = [name for name in found if run is None or run in (name, name.rpartition("-")[0])]
        if not named:
            raise BadInput(f"cost: {f'no run called {run!r}' if run else 'no run'} has been metered here. Runs: {', '.join(found) or 'none yet; start one with modelyard run recipes/tiny.yaml'}")
        used = found[named[0]] if run and len(named) == 1 else {name: total(found[name]) for name in named}
        rows = of_usages(used, prices.load(Resources(prices=str(prices_file) if prices_file else None)))
        if as_json:
            return print(json.dumps(rows))
        from flows.screen import cost_table

        make_console().print(cost_table(rows, "stage" if used is found.get(named[0]) else "run"))
