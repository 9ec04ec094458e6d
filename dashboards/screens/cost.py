"""What finished stages used and cost: all together, by stage, by recipe, over time, energy beside money."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import streamlit as st

from dashboards import look
from dashboards.services import mlflow

AMOUNTS = (50, 300, 1000)  # MLflow gives whole runs only: a hundred cost it most of a second
MEASURES = {"Cost": "cost/amount", "Energy (kWh)": "cost/kwh", "Hours": "cost/hours", "CPU hours": "cost/cpu_hours", "GPU hours": "cost/gpu_hours"}


def main() -> None:
    with look.told():
        with st.container(horizontal=True, vertical_alignment="bottom"):
            measure = st.selectbox("Measure", list(MEASURES), width=200)
            last = st.segmented_control("Stages", AMOUNTS, default=AMOUNTS[0], format_func=lambda number: f"last {number:,}") or AMOUNTS[0]
        rows = spent(last)
        if not rows:
            look.empty("Nothing was spent yet. `modelyard run recipes/tiny.yaml` starts a line; what its stages cost stands here as they end.")
            return
        facts(rows)
        key = MEASURES[measure]
        left, right = st.columns(2)
        with left:
            look.bars(summed(rows, "stage", key), f"{measure}, by stage")
        with right:
            look.bars(summed(rows, "recipe", key)[:15], f"{measure}, by recipe")
        over_time(rows, key, measure)
        table(rows)


@st.cache_data(ttl=60, show_spinner="Asking MLflow")
def spent(last: int) -> list[dict[str, Any]]:
    """The last finished stages with what they used; those that cost nothing known are left out. Errors: Away."""
    runs = mlflow.runs("tags.`modelyard.kind` = 'stage' and attributes.status = 'FINISHED'", last, "attributes.end_time DESC")
    return [
        {"stage": run["tags"].get("stage", "?"), "recipe": run["tags"].get("recipe", "?"), "end": run["end"] or run["start"], "run": run["name"], "id": run["id"], **{key: run["metrics"].get(key, 0.0) for key in (*MEASURES.values(), "cost/kwh_estimated")}}
        for run in runs
        if "cost/hours" in run["metrics"]
    ]  # fmt: skip


def facts(rows: list[dict[str, Any]]) -> None:
    total = {key: math.fsum(row[key] for row in rows) for key in (*MEASURES.values(), "cost/kwh_estimated")}
    look.facts(*((label, look.amount(total[key])) for label, key in MEASURES.items()))
    share = total["cost/kwh_estimated"] / total["cost/kwh"] if total["cost/kwh"] else 0.0
    st.caption(f"{len(rows)} finished stages, the last one {look.ago(rows[0]['end'])}. Cost in the currency of the price table. " + ("All of the energy was measured." if not share else f"{share:.0%} of the energy is estimated from busy time."))


def summed(rows: list[dict[str, Any]], by: str, key: str) -> list[dict[str, Any]]:
    """A row for each value of `by`, the most first."""
    sums: dict[str, float] = defaultdict(float)
    for row in rows:
        sums[row[by]] += row[key]
    return [{"name": name, "value": value} for name, value in sorted(sums.items(), key=lambda item: -item[1])]


def over_time(rows: list[dict[str, Any]], key: str, measure: str) -> None:
    """A bar a day, coloured by stage."""
    days: dict[tuple[str, str], float] = defaultdict(float)
    for row in rows:
        days[look.date(row["end"])[:10], row["stage"]] += row[key]
    spec = {
        "mark": {"type": "bar", "size": 18},
        "encoding": {
            "x": {"field": "day", "type": "temporal", "title": None, "axis": {"tickCount": 6}},
            "y": {"field": "value", "type": "quantitative", "title": measure, "axis": {"tickCount": 4, "format": look.AXIS}},
            "color": {"field": "stage", "type": "nominal", "legend": {"orient": "top", "title": None, "columns": 4}},
            "tooltip": [{"field": "day", "type": "temporal"}, {"field": "stage"}, {"field": "value", "format": ".4~g"}],
        },
    }
    st.vega_lite_chart([{"day": day, "stage": stage, "value": value} for (day, stage), value in days.items()], spec, height=280, width="stretch")


def table(rows: list[dict[str, Any]]) -> None:
    shown = [{"run": row["run"], "ended": look.date(row["end"]), **{label: row[key] for label, key in MEASURES.items()}, "page": mlflow.run_page(row["id"])} for row in rows[:100]]
    look.table(shown, dict.fromkeys(MEASURES, "%.4g"), height=300)


if __name__ == "__main__":
    main()
