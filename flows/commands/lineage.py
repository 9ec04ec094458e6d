"""Commands about where a model came from: lineage, reproduce, rollback."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Annotated

import typer

from components.schema.config import BadInput
from flows.terminal import errors_told, make_console, root

app = typer.Typer()
Model = Annotated[str, typer.Argument(help="models:/NAME@ALIAS or models:/NAME/VERSION.")]


@app.command()
def lineage(
    model: Model,
    picture: Annotated[Path | None, typer.Option(help="Also draw it: an SVG file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the graph as JSON instead of a tree.")] = False,
) -> None:
    """Show what a released model was made of, from its alias to the raw sources. Asks MLflow alone."""
    with errors_told():
        from components.registry.ancestry import dumps, trace
        from flows import lineage as shown

        found = trace(model)
        if picture:
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_text(shown.picture(found), encoding="utf-8")
        if as_json:
            return print(dumps(found))
        shown.show(found, make_console())
        print(f"{f'Drawn in {picture}. ' if picture else ''}Next: modelyard reproduce {found.nodes[found.root].facts['uri']}")


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="A registered model, such as modelyard-tiny.")],
    to: Annotated[str | None, typer.Option(help="The version that becomes champion; the champion before this one unless told.")] = None,
    why: Annotated[str, typer.Option(help="Your reason; kept with the version.")] = "",
    history: Annotated[bool, typer.Option("--history", help="Show who was champion when, and by whose word; change nothing.")] = False,
) -> None:
    """Give the alias champion back to the version that had it before."""
    with errors_told():
        from components.registry import models

        name = name.removeprefix("models:/").partition("@")[0]
        if history:
            for move in models.champions(name):
                print(f"{move['at']}  version {move['version']}  {move['how']} by {move['who']}  {move['why']}".rstrip())
            return
        print(models.rollback(name, getpass.getuser(), why, to))
        print(f"Next: modelyard chat models:/{name}@champion")


@app.command()
def reproduce(
    model: Model,
    fresh_environment: Annotated[bool, typer.Option("--fresh-environment", help="Install what was installed then into an environment of its own (pip; minutes and gigabytes).")] = False,
    scores: Annotated[bool, typer.Option("--scores", help="Measure it again too, and compare every item.")] = False,
    remake_data: Annotated[bool, typer.Option("--remake-data", help="Make the data again from its sources instead of pulling it.")] = False,
    keep: Annotated[Path | None, typer.Option(help="Work in this folder and leave it: code, data, results.")] = None,
    code: Annotated[str, typer.Option(help="recorded, or here: the code as it stands in this folder.")] = "recorded",
    seed: Annotated[int | None, typer.Option(help="Another seed than the recorded one.")] = None,
    threads: Annotated[int | None, typer.Option(help="Another number of CPU threads than the recorded one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON last.")] = False,
) -> None:
    """Make a released model again from nothing but its record, and compare every file. Exit code 1 where one differs."""
    with errors_told():
        from components.registry.reproduction import Request

        root()
        from flows.server import prefect_server

        if code not in ("recorded", "here"):
            raise BadInput(f"reproduce: --code {code!r} is neither `recorded` nor `here`, so nothing was started. Leave it out for the recorded code")
        where = str(keep.absolute()) if keep else None
        asked = Request(model=model, scores=scores, remake_data=remake_data, fresh_environment=fresh_environment, code=code, seed=seed, threads=threads, keep=where)
        with prefect_server():
            from flows.reproduce import told_here

            report = told_here(asked, make_console())
        if as_json:
            print(json.dumps(report.model_dump(mode="json")))
        raise typer.Exit(0 if report.identical else 1)
