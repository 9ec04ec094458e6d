"""A data version: its card, what was dropped and why with examples, what chats and pairs are of, and the clusters of copies with their texts."""

from __future__ import annotations

import io
import json
from typing import Any

import streamlit as st

from dashboards import look
from dashboards.services import mlflow, web

RUNS = 12
CLUSTERS_A_PAGE = 10
CARD_HEIGHT = 900
# The card is a page of our own without scripts; so that it stays one whatever text stands in it, it may neither run nor load anything.
SEALED = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"


def main() -> None:
    with look.told():
        found = mlflow.runs("tags.`modelyard.stage` = 'data' and attributes.status = 'FINISHED'", RUNS)
        if not found:
            look.empty("No data was made yet. `modelyard data RECIPE` makes it, `modelyard run RECIPE` too.")
            return
        names = {run["id"]: f"{run['tags'].get('recipe', run['name'])}, made {look.date(run['end'] or run['start'])}" for run in found}
        chosen = st.selectbox("Data version", list(names), format_func=names.__getitem__)
        run = next(run for run in found if run["id"] == chosen)
        counts, reports, clusters = web.at_once(lambda: kept(run["id"], "data_card/counts.json"), lambda: kept(run["id"], "data_report/counts.json"), lambda: copies(run["id"]))
        headline(counts)
        dropped, duplicates, dialogue, card = st.tabs(["Dropped", "Copies", "Chats and pairs", "Data card"])
        with dropped:
            what_was_dropped(run, reports)
        with duplicates:
            browse(clusters)
        with dialogue:
            kinds(run)
        with card:
            the_card(run["id"])


def headline(counts: dict[str, Any]) -> None:
    share = counts.get("kept_share_of_documents")
    named = (("Documents", "documents"), ("Training tokens", "train_tokens"), ("Chats", "chats"), ("Preference pairs", "pairs"), ("Contaminated", "contaminated_documents"))
    look.facts(*((label, f"{counts[name]:,}") for label, name in named if name in counts), *([("Kept of what was collected", f"{share:.1%}")] if share is not None else []))


def kept(run_id: str, path: str) -> dict[str, Any]:
    """A JSON file kept with the run; empty where there is none."""
    try:
        return json.loads(mlflow.artifact(run_id, path))
    except (web.Absent, ValueError):
        return {}


# ---------------------------------------------------------------- dropped


def what_was_dropped(run: mlflow.Run, reports: dict[str, Any]) -> None:
    """Documents by step and reason, and a few of each; from the run's figures where an older run kept no report."""
    rows = [{"step": step, "reason": reason, **entry} for step, report in reports.items() for reason, entry in report.get("dropped", {}).items()]
    rows = rows or [{"step": "tokens", "reason": name.partition("/dropped_")[2], "count": int(value)} for name, value in run["metrics"].items() if "/dropped_" in name]
    if not rows:
        look.empty("Nothing was dropped.")
        return
    rows.sort(key=lambda row: -row["count"])
    look.bars([{"name": row["reason"].replace("_", " "), "value": row["count"]} for row in rows[:15]], "Documents dropped, by reason")
    look.table([{"step": row["step"], "reason": row["reason"].replace("_", " "), "documents": row["count"], "bytes": row.get("bytes")} for row in rows])
    for row in rows:
        if examples := row.get("examples"):
            with st.expander(f"{row['reason'].replace('_', ' ')}: {len(examples)} of {row['count']:,}"):
                for text in examples:
                    look.words(text)


# ---------------------------------------------------------------- copies


@st.cache_data(ttl=mlflow.FOREVER_S, show_spinner=False, max_entries=10)
def copies(run_id: str) -> Any:
    """The largest clusters of copies as a table; None where the run kept none."""
    import pandas as pd

    try:
        return pd.read_parquet(io.BytesIO(mlflow.artifact(run_id, "data_report/clusters.parquet")))
    except web.Absent:
        return None


def browse(table: Any) -> None:
    """Clusters, the largest first, each with the one that was kept above those that were left out."""
    if table is None:
        look.empty("This data was made before copies were kept for looking at. `modelyard data RECIPE` keeps them; nothing is made anew.")
        return
    if table.empty:
        look.empty("No two documents were copies of each other.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kind = st.segmented_control("Kind", ["all", "exact", "near"], default="all")
        domains = st.multiselect("Domain", sorted(table["domain"].dropna().unique()))
        text = st.text_input("Holds the words", placeholder="any")
    shown = chosen(table, kind or "all", domains, text)
    pages = max(1, -(-len(shown) // CLUSTERS_A_PAGE))
    page = st.number_input(f"Page of {pages:,}", 1, pages, 1, width=160) if pages > 1 else 1
    st.caption(f"{len(shown):,} clusters, the largest first; shown are up to ten documents of each, and the beginning of each text.")
    for cluster in shown[(page - 1) * CLUSTERS_A_PAGE : page * CLUSTERS_A_PAGE]:
        one_cluster(table[table["cluster"] == cluster])


def chosen(table: Any, kind: str, domains: list[str], text: str) -> list[int]:
    """Ranks of the clusters in which a document is as asked."""
    fits = table["cluster"] >= 0
    if kind != "all":
        fits &= table["kind"] == kind
    if domains:
        fits &= table["domain"].isin(domains)
    if text:
        fits &= table["excerpt"].str.contains(text, case=False, regex=False)
    return sorted(table.loc[fits, "cluster"].unique().tolist())


def one_cluster(rows: Any) -> None:
    first = rows.iloc[0]
    with st.expander(f"{first['size']:,} documents · {first['domain']} · {look.plain(str(first['excerpt'])[:80])}"):
        for row in rows.itertuples():
            why = ":green-badge[kept]" if row.kept else f":gray-badge[{row.kind}, {row.similarity:.0%} alike]"
            st.markdown(f"{why} {look.plain(str(row.source))} {look.plain(row.url) if isinstance(row.url, str) else ''}")
            look.words(row.excerpt)


# ---------------------------------------------------------------- the rest


def kinds(run: mlflow.Run) -> None:
    """What chats and pairs are about."""
    for part, title in (("chats", "Chats, by kind"), ("preferences", "Preference pairs, by what is wrong with the worse answer")):
        prefix = f"{part}/kind_"
        rows = [{"name": name.removeprefix(prefix).replace("_", " "), "value": value} for name, value in run["metrics"].items() if name.startswith(prefix)]
        if rows:
            look.bars(sorted(rows, key=lambda row: -row["value"]), title)


def the_card(run_id: str) -> None:
    """The page that the data line wrote, in a frame that may do nothing."""
    try:
        page = mlflow.artifact(run_id, "data_card/index.html").decode(errors="replace")
    except web.Absent:
        look.empty("This run kept no card.")
        return
    st.link_button("In MLflow", mlflow.run_page(run_id) + "/artifacts/data_card/index.html", icon=":material/open_in_new:")
    st.iframe(page.replace("<head>", f"<head>{SEALED}", 1), height=CARD_HEIGHT)


if __name__ == "__main__":
    main()
