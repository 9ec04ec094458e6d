"""What runs now: flow runs and how far they are, the curves of what trains, queue, slots, workers, what is planned and what ended."""

from __future__ import annotations

from typing import Any

import streamlit as st

from dashboards import look
from dashboards.services import mlflow, prefect, serving, web

REFRESH_S = 5
CHARTS = 4  # stages that train at once, drawn; the rest by name
SAMPLED = ("ppo", "grpo")
TRAINED = ("pretrain", "sft", "reward", "cost", "judge", "dpo", "best_of_n", *SAMPLED)


def main() -> None:
    links()
    what_runs()
    what_trains()
    left, right = st.columns(2)
    with left:
        what_is_planned()
    with right:
        what_ended()


def links() -> None:
    """Where the other pages are, and which servers do not answer."""
    with st.container(horizontal=True, gap="small"):
        st.link_button("Start a run", f"{prefect.page()}/deployments", icon=":material/add:", type="primary")
        st.link_button("Prefect", prefect.page(), icon=":material/account_tree:")
        st.link_button("MLflow", mlflow.list_page(), icon=":material/show_chart:")
        st.link_button("Rank answers", serving.feedback_page(), icon=":material/thumbs_up_down:")
    servers = (("Prefect", prefect.url()), ("MLflow", mlflow.url()))
    for (name, address), well in zip(servers, web.at_once(*(lambda at=at: web.answers(f"{at}/health") for _, at in servers)), strict=True):
        if not well:
            st.error(f"{name} does not answer at {address}. Look at it with `modelyard status`.")


@st.fragment(run_every=REFRESH_S)
def what_runs() -> None:
    """Figures at a glance, then each run that works or waits; looked at anew every few seconds."""
    with look.told():
        rows, slots, workers, names = web.at_once(prefect.open_runs, prefect.slots, prefect.workers, prefect.flow_names)
        running = [row for row in rows if row["state_type"] == "RUNNING"]
        far = prefect.progress(tuple(row["id"] for row in running))
        online = [worker for worker in workers if worker["status"] == "ONLINE"]
        taken = [(f"{slot['kind'].upper()} slots taken, {slot['host']}", f"{slot['taken']} / {slot['limit']}") for slot in slots]
        look.facts(("Running", len(running)), ("Waiting", len(rows) - len(running)), ("Workers on line", f"{len(online)} / {len(workers)}"), *taken)
        if not rows:
            look.empty(f"Nothing runs. [Choose a form]({prefect.page()}/deployments), or type `modelyard run recipes/tiny.yaml`.")
        elif not online and len(rows) > len(running):
            st.warning("No worker is on line, so what waits will not start. `modelyard up` starts one.", icon=":material/warning:")
        for row in rows:
            one_run(row, names.get(row["flow_id"], "?"), far.get(row["id"]))


def one_run(row: dict[str, Any], flow: str, artifact: dict[str, Any] | None) -> None:
    """One line, and a bar where the run says how far it is."""
    with st.container(border=True):
        again = f", try {row['run_count']}" if row["run_count"] > 1 else ""
        when = f" for {look.span(-prefect.seconds_until(row['start_time']))}" if row["state_type"] == "RUNNING" and row["start_time"] else ""
        st.markdown(f"{look.badge(row['state_type'], row['state_name'])} **[{look.plain(row['name'])}]({prefect.page()}/runs/flow-run/{row['id']})** · {flow}{when}{again}")
        if artifact is not None:
            st.progress(min(max(float(artifact["data"]), 0.0), 100.0) / 100.0, text=look.plain(artifact["description"] or ""))


@st.fragment(run_every=REFRESH_S)
def what_trains() -> None:
    """Curves of the stages that train now; of the last ones, where none does."""
    with look.told():
        now = mlflow.runs("attributes.status = 'RUNNING' and tags.`modelyard.kind` = 'stage'", 12)
        shown = [run for run in now if run["tags"].get("stage") in TRAINED] or last_trained()
        st.subheader("Training" if now else "Trained last", anchor=False)
        if not shown:
            look.empty("No stage has trained yet. The loss of a run is drawn here while it trains.")
            return
        columns = st.columns(min(2, len(shown)))
        for place, run in enumerate(shown[:CHARTS]):
            with columns[place % len(columns)], st.container(border=True):
                one_curve(run)
        for run in shown[CHARTS:]:
            st.markdown(f"[{look.plain(run['name'])}]({mlflow.run_page(run['id'])})")


def last_trained() -> list[mlflow.Run]:
    """The newest finished stages that train."""
    rows = mlflow.runs("attributes.status = 'FINISHED' and tags.`modelyard.kind` = 'stage'", 10)
    return [run for run in rows if run["tags"].get("stage") in TRAINED][:2]


def one_curve(run: mlflow.Run) -> None:
    """A stage's curve, with the step it is at."""
    stage = run["tags"].get("stage", "")
    metric = "reward" if stage in SAMPLED else "loss"
    points = mlflow.curves((run["id"],), metric).get(run["id"], [])
    st.markdown(f"**[{look.plain(run['name'])}]({mlflow.run_page(run['id'])})** {how_far(run, points)}")
    if points:
        look.lines([{"run": metric, "step": step, "value": value} for step, value in points], metric)
    else:
        st.caption(f"No {metric} yet: the first one is logged after some steps.")


def how_far(run: mlflow.Run, points: list[tuple[int, float]]) -> str:
    """step 340 of 1,700, 14,200 tokens/s, began 5 min ago"""
    stage, speed = run["tags"].get("stage", ""), run["metrics"].get("tokens_per_s")
    total = run["params"].get(f"{stage}.steps") or run["params"].get("align.iterations")
    at = f"step {points[-1][0] + 1:,}" + (f" of {int(total):,}" if total and total.isdigit() else "") if points else ""
    when = f"ended {look.ago(run['end'])}" if run["end"] else f"began {look.ago(run['start'])}"
    return " · ".join(filter(None, (at, f"{speed:,.0f} tokens/s" if speed else "", when)))


def what_is_planned() -> None:
    """What schedules have planned."""
    st.subheader("Planned", anchor=False)
    with look.told():
        rows, names = web.at_once(prefect.planned_runs, prefect.deployment_names)
        if not rows:
            look.empty("No schedule is on. `modelyard deploy RECIPE --cron '0 3 * * 1'` starts a recipe by the clock.")
            return
        shown = [{"in": look.span(max(0.0, prefect.seconds_until(row["expected_start_time"]))), "what": names.get(row["deployment_id"], "?"), "page": f"{prefect.page()}/runs/flow-run/{row['id']}"} for row in rows]
        look.table(shown)


def what_ended() -> None:
    """The last runs that ended."""
    st.subheader("Ended", anchor=False)
    with look.told():
        rows, names = web.at_once(prefect.ended_runs, prefect.flow_names)
        if not rows:
            look.empty("Nothing ended yet.")
            return
        shown = [{"run": row["name"], "flow": names.get(row["flow_id"], "?"), "state": row["state_name"], "took": look.span(row["total_run_time"]), "page": f"{prefect.page()}/runs/flow-run/{row['id']}"} for row in rows]
        look.table(shown)


if __name__ == "__main__":
    main()
