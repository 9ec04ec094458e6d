"""A budget: what a run may cost in all, its earlier attempts and its earlier stages included.

The flow tells each stage what the stages before it have cost (`Run.spent`); the stage's meter adds what the stage itself uses, and
leaves a sentence in `work/budget-spent.txt` when the budget is spent. Training looks for it after every step, in every process,
writes a checkpoint and ends; what does not train ends with its next sign of progress, and what it measured so far is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from components.cost import ledger, prices
from components.cost.bill import line
from components.cost.meter import Machine, Meter
from components.schema.config import BadInput, BudgetSpent
from components.schema.cost import Prices, Usage, total
from components.schema.jobs import Job, Run
from components.schema.records import Record, digest

TOLD = Path("work/budget-spent.txt")


class Bill:
    """What one stage uses, and whether the run's budget bears it."""

    def __init__(self, job: Job, out: Path) -> None:
        self.job, self.out, self.run = job, out, payer(job.run)
        self.prices = prices.load(job.run.resources)
        self.machine = Machine.here(job.run.resources, self.prices)
        check(job, self.prices, self.machine)
        (out / TOLD).unlink(missing_ok=True)
        self.meter = Meter(out, self.run, self.machine, self._compare)
        self.before = ledger.by_run(out, but=self.meter.attempt)

    def __enter__(self) -> Self:
        refuse(self.job, self._cost_before())
        self.meter.__enter__()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.meter.stop()
        if isinstance(error, BadInput) and not isinstance(error, BudgetSpent) and str(error) == told(self.out):
            raise BudgetSpent(str(error)) from None  # a training process said it, and only its words came through

    def closed(self) -> dict[str, Any]:
        """What goes into the record's `execution`: everything the stage used, over all attempts."""
        used = self.before.get(self.run, Usage()) + self.meter.stop()
        by_run = {**self.before, self.run: used}
        whole = total(by_run)
        return {
            **line(whole, self.prices),
            "attempts": ledger.attempts(self.out),
            "currency": self.prices.currency if self.prices else None,
            "device": self.machine.name,
            "by_run": {run: part.model_dump(mode="json") for run, part in by_run.items()},
        }

    def _cost_before(self) -> float:
        """Of the run: the stages before this one, and earlier attempts at this one."""
        mine = self.before.get(self.run, Usage())
        return self.job.run.spent + ((mine.amount(self.prices) or 0.0) if self.prices else 0.0)

    def _compare(self, used: Usage) -> None:
        """In the meter's thread: write down that the budget is spent, when it is."""
        budget = self.job.run.resources.budget
        if budget is None or self.prices is None or (self.out / TOLD).exists():
            return
        cost = self._cost_before() + (used.amount(self.prices) or 0.0)
        if cost >= budget:
            (self.out / TOLD).parent.mkdir(parents=True, exist_ok=True)
            (self.out / TOLD).write_text(_sentence(self.job, cost, self.prices.currency, "was stopped"), encoding="utf-8")


def figures(record: Record) -> dict[str, float]:
    """What MLflow keeps of a stage's cost, under `cost/`."""
    return {name: value for name, value in record.execution.get("cost", {}).items() if isinstance(value, int | float)}


def payer(run: Run) -> str:
    """Who pays: the run of a recipe, however often that is started."""
    return f"{run.recipe_name}-{(run.recipe_hash or digest([]))[:8]}"


def check(job: Job, table: Prices | None, machine: Machine) -> None:
    """A budget needs a price for what is used. Errors: BadInput."""
    unpriced = [name for name in (machine.gpus.names if machine.gpus else []) if table and table.of_gpu(name) is None]
    if job.run.resources.budget is not None and unpriced:
        raise BadInput(
            f"prices: the table has no price for {unpriced[0]}, so a budget of {job.run.resources.budget:g} {table.currency if table else ''} would never be spent. "
            "Add it under per_gpu_hour, or a line `other`"
        )


def refuse(job: Job, cost: float) -> None:
    """Where a run's budget is spent already, nothing more of it is started. Errors: BudgetSpent."""
    budget = job.run.resources.budget
    if budget is not None and cost >= budget:
        table = prices.load(job.run.resources)
        raise BudgetSpent(_sentence(job, cost, table.currency if table else "", "was not started"))


def told(out: Path) -> str | None:
    """Why a stage must end, where its run's budget is spent; cheap enough to be asked after every step."""
    try:
        return (out / TOLD).read_text(encoding="utf-8") or None
    except FileNotFoundError:
        return None


def ending(out: Path, tell: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """`tell`, which ends a stage that does not train when it says how far it has come. Errors: BudgetSpent."""

    def told_of(event: dict[str, Any]) -> None:
        tell(event)
        if event["event"] == "progress" and (why := told(out)):
            raise BudgetSpent(why)

    return told_of


def _sentence(job: Job, cost: float, currency: str, what: str) -> str:
    budget = job.run.resources.budget or 0.0
    return (
        f"budget: {job.run.recipe_name} has cost {money(cost, currency)} so far and may cost {money(budget, currency)}, so {job.stage} {what}. "
        f"What was done is kept: run the same again with a higher budget and it goes on, for example --budget {_more(cost, budget):g}"
    )


def _more(cost: float, budget: float) -> float:
    """Twice of what was spent or allowed, in two figures."""
    return float(f"{2 * max(cost, budget):.2g}")


def money(amount: float, currency: str) -> str:
    """An amount with its currency, with figures enough to tell small ones apart: 5.02 EUR, 0.0031 EUR."""
    return f"{amount:,.2f} {currency}".strip() if amount >= 1 else f"{amount:.2g} {currency}".strip()
