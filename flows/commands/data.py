"""Commands about the data and its versions: what DVC holds."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from components.schema.config import BadInput
from components.schema.jobs import Run
from components.schema.jobs import data as data_job
from components.schema.recipe import Resources
from flows.alone import run_stage_alone
from flows.planning import data_plan, line_of
from flows.terminal import RecipePath, Sets, errors_told, fail, load, root

app = typer.Typer(no_args_is_help=True)


@app.command("repro")
def data_repro(
    recipe: RecipePath,
    sets: Sets = None,
    update: Annotated[bool, typer.Option("--update", help="Look anew at what is on the hub or installed, instead of keeping the version that params.yaml pins.")] = False,
) -> None:
    """Make the recipe's data, as far as it is not current."""
    with errors_told():
        resolved = load(recipe, sets)
        root()
        if update:
            from components.launch import call

            call("pin-data", data_job(resolved.data, Run()).model_dump(mode="json"))
        run_stage_alone("data", resolved, Resources())


@app.command("status")
def data_status(recipe: RecipePath, sets: Sets = None) -> None:
    """Say which data stages would run, and why."""
    with errors_told():
        resolved = load(recipe, sets)
        root()
        stale, dataset = data_plan(resolved, Resources())
        for name, reason in stale.items():
            print(f"{name}: would run: {reason}")
        if dataset:
            print(f"data {dataset.name}: current. tokens {dataset.tokens.identity}\nNext: modelyard data push")


@app.command("diff")
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


@app.command("batch")
def data_batch(
    recipe: RecipePath,
    step: Annotated[int, typer.Option(help="Optimizer step of the pretraining, from 0.")],
    sets: Sets = None,
) -> None:
    """Rebuild the batch that pretraining reads at a step, and print the documents it comes from."""
    with errors_told():
        resolved = load(recipe, sets)
        root()
        stale, dataset = data_plan(resolved, Resources())
        if dataset is None:
            raise BadInput(f"batch: the data is not current ({', '.join(stale)}), so no batch can be rebuilt. Run first: modelyard data repro {recipe}")
        if not 0 <= step < resolved.pretrain.steps:
            raise BadInput(f"batch: step {step} is not one of this recipe's pretraining steps, which go from 0 to {resolved.pretrain.steps - 1}. Choose one of them")
        from components.launch import show

        job = line_of(resolved, dataset, Run(seed=resolved.seed))["pretrain"]
        raise typer.Exit(show("batch", job.model_dump(mode="json"), "--step", str(step)))


@app.command("push")
def data_push() -> None:
    """Copy every current data version to the DVC remote (a folder unless .dvc/config says otherwise)."""
    dvc("push")


@app.command("pull")
def data_pull() -> None:
    """Bring back the data versions that dvc.lock names."""
    dvc("pull")


def dvc(command: str) -> None:
    """DVC's own command, with this interpreter's; on the store that the machines share, where MODELYARD_STORE names one."""
    import subprocess
    import tempfile
    from pathlib import Path

    from components.schema import storage

    with errors_told(), tempfile.TemporaryDirectory() as folder:
        root()
        remote, environment = [], dict(os.environ)
        if options := storage.dvc_options().get("remote", {}).get("store"):
            Path(folder, "config").write_text("".join(["['remote \"store\"']\n", *(f"    {key} = {value}\n" for key, value in options.items())]), encoding="utf-8")
            remote, environment["DVC_GLOBAL_CONFIG_DIR"] = ["-r", "store"], folder
        code = subprocess.run([sys.executable, "-m", "dvc", command, *remote], env=environment).returncode
        if code:
            fail(f"dvc {command} ended with code {code}; what it said stands above", code)
        print({"push": "Next: in another clone, `dvc pull` brings the same bytes back", "pull": "Next: modelyard run recipes/tiny.yaml --plan"}[command])
