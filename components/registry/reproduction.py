"""Make a released model again from what MLflow kept of it, apart from everything that stands here.

    plan = planned(Request(model="models:/modelyard@champion"))
    place = prepared(plan, folder)          # a clean worktree of the recorded commit, the patch on it, the data's pins
    fetched(plan, place)                    # dvc pull
    job_of(plan, place, "sft")              # for each of plan.stages, in order; flows/reproduce.py runs them
    judged(plan, place, {"sft": record})    # every file against the recorded md5; what else differs, by kind

Nothing is reused: the worktree has no data and no results. A folder that was left half done by a kill is gone on with.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

from components.registry import ancestry, children, installing, models
from components.registry.lineage import PINS, WATCHED
from components.registry.tracking import whole_lineage
from components.registry.weights import locate
from components.registry.working_tree import git, working_tree
from components.schema import storage
from components.schema.config import BadInput, Config
from components.schema.jobs import folder_artifact
from components.schema.records import Artifact, Record, digest, file_md5, home

OWN = ("MODELYARD_", "PREFECT_", "MLFLOW_")  # variables of this project's services, which a reproduction must not touch
MARK = "reproduction"  # an empty file in a folder that we made and may delete
PARTS = {"tokens", "mix", "tokenizer", "chats", "preferences", "benchmarks", "overlap"}


class Request(Config):
    """Which model is to be made again, and what may differ."""

    model: str
    """models:/NAME@ALIAS or models:/NAME/VERSION."""
    scores: bool = False
    """Measure it again too: the evaluation's items are compared like any other file."""
    remake_data: bool = False
    """Make the data again from its sources instead of pulling it."""
    fresh_environment: bool = False
    """Install what was installed then into an environment of its own (pip): minutes and gigabytes."""
    code: Literal["recorded", "here"] = "recorded"
    """here: the code as it stands in the worker's folder, to see whether it still makes the same model."""
    seed: int | None = None
    """Another seed than the recorded one; empty = the recorded one."""
    threads: int | None = None
    """Another number of CPU threads; empty = the recorded one."""
    keep: str | None = None
    """Folder to work in, which stays; empty = one under .modelyard/reproductions, which is removed where every file is identical."""


class Plan(NamedTuple):
    """A model's line as it was made."""

    request: Request
    uri: str
    """The version, whatever alias was asked for."""
    run_id: str
    """The release's run."""
    records: dict[str, Record]
    """By stage, in order; the model's own stage last, or the evaluation's."""
    lineages: dict[str, dict[str, Any]]
    """By stage: all that was kept of code, data, environment and machine."""
    model_stage: str

    @property
    def made(self) -> dict[str, Any]:
        """The lineage of the model's own stage: its code is what the others are made again with, too."""
        return self.lineages[self.model_stage]

    @property
    def parts(self) -> dict[str, str]:
        """The data that the stages read: md5 by name."""
        return {name: given for record in self.records.values() for name, given in record.inputs.items() if name in PARTS}


class Place(NamedTuple):
    """Where a model is made again."""

    folder: Path
    code: Path
    python: str

    @property
    def environment(self) -> dict[str, str]:
        """For the processes there: the recorded variables in the place of ours."""
        recorded = json.loads((self.folder / "environment.json").read_text())
        ours = {name: value for name, value in os.environ.items() if not name.startswith(OWN) and name not in WATCHED}
        mirror = {"MODELYARD_HUB_MIRROR": os.environ["MODELYARD_HUB_MIRROR"]} if "MODELYARD_HUB_MIRROR" in os.environ else {}
        path = os.pathsep.join([str(Path(self.python).parent), os.environ.get("PATH", "")])
        return {**ours, **recorded, **mirror, "MODELYARD_HOME": str(self.folder / "home"), "PYTHONPATH": str(self.code), "PATH": path, "DVC_NO_ANALYTICS": "1"}


def planned(request: Request) -> Plan:
    """What is to be done. Errors: BadInput where too little was kept."""
    found = ancestry.trace(request.model)
    target = found.stage_of_model()
    uri = found.nodes[found.root].facts["uri"]
    wanted = list(found.behind(target))
    if request.scores and (report := found.nodes[found.nodes[found.root].inputs["release"]].inputs.get("report")):
        wanted.append(found.nodes[report])
    records, lineages = {}, {}
    for node in wanted:
        record = ancestry.record_of(node.facts["run_id"])
        assert record is not None, "a stage's node has its record"
        records[node.name], lineages[node.name] = record, whole_lineage(node.facts["run_id"])
    plan = Plan(request, uri, str(models.version_called(uri).run_id), records, lineages, target.name)
    if not plan.made.get("git_commit"):
        raise BadInput(f"reproduce: {uri} was made outside of a Git checkout, so its code is not known and nothing was started. Work in a checkout; the next release can be reproduced")
    return plan


# ---------------------------------------------------------------- the place


def folder_for(plan: Plan) -> Path:
    """Where it is done unless the request names a folder."""
    return Path(plan.request.keep) if plan.request.keep else home() / "reproductions" / plan.uri.removeprefix("models:/").replace("/", "-")


def prepared(plan: Plan, folder: Path) -> Place:
    """A clean checkout of the recorded code with the recorded changes and pins. Errors: BadInput where Git here lacks the commit."""
    commit, patch, prefix = _code(plan)
    known = {"request": plan.request.model_dump(mode="json"), "uri": plan.uri, "commit": commit, "patch": digest(patch)}
    place = Place(folder, folder / "code" / prefix, sys.executable)
    if (folder / "place.json").is_file() and json.loads((folder / "place.json").read_text()) == known:
        return place._replace(python=_python(plan, place))  # a reproduction that was cut off goes on
    remove(folder)
    if folder.exists() and any(folder.iterdir()):
        raise BadInput(f"reproduce: {folder} holds something that is no reproduction, so it was not touched. Name an empty folder with --keep")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    _check_out(folder / "code", commit, patch, plan.uri)
    for name, text in plan.made.get("pins", {}).items():
        (place.code / name).write_text(text, encoding="utf-8")
    local = Path(".dvc/config.local")  # where the remote is and its credentials, where that is kept out of Git
    if local.is_file():
        shutil.copy2(local, place.code / local)
    (folder / "environment.json").write_text(json.dumps(plan.made.get("environment", {})))
    (folder / "place.json").write_text(json.dumps(known))
    return place._replace(python=_python(plan, place))


def remove(folder: Path) -> None:
    """Take a reproduction away: the worktree from Git's list, then the files. Anything else is left alone. One that is cut off is gone on with the next time."""
    if (folder / MARK).is_file():
        (folder / "place.json").unlink(missing_ok=True)  # first: what is half removed is nothing to go on with
        git(Path.cwd(), "worktree", "remove", "--force", "--force", str(folder / "code"))
        for path in (*folder.glob("*/"), folder):  # the mark goes with the last: without it the rest would be somebody else's
            shutil.rmtree(path, ignore_errors=True)
    git(Path.cwd(), "worktree", "prune")


def _code(plan: Plan) -> tuple[str, str, str]:
    """Commit, patch, and the project's folder in its repository."""
    if plan.request.code == "recorded":
        return plan.made["git_commit"], plan.made.get("git_patch", ""), plan.made.get("git_prefix", "")
    here = working_tree(Path.cwd(), PINS)
    if here.commit is None:
        raise BadInput("reproduce: this folder is no Git checkout, so its code cannot be taken. Leave --code out, or run from a checkout")
    return here.commit, here.patch, here.prefix


def _check_out(folder: Path, commit: str, patch: str, uri: str) -> None:
    here = Path.cwd()
    if git(here, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        raise BadInput(f"reproduce: Git here does not have commit {commit[:12]}, which made {uri}, so its code cannot be restored. Fetch it (git fetch --all), or run in the clone that has it")
    if git(here, "worktree", "add", "--detach", "--force", str(folder), commit) is None:
        raise BadInput(f"reproduce: git worktree add {folder} {commit[:12]} failed, so there is no place to work in. Try it by hand to see why")
    if patch and git(folder, "apply", "--binary", "--whitespace=nowarn", "-", feed=patch) is None:
        raise BadInput(f"reproduce: the recorded changes do not apply to commit {commit[:12]}, so the code of {uri} cannot be restored. The patch is an artifact of its run (lineage/)")


def _python(plan: Plan, place: Place) -> str:
    """The interpreter: ours, or that of an environment with what was installed then."""
    if not plan.request.fresh_environment:
        return sys.executable
    return str(installing.environment(place.folder / "venv", place.code, plan.made["installed"], plan.made["python"]))


# ---------------------------------------------------------------- data


def fetched(plan: Plan, place: Place) -> tuple[str, ...]:
    """Bring the data that the stages read: from the store that machines share, DVC's remote, this project's cache, else made again. Gives what a person should know. Errors: BadInput."""
    wanted = steps(plan, place)
    said = []
    if not plan.request.remake_data:
        _from_store(place, [wanted[name] for name in _absent(wanted, plan, place)])
    if not plan.request.remake_data and _absent(wanted, plan, place):
        _dvc(place, "pull", "--quiet", "--force", *wanted.values())
        if absent := _absent(wanted, plan, place):
            _dvc(place, "remote", "add", "--local", "--force", "here", str(Path(".dvc/cache").absolute()))
            _dvc(place, "pull", "--quiet", "--force", "--remote", "here", *(wanted[name] for name in absent))
            if found := sorted(set(absent) - set(_absent(wanted, plan, place))):
                said.append(f"DVC's remote does not have {', '.join(found)}: taken from this project's cache. `modelyard data push` puts it there")
    if absent := _absent(wanted, plan, place):
        done = _dvc(place, "repro", *(wanted[name] for name in absent))
        if gone := [name for name in absent if not path_of(place, wanted[name]).is_dir()]:
            raise BadInput(
                f"reproduce: {', '.join(gone)} is neither in DVC's remote nor in this project's cache, and could not be made again from its sources, so no stage was started. "
                f"Push it from where it was made: modelyard data push. DVC's last words:\n{done[-1500:]}"
            )
        said.append(f"made again from the sources: {', '.join(absent)}")
    return tuple(said)


def _from_store(place: Place, absent: list[str]) -> None:
    """Stages there hear nothing of MODELYARD_STORE, lest they reuse its results; but the data lies in it."""
    shared = storage.dvc_options().get("remote", {}).get("store", {})
    if not absent or not shared:
        return
    _dvc(place, "remote", "add", "--local", "--force", "shared", shared["url"])
    if "endpointurl" in shared:
        _dvc(place, "remote", "modify", "--local", "shared", "endpointurl", shared["endpointurl"])
    _dvc(place, "pull", "--quiet", "--force", "--remote", "shared", *absent)


def steps(plan: Plan, place: Place) -> dict[str, str]:
    """The data steps whose outputs are read, by part. Errors: BadInput where the kept dvc.lock does not name them."""
    lock = place.code / "dvc.lock"
    text = plan.made.get("pins", {}).get("dvc.lock") or (lock.read_text(encoding="utf-8") if lock.is_file() else "")
    made = ancestry.Lock(text).made
    if unknown := [name for name, md5 in plan.parts.items() if md5 not in made]:
        raise BadInput(f"reproduce: the dvc.lock kept with {plan.uri} does not name its {', '.join(unknown)}, so the data cannot be found. It was released before pins were kept: release it anew")
    return {name: made[md5] for name, md5 in plan.parts.items()}


def _absent(wanted: dict[str, str], plan: Plan, place: Place) -> list[str]:
    """Parts whose folder is not there with the recorded content."""
    return [name for name, step in wanted.items() if not path_of(place, step).is_dir() or content(place, step, plan.parts[name])]


def path_of(place: Place, step: str) -> Path:
    """The folder of STEP@DATASET."""
    name, _, dataset = step.partition("@")
    return place.code / "data" / dataset / name


def content(place: Place, step: str, md5: str) -> str | None:
    """None where a folder holds exactly what DVC's md5 stands for, else what does not. Every byte is hashed: a remote is not taken at its word."""
    folder = path_of(place, step)
    rows = [{"md5": file_md5(path), "relpath": path.relative_to(folder).as_posix()} for path in sorted(folder.rglob("*")) if path.is_file()]
    found = hashlib.md5(json.dumps(sorted(rows, key=lambda row: row["relpath"]), sort_keys=True).encode()).hexdigest() + ".dir"
    return None if found == md5 else f"{step} is {found[:12]} and was {md5[:12]}"


def _dvc(place: Place, *words: str) -> str:
    """Run dvc there; what it said. That it failed shows in what is there afterwards."""
    return children.run([place.python, "-m", "dvc", *words], cwd=place.code, env=place.environment).stdout


# ---------------------------------------------------------------- jobs


def job_of(plan: Plan, place: Place, stage: str, made: dict[str, Path]) -> dict[str, Any]:
    """A stage's job for that checkout: its recorded configuration, on what was made there. `made`: folders of earlier stages, by name."""
    record = plan.records[stage]
    config = dict(record.config)
    if plan.request.seed is not None and "seed" in config:
        config["seed"] = plan.request.seed
    inputs = {name: _input(plan, place, record, name, made).model_dump(mode="json") for name in record.inputs}
    return {"stage": stage, "config": config, "inputs": inputs, "run": {"recipe_name": "reproduction", "seed": config.get("seed") or 0, "resources": resources(plan, stage)}}


def _input(plan: Plan, place: Place, record: Record, name: str, made: dict[str, Path]) -> Artifact:
    identity = record.inputs[name]
    for stage, earlier in plan.records.items():
        if earlier.identity == identity:
            return Artifact(path=str(made[stage]), identity=Record.read(made[stage]).identity)
    if name in PARTS:
        step = steps(plan, place)[name]
        return Artifact(path=str(path_of(place, step).relative_to(place.code)), identity=identity)
    if name == "weights":
        return _weights((record.config.get("model") or {}).get("init_from"), identity)
    if name == "definitions":
        return folder_artifact(place.code / record.config["evals"]["definitions"])
    raise BadInput(f"reproduce: {record.stage} read `{name}` ({identity[:12]}), and nothing says where that came from, so it cannot be made again")


def _weights(name: str | None, identity: str) -> Artifact:
    """The weights that a line began from, by content: an alias may have moved since."""
    names = [name] if name else []
    if name and name.startswith("models:/"):
        registered = name.removeprefix("models:/").partition("@")[0].partition("/")[0]
        names += [f"models:/{registered}/{number}" for number in models.numbers(registered)]
    for one in names:
        try:
            found = locate(one)
        except BadInput:
            continue
        if found and found.identity == identity:
            return found
    raise BadInput(f"reproduce: the weights that it began from ({name}, content {identity[:12]}) are not there any more, so nothing was started. Bring them back under that name")


def resources(plan: Plan, stage: str) -> dict[str, Any]:
    """What the machine gave then; the number of threads as it really was, and no limit of cost."""
    then = dict(plan.lineages[stage].get("resources") or {})
    if then.get("processes", 1) == 1:
        then["threads"] = plan.request.threads or int(plan.lineages[stage].get("threads") or 0)
    return {name: value for name, value in then.items() if name not in ("budget", "prices")}
