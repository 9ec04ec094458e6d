"""Records as Prefect artifacts: what a person sees on a run's page without opening a file.

Each card returns its record, so that a flow can end with it.
"""

from __future__ import annotations

from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from components.registry.tracking import artifact_link
from components.schema.records import Record


def data_card(record: Record) -> Record:
    """Rows, tokens and drops of every part, with DVC's md5."""
    rows = [
        {"part": part, "md5": record.config[part]["identity"], **{k: v for k, v in counts.items() if isinstance(v, int)}}
        for part, counts in record.figures.items()
    ]
    create_table_artifact(table=rows, key="data", description=f"Dataset {record.config['name']}: bring it back with `dvc pull`")
    page = f"{record.config['card']['path']}/index.html"
    if link := artifact_link(record.execution["mlflow_run_id"], "data_card/index.html"):
        create_link_artifact(link=link, link_text="data card", key="data-card", description=f"Also in {page}")
    else:
        create_markdown_artifact(markdown=f"`{page}` in the project, and `data_card/` of MLflow run `{record.execution['mlflow_run_id']}`", key="data-card", description="The data card")
    return record


def training_card(record: Record) -> Record:
    """Figures, times and samples of a training stage."""
    figures = [{"figure": name, "value": _shown(value)} for name, value in {**record.figures, **record.execution}.items() if name != "cost"]
    create_table_artifact(table=figures, key=record.stage.replace("_", "-"), description=f"{record.stage} {record.identity[:16]}")
    if record.samples:
        text = "\n\n".join(f"**{s.prompt}**\n\n```\n{s.output}\n```" for s in record.samples)
        create_markdown_artifact(markdown=text, key=f"{record.stage.replace('_', '-')}-samples", description=f"What {record.stage} says")
    return record


def scores_card(record: Record) -> Record:
    """One row per suite, one column per model."""
    scores: dict[str, dict[str, Any]] = record.figures["scores"]
    suites = sorted({suite for by_suite in scores.values() for suite in by_suite})
    rows = [
        {"suite": suite, **{model: f"{by[suite]['score']:.3f} ± {by[suite]['stderr']:.3f}" for model, by in scores.items() if suite in by}}
        for suite in suites
    ]
    create_table_artifact(table=rows, key="scores", description="Scores with their standard errors")
    return record


def release_card(record: Record) -> Record:
    """What the gate decided and why."""
    f = record.figures
    waits = f"\n\nIt waits for a person: `modelyard approve {f['uri']}` or `modelyard reject {f['uri']}`" if f["action"] == "ask" else ""
    create_markdown_artifact(markdown=f"{decision_text(record)}{waits}{comparison_table(record)}", key="release", description="The gate's decision")
    return record


def decision_text(record: Record) -> str:
    """What the gate decided and why, as Markdown."""
    f = record.figures
    return f"# {f['uri']}: {f['action']}\n\n{f['reason']}"


def comparison_table(record: Record) -> str:
    """What the gate's decision rests on, as a Markdown table; empty where nothing was compared."""
    rows = [" | ".join(["", c["suite"], *(_shown(c[name]) for name in ("champion", "challenger", "difference", "low", "high", "margin", "items")), c["verdict"], ""]) for c in record.figures["comparisons"]]
    head = "| suite | champion | challenger | difference | low | high | margin | items | verdict |\n|" + " --- |" * 9
    return "\n".join(["\n", head, *(row.strip() for row in rows)]) if rows else ""


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)
