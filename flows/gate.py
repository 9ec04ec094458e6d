"""The gate on the terminal: what a policy would decide about two evaluations, and how often it is right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from components.schema.config import BadInput
from components.schema.gate import GateConfig, Policy
from components.schema.records import Record

if TYPE_CHECKING:
    from rich.console import Console

    from components.evaluation.evidence import Evidence
    from components.evaluation.gate import Comparison
    from components.evaluation.power import Shape

CHANGES = (-0.1, -0.05, -0.02, 0.0, 0.01, 0.02, 0.03, 0.05, 0.1)  # true changes that `power` tries


def show_decision(challenger: str, champion: str | None, config: GateConfig, role: str | None, console: Console) -> str:
    """Print what the gate would do, and why; gives the action. Nothing is registered. Errors: BadInput."""
    from components.evaluation.gate import decide

    decision = decide(evidence_of(challenger, role), evidence_of(champion, role) if champion else None, config.policy, config.noise)
    console.print(table(decision.comparisons))
    console.print(f"[bold]{decision.action}[/]  {decision.reason}", highlight=False)
    return decision.action


def evidence_of(name: str, role: str | None) -> Evidence:
    """What `models:/NAME@ALIAS` was released with, or an evaluate stage's folder of results. Errors: BadInput."""
    from components.evaluation.evidence import read, restore

    if not name.startswith("models:/"):
        measured = list(Record.read(Path(name)).figures.get("scores", {}))
        return read(Path(name), role or (measured[-1] if measured else ""))
    from components.registry import models

    folder = models.evidence(*models.name_and_version(name))
    if folder is None:
        raise BadInput(f"gate: {name} was released without what its items scored, so nothing can be compared item by item. Give the folder of its evaluate stage instead")
    return restore(folder)


def show_power(policy: Policy, suites: dict[str, Shape], trials: int, only: str | None, console: Console) -> None:
    """Print how often the gate promotes, asks and holds, by the true change of all suites or of one. Errors: BadInput."""
    from rich.table import Table

    from components.evaluation.power import items_needed, rates

    if only and only not in suites:
        raise BadInput(f"power: --only {only} is none of the suites, so nothing would change. Suites: {', '.join(suites)}")
    moved = [only] if only else list(suites)
    shown = Table(box=None, pad_edge=False, title=f"{trials} simulated evaluations each; a change of {', '.join(moved)}", title_justify="left")
    for heading in ("true change", "promoted", "95 % interval", "a person asked", "held"):
        shown.add_column(heading, justify="right")
    for change in CHANGES:
        if any(abs(change) > (1 if (shape := suites[name]).graded else shape.disagreement) or not 0 <= shape.score + change <= 1 for name in moved):
            continue
        found = rates(policy, suites, dict.fromkeys(moved, change), trials)
        low, high = found.interval()
        shown.add_row(f"{change:+.3f}", f"{found.promote:.1%}", f"{low:.1%} to {high:.1%}", f"{found.ask:.1%}", f"{found.hold:.1%}")
    console.print(shown)
    share = max(shape.disagreement for shape in suites.values())
    needs = ", ".join(f"{gain:g}: {items_needed(gain, share, policy.error_rate):,}" for gain in (0.01, 0.02, 0.05, 0.1) if gain < share)
    console.print(f"Items of one suite that show a true gain with a chance of 80 %, where the models differ on {share:.0%} of them: {needs}", highlight=False)


def shapes(given: Sequence[str], report: Path | None, disagreement: float) -> dict[str, Shape]:
    """Suites from NAME=ITEMS[:SCORE[:DISAGREEMENT]], and from an evaluate stage's record. Errors: BadInput."""
    from components.evaluation.power import Shape

    found: dict[str, Shape] = {}
    if report:
        scores = Record.read(report).figures.get("scores", {})
        measured = list(scores.values())[-1] if scores else {}
        found = {suite: Shape(score["items"], min(max(score["score"], 0.0), 1.0), disagreement) for suite, score in measured.items()}
    for text in given:
        name, _, numbers = text.partition("=")
        try:
            items, *shares = numbers.split(":")
            score, apart = [*map(float, shares), *(0.5, disagreement)[len(shares) :]]
            found[name] = Shape(int(items), score, apart)
        except ValueError:
            raise BadInput(f"power: --suite {text!r} is not NAME=ITEMS[:SCORE[:DISAGREEMENT]], so nothing can be simulated. Write for example --suite gsm8k=1319:0.4:0.2") from None
    if not found:
        raise BadInput("power: no suite is given, so nothing can be simulated. Write --suite gsm8k=1319, or --report with the folder of an evaluate stage")
    return found


def table(comparisons: Sequence[Comparison]) -> object:
    """Comparisons as a table for the terminal."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    for heading in ("suite", "champion", "challenger", "difference", "interval", "margin", "items", "verdict"):
        shown.add_column(heading, justify="left" if heading in ("suite", "verdict") else "right")
    for c in comparisons:
        numbers = [_number(c.champion), _number(c.challenger), _number(c.difference, "+.3f"), f"{c.low:+.3f} to {c.high:+.3f}" if c.low is not None else "", _number(c.margin, "g")]
        shown.add_row(c.suite, *numbers, str(c.items) if c.items is not None else "", c.verdict)
    return shown


def _number(value: float | None, form: str = ".3f") -> str:
    return "" if value is None else format(value, form)
