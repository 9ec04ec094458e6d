"""The champion measured anew: does it still score what it was released with?

    prefect deployment run check-champion/check-champion --param recipe=recipes/tiny.yaml

The champion of the recipe's model is evaluated as the recipe says, on the benchmarks as the data line has them now, and compared item by item with
what went with it into the registry. The gate's own tests decide: a suite counts as dropped where it is worse beyond chance, beyond the noise floor that the
recipe names, and corrected for the number of suites. A drop is the event `modelyard.score.dropped`, on which an automation starts
the recipe's retraining with another seed. Where nothing changed, neither model nor benchmarks, the evaluation is reused and nothing can drop.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from prefect.states import Completed, State

from components.registry import models
from components.schema.config import BadInput
from components.schema.gate import Policy
from components.schema.jobs import Run
from components.schema.recipe import Recipe, Resources
from components.schema.records import Artifact, Record
from flows import triggers
from flows.announce import SCORE_DROPPED, announce, of_model
from flows.data import prepare_data
from flows.evaluate import evaluate, has_template
from flows.schedules import CatchUp, missed, skipped
from flows.terminal import recipe_hash


@flow(name="check-champion", flow_run_name="check champion of {recipe}")
def check_champion(recipe: str = "recipes/tiny.yaml", catch_up: CatchUp = "latest", late_minutes: int = 60, resources: Resources = Resources()) -> Record | State[Any]:
    """The recipe's champion on its suites again; a drop beyond the noise starts a retraining.

    Args:
        recipe: Recipe file, relative to the project; it says which model's champion, on which suites.
        catch_up: After a time out of work. latest: of the runs that were missed, the last one runs. none: what is more than late_minutes late is left out.
        late_minutes: How late a scheduled run may start with catch_up none, in minutes.
        resources: What the machine gives. It never changes what is asked for.
    """
    if reason := missed(catch_up, late_minutes):
        return skipped(reason)
    asked = Recipe.load(Path(recipe))
    if asked.evals is None:
        raise BadInput(f"check-champion: {recipe} has no section `evals`, so nothing says how its champion is measured. Add it")
    name = asked.gate.model_name
    champion = models.champion(name)
    before = champion and models.evidence(name, champion["version"])
    if champion is None or before is None:
        return skipped(f"models:/{name} has no champion whose items were kept, so there is nothing to compare with")
    uri = f"models:/{name}/{champion['version']}"
    run = Run(recipe_name=asked.name, recipe_hash=recipe_hash(asked), seed=asked.seed, resources=resources)
    folder = models.fetch(uri)
    role = "policy" if has_template(folder) else "base"
    record = evaluate(asked.evals, {role: Artifact(path=str(folder), identity=champion["identity"])}, prepare_data(asked.data, run), run)
    dropped = drops(record, role, before, asked)
    create_markdown_artifact(markdown=_table(uri, dropped, record, role), key="champion", description=f"{uri}, measured again")
    if not dropped:
        return record
    reason = "; ".join(f"{c.suite} {c.challenger:.3f}, at its release {c.champion:.3f}" for c in dropped)
    for deployment in (d for d in triggers.deployments() if d["parameters"].get("recipe") == recipe):
        announce(SCORE_DROPPED, of_model(uri), {"reason": f"{uri} scores less than at its release: {reason}", "recipe": recipe}, once=f"{flow_run.id} {deployment['id']}", related=[triggers.related(deployment)])
    return Completed(name="Dropped", message=f"{uri}: {reason}", data=reason)


def drops(record: Record, role: str, before: Path, recipe: Recipe) -> list[Any]:
    """Comparisons of the suites on which the model is worse now than in `before`, the evidence it was released with. Errors: BadInput."""
    from components.evaluation.evidence import read, restore
    from components.evaluation.gate import decide

    told = recipe.gate.policy
    policy = Policy(error_rate=told.error_rate, test=told.test, margin=told.margin, margins=told.margins, not_compared=told.not_compared)
    return [c for c in decide(read(record.folder, role), restore(before), policy, recipe.gate.noise).comparisons if c.verdict == "worse"]


def _table(uri: str, dropped: list[Any], record: Record, role: str) -> str:
    rows = "\n".join(f"| {suite} | {score['score']:.3f} | {'dropped' if suite in {c.suite for c in dropped} else ''} |" for suite, score in record.figures["scores"][role].items())
    return f"# {uri}\n\n| suite | now | |\n| --- | --- | --- |\n{rows}"
