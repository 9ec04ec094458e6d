"""What a run has spent so far, told to each of its stages; and how a run ends that has spent its budget.

A run is a recipe, however often it is started: what a killed attempt used counts, and so does a stage that an earlier start finished.
Stages that another run made are this run's for nothing.
"""

from __future__ import annotations

import functools
from types import FunctionType
from typing import Any, TypeVar

from prefect import Flow
from prefect.artifacts import create_table_artifact
from prefect.context import FlowRunContext
from prefect.states import Failed

from components.cost import bill, prices
from components.cost.budget import payer
from components.schema.config import BudgetSpent
from components.schema.cost import Usage, of_record
from components.schema.jobs import Job, Run
from components.schema.records import Record
from flows.announce import BUDGET_SPENT, try_to_announce

BUDGET_SPENT_STATE = "BudgetSpent"
AnyFlow = TypeVar("AnyFlow", bound=Flow[..., Any])

_used: dict[str, dict[str, Usage]] = {}  # who pays -> stage -> what it used; filled by the flow of this process as it passes its stages


def charged(job: Job) -> Job:
    """The job with what the run's other stages have cost."""
    table = prices.load(job.run.resources)
    others = [used for stage, used in _used.get(payer(job.run), {}).items() if stage != job.stage]
    spent = sum(used.amount(table) or 0.0 for used in others) if table else 0.0
    return job.model_copy(update={"run": job.run.model_copy(update={"spent": spent})})


def paid(job: Job, record: Record) -> None:
    """Remember what a stage cost its run; a stage that another run made costs nothing."""
    run = payer(job.run)
    _used.setdefault(run, {})[job.stage] = of_record(record.execution).get(run, Usage())


def cost_card(run: Run) -> dict[str, Any]:
    """The run's bill as an artifact of its page, one row a stage, as far as the flow of this process has come; gives it."""
    rows = bill.of_usages(_used.get(payer(run), {}), prices.load(run.resources))
    titles = bill.heads(rows)
    named = {**rows["stages"], "in all": rows["total"]}
    cells = [{"stage": stage, **{title: bill.figure(row[name]) for name, title in titles.items()}} for stage, row in named.items()]
    create_table_artifact(table=cells, key="cost", description=bill.footnote(rows))
    return rows


def stops_by_budget(whole: AnyFlow) -> AnyFlow:
    """Over `@flow`: a run whose budget is spent ends in a state of that name instead of an exception's.

    Over it, not under it: Prefect takes a flow's version and its entry point from the function that it is given.
    """
    body, spent, tell, failed = whole.fn, BudgetSpent, _tell, Failed  # all by closure, none by this module's globals: see below

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return body(*args, **kwargs)
        except spent as error:
            tell(error)
            return failed(name="BudgetSpent", message=str(error), data=error)

    # Prefect looks the names of a flow's annotations up in the globals of its function, which must be those of the flow's own module.
    run = functools.wraps(body)(FunctionType(run.__code__, body.__globals__, run.__name__, run.__defaults__, run.__closure__))
    whole.fn = run
    return whole


def _tell(error: BudgetSpent) -> None:
    """Once, by the flow that was started, not by the flows within it."""
    context = FlowRunContext.get()
    found = context.flow_run if context else None
    if found is not None and found.parent_task_run_id is None:
        resource = {"prefect.resource.id": f"prefect.flow-run.{found.id}", "prefect.resource.name": found.name}
        try_to_announce(BUDGET_SPENT, resource, {"message": str(error)}, once=f"{found.id} {found.run_count}")
