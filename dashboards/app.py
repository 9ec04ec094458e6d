"""The start page: what runs, what ended, what was released, and where to go on.

    modelyard up                                    # starts it with everything else
    streamlit run dashboards/app.py                 # alone, with PREFECT_API_URL and MLFLOW_TRACKING_URI set
"""

from __future__ import annotations

import hmac
import os
import time
from datetime import datetime
from typing import Any

import streamlit as st

from dashboards import services

REFRESH_S = 5
COLOURS = {"RUNNING": "blue", "PENDING": "orange", "PAUSED": "violet", "CANCELLING": "orange", "COMPLETED": "green", "FAILED": "red", "CRASHED": "red"}


def main() -> None:
    st.set_page_config(page_title="Modelyard", layout="wide")
    st.title("Modelyard")
    if not let_in():
        return
    links()
    what_runs()
    left, right = st.columns(2)
    with left:
        what_was_released()
    with right:
        what_ended()


def let_in() -> bool:
    """Where Prefect asks for an account, so does this page, for the same one."""
    account = os.environ.get("PREFECT_API_AUTH_STRING")
    if not account or st.session_state.get("let_in"):
        return True
    with st.form("account"):
        user, password = st.text_input("User"), st.text_input("Password", type="password")
        if st.form_submit_button("Sign in"):
            if hmac.compare_digest(f"{user}:{password}".encode(), account.encode()):
                st.session_state["let_in"] = True
                st.rerun()
            time.sleep(1)  # guessing is slow
            st.error("No such user and password. They are those of the Prefect server.")
    return False


def links() -> None:
    """Where the other pages are, and whether they answer."""
    first, second, third = st.columns(3)
    first.link_button("Prefect: forms, runs, artifacts", f"{prefect_page()}/deployments", width="stretch")
    second.link_button("MLflow: metrics, comparisons", f"{mlflow_page()}{services.training_runs()}", width="stretch")
    third.link_button("Models: versions and aliases", f"{mlflow_page()}/#/models", width="stretch")
    for name, address in (("Prefect", services.prefect_url()), ("MLflow", services.mlflow_url())):
        if not services.answers(f"{address}/health"):
            st.error(f"{name} does not answer at {address}. Look at it with `modelyard status`.")


def prefect_page() -> str:
    """Prefect's pages, by the name by which whoever reads this reached us."""
    return services.seen_from(services.prefect_url().removesuffix("/api"), st.context.headers.get("Host"))


def mlflow_page() -> str:
    return services.seen_from(services.mlflow_url(), st.context.headers.get("Host"))


@st.fragment(run_every=REFRESH_S)
def what_runs() -> None:
    """Runs that work or wait, with how far they are; looked at anew every few seconds."""
    st.subheader("Now")
    with told():
        rows = services.open_runs()
        names, far = services.flow_names(rows), services.progress([row["id"] for row in rows if row["state_type"] == "RUNNING"])
        if not rows:
            st.write(f"Nothing runs. [Choose a deployment]({prefect_page()}/deployments) and fill in its form, or type `modelyard run recipes/tiny.yaml`.")
        for row in rows:
            one_run(row, names.get(row["flow_id"], "?"), far.get(row["id"]))


def one_run(row: dict[str, Any], flow: str, artifact: dict[str, Any] | None) -> None:
    """One line, and a bar where the run says how far it is."""
    since = -services.seconds_until(row["start_time"]) if row["start_time"] else 0.0
    again = f", try {row['run_count']}" if row["run_count"] > 1 else ""
    for_how_long = f" for {_span(since)}" if row["state_type"] == "RUNNING" else ""
    state = f":{COLOURS.get(row['state_type'], 'gray')}-badge[{row['state_name']}]"
    st.markdown(f"{state} [{row['name']}]({prefect_page()}/runs/flow-run/{row['id']}) · {flow}{for_how_long}{again}")
    if artifact is not None:
        st.progress(min(max(float(artifact["data"]), 0.0), 100.0) / 100.0, text=artifact["description"] or "")


def what_was_released() -> None:
    """Aliased versions of every model, champions first."""
    st.subheader("Released")
    with told():
        rows = services.releases()
        if not rows:
            st.write("Nothing was released yet.")
            return
        shown = [
            {"model": row["model"], "version": row["version"], "is": ", ".join(row["aliases"]), "gate": row["tags"].get("action", ""), "when": datetime.fromtimestamp(row["created"]), "page": f"{mlflow_page()}/#/models/{row['model']}/versions/{row['version']}"}
            for row in rows
        ]  # fmt: skip
        st.dataframe(shown, hide_index=True, width="stretch", column_config={"page": st.column_config.LinkColumn("page", display_text="open"), "when": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm")})


def what_ended() -> None:
    """The last runs that ended."""
    st.subheader("Ended")
    with told():
        rows = services.ended_runs()
        names = services.flow_names(rows)
        shown = [
            {"run": row["name"], "flow": names.get(row["flow_id"], "?"), "state": row["state_name"], "took": _span(row["total_run_time"]), "page": f"{prefect_page()}/runs/flow-run/{row['id']}"}
            for row in rows
        ]  # fmt: skip
        if shown:
            st.dataframe(shown, hide_index=True, width="stretch", column_config={"page": st.column_config.LinkColumn("page", display_text="open")})
        else:
            st.write("Nothing ended yet.")


class told:
    """A service that does not answer is a sentence on the page, not a traceback."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, OSError):
            st.warning(f"Not to be had just now: {error}")
            return True
        return False


def _span(seconds: float) -> str:
    """5 s, 12 min, 3 h 20 min."""
    s = int(seconds)
    return f"{s // 3600} h {s % 3600 // 60} min" if s >= 3600 else f"{s // 60} min {s % 60} s" if s >= 60 else f"{s} s"


main()
