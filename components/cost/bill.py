"""The bill of a run: what each of its stages used and cost, and all of them together.

    rows = bill(records, payer(run), prices.load(resources))
    rows["total"]["amount"], rows["stages"]["sft"]["kwh"]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.schema.cost import Prices, Usage, of_record, total
from components.schema.records import Record

COLUMNS = ("hours", "cpu_hours", "gpu_hours", "kwh", "memory_mb", "amount")
HEADS = {"hours": "hours", "cpu_hours": "CPU-h", "gpu_hours": "GPU-h", "kwh": "kWh", "memory_mb": "peak MB"}


def bill(records: Mapping[str, Record], run: str, prices: Prices | None) -> dict[str, Any]:
    """What a run paid for. A stage that another run made cost it nothing, and one from before costs were kept is not known."""
    used = {stage: of_record(record.execution).get(run, Usage()) for stage, record in records.items() if "cost" in record.execution}
    return of_usages(used, prices)


def of_usages(used: Mapping[str, Usage], prices: Prices | None) -> dict[str, Any]:
    """The same of usages by stage."""
    return {
        "stages": {stage: line(one, prices) for stage, one in used.items()},
        "total": line(total(used), prices),
        "currency": prices.currency if prices else None,
        "prices": prices.source if prices else "no price table, so no amounts",
    }


def line(used: Usage, prices: Prices | None) -> dict[str, Any]:
    """One row: hours, energy, memory, amount (None where there is no price)."""
    return {
        "hours": used.seconds / 3600,
        "cpu_hours": used.cpu_hours,
        "gpu_hours": used.gpu_hours,
        "kwh": used.kwh,
        "kwh_estimated": used.kwh_estimated,
        "memory_mb": max(used.memory_mb, used.gpu_memory_mb),
        "amount": used.amount(prices) if prices else None,
    }


def heads(rows: Mapping[str, Any]) -> dict[str, str]:
    """The columns that say something here, with their titles."""
    titles = {**HEADS, "amount": rows["currency"] or ""}
    empty = {name for name in ("gpu_hours", "amount") if not any(row[name] for row in rows["stages"].values())}
    return {name: titles[name] for name in COLUMNS if name not in empty}


def footnote(rows: Mapping[str, Any]) -> str:
    """How the energy and the prices are known."""
    whole = rows["total"]
    share = whole["kwh_estimated"] / whole["kwh"] if whole["kwh"] else 0.0
    energy = "measured" if not share else "estimated from busy time" if share > 0.999 else f"measured, {share:.0%} of it estimated"
    return f"Energy: {energy}. Prices: {rows['prices']}."


def figure(value: float | None) -> str:
    """A quantity with three figures that count: 1,204, 3.14, 0.0125; empty where it is not known."""
    if value is None:
        return "?"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return "0" if not value else f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.1e}"
