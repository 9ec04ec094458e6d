"""What forms begin with, and a recipe as a deployment of its own.

`values` is a build step of prefect.yaml, so that `prefect deploy --all` needs nothing else:

    build: [{flows.deployments.values: {recipe: recipes/tiny.yaml, sections: [sft]}}]
    parameters: {recipe: "{{ recipe }}", sft: "{{ sft }}"}

`deploy` copies a deployment that prefect.yaml made, with other values in its form.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from components.schema.config import BadInput, Unavailable
from components.schema.recipe import Recipe, Resources
from flows.alone import known

if TYPE_CHECKING:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.responses import DeploymentResponse

LINE = "train-and-release"
# The form of each stage, and which sections of a recipe stand in it, by their names there.
FORMS = {
    "data": ("prepare-data", {"data": "data"}),
    "pretrain": ("pretrain", {"model": "model", "pretrain": "pretrain"}),
    "sft": ("finetune", {"sft": "sft"}),
    **{role: ("fit-reward-model", {role: "section"}) for role in ("reward", "cost", "judge")},
    **{method: ("align", {"align": "align"}) for method in ("ppo", "grpo", "dpo", "best_of_n")},
    "evaluate": ("evaluate", {"evals": "evals"}),
    "release": ("release", {"gate": "gate"}),
}


def values(recipe: str | None = None, sections: Sequence[str] = (), renamed: dict[str, str] | None = None, **files: str) -> dict[str, Any]:
    """Parameters of a deployment. `recipe` alone: the whole recipe; with `sections`: its name and these sections of it, under their names
    or as `renamed` says. `files`: parameters that are whole files of another kind. Errors: BadInput.
    """
    parameters: dict[str, Any] = {name: yaml.safe_load(Path(path).read_text(encoding="utf-8")) for name, path in files.items()}
    if recipe:
        whole = Recipe.load(recipe).model_dump(mode="json")
        told = {(renamed or {}).get(name, name): whole[name] for name in sections}
        parameters |= {"recipe": recipe, **told} if sections else {"recipe": whole}
    return parameters


def deploy(recipe: Recipe, path: str, resources: Resources, stage: str | None, changed: bool, cron: str | None, timezone: str) -> str:
    """Register a recipe's own deployment, or make it anew; says where it is. `changed`: by overrides. Errors: BadInput."""
    from prefect.client.orchestration import get_client

    form, parameters = _form(recipe, path, stage, changed)
    schedules = [_schedule(cron, timezone)] if cron else []
    os.environ["PREFECT_API_URL"] = url = _server()
    with get_client(sync_client=True) as client:
        found = _original(client, form, url)
        given = {**parameters, "resources": resources.model_dump(mode="json")}
        kept = {name: getattr(found, name) for name in ("flow_id", "path", "entrypoint", "pull_steps", "job_variables", "work_pool_name", "work_queue_name", "parameter_openapi_schema")}
        name = f"{recipe.name}-{stage}" if stage in ("cost", "judge") else recipe.name
        made = client.create_deployment(
            name=name, parameters=given, schedules=schedules, tags=[*found.tags, f"recipe:{recipe.name}"], description=f"{found.description}\n\nRecipe: {path}", enforce_parameter_schema=True, **kept
        )
    when = f", by itself at {cron} ({timezone})" if cron else ""
    return f"{form}/{name}{when}\nIts form: {url.removesuffix('/api')}/deployments/deployment/{made}/run\nNext: fill it in there; or prefect deployment run {form}/{name}"


def schedule_retraining(recipe: Recipe, path: str, resources: Resources, cron: str | None, timezone: str, catch_up: str, late_minutes: int) -> str:
    """A deployment of retrain for one recipe, by the clock where `cron` says when; says what stands. Errors: BadInput."""
    from prefect.client.orchestration import get_client

    schedules = [_schedule(cron, timezone)] if cron else []
    os.environ["PREFECT_API_URL"] = url = _server()
    given = {"recipe": path, "catch_up": catch_up, "late_minutes": late_minutes, "resources": resources.model_dump(mode="json")}
    with get_client(sync_client=True) as client:
        found = _original(client, "retrain", url)
        kept = {name: getattr(found, name) for name in ("flow_id", "path", "entrypoint", "pull_steps", "job_variables", "work_pool_name", "work_queue_name", "parameter_openapi_schema")}
        made = client.create_deployment(
            name=recipe.name, parameters=given, schedules=schedules, tags=[*found.tags, f"recipe:{recipe.name}"], description=f"{found.description}\n\nRecipe: {path}", enforce_parameter_schema=True, **kept
        )
        if not cron:
            for schedule in client.read_deployment_schedules(made):
                client.delete_deployment_schedule(made, schedule.id)
    when = f"by itself at {cron} ({timezone})" if cron else "not by the clock"
    return f"retrain/{recipe.name}: {when}; where its data changes or its champion's scores drop\nIts page: {url.removesuffix('/api')}/deployments/deployment/{made}"


def _form(recipe: Recipe, path: str, stage: str | None, changed: bool) -> tuple[str, dict[str, Any]]:
    """Which deployment is copied, and what its form begins with. Errors: BadInput."""
    whole = recipe.model_dump(mode="json")
    if stage is None:
        return LINE, {"recipe": whole}
    form, sections = FORMS[known(stage, recipe)]
    if changed:
        raise BadInput(f"deploy: a stage's form reads {path} anew when it runs, so --set would be forgotten there. Write the change into the file, or leave --stage out")
    role = {"role": stage} if form == "fit-reward-model" else {}
    return form, {"recipe": path, **role, **{shown: whole[name] for name, shown in sections.items()}}


def _schedule(cron: str, timezone: str) -> DeploymentScheduleCreate:
    """Errors: BadInput where the clock cannot read it."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule

    try:
        return DeploymentScheduleCreate(schedule=CronSchedule(cron=cron, timezone=timezone), active=True, slug="modelyard-deploy")
    except ValueError as error:
        said = str(error).partition("Value error, ")[2].partition(" [type=")[0] or str(error)
        raise BadInput(f"schedule: --cron {cron!r} --timezone {timezone!r} is no time that ever comes ({said}). Write for example --cron '0 3 * * 1' --timezone Europe/Berlin") from None


def _server() -> str:
    """The API that is configured, else the running platform's. Errors: BadInput where there is none."""
    from flows.platform.state import State

    if url := os.environ.get("PREFECT_API_URL"):
        return url
    if platform := State.running():
        return platform.prefect_url
    raise BadInput("deploy: no Prefect server is configured and no platform runs here, so there is nobody to offer the form. Start one: modelyard up; or set PREFECT_API_URL")


def _original(client: Any, form: str, url: str) -> DeploymentResponse:
    import httpx
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_deployment_by_name(f"{form}/{form}")
    except ObjectNotFound:
        raise BadInput(f"deploy: the server at {url} does not know {form} yet, so there is no form to fill. Register prefect.yaml first: modelyard up") from None
    except httpx.TransportError as error:
        raise Unavailable(f"deploy: the Prefect server at {url} does not answer ({type(error).__name__}), so nothing was registered. Look whether it runs: modelyard status") from None
