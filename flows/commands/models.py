"""Commands about models: compare, evaluate, rate, chat, approve, reject."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from components.schema.jobs import Run
from components.schema.recipe import Resources
from flows.terminal import On, Sets, Threads, errors_told, flows_watched, make_console, root

app = typer.Typer()


@app.command()
def compare(
    models: Annotated[list[str], typer.Argument(help="Two or more: models:/NAME@ALIAS or /VERSION, a recipe's file, a run, a stage's folder; NAME#base: its base model.")],
    items: Annotated[int, typer.Option(help="Items won, and as many lost, shown on the page by suite and model.")] = 20,
    noise: Annotated[Path | None, typer.Option(help="Noise floor (modelyard gate noise) that widens the intervals.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the page; under .modelyard/comparisons unless told.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON instead of tables.")] = False,
) -> None:
    """Compare evaluated models with the first one: intervals, items won and lost, and what changed in options, data and code."""
    with errors_told():
        root()
        from flows.compare import compare as compare_named

        compare_named(models, make_console(), out, items, noise, as_json)


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="models:/modelyard@champion, models:/modelyard/3, a checkpoint's folder, or an endpoint's address, such as http://127.0.0.1:8000.")],
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 96,
    temperature: Annotated[float, typer.Option(help="0 = always the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens that together have this probability; 1 = from all.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample from so many of the likeliest tokens; 0 = from all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answers; a new one each time unless told.")] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told before the first message.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends an answer; may be given many times.")] = None,
    prompt: Annotated[bool, typer.Option("--prompt", help="Show the exact text that the model reads, before each answer.")] = False,
) -> None:
    """Talk to a model in the terminal. Reads standard input where it is not a terminal, one message a line."""
    with errors_told():
        from components.schema.serving import ChatConfig

        root()
        options = ChatConfig.asked(
            "chat", model=model, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, system=system, stop=tuple(stop or ()), show_prompt=prompt
        )
        os.execv(sys.executable, [sys.executable, "-m", "components", "chat", "--options", options.model_dump_json(exclude_unset=True)])


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A folder, models:/NAME/VERSION, or a hub id in the mirror.")],
    suites: Annotated[list[str], typer.Argument(help="Tasks, groups or tags of lm-eval, read from MODELYARD_HUB_MIRROR.")],
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="a=value", help="An option of the section evals, such as limit=100; may be given many times.")] = None,
    threads: Threads = 0,
    on: On = None,
) -> None:
    """Measure any model on any suites of lm-eval by their names; what was measured already is reused."""
    with errors_told():
        from components.schema.recipe import evals_from

        config = evals_from(suites, sets or [])
        root()
        console = make_console()
        with flows_watched(console) as (_, screen):
            from flows.evaluate import evaluate_model

            record = evaluate_model(config, model, Run(recipe_name="evaluate", resources=Resources.parse(threads, on)))
        found = screen.results["evaluate"]["verdict"]
        console.print(f"evaluate: {found.action}: {found.reason}", highlight=False)
        for by_suite in record.figures["scores"].values():
            for suite, score in by_suite.items():
                print(f"{suite:30} {score['metric']:24} {score['score']:.4f} ± {score['stderr']:.4f}  {score['items']:,} items")
        print(f"Every item: {record.folder / 'items'}\nNext: modelyard compare {record.folder.name} ...")


@app.command()
def rate(
    config: Annotated[Path, typer.Argument(help="Rating file, such as recipes/rating/tiny.yaml.")],
    sets: Sets = None,
    threads: Threads = 0,
    on: On = None,
) -> None:
    """Rate models by whose answers a reward model, a judge or people find better."""
    with errors_told():
        from components.schema.rating import RatingConfig

        asked = RatingConfig.load(config, sets or [])
        root()
        console = make_console()
        with flows_watched(console) as (_, screen):
            from flows.rate import rate_models

            record = rate_models(asked, Run(recipe_name=asked.name, seed=asked.seed, resources=Resources.parse(threads, on)))
        found = screen.results["rate"]["verdict"]
        console.print(f"rate: {found.action}: {found.reason}", highlight=False)
        print(f"{(record.folder / 'report.md').read_text()}\nEvery comparison: {record.folder / 'verdicts.jsonl'}" if "ratings" in record.figures else f"Sheet to fill in: {record.folder / 'sheet.jsonl'}")


@app.command()
def approve(
    model: Annotated[str, typer.Argument(help="A version that waits for a person, such as models:/modelyard/3.")],
    why: Annotated[str, typer.Option(help="Your reason; kept with the version.")] = "",
    anyway: Annotated[bool, typer.Option("--anyway", help="Although the champion is another one by now than the gate compared with.")] = False,
) -> None:
    """Make a version champion about which the gate asked a person."""
    with errors_told():
        from components.registry import models

        print(models.settle(model, True, getpass.getuser(), why, anyway))
        _resume_waiting(model)


@app.command()
def reject(
    model: Annotated[str, typer.Argument(help="A version that waits for a person, such as models:/modelyard/3.")],
    why: Annotated[str, typer.Option(help="Your reason; kept with the version.")] = "",
) -> None:
    """Leave the champion where it is; the version stays registered."""
    with errors_told():
        from components.registry import models

        print(models.settle(model, False, getpass.getuser(), why))
        _resume_waiting(model)


def _resume_waiting(model: str) -> None:
    """Deployed runs that waited for this word go on at once; where no server is to be reached, its watch sees to it later."""
    from flows.platform.state import State

    platform = State.running()
    url = os.environ.get("PREFECT_API_URL") or (platform and platform.prefect_url)
    if not url:
        return
    os.environ["PREFECT_API_URL"] = url
    from flows import approval

    try:
        resumed = approval.close_settled(model)
    except Exception as error:  # the word is kept; whatever is wrong with the server must not look as if it were not
        print(f"The Prefect server at {url} could not be told ({error}); a run that waits goes on when its watch sees this")
    else:
        if resumed:
            print(f"{resumed} run that waited for this goes on")
