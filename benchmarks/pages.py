"""How long until each page of the dashboard stands, with 1,000 runs and 100 models in MLflow.

    .venv/bin/python -m benchmarks.pages [--lines 125] [--models 100] [--repeats 5] [--write]

An MLflow server (SQLite) is filled over its REST interface: each line is one recipe's run and seven stages with curves, figures and records, and a released version.
Two stages run. Pages are opened in Chromium: each time in a new tab, which is a new visitor, and with all of the dashboard's caches emptied, so that every figure is
asked of MLflow; what Chromium itself keeps of Streamlit's JavaScript stays, after one visit that is not counted. The clock runs from the address to the moment
at which tables, charts and drawings are there and the script has ended. The median of --repeats counts, and the worst is told.
--write puts what came out into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.results import machine, write_section
from tests.browser.conftest import CHROMIUM
from tests.browser.shown import ROOT, STANDS, Shown, stands

GOAL_S = 2.0
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
# The dashboard's own app.py, with its caches emptied at the beginning of every visit.
COLD = """import streamlit as st
if "cold" not in st.session_state:
    st.cache_data.clear()
    st.session_state["cold"] = True
exec(compile(open({app!r}).read(), {app!r}, "exec"))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=125)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelyard-pages-") as scratch, Shown(Path(scratch)) as shown:
        began = time.monotonic()
        shown.fill(asked.lines, asked.models)
        shown.running()
        print(f"filled with {asked.lines * 8} runs and {asked.models} models in {time.monotonic() - began:.0f} s", flush=True)
        shown.prefect()
        address = shown.dashboard(app=cold(Path(scratch) / "cold"))
        seconds = measured(address, asked.repeats)
    text = told(seconds, asked)
    print(text)
    if asked.write:
        write_section("Dashboard", text)


def cold(folder: Path) -> str:
    """An entry point beside which the same screens and settings lie."""
    folder.mkdir()
    for name in ("screens", ".streamlit"):
        (folder / name).symlink_to(ROOT / "dashboards" / name)
    (folder / "app.py").write_text(COLD.format(app=str(ROOT / "dashboards/app.py")))
    return str(folder / "app.py")


def measured(address: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of each visit, by page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        context = browser.new_context(viewport={"width": 1400, "height": 900})
        for page in STANDS:
            visit(context, address, page)
        seconds = {page: [visit(context, address, page) for _ in range(repeats)] for page in STANDS}
        browser.close()
    return seconds


def visit(context: Any, address: str, page: str) -> float:
    tab = context.new_page()
    began = time.perf_counter()
    stands(tab, address, page)
    took = time.perf_counter() - began
    print(f"{page}: {took:.2f} s", flush=True)
    tab.close()
    return took


def told(seconds: dict[str, list[float]], asked: argparse.Namespace) -> str:
    rows = [f"| {page or 'now'} | {statistics.median(times):.2f} | {max(times):.2f} | {'yes' if statistics.median(times) <= GOAL_S else 'no'} |" for page, times in seconds.items()]
    head = f"Seconds until a page stands with {asked.lines * 8} runs and {asked.models} models in MLflow {version('mlflow')} (SQLite), Streamlit {version('streamlit')}, caches of the dashboard empty, {asked.repeats} visits each (`python -m benchmarks.pages`)."
    return "\n".join([head, machine(), "", f"| page | median | worst | within {GOAL_S:.0f} s |", "| --- | --- | --- | --- |", *rows])


if __name__ == "__main__":
    main()
