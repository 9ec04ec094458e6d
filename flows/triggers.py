"""What starts a retraining beside the clock: the watch over what recipes read.

Every deployment of the flow `retrain` names a recipe. What that reads is compared with what it was when it was looked at last: local files by
their names, sizes and times every half minute, and by their content where those differ; the hub and installed packages
once an hour. A change becomes the event `modelyard.data.changed`, and an automation starts the deployment. The event is sent again, thrice at
most, where no run has come of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.variables import Variable

from components.launch import call
from components.schema.config import BadInput
from components.schema.data import Source
from components.schema.jobs import Run
from components.schema.jobs import data as data_job
from components.schema.recipe import Recipe
from components.schema.records import digest
from flows.announce import DATA_CHANGED, announce, of_recipe

SEEN = "modelyard_data_"  # the Prefect variable of a recipe: what its sources were, and which event said so
FAR_EVERY_S = 3600.0  # sources that are not files here
ANSWERED_WITHIN = timedelta(seconds=90)
LOUDEST = 3  # times that one change is announced

logger = logging.getLogger("modelyard.triggers")
_looked: dict[str, tuple[str, float]] = {}  # recipe: its files as they were last, and when the rest was looked at


def watch() -> None:
    """A duty of the watch: look at what the recipes of all retrain deployments read."""
    for path, found in by_recipe().items():
        try:
            look(path, found)
        except BadInput as error:
            if _looked.get(f"{path} error") != (str(error), 0.0):
                _looked[f"{path} error"] = (str(error), 0.0)
                logger.warning("%s cannot be watched: %s", path, error)


def by_recipe() -> dict[str, list[dict[str, Any]]]:
    """The deployments of the flow retrain, by the recipe file that they name."""
    found: dict[str, list[dict[str, Any]]] = {}
    for deployment in deployments():
        found.setdefault(deployment["parameters"].get("recipe", "recipes/tiny.yaml"), []).append(deployment)
    return found


def look(path: str, found: Sequence[dict[str, Any]]) -> None:
    """One recipe's data: announce a change, and see to it that a run came of it. Errors: BadInput."""
    recipe = Recipe.load(Path(path))
    variable = _variable(recipe)
    seen: dict[str, Any] | None = Variable.get(variable)
    if seen and seen.get("announced"):
        return _see_to_it(path, recipe, seen, found, variable)
    here, last = _files(recipe), _looked.get(path, ("", 0.0))
    if last[0] == here and time.monotonic() - last[1] < FAR_EVERY_S:
        return
    pins = sources(recipe)
    _looked[path] = (here, time.monotonic())
    if seen is None:
        Variable.set(variable, {"sources": _short(pins)}, overwrite=True)
    elif seen["sources"] != _short(pins):
        changed = sorted(name for name in {*seen["sources"], *_short(pins)} if seen["sources"].get(name) != _short(pins).get(name))
        reason = f"what {path} reads has changed: {', '.join(changed)}"[:1000]
        _tell(path, recipe, {"sources": _short(pins), "reason": reason, "times": 0}, found, variable)


def noted(recipe: Recipe) -> None:
    """What a recipe reads is as it should be: nobody is told of its last change. Errors: BadInput."""
    Variable.set(_variable(recipe), {"sources": _short(sources(recipe))}, overwrite=True)


def _variable(recipe: Recipe) -> str:
    return SEEN + recipe.name.replace("-", "_")


def _tell(path: str, recipe: Recipe, seen: dict[str, Any], found: Sequence[dict[str, Any]], variable: str) -> None:
    """Keep first, announce then: killed in between, it is announced again."""
    now = datetime.now(UTC).isoformat()
    seen = {**seen, "announced": now, "times": seen["times"] + 1}
    Variable.set(variable, seen, overwrite=True)
    for deployment in found:
        logger.info("%s; telling %s", seen["reason"], deployment["name"])
        about = {"reason": seen["reason"], "recipe": path}
        announce(DATA_CHANGED, of_recipe(recipe.name, path), about, once=f"{deployment['id']} {now}", related=[related(deployment)])


def _see_to_it(path: str, recipe: Recipe, seen: dict[str, Any], found: Sequence[dict[str, Any]], variable: str) -> None:
    """Done where every deployment has a run since; announced again where one has not."""
    announced = datetime.fromisoformat(seen["announced"])
    quiet = [deployment for deployment in found if not _ran_since(deployment, announced)]
    if quiet and datetime.now(UTC) - announced < ANSWERED_WITHIN:
        return
    if quiet and seen["times"] < LOUDEST:
        return _tell(path, recipe, seen, quiet, variable)
    if quiet:
        logger.warning("%s, and no run of %s came of it: is the automation switched off?", seen["reason"], ", ".join(d["name"] for d in quiet))
    Variable.set(variable, {"sources": seen["sources"]}, overwrite=True)


def _ran_since(deployment: dict[str, Any], when: datetime) -> bool:
    asked = {"flow_runs": {"deployment_id": {"any_": [deployment["id"]]}, "expected_start_time": {"after_": (when - timedelta(seconds=1)).isoformat()}}, "limit": 20}
    with get_client(sync_client=True) as client:
        runs = client.request("POST", "/flow_runs/filter", json=asked).raise_for_status().json()
    return any(not run["auto_scheduled"] or run["state"]["type"] != "SCHEDULED" for run in runs)


def deployments() -> list[dict[str, Any]]:
    """Every deployment of the flow retrain."""
    with get_client(sync_client=True) as client:
        return client.request("POST", "/deployments/filter", json={"flows": {"name": {"any_": ["retrain"]}}, "limit": 200}).raise_for_status().json()


def related(deployment: dict[str, Any]) -> dict[str, str]:
    """A deployment as what an event concerns: the automation starts it."""
    return {"prefect.resource.id": f"prefect.deployment.{deployment['id']}", "prefect.resource.role": "deployment", "prefect.resource.name": deployment["name"]}


def sources(recipe: Recipe) -> dict[str, str]:
    """What every source is at this moment, by its group and label. Errors: BadInput."""
    pins = call("look-at-data", data_job(recipe.data, Run()).model_dump(mode="json"))["pins"]
    return {f"{group}/{label}": pin for group, members in pins.items() for label, pin in members.items()}


def _short(pins: dict[str, str]) -> dict[str, str]:
    """A variable holds 5,000 characters: few sources by name, many as one."""
    short = {name: digest(pin)[:8] for name, pin in pins.items()}
    return short if sum(len(name) + 14 for name in short) < 3500 else {"its sources": digest(short)}


def _files(recipe: Recipe) -> str:
    """What local sources look like from outside: names, sizes, times. Cheap enough for every half minute."""
    local = [Path(source.path) for source in sources_of(recipe) if source.path]
    return digest({str(path): [(str(file), stat.st_size, stat.st_mtime_ns) for file in _below(path) if (stat := file.stat())] for path in local})


def sources_of(recipe: Recipe) -> list[Source]:
    """Whatever a recipe reads."""
    return [*recipe.data.sources, *recipe.data.chats, *recipe.data.preferences]


def _below(path: Path) -> list[Path]:
    """The files of a source; of a Git checkout the log of its commits alone."""
    if (log := path / ".git" / "logs" / "HEAD").is_file():
        return [log]
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
