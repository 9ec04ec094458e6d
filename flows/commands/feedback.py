"""Commands about feedback: a critic's, by a constitution, and people's, who rank answers on a page."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from components.schema.jobs import Run
from components.schema.people import MOST_ANSWERS, AskConfig
from components.schema.recipe import Resources
from flows.terminal import On, Sets, Threads, errors_told, flows_watched, make_console, root

if TYPE_CHECKING:
    from components.schema.feedback import FeedbackConfig

app = typer.Typer(no_args_is_help=True)
Dataset = Annotated[str, typer.Argument(help="Name of the dataset of questions.")]
DEFAULT = AskConfig().name


@app.command()
def critic(
    config: Annotated[Path, typer.Argument(help="Feedback file, such as recipes/feedback/tiny.yaml.")],
    sets: Sets = None,
    threads: Threads = 0,
    on: On = None,
) -> None:
    """Have a critic judge a model's answers by a constitution; the preferences become a dataset that DVC keeps."""
    with errors_told():
        from components.schema.feedback import FeedbackConfig

        asked = FeedbackConfig.load(config, sets or [])
        root()
        _gather(asked, Resources.parse(threads, on))


@app.command()
def ask(
    prompts: Annotated[Path, typer.Argument(help="JSON lines with `prompt` or `messages`; with `answers` too, where no models are named.")],
    models: Annotated[str, typer.Option(help="Who answers, with commas: models:/NAME@ALIAS, folders, or http://HOST/v1#NAME.")] = "",
    answers: Annotated[int, typer.Option(min=2, max=MOST_ANSWERS, help="Different answers to each prompt, of all models together.")] = 4,
    into: Annotated[str, typer.Option(help="Name of the dataset of questions.")] = DEFAULT,
    overlap: Annotated[int | None, typer.Option(help="People who rank each question.")] = None,
    gold: Annotated[Path | None, typer.Option(help="JSON lines with `prompt`, `answers` and their right `ranks`, or `chosen` and `rejected`.")] = None,
    gold_share: Annotated[float | None, typer.Option(help="Share of questions with a known order, among those a person sees.")] = None,
    guide: Annotated[Path | None, typer.Option(help="Text file: what people are told.")] = None,
    retrain_after: Annotated[int | None, typer.Option(help="New rankings that start a retraining; 0 = none do.")] = None,
    max_prompts: Annotated[int | None, typer.Option(help="Take the first so many different prompts.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="Sampling temperature of the answers.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Decides the answers, and the order in which people see them.")] = None,
) -> None:
    """Make questions for people: prompts with answers, whose is whose kept from them. The same again makes none twice."""
    with errors_told():
        from components.feedback.people import asking
        from components.feedback.people.store import Store
        from components.feedback.prompts import read

        store, left_out = Store.open(), Counter[str]()
        told = {"overlap": overlap, "gold_share": gold_share, "retrain_after": retrain_after, "seed": seed, "guide": guide and _text(guide)}
        config = asking.configured(store, into, {name: value for name, value in told.items() if value is not None})
        if models:
            writers = asking.writers(_located(models), max_new_tokens, temperature)
            rows = list(asking.answered(read(prompts, max_prompts), writers, answers, config.seed, left_out))
        else:
            rows = asking.read_rows(prompts, known=False)[:max_prompts]
        known = asking.read_rows(gold, known=True) if gold else []
        new = asking.ask(store, config, [*rows, *known])
    for reason, count in sorted(left_out.items()):
        print(f"{count} prompts left out: {reason.replace('_', ' ')}")
    print(f"{new} new questions in {into} ({len(rows)} and {len(known)} with a known order were given); each for {config.overlap} people. Next: modelyard feedback serve")


@app.command()
def serve(
    host: Annotated[str, typer.Option(envvar="MODELYARD_HOST", help="Address to listen on; beyond this machine people need codes (modelyard feedback invite).")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8700,
) -> None:
    """Serve the page where people rank. `modelyard up` does so too."""
    with errors_told():
        from components.feedback.people import server

        print(f"People rank at http://{host}:{port} (Ctrl-C ends it; nothing is lost)", flush=True)
        server.serve(host, port)


@app.command()
def invite(name: Annotated[str, typer.Argument(help="Whom to let in.")]) -> None:
    """Give a person a new code to sign in with. From the first code on, everybody needs one."""
    with errors_told():
        from components.feedback.people import signing
        from components.feedback.people.store import Store

        code = Store.open().write(lambda session: signing.invite(session, name))
        print(f"{signing.tidy(name)} signs in with the code {code}\nIt is shown this once; ask again for a new one.")


@app.command()
def select(
    reward: Annotated[list[str], typer.Argument(help="Reward models: folders, or models:/NAME@ALIAS. Several: also where they contradict each other.")],
    dataset: Annotated[str, typer.Option("--into", help="Name of the dataset of questions.")] = DEFAULT,
) -> None:
    """Show first the questions about whose answers reward models are least sure."""
    with errors_told():
        from components.feedback.people import selection
        from components.feedback.people.store import Store

        ordered = selection.select(Store.open(), dataset, selection.reward_models(_located(",".join(reward)).values()))
        print(f"{len(ordered)} questions in {dataset}, the least sure first:")
        for sure, question in [*ordered[:5], *([(None, "...")] if len(ordered) > 6 else []), *ordered[5:][-1:]]:
            print(f"  {'     ' if sure is None else f'{sure:.3f}'}  {question[:120]!r}")


@app.command()
def agreement(dataset: Dataset = DEFAULT, as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False) -> None:
    """Say how far people agree, by question and by person, how often they are right where that is known, and whose answers they prefer."""
    with errors_told():
        import json

        from components.feedback.people import agreement as agreed
        from components.feedback.people.opinions import said
        from components.feedback.people.store import Store

        rankings = Store.open().read(lambda session: said(session, dataset))
        figures = {**agreed.figures(rankings), "by_model": agreed.by_model(rankings)}
        if as_json:
            return print(json.dumps(figures, indent=2))
        _tell(figures, agreed.word(figures["alpha"]))


@app.command()
def export(
    dataset: Dataset = DEFAULT,
    min_gold: Annotated[float, typer.Option(min=0, max=1, help="Leave out people who are right less often than this where the order is known.")] = 0.0,
) -> None:
    """Make a dataset of preferences out of what people said, and put it under DVC."""
    with errors_told():
        root()
        from flows.people import export as exported

        folder, figures = exported(dataset, min_gold)
        left_out = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in figures["dropped"].items())
        print(f"{figures['pairs']} pairs of {figures['items']} questions in {folder}, of which {folder}.dvc is the version. Left out: {left_out or 'none'}. All of it: {folder}/report.md")
        print(f"Next: in a recipe, data.preferences: [{{kind: files, path: {folder}/preferences}}]; and git add {folder}.dvc")


@app.command()
def loop(
    recipe: Annotated[Path, typer.Argument(help="Recipe whose line is finished here.")] = Path("recipes/tiny.yaml"),
    rule: Annotated[str, typer.Option(help="What simulated people prefer: plain (few exclamation marks) or shorter.")] = "plain",
    annotators: Annotated[int, typer.Option(min=1, help="Simulated people, each with a page of their own.")] = 4,
    questions: Annotated[int, typer.Option(min=1, help="Questions to rank.")] = 150,
    noise: Annotated[float, typer.Option(min=0, max=1, help="Chance that a person takes an answer for another one.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Decides prompts, answers and mistakes.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder of the report; under .modelyard/loop unless told. Begun again there, it goes on.")] = None,
    sets: Sets = None,
    threads: Threads = 0,
    on: On = None,
) -> None:
    """Show the whole loop: simulated people rank on the page in a browser, a reward model learns from them, and a policy from it."""
    with errors_told():
        from components.schema.records import home
        from flows.loop import Asked, run
        from flows.loop_report import rows, write
        from flows.terminal import load

        resolved, place = load(recipe, sets), out or home() / "loop"
        root()
        figures = run(recipe, resolved, Resources.parse(threads, on), Asked(rule, annotators, questions, noise, seed), place, make_console())
        write(figures, place)
        for name, value in rows(figures):
            print(f"{name:59} {value}")
        print(f"Report, answers before and after, picture: {place}/report.md\nNext: modelyard run {place}/recipe.yaml (evaluation and the gate); or ask people: modelyard feedback ask")


def _tell(figures: dict[str, Any], word: str) -> None:
    """Agreement in lines."""
    number = lambda value: "-" if value is None else f"{value:.3f}"  # noqa: E731
    print(f"{figures['rankings']} rankings of {figures['items']} questions by {figures['annotators']} people; {figures['items_by_several']} questions by more than one")
    print(f"Krippendorff's alpha {number(figures['alpha'])} (ordinal), {number(figures['alpha_nominal'])} (nominal): {word}")
    print(f"Right on known questions: {number(figures['gold']['accuracy'])} over {figures['gold']['rankings']} rankings\n")
    print(f"{'person':30} {'rankings':>8} {'agree':>7} {'alpha without':>14} {'known right':>12}")
    for row in figures["by_annotator"]:
        print(f"{row['annotator'][:30]:30} {row['rankings']:8} {number(row['agree']):>7} {number(row['alpha_without']):>14} {number(row['gold_accuracy']):>12}")
    for row in figures["by_model"]:
        print(f"{row['model']}: better than other models' answers in {row['better']:.1%} of {row['pairs']} comparisons, a tie counting half")
    for row in figures["by_item"][:5]:
        print(f"least agreed: {number(row['agree'])} of {row['annotators']} people's judgements are alike about {row['prompt'][:100]!r}")


def _located(models: str) -> dict[str, Path | None]:
    """Folders of models by what they are called here: a version rather than an alias, which moves. None for an endpoint. Errors: BadInput."""
    from components.registry import models as registry
    from components.registry.weights import located

    found: dict[str, Path | None] = {}
    for name in filter(None, (one.strip() for one in models.split(","))):
        if name.startswith(("http://", "https://")):
            found[name] = None
            continue
        folder = Path(located(name, "feedback: models").path)
        version = registry.version_called(name) if name.startswith("models:/") else None
        found[f"models:/{version.name}/{version.version}" if version else name] = folder
    return found


def _text(path: Path) -> str:
    from components.schema.config import BadInput

    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"feedback: the guide {path} cannot be read ({error}), so people would be told nothing. Correct the path") from None


def _gather(config: FeedbackConfig, resources: Resources) -> None:
    """One dataset of feedback, made by a flow of its own and put under DVC."""
    console = make_console()
    with flows_watched(console) as (_, screen):
        from flows.feedback import gather_feedback, put_under_dvc

        record = gather_feedback(config, Run(recipe_name=config.name, seed=config.seed, resources=resources))
    found = screen.results["feedback"]["verdict"]
    console.print(f"feedback: {found.action}: {found.reason}", highlight=False)
    folder = put_under_dvc(record, config.name)
    figures = record.figures
    print(f"{figures['pairs']} pairs of {figures['prompts']} prompts in {folder}, of which {folder}.dvc is the version. What was left out and why: {folder}/report.md")
    print(f"Next: in a recipe, data.preferences: [{{kind: files, path: {folder}/preferences}}]; and git add {folder}.dvc")
