"""Whether a model that was made again is the same, file by file, and what else is not as it was then.

Circumstances are looked at in the order in which they explain each other: data, code, environment, hardware, seed. Other data gives another model
whatever the rest is; so the first kind that differs is the one to look at first. They are named even where every file is identical.
"""

from __future__ import annotations

import difflib
import json
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components.registry import installing, reproduction
from components.registry.reproduction import Place, Plan
from components.registry.store import asks_store, client
from components.registry.working_tree import git
from components.schema.config import Config
from components.schema.records import File, Record

ORDER = ("data", "code", "environment", "hardware", "seed")
SHOWN = 8  # packages, files


class Difference(Config):
    """One file that is not the same."""

    stage: str
    file: str
    why: str


class Report(Config):
    """What came of making a model again."""

    model: str
    """models:/NAME/VERSION"""
    identical: bool
    """Every file of every stage has the recorded md5."""
    files: dict[str, int]
    """Files compared, by stage."""
    differences: tuple[Difference, ...] = ()
    """Stages in order: the first one is where it began."""
    circumstances: dict[str, tuple[str, ...]] = {}
    """What is not as it was then: data, code, environment, hardware, seed."""
    notes: tuple[str, ...] = ()
    folder: str | None = None
    """Where it can be looked at; none where it was removed."""
    seconds: float = 0.0

    @property
    def first(self) -> str | None:
        """The first kind of circumstance that differs, with what."""
        return next((f"{kind}: {self.circumstances[kind][0]}" for kind in ORDER if self.circumstances.get(kind)), None)

    @property
    def verdict(self) -> str:
        """In a sentence or two."""
        count = sum(self.files.values())
        if self.identical:
            although = "" if self.first is None else f", although {self.first}"
            return f"{self.model} is reproduced: {count} files of {len(self.files)} stages are bit-identical{although}."
        begins = self.differences[0]
        cause = f"The first difference of circumstances is {self.first}" if self.first else "Nothing else differs that was recorded: data, code, environment, hardware and seed are as they were"
        return f"{self.model} is not reproduced: {len(self.differences)} of {count} files differ, first {begins.file} of {begins.stage} ({begins.why}). {cause}."


def judged(plan: Plan, place: Place, made: Mapping[str, Path], notes: tuple[str, ...], seconds: float) -> Report:
    """Compare everything. `made`: the folder of each stage."""
    records = {stage: Record.read(folder) for stage, folder in made.items()}
    differences = tuple(one for stage, record in records.items() for one in _files(stage, plan.records[stage].files, record.files))
    now = _lineage_there(place)
    return Report(
        model=plan.uri,
        identical=not differences,
        files={stage: len(plan.records[stage].files) for stage in records},
        differences=differences,
        circumstances={
            "data": tuple(_data(plan, place)),
            "code": tuple(_code(plan, place, now)),
            "environment": tuple(_environment(plan, records, now)),
            "hardware": tuple(_hardware(plan.made, now)),
            "seed": tuple(_seed(plan, records)),
        },
        notes=notes,
        folder=str(place.folder),
        seconds=round(seconds, 1),
    )


@asks_store
def keep(plan: Plan, report: Report) -> None:
    """Leave the report with the release's run, and on the version what came out. Only where nothing was asked to differ."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    client().log_text(plan.run_id, report.model_dump_json(indent=1), f"reproductions/{when.replace(':', '-')}.json")
    asked = plan.request
    if asked.code == "recorded" and asked.seed is None and asked.threads is None:
        name, _, version = plan.uri.removeprefix("models:/").rpartition("/")
        client().set_model_version_tag(name, version, "modelyard.reproduced", f"{'identical' if report.identical else 'differs'} {when}")


def _files(stage: str, then: Mapping[str, File], now: Mapping[str, File]) -> Iterator[Difference]:
    """Weights first, since they are what is asked about."""
    for name in sorted({*then, *now}, key=lambda name: (not name.endswith(".safetensors"), name)):
        if name not in now:
            yield Difference(stage=stage, file=name, why="is missing")
        elif name not in then:
            yield Difference(stage=stage, file=name, why="was not there")
        elif then[name].md5 != now[name].md5:
            yield Difference(stage=stage, file=name, why=f"md5 {now[name].md5[:12]}, was {then[name].md5[:12]}")


# ---------------------------------------------------------------- circumstances


def _data(plan: Plan, place: Place) -> Iterator[str]:
    """Parts whose bytes are others than those that the model read."""
    for name, step in reproduction.steps(plan, place).items():
        if found := reproduction.content(place, step, plan.parts[name]):
            yield found


def _code(plan: Plan, place: Place, now: Mapping[str, Any]) -> Iterator[str]:
    then = plan.made
    if now.get("git_commit") != then["git_commit"]:
        yield f"commit {str(now.get('git_commit'))[:12]}, was {then['git_commit'][:12]}" + _between(then["git_commit"], now.get("git_commit"))
    if changed := _patched_files(then.get("git_patch", "")) ^ _patched_files(now.get("git_patch", "")):
        yield f"uncommitted changes in other files: {_some(sorted(changed))}"
    elif now.get("git_patch", "") != then.get("git_patch", ""):
        files = sorted(_patched_files(then["git_patch"]))
        yield f"other uncommitted changes in {_some(files)}"
    for left in then.get("git_left_out", ()):
        if not (place.code / left["path"]).exists():
            yield f"{left['path']} ({left['bytes']:,} bytes) was there and was not kept ({left['why']})"
    for stage, lineage in plan.lineages.items():
        if stage != plan.model_stage and (lineage.get("git_commit"), lineage.get("git_patch")) != (then["git_commit"], then.get("git_patch")):
            yield f"{stage} was made with other code ({str(lineage.get('git_commit'))[:12]}{' and changes' if lineage.get('git_patch') else ''}) than {plan.model_stage}, whose code was used for all"


def _between(old: str, new: str | None) -> str:
    """Which files lie between two commits."""
    files = (git(Path.cwd(), "diff", "--name-only", old, new) or "").splitlines() if new else []
    return f" ({_some(files)})" if files else ""


def _patched_files(patch: str) -> set[str]:
    return {line.rpartition(" b/")[2] for line in patch.splitlines() if line.startswith("diff --git ")}


def _environment(plan: Plan, records: Mapping[str, Record], now: Mapping[str, Any]) -> Iterator[str]:
    then = plan.made
    if now["python"] != then["python"]:
        yield f"Python {now['python']}, was {then['python']}"
    versions = [dict(line.split("==", 1) for line in lines if "==" in line) for lines in (then["installed"], now["installed"])]
    key = set(then.get("packages", {}))
    gone = sorted(versions[0].keys() - versions[1].keys() - {installing.OURS}, key=lambda name: (name not in key, name))
    changed = sorted((name for name in versions[1] if name != installing.OURS and versions[0].get(name) != versions[1][name]), key=lambda name: (name not in key, name))
    if changed:
        yield "packages: " + _some([f"{name} {versions[1][name]}, was {versions[0].get(name, 'absent')}" for name in changed])
    if gone:
        why = ", since the project itself does not ask for them" if plan.request.fresh_environment else ""
        yield f"{len(gone)} packages that were there are not installed{why}: {_some([f'{name} {versions[0][name]}' for name in gone])}"
    variables = [side.get("environment", {}) for side in (then, now)]
    for name in sorted(variables[0].keys() | variables[1].keys()):
        if name != "MODELYARD_HUB_MIRROR" and variables[0].get(name) != variables[1].get(name):
            yield f"{name}={variables[1].get(name, '(unset)')}, was {variables[0].get(name, '(unset)')}"
    for stage in records:
        if (threads := reproduction.resources(plan, stage).get("threads")) and str(threads) != str(plan.lineages[stage].get("threads")):
            yield f"{threads} threads in {stage}, was {plan.lineages[stage].get('threads')}"


def _hardware(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name, title in (("cpu", "CPU"), ("gpus", "GPUs"), ("cpu_instructions", "vector instructions")):
        if name in then and then[name] != now.get(name):
            if isinstance(then[name], list) and name == "cpu_instructions":
                yield f"{title}: {_some([line for line in difflib.ndiff(then[name], now[name]) if line[0] in '+-'])}"
            else:
                yield f"{title} {now.get(name) or 'none'}, was {then[name] or 'none'}"


def _seed(plan: Plan, records: Mapping[str, Record]) -> Iterator[str]:
    for stage, record in records.items():
        if record.config.get("seed") != plan.records[stage].config.get("seed"):
            yield f"{record.config.get('seed')} in {stage}, was {plan.records[stage].config.get('seed')}"


def _lineage_there(place: Place) -> dict[str, Any]:
    """Code, environment and machine as the interpreter there sees them, told by this version of the code."""
    ask = "import json, pathlib; from components.registry.lineage import lineage; print(json.dumps(lineage(pathlib.Path.cwd())))"
    ours = str(Path(__file__).parents[2])
    done = subprocess.run([place.python, "-c", ask], cwd=place.code, env={**place.environment, "PYTHONPATH": ours, "PYTHONSAFEPATH": "1"}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")

