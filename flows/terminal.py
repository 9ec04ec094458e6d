"""What every command shares: reading a recipe, a server and a screen around the flows, and errors told to a person."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from components.schema.config import BadInput
from components.schema.recipe import Recipe, Resources
from components.schema.records import digest

if TYPE_CHECKING:
    from rich.console import Console

    from flows.screen import Screen

RecipePath = Annotated[Path, typer.Argument(help="Recipe file, such as recipes/tiny.yaml.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=value", help="Override one value of the recipe; may be given many times.")]
Threads = Annotated[int, typer.Option(help="CPU threads of a stage; 0 = one per core. Bit-identical results need the same number.")]
On = Annotated[list[str] | None, typer.Option("--on", metavar="key=value", help=f"What this machine gives; may be given many times: {', '.join(Resources.model_fields)}.")]

Budget = Annotated[float | None, typer.Option(help="What the run may cost in all, in the price table's currency; when it is spent, the run stops where it can go on from.")]


def load(path: Path, sets: list[str] | None) -> Recipe:
    """The recipe; what its one dial decided is said on standard error, where no output is parsed."""
    return Recipe.load(path, sets or [], lambda line: print(line, file=sys.stderr))


@contextmanager
def errors_told() -> Iterator[None]:
    """One message for a person instead of a traceback; defects keep theirs."""
    from components.launch import StageDied

    try:
        yield
    except (BadInput, StageDied) as error:
        fail(str(error), 2 if isinstance(error, BadInput) else 1)
    except KeyboardInterrupt:
        fail("stopped. What was done is kept: run the same command again and it goes on", 130)


def fail(text: str, code: int) -> NoReturn:
    """Print one error and leave with `code`."""
    print(f"error: {text}", file=sys.stderr)
    raise typer.Exit(code)


def root() -> Path:
    """The project's folder, which must be the current one: recipes, dvc.yaml and data are named relative to it."""
    here = Path.cwd()
    if not (here / "dvc.yaml").exists():
        raise BadInput(f"modelyard: {here} has no dvc.yaml, so it is not a project and its data cannot be versioned. Change to the project's folder first")
    return here


@contextmanager
def flows_watched(console: Console) -> Iterator[tuple[str, Screen]]:
    """A Prefect server to run against, and a screen that watches."""
    from flows.screen import Screen
    from flows.server import prefect_server

    with prefect_server() as url:
        from flows.tasks import watcher

        with Screen(console) as screen:
            token = watcher.set(screen)
            try:
                yield url, screen
            finally:
                watcher.reset(token)


def make_console() -> Console:
    from rich.console import Console

    return Console()


def recipe_hash(recipe: Recipe) -> str:
    return digest(recipe.model_dump(mode="json"))
