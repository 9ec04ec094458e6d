"""What a run leaves for `modelyard show` and for machines: one JSON file a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.cost import prices
from components.cost.accounts import unfinished
from components.cost.bill import of_usages
from components.cost.budget import payer
from components.schema.config import BadInput
from components.schema.cost import Usage, of_record
from components.schema.jobs import Run
from components.schema.recipe import Recipe, Resources
from components.schema.records import home
from flows.screen import Screen
from flows.terminal import recipe_hash


def summarise(recipe: Recipe, resources: Resources, path: Path, screen: Screen, total: float, start: float, flow: float) -> dict[str, Any]:
    """What `--json` prints: per stage status, seconds, record and figures; the scores; the release and its reason."""
    stages = {
        name: {
            "status": {"reuse": "reused", "fetched": "fetched"}.get(event["verdict"].action, "ran"),
            "reason": event["verdict"].reason,
            "seconds": round(event["seconds"], 2),
            "record": str(event["record"].folder / "record.json"),
            "hash": event["record"].hash,
            "figures": event["record"].figures,
        }
        for name, event in screen.results.items()
    }
    released = stages.get("release", {}).get("figures")
    whole_hash = recipe_hash(recipe)
    inside = sum(row["seconds"] for row in stages.values())
    ran = [event for event in screen.results.values() if event["verdict"].action not in ("reuse", "fetched")]
    facts = [event["record"].execution for event in ran]
    starts = sum(fact.get("start_seconds", 0) for fact in facts)
    ends = sum(event["seconds"] for event in ran) - starts - sum(fact.get("work_seconds", 0) for fact in facts)
    from components.registry import tracking

    return {
        "run": f"{recipe.name}-{whole_hash[:8]}",
        "recipe": recipe.name,
        "recipe_path": str(path),
        "recipe_hash": whole_hash,
        "seconds": total,
        "overhead_seconds": {
            "command and Prefect server start": start,
            "Prefect flows, tasks, artifacts": round(flow - inside, 1),
            "process starts, imports, opening MLflow runs": round(starts, 1),
            "hashing, records, closing MLflow runs": round(ends, 1),
            "Prefect server stop": round(total - start - flow, 1),
        },
        "stages": stages,
        "cost": spent(recipe, resources, screen),
        "scores": stages.get("evaluate", {}).get("figures", {}).get("scores"),
        "release": released,
        "mlflow": tracking.store_uri(),
        "prefect_home": str(home() / "prefect"),
    }


def spent(recipe: Recipe, resources: Resources, screen: Screen) -> dict[str, Any]:
    """The run's bill so far: stages that ended, and what was used on one that did not."""
    run = payer(Run(recipe_name=recipe.name, recipe_hash=recipe_hash(recipe)))
    used = {name: of_record(event["record"].execution).get(run, Usage()) for name, event in screen.results.items()}
    for name, more in unfinished(run).items():
        used[name] = used.get(name, Usage()) + more
    return of_usages(used, prices.load(resources))


def save(summary: dict[str, Any]) -> None:
    folder = home() / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{summary['run']}.json").write_text(json.dumps(summary, indent=1))


def summary_named(name: str) -> dict[str, Any]:
    runs = sorted((home() / "runs").glob("*.json"), key=lambda p: p.stat().st_mtime)
    found = [p for p in runs if name in ("latest", p.stem) or p.stem.rpartition("-")[0] == name]
    if not found:
        raise BadInput(f"show: no run called {name!r}. Runs here: {', '.join(p.stem for p in runs) or 'none yet; start one with modelyard run recipes/tiny.yaml'}")
    return json.loads(found[-1].read_text())
