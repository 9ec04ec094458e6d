"""What a person calls a model, found as evaluations; compared; shown in the terminal, on a page, and in MLflow.

    compare(["models:/tiny@champion", "tiny"])          # the champion against the last run of the recipe `tiny`

A name may be a registered model, a recipe's file, a run, a stage's folder, or an evaluate folder; `NAME#base` asks for another model of that
evaluation than its last one. A model that several evaluations measured is taken from the latest.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from components.schema.config import BadInput
from components.schema.gate import NoiseFloor
from components.schema.recipe import Recipe
from components.schema.records import Record, digest, home

if TYPE_CHECKING:
    from rich.console import Console

    from components.evaluation.comparison.reports import Report

FORMS = "a registered model (models:/NAME@ALIAS, models:/NAME/VERSION), a recipe's file, a run (modelyard show lists them), or a stage's folder"
COMMITS, LABEL = 40, 60  # shown at most
WIDTH = 160


class Found(NamedTuple):
    """Where a name leads."""

    folder: Path
    """An evaluate folder, or the evidence of a released version."""
    role: str | None
    """None: the last model of its line."""
    released: str | None = None
    """Identity of the released model whose evidence this is."""


def compare(names: Sequence[str], console: Console, out: Path | None = None, items: int = 20, noise: Path | None = None, as_json: bool = False) -> Path:
    """Compare what the names lead to, each against the first. Returns the folder of the page. Errors: BadInput."""
    from components.evaluation.comparison import page, terminal
    from components.evaluation.comparison.compare import compare as compared

    reports = read(names)
    comparison = compared(reports, shown=items, noise=_noise(noise))
    comparison = replace(comparison, changes=replace(comparison.changes, history=tuple(history(reports))))
    folder = out or home() / "comparisons" / _name(reports)
    page.write(comparison, folder)
    where = _keep(reports, folder) if _has_store() else []
    if as_json:
        print(json.dumps(comparison.plain(), ensure_ascii=False))
    else:
        if not console.is_terminal:  # a file or a pipe has no width to keep to
            console.width = max(console.width, WIDTH)
        terminal.show(comparison, console)
        console.print(f"\nThe whole comparison: {folder}/{page.PAGE}", highlight=False, soft_wrap=True)
        for line in where:
            console.print(line, highlight=False, soft_wrap=True)
    return folder


# ---------------------------------------------------------------- from a name to a report


def read(names: Sequence[str]) -> list[Report]:
    """A report for each name. Errors: BadInput, before anything is computed."""
    from components.evaluation.comparison.reports import Report

    reports = []
    for name, label in zip(names, _labels(names), strict=True):
        found = find(name)
        stages = home() / "stages"
        report = Report.restored(found.folder, found.released, label, stages) if found.released else Report.read(found.folder, found.role, label, stages)
        reports.append(replace(report, code=_code(report)))
    return reports


def find(name: str) -> Found:
    """The evaluation that a name leads to. Errors: BadInput, with what could have been meant."""
    name, _, role = name.partition("#")
    if name.startswith("models:/"):
        return _of_registered(name, role or None)
    if name.endswith((".yaml", ".yml")):
        recipe = Recipe.load(Path(name), [])
        return Found(_of_run(f"{recipe.name}-{digest(recipe.model_dump(mode='json'))[:8]}", name), role or None)
    for folder in (Path(name), home() / "stages" / name):
        folder = folder.parent if folder.name == "record.json" else folder
        if (folder / "record.json").is_file():
            return _of_stage(folder, role or None)
    return Found(_of_run(name, name), role or None)


def _of_registered(name: str, role: str | None) -> Found:
    """A version leads to the latest evaluation of its model; where none stands here, to what the gate left with it."""
    from components.registry import models

    model, version, tags = models.look_up(name)
    identity = tags.get(models.IDENTITY, "")
    try:
        folder, measured_as = _evaluation_of(identity, name)
    except BadInput:
        if role is None and (kept := models.evidence(model, version)):
            return Found(kept, None, identity)
        raise
    return Found(folder, role or measured_as)


def _of_stage(folder: Path, role: str | None) -> Found:
    """A stage's folder: an evaluation, a release (its report), or a model that some evaluation measured."""
    record = Record.read(folder)
    if record.stage == "evaluate":
        return Found(folder, role)
    if record.stage == "release":
        report = next((home() / "stages").glob(f"evaluate-{record.inputs['report'][:16]}"), None)
        if report is None:
            raise BadInput(
                f"compare: the evaluation behind {folder.name} is gone from {home() / 'stages'}, so its items cannot be read. "
                "Run its recipe again: modelyard run RECIPE"
            )
        return Found(report, role or record.config["role"])
    found, measured_as = _evaluation_of(record.identity, folder.name)
    return Found(found, role or measured_as)


def _evaluation_of(identity: str, name: str) -> tuple[Path, str]:
    """The latest evaluation that measured the model of this identity, and the role it had there."""
    made = sorted((home() / "stages").glob("evaluate-*/record.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in made:
        record = Record.read(path.parent)
        roles = [role for role, given in record.inputs.items() if given == identity and role in record.figures["scores"]]
        if roles:
            return path.parent, roles[-1]
    raise BadInput(
        f"compare: no evaluation in {home() / 'stages'} has measured {name}, so there is nothing to compare. "
        "Run the recipe that made it, with `evals`: modelyard run RECIPE; or give the evaluate folder itself"
    )


def _of_run(run: str, name: str) -> Path:
    """The evaluation of the latest run of this name."""
    runs = sorted((home() / "runs").glob("*.json"), key=lambda path: path.stat().st_mtime)
    found = [path for path in runs if run in ("latest", path.stem) or path.stem.rpartition("-")[0] == run]
    if not found and name.endswith((".yaml", ".yml")):
        raise BadInput(
            f"compare: {name} as it stands now was not run here, so it has no scores. Run it first: modelyard run {name}; "
            f"or name an earlier run of it: {_list(path.stem for path in runs)}"
        )
    if not found:
        raise BadInput(f"compare: {name!r} is nothing that was evaluated here. Give {FORMS}. Runs here: {_list(path.stem for path in runs)}")
    stages: dict[str, Any] = json.loads(found[-1].read_text())["stages"]
    if "evaluate" not in stages:
        raise BadInput(f"compare: the run {found[-1].stem} has no evaluation, so it has no scores. Add `evals` to its recipe and run it again")
    return Path(stages["evaluate"]["record"]).parent


def _labels(names: Sequence[str]) -> list[str]:
    """What each is called: the name as given, a path by its last part; the same name twice is numbered."""
    short = [name if name.startswith("models:/") else name.rstrip("/").removesuffix("/record.json").rpartition("/")[2] for name in names]
    short = [label if len(label) <= LABEL else "…" + label[1 - LABEL :] for label in short]
    return [label if short.count(label) == 1 else f"{label} ({short[:i].count(label) + 1})" for i, label in enumerate(short)]


def _list(names: Iterator[str]) -> str:
    return ", ".join(names) or "none yet; start one with modelyard run recipes/tiny.yaml"


# ---------------------------------------------------------------- code and MLflow


def history(reports: Sequence[Report]) -> Iterator[str]:
    """Commits that lie between the first model's code and each other's, where Git here knows both."""
    commits = [report.code.get("git_commit") for report in reports]
    for commit, report in zip(commits[1:], reports[1:], strict=True):
        if commits[0] and commit and commit != commits[0]:
            lines = _git("log", "--no-decorate", "--pretty=%h %s", f"{commits[0]}..{commit}")
            back = _git("log", "--no-decorate", "--pretty=%h %s", f"{commit}..{commits[0]}")
            if lines is None or back is None:
                yield f"{report.label}: Git here does not know {commits[0][:10]} and {commit[:10]}, so what lies between them is not shown."
                continue
            files = _git("diff", "--name-only", commits[0], commit) or []
            yield f"{report.label}: {len(lines)} commits more and {len(back)} fewer than {reports[0].label}; {len(files)} files differ"
            yield from (f"  + {line}" for line in lines[:COMMITS])
            yield from (f"  - {line}" for line in back[:COMMITS])


def _git(*words: str) -> list[str] | None:
    """Lines of Git's answer; None where there is no Git, no checkout or no such commit."""
    try:
        done = subprocess.run(["git", *words], capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").splitlines()


def _has_store() -> bool:
    """Whether there is an MLflow store to ask: a comparison makes none."""
    from components.registry.store import is_embedded

    return not is_embedded() or (home() / "mlflow" / "mlflow.db").is_file()


def _code(report: Report) -> dict[str, Any]:
    """The code behind a model: of the run in which its own stage was last started."""
    if not _has_store():
        return {}
    from components.registry import tracking

    return next((found for run in (*report.origin.runs[1:2], *report.origin.runs[:1]) if (found := tracking.lineage_of(run))), {})


def _keep(reports: Sequence[Report], folder: Path) -> list[str]:
    """The page as an artifact of each later model's evaluation; says where."""
    from components.registry import tracking

    said = []
    for run in dict.fromkeys(run for report in reports[1:] for run in report.origin.runs[:1]):
        name = f"comparisons/{folder.name}"
        if tracking.attach(run, folder, name):
            said.append("Also " + (tracking.artifact_link(run, f"{name}/index.html") or f"in MLflow: run {run}, artifact {name}/index.html"))
    return said


def _noise(path: Path | None) -> NoiseFloor | None:
    if path is None:
        return None
    try:
        return NoiseFloor.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BadInput(
            f"compare: {path} is no noise floor ({str(error).splitlines()[0]}), so it cannot widen anything. "
            "Give what `modelyard gate noise` wrote, or leave --noise out"
        ) from None


def _name(reports: Sequence[Report]) -> str:
    """One folder for the same models under the same names."""
    what = [(report.record.identity, report.role, report.label) for report in reports]
    return f"{reports[0].role}-{reports[-1].role}-{digest(what)[:12]}"
