"""The `modelyard` command: the same flows as in the Prefect UI, from a terminal.

Nothing heavy is imported at the door; each command imports what it needs.
"""

from __future__ import annotations

import getpass
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from components.schema.config import BadInput
from components.schema.jobs import ALIGN, LINE, SCORERS, SECTIONS, Job, Run, line, stages
from components.schema.jobs import data as data_job
from components.schema.recipe import Recipe, Resources
from components.schema.records import Dataset, Record, digest, home

if TYPE_CHECKING:
    from rich.console import Console

    from components.schema.feedback import FeedbackConfig
    from components.schema.gate import GateConfig
    from flows.screen import Screen

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From raw text to a released language model, every step versioned, resumable and reproducible. Start with: modelyard run recipes/tiny.yaml",
)
data_app = typer.Typer(no_args_is_help=True, help="The data and its versions: what DVC holds.")
app.add_typer(data_app, name="data")
gate_app = typer.Typer(no_args_is_help=True, help="What decides about a release: try a policy, size the suites for it, measure the noise.")
app.add_typer(gate_app, name="gate")

RecipePath = Annotated[Path, typer.Argument(help="Recipe file, such as recipes/tiny.yaml.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=value", help="Override one value of the recipe; may be given many times.")]
Threads = Annotated[int, typer.Option(help="CPU threads of a stage; 0 = one per core. Bit-identical results need the same number.")]
On = Annotated[list[str] | None, typer.Option("--on", metavar="key=value", help=f"What this machine gives; may be given many times: {', '.join(Resources.model_fields)}.")]


@app.command()
def run(
    recipe: RecipePath,
    sets: Sets = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what each stage would do and why; run nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a machine-readable summary last.")] = False,
    threads: Threads = 0,
    on: On = None,
) -> None:
    """Run a recipe from raw text to a released model. What stands already is reused; what was cut off goes on."""
    with errors_told():
        resolved = _load(recipe, sets)
        root()
        if plan:
            return _print_plan(resolved, Resources.parse(threads, on), as_json)
        _run(resolved, Resources.parse(threads, on), recipe, as_json)


@app.command()
def stage(
    name: Annotated[str, typer.Argument(help="data, pretrain, sft, reward, cost, judge, ppo, grpo, dpo, best_of_n, evaluate or release: those that the recipe has.")],
    recipe: RecipePath,
    sets: Sets = None,
    threads: Threads = 0,
    on: On = None,
) -> None:
    """Run one stage alone, on the results of earlier stages that stand on disk."""
    with errors_told():
        resolved = _load(recipe, sets)
        root()
        if name == "align" and resolved.align:
            name = resolved.align.stage
        if name not in (*LINE, *ALIGN):
            raise BadInput(f"stage: {name!r} is not a stage, so nothing was started. Stages in order: {', '.join(LINE)}")
        if name not in stages(resolved):
            raise BadInput(f"stage: {resolved.name} has no section `{SECTIONS.get(name, 'align')}` for it, so there is no {name} to run. Its stages: {', '.join(stages(resolved))}")
        _run_stage(name, resolved, Resources.parse(threads, on))


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
        summary = _summary_named(run)
        if as_json:
            return print(json.dumps(summary))
        from flows.screen import report

        report(summary, {name: Record.read(Path(row["record"]).parent) for name, row in summary["stages"].items()}, Console())


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

        compare_named(models, _console(), out, items, noise, as_json)


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="models:/modelyard@champion, models:/modelyard/3, or a checkpoint's folder.")],
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 96,
    temperature: Annotated[float, typer.Option(help="0 = always the likeliest token.")] = 0.0,
) -> None:
    """Talk to a model in the terminal. Reads standard input where it is not a terminal, one message a line."""
    root()
    options = ["--max-new-tokens", str(max_new_tokens), "--temperature", str(temperature)]
    os.execv(sys.executable, [sys.executable, "-m", "components", "chat", "--model", model, *options])


@app.command()
def feedback(
    config: Annotated[Path, typer.Argument(help="Feedback file, such as recipes/feedback/tiny.yaml.")],
    sets: Sets = None,
    threads: Threads = 0,
) -> None:
    """Have a critic judge a model's answers by a constitution; the preferences become a dataset that DVC keeps."""
    with errors_told():
        from components.schema.feedback import FeedbackConfig

        asked = FeedbackConfig.load(config, sets or [])
        root()
        _gather(asked, Resources(threads=threads))


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A folder, models:/NAME/VERSION, or a hub id in the mirror.")],
    suites: Annotated[list[str], typer.Argument(help="Tasks, groups or tags of lm-eval, read from MODELYARD_HUB_MIRROR.")],
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="a=value", help="An option of the section evals, such as limit=100; may be given many times.")] = None,
    threads: Threads = 0,
) -> None:
    """Measure any model on any suites of lm-eval by their names; what was measured already is reused."""
    with errors_told():
        from components.schema.recipe import evals_from

        config = evals_from(suites, sets or [])
        root()
        console = _console()
        with _flows(console) as (_, screen):
            from flows.evaluate import evaluate_model

            record = evaluate_model(config, model, Run(recipe_name="evaluate", resources=Resources(threads=threads)))
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
) -> None:
    """Rate models by whose answers a reward model, a judge or people find better."""
    with errors_told():
        from components.schema.rating import RatingConfig

        asked = RatingConfig.load(config, sets or [])
        root()
        console = _console()
        with _flows(console) as (_, screen):
            from flows.rate import rate_models

            record = rate_models(asked, Run(recipe_name=asked.name, seed=asked.seed, resources=Resources(threads=threads)))
        found = screen.results["rate"]["verdict"]
        console.print(f"rate: {found.action}: {found.reason}", highlight=False)
        print(f"{(record.folder / 'report.md').read_text()}\nEvery comparison: {record.folder / 'verdicts.jsonl'}" if "ratings" in record.figures else f"Sheet to fill in: {record.folder / 'sheet.jsonl'}")


@app.command()
def doctor() -> None:
    """Check this machine and installation; say what is wrong and how to mend it."""
    from flows.doctor import examine

    raise typer.Exit(0 if examine() else 1)


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


@app.command()
def reject(
    model: Annotated[str, typer.Argument(help="A version that waits for a person, such as models:/modelyard/3.")],
    why: Annotated[str, typer.Option(help="Your reason; kept with the version.")] = "",
) -> None:
    """Leave the champion where it is; the version stays registered."""
    with errors_told():
        from components.registry import models

        print(models.settle(model, False, getpass.getuser(), why))


@gate_app.command("decide")
def gate_decide(
    challenger: Annotated[str, typer.Argument(help="An evaluate stage's folder, or models:/NAME@ALIAS.")],
    champion: Annotated[str | None, typer.Option(help="The same of the champion; none = as the first release.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Policy file, such as recipes/policies/default.yaml.")] = None,
    noise: Annotated[Path | None, typer.Option(help="Noise floor, as `modelyard gate noise` wrote it.")] = None,
    role: Annotated[str | None, typer.Option(help="base, chat or policy; the last model of the line unless told.")] = None,
) -> None:
    """Say what a policy would decide about two evaluations, and why. Nothing is registered."""
    with errors_told():
        from flows.gate import show_decision

        show_decision(challenger, champion, _gate(policy, noise), role, _console())


@gate_app.command("power")
def gate_power(
    policy: Annotated[Path | None, typer.Option(help="Policy file; the default policy unless told.")] = None,
    suite: Annotated[list[str] | None, typer.Option(metavar="NAME=ITEMS[:SCORE[:DISAGREEMENT]]", help="A suite; may be given many times.")] = None,
    report: Annotated[Path | None, typer.Option(help="Take the suites of this evaluate stage's folder.")] = None,
    disagreement: Annotated[float, typer.Option(help="Share of the items that one model has right and the other wrong.")] = 0.2,
    only: Annotated[str | None, typer.Option(help="Change this suite alone.")] = None,
    trials: Annotated[int, typer.Option(help="Simulated evaluations for each true change.")] = 500,
    picture: Annotated[Path | None, typer.Option(help="Draw the power by gain and items to this SVG.")] = None,
) -> None:
    """Say how often the gate promotes better, unchanged and worse models, by simulation."""
    with errors_told():
        from flows.gate import shapes, show_power

        chosen = _gate(policy, None).policy
        if suite or report or not picture:
            show_power(chosen, shapes(suite or [], report, disagreement), trials, only, _console())
        if picture:
            from components.evaluation.power import draw

            draw(chosen, picture, disagreement=disagreement, trials=trials)
            print(f"Power by gain and items: {picture}")


@gate_app.command("noise")
def gate_noise(
    recipe: RecipePath,
    sets: Sets = None,
    retrained: Annotated[list[str] | None, typer.Option(help="A model of the same recipe with another seed (folder or models:/...); its noise then counts too.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the floor is kept; recipes/noise/NAME.json unless told.")] = None,
    threads: Threads = 0,
) -> None:
    """Evaluate the recipe's last model again and again: how far its scores move by themselves."""
    with errors_told():
        resolved = _load(recipe, sets)
        root()
        _measure_noise(resolved, retrained or [], out or Path(f"recipes/noise/{resolved.name}.json"), Resources(threads=threads))


@data_app.command("repro")
def data_repro(
    recipe: RecipePath,
    sets: Sets = None,
    update: Annotated[bool, typer.Option("--update", help="Look anew at what is on the hub or installed, instead of keeping the version that params.yaml pins.")] = False,
) -> None:
    """Make the recipe's data, as far as it is not current."""
    with errors_told():
        resolved = _load(recipe, sets)
        root()
        if update:
            from components.launch import call

            call("pin-data", data_job(resolved.data, Run()).model_dump(mode="json"))
        _run_stage("data", resolved, Resources())


@data_app.command("status")
def data_status(recipe: RecipePath, sets: Sets = None) -> None:
    """Say which data stages would run, and why."""
    with errors_told():
        resolved = _load(recipe, sets)
        root()
        stale, dataset = _data_plan(resolved, Resources())
        for name, reason in stale.items():
            print(f"{name}: would run: {reason}")
        if dataset:
            print(f"data {dataset.name}: current. tokens {dataset.tokens.identity}\nNext: modelyard data push")


@data_app.command("diff")
def data_diff(
    before: Annotated[str, typer.Argument(help="A Git revision.")] = "HEAD",
    after: Annotated[str | None, typer.Argument(help="Another one; the files as they stand now where it is left out.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only this dataset of params.yaml.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the difference as JSON.")] = False,
) -> None:
    """Say what changed between two versions of the data: parameters, stages, counts, documents."""
    with errors_told():
        root()
    revisions = [before, after] if after else [before]
    options = [*(["--dataset", dataset] if dataset else []), *(["--json"] if as_json else [])]
    os.execv(sys.executable, [sys.executable, "-m", "components", "data-diff", *revisions, *options])


@data_app.command("batch")
def data_batch(
    recipe: RecipePath,
    step: Annotated[int, typer.Option(help="Optimizer step of the pretraining, from 0.")],
    sets: Sets = None,
) -> None:
    """Rebuild the batch that pretraining reads at a step, and print the documents it comes from."""
    with errors_told():
        resolved = _load(recipe, sets)
        root()
        stale, dataset = _data_plan(resolved, Resources())
        if dataset is None:
            raise BadInput(f"batch: the data is not current ({', '.join(stale)}), so no batch can be rebuilt. Run first: modelyard data repro {recipe}")
        if not 0 <= step < resolved.pretrain.steps:
            raise BadInput(f"batch: step {step} is not one of this recipe's pretraining steps, which go from 0 to {resolved.pretrain.steps - 1}. Choose one of them")
        from components.launch import show

        job = _line(resolved, dataset, Run(seed=resolved.seed))["pretrain"]
        raise typer.Exit(show("batch", job.model_dump(mode="json"), "--step", str(step)))


@data_app.command("push")
def data_push() -> None:
    """Copy every current data version to the DVC remote (a folder unless .dvc/config says otherwise)."""
    _dvc("push")


@data_app.command("pull")
def data_pull() -> None:
    """Bring back the data versions that dvc.lock names."""
    _dvc("pull")


# ---------------------------------------------------------------- running


def _run(recipe: Recipe, resources: Resources, path: Path, as_json: bool) -> None:
    """The whole line, watched by a screen."""
    import threading

    from flows.screen import report

    began = time.time()
    console = _console()
    console.print(f"[bold]modelyard[/] {recipe.name}: {' → '.join(stages(recipe))}", highlight=False)
    from components.registry import tracking

    threading.Thread(target=tracking.prepare, daemon=True).start()  # a new database takes seconds; the server's start hides them
    with _flows(console) as (url, screen):
        console.print(f"Prefect UI while it runs: {url.removesuffix('/api')}", style="dim", highlight=False)
        ready = time.time()
        from flows.pipeline import train_and_release

        train_and_release(recipe, resources)
        ended = time.time()
    records = {name: event["record"] for name, event in screen.results.items()}
    summary = _summarise(recipe, path, screen, round(time.time() - began, 1), round(ready - began, 1), round(ended - ready, 1))
    _save(summary)
    report(summary, records, console)
    if as_json:
        print(json.dumps(summary))


def _run_stage(name: str, recipe: Recipe, resources: Resources) -> None:
    """One stage as its own flow, on what stands."""
    console = _console()
    given = Run(recipe_name=recipe.name, recipe_hash=_hash(recipe), seed=recipe.seed, resources=resources)
    with _flows(console) as (_, screen):
        if name == "data":
            from flows.data import prepare_data

            prepare_data(recipe.data, given)
        else:
            _one_flow(name, recipe, given)
    event = screen.results[name]
    console.print(f"{name}: {event['verdict'].action}: {event['verdict'].reason}", highlight=False)
    if name == "data":
        console.print(f"Data card: {event['record'].config['card']['path']}/index.html", highlight=False)
    console.print(f"Next: modelyard show {event['record'].folder.name}", highlight=False)


def _one_flow(name: str, recipe: Recipe, given: Run) -> None:
    from components.launch import verdict

    stale, dataset = _data_plan(recipe, given.resources)
    if dataset is None:
        raise BadInput(f"{name}: its data is not current ({', '.join(stale)}), so it has nothing to read. Run first: modelyard stage data RECIPE")
    jobs = _line(recipe, dataset, given)
    job = jobs[name]
    for earlier in jobs.values():
        if earlier.output in job.inputs.values() and verdict(earlier).action != "reuse":
            raise BadInput(f"{name}: it needs the result of {earlier.stage}, and {verdict(earlier).reason}. Run first: modelyard stage {earlier.stage} RECIPE")
    inputs = job.inputs
    match name:
        case "pretrain":
            from flows.pretrain import pretrain

            pretrain(recipe.model, recipe.pretrain, dataset, given)
        case "sft":
            from flows.sft import finetune

            finetune(recipe.sft, inputs["base"], dataset, given)
        case "reward" | "cost" | "judge":
            from flows.reward import fit_reward_model

            fit_reward_model(getattr(recipe, name), inputs["chat"], dataset, given, name)
        case "ppo" | "grpo" | "dpo" | "best_of_n":
            from flows.align import align

            align(recipe.align, inputs["chat"], {role: inputs[role] for role in SCORERS if role in inputs}, dataset, given)
        case "evaluate":
            from flows.evaluate import evaluate

            evaluate(recipe.evals, {role: inputs[role] for role in ("base", "chat", "policy") if role in inputs}, dataset, given)
        case "release":
            from flows.release import release

            release(recipe.gate, {job.config["role"]: inputs["model"]}, inputs["report"], given)


def _gather(config: FeedbackConfig, resources: Resources) -> None:
    """One dataset of feedback, made by a flow of its own and put under DVC."""
    import subprocess

    console = _console()
    with _flows(console) as (_, screen):
        from flows.feedback import gather_feedback, keep

        record = gather_feedback(config, Run(recipe_name=config.name, seed=config.seed, resources=resources))
    found = screen.results["feedback"]["verdict"]
    console.print(f"feedback: {found.action}: {found.reason}", highlight=False)
    folder = keep(record, config.name)
    done = subprocess.run([sys.executable, "-m", "dvc", "add", "--quiet", str(folder)], capture_output=True, text=True)
    if done.returncode:
        fail(f"dvc add {folder} ended with code {done.returncode}: {done.stderr.strip()[-400:]}. The data stands there all the same; once DVC works, run the same command again", 1)
    figures = record.figures
    print(f"{figures['pairs']} pairs of {figures['prompts']} prompts in {folder}, of which {folder}.dvc is the version. What was left out and why: {folder}/report.md")
    print(f"Next: in a recipe, data.preferences: [{{kind: files, path: {folder}/preferences}}]; and git add {folder}.dvc")


def _measure_noise(recipe: Recipe, retrained: list[str], out: Path, resources: Resources) -> None:
    """The noise floor of what the recipe releases, kept where a recipe can name it."""
    import shutil

    from components.registry.weights import locate
    from components.schema.gate import NoiseConfig

    if not recipe.evals:
        raise BadInput(f"noise: {recipe.name} has no section `evals`, so there is nothing to measure. Add it")
    stale, dataset = _data_plan(recipe, resources)
    if dataset is None:
        raise BadInput(f"noise: its data is not current ({', '.join(stale)}), so it has nothing to read. Run first: modelyard stage data RECIPE")
    released = _line(recipe, dataset, Run(seed=recipe.seed, resources=resources))["release"]
    model, role = released.inputs["model"], released.config["role"]
    if not (Path(model.path) / "record.json").exists():
        raise BadInput(f"noise: the recipe's last model ({model.path}) is not there yet, so nothing can be measured. Run first: modelyard run RECIPE")
    others = tuple(locate(name) for name in retrained)
    console = _console()
    with _flows(console) as (_, screen):
        from flows.noise import measure_noise

        record = measure_noise(NoiseConfig(), recipe.evals, model, role, dataset, Run(recipe_name=recipe.name, recipe_hash=_hash(recipe), seed=recipe.seed, resources=resources), others)
    found = screen.results["noise"]["verdict"]
    console.print(f"noise: {found.action}: {found.reason}", highlight=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(record.folder / "noise.json", out)
    for suite, spread in record.figures["suites"].items():
        print(f"{suite}: standard deviation {spread['spread']:.4f} over {len(spread['scores'])} evaluations; {spread['flips']:.1%} of the items moved")
    print(f"Next: in the recipe, gate.noise: {out}")


def _gate(policy: Path | None, noise: Path | None) -> GateConfig:
    """The gate's configuration from files. Errors: BadInput."""
    from components.schema.gate import GateConfig, NoiseFloor, Policy

    return GateConfig(policy=Policy.load(policy) if policy else Policy(), noise=NoiseFloor.load(noise) if noise else None)


@contextmanager
def _flows(console: Console) -> Iterator[tuple[str, Screen]]:
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


def _summarise(recipe: Recipe, path: Path, screen: Screen, total: float, start: float, flow: float) -> dict[str, Any]:
    """What `--json` prints: per stage status, seconds, record and figures; the scores; the release and its reason."""
    stages = {
        name: {
            "status": "reused" if event["verdict"].action == "reuse" else "ran",
            "reason": event["verdict"].reason,
            "seconds": round(event["seconds"], 2),
            "record": str(event["record"].folder / "record.json"),
            "hash": event["record"].hash,
            "figures": event["record"].figures,
        }
        for name, event in screen.results.items()
    }
    released = stages.get("release", {}).get("figures")
    recipe_hash = _hash(recipe)
    inside = sum(row["seconds"] for row in stages.values())
    ran = [event for event in screen.results.values() if event["verdict"].action != "reuse"]
    facts = [event["record"].execution for event in ran]
    starts = sum(fact.get("start_seconds", 0) for fact in facts)
    ends = sum(event["seconds"] for event in ran) - starts - sum(fact.get("work_seconds", 0) for fact in facts)
    from components.registry import tracking

    return {
        "run": f"{recipe.name}-{recipe_hash[:8]}",
        "recipe": recipe.name,
        "recipe_path": str(path),
        "recipe_hash": recipe_hash,
        "seconds": total,
        "overhead_seconds": {
            "command and Prefect server start": start,
            "Prefect flows, tasks, artifacts": round(flow - inside, 1),
            "process starts, imports, opening MLflow runs": round(starts, 1),
            "hashing, records, closing MLflow runs": round(ends, 1),
            "Prefect server stop": round(total - start - flow, 1),
        },
        "stages": stages,
        "scores": stages.get("evaluate", {}).get("figures", {}).get("scores"),
        "release": released,
        "mlflow": tracking.store_uri(),
        "prefect_home": str(home() / "prefect"),
    }


def _save(summary: dict[str, Any]) -> None:
    folder = home() / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{summary['run']}.json").write_text(json.dumps(summary, indent=1))


def _summary_named(name: str) -> dict[str, Any]:
    runs = sorted((home() / "runs").glob("*.json"), key=lambda p: p.stat().st_mtime)
    found = [p for p in runs if name in ("latest", p.stem) or p.stem.rpartition("-")[0] == name]
    if not found:
        raise BadInput(f"show: no run called {name!r}. Runs here: {', '.join(p.stem for p in runs) or 'none yet; start one with modelyard run recipes/tiny.yaml'}")
    return json.loads(found[-1].read_text())


# ---------------------------------------------------------------- planning


def _data_plan(recipe: Recipe, resources: Resources) -> tuple[dict[str, str], Dataset | None]:
    """What DVC would run and why; the dataset where everything is current."""
    from components.launch import call

    answer = call("plan-data", data_job(recipe.data, Run(resources=resources)).model_dump(mode="json"))
    return answer["stale"], answer["dataset"] and Dataset.model_validate(answer["dataset"])


def _line(recipe: Recipe, dataset: Dataset, run: Run) -> dict[str, Job]:
    """Every job after the data."""
    from components.registry.weights import locate

    return line(recipe, dataset, run, locate(recipe.model.init_from))


def _plan(recipe: Recipe, resources: Resources) -> dict[str, dict[str, str]]:
    from components.launch import verdict

    stale, dataset = _data_plan(recipe, resources)
    if dataset is None:
        why = "; ".join(f"{name}: {reason}" for name, reason in stale.items())
        rows = {"data": {"action": "run", "reason": why}}
        return rows | {name: {"action": "run", "reason": "its data will be made first; whether it changes is known then"} for name in stages(recipe)[1:]}
    rows = {"data": {"action": "reuse", "reason": "DVC: every data stage is current"}}
    for name, job in _line(recipe, dataset, Run(seed=recipe.seed, resources=resources)).items():
        action, reason = verdict(job)
        rows[name] = {"action": action, "reason": reason, "folder": str(job.folder)}
    return rows


def _print_plan(recipe: Recipe, resources: Resources, as_json: bool) -> None:
    rows = _plan(recipe, resources)
    for name, row in rows.items():
        print(f"{name:<9} {row['action']:<7} {row['reason']}")
    if as_json:
        print(json.dumps({"recipe": recipe.name, "recipe_hash": _hash(recipe), "stages": rows}))


# ---------------------------------------------------------------- the edges


def _load(path: Path, sets: list[str] | None) -> Recipe:
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


def _dvc(command: str) -> None:
    """DVC's own command, with this interpreter's."""
    import subprocess

    with errors_told():
        root()
        code = subprocess.run([sys.executable, "-m", "dvc", command]).returncode
        if code:
            fail(f"dvc {command} ended with code {code}; what it said stands above", code)
        print({"push": "Next: in another clone, `dvc pull` brings the same bytes back", "pull": "Next: modelyard run recipes/tiny.yaml --plan"}[command])


def _console() -> Console:
    from rich.console import Console

    return Console()


def _hash(recipe: Recipe) -> str:
    return digest(recipe.model_dump(mode="json"))


if __name__ == "__main__":
    app()
