"""The dashboard: signing in where an account is set, and the way to its pages, one file each under screens/.

    modelyard up                                    # starts it with everything else
    streamlit run dashboards/app.py                 # alone, with PREFECT_API_URL and MLFLOW_TRACKING_URI set
"""

from __future__ import annotations

import hmac
import os
import time
from pathlib import Path

import streamlit as st

PAGES = (
    ("now", "Now", ":material/play_circle:"),
    ("releases", "Releases", ":material/inventory_2:"),
    ("leaderboard", "Leaderboard", ":material/leaderboard:"),
    ("compare", "Compare", ":material/compare_arrows:"),
    ("data", "Data", ":material/dataset:"),
    ("cost", "Cost", ":material/bolt:"),
    ("chat", "Chat", ":material/chat:"),
)
# Streamlit leaves a third of a phone's screen empty, and writes figures larger than headings.
TIGHT = """<style>
.stMainBlockContainer {padding-top: 3.6rem; padding-bottom: 2rem}
[data-testid="stMetricValue"] {font-size: 1.5rem}
</style>"""


def main() -> None:
    st.set_page_config(page_title="Modelyard", page_icon=str(Path(__file__).with_name("icon.svg")), layout="wide")
    st.html(TIGHT)
    if let_in():
        pages = [st.Page(f"screens/{name}.py", title=title, icon=icon, url_path=name, default=name == "now") for name, title, icon in PAGES]
        page = st.navigation(pages, position="top")
        st.header(page.title, anchor=False)
        page.run()


def let_in() -> bool:
    """Where Prefect asks for an account, so does this page, for the same one."""
    account = os.environ.get("PREFECT_API_AUTH_STRING")
    if not account or st.session_state.get("let_in"):
        return True
    st.title("Modelyard")
    with st.form("account"):
        user, password = st.text_input("User"), st.text_input("Password", type="password")
        if st.form_submit_button("Sign in"):
            if hmac.compare_digest(f"{user}:{password}".encode(), account.encode()):
                st.session_state["let_in"] = True
                st.rerun()
            time.sleep(1)  # guessing is slow
            st.error("No such user and password. They are those of the Prefect server.")
    return False


if __name__ == "__main__":
    main()
