"""A run with a budget, as a user starts it: it stops in the middle of a stage, says so once, and goes on to the same bits."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.flows.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SHORT = ("sft.steps=400", "sft.checkpoint_every_steps=150", "reward=null", "align=null", "evals=null")
PRICES = "{currency: EUR, source: 'a test: an hour of a core costs 3600', per_cpu_hour: 3600}"  # an EUR for each busy second


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project.copy_to(tmp_path_factory.mktemp("budget") / "project")
    made.environment = {"MODELYARD_METER_SECONDS": "0.2", "OMP_NUM_THREADS": "1"}
    (made.folder / "prices.yaml").write_text(PRICES)
    return made


@pytest.fixture(scope="module")
def unbroken(project: Project) -> dict[str, Any]:
    """The line without a budget; its last stage is put aside."""
    whole = summary(project)
    stages = project.folder / ".modelyard/stages"
    (folder,) = (path for path in stages.glob("sft-*") if path.is_dir())
    folder.rename(stages.parent / f"unbroken-{folder.name}")
    return whole


def words(*more: str) -> list[str]:
    return [*Project(Path()).recipe(*SHORT), "--on", "prices=prices.yaml", *more]


def summary(project: Project, *more: str) -> dict[str, Any]:
    return json.loads(project.run("run", *words("--json", *more), timeout_s=900).stdout.splitlines()[-1])


def unfinished(project: Project, stage: str) -> Path:
    (folder,) = (project.folder / ".modelyard/stages").glob(f"{stage}-*.partial")
    return folder


def checkpoint(folder: Path) -> int:
    return max(int(path.name.split("-")[1]) for path in (folder / "work").glob("step-*.ckpt"))


def stopped_runs(project: Project) -> list[tuple[str, str]]:
    """Names and states of the flow runs that did not complete, by name."""
    with sqlite3.connect(project.folder / ".modelyard/prefect/prefect.db") as history:
        return history.execute("select name, state_name from flow_run where state_name != 'Completed' order by name").fetchall()


def test_a_run_stops_by_its_budget_and_goes_on_to_the_same_bits(project: Project, unbroken: dict[str, Any]) -> None:
    cost = {stage: row["amount"] for stage, row in unbroken["cost"]["stages"].items()}
    enough = cost["data"] + cost["pretrain"] + 0.8 * cost["sft"]  # half of it is its start, then comes the loop
    stopped = project.run("run", *words("--budget", f"{enough:.2f}"), code=2, timeout_s=900)
    assert stopped.stderr.count("budget: tiny has cost") == 1 and "so sft was stopped" in stopped.stderr and "Traceback" not in stopped.stderr
    assert stopped_runs(project) == [("finetune tiny", "BudgetSpent"), ("tiny", "BudgetSpent")]
    assert "What it cost" in stopped.stdout
    step = checkpoint(unfinished(project, "sft"))
    assert 0 < step < 400

    again = project.run("run", *words("--budget", f"{enough:.2f}"), code=2, timeout_s=900)
    assert "so sft was not started" in again.stderr and checkpoint(unfinished(project, "sft")) == step

    plan = project.run("run", *words("--budget", f"{enough:.2f}", "--plan"), timeout_s=300).stdout
    assert "no earlier sft here whose cost was kept" in plan
    assert f"Budget: {enough:.2f} EUR, of which" in plan and "not enough for it" in plan

    resumed = summary(project, "--budget", "100000")
    for stage in ("pretrain", "sft"):
        assert resumed["stages"][stage]["hash"] == unbroken["stages"][stage]["hash"]
    bill = resumed["cost"]
    assert bill["stages"]["sft"]["amount"] > cost["sft"], "the attempt that was stopped counts"
    assert bill["total"]["amount"] == pytest.approx(sum(row["amount"] for row in bill["stages"].values()))
    assert bill["currency"] == "EUR" and bill["total"]["kwh"] == bill["total"]["kwh_estimated"] > 0

    told = json.loads(project.run("cost", resumed["run"], "--prices", "prices.yaml", "--json").stdout)
    assert told["stages"].keys() >= {path.name for path in (project.folder / ".modelyard/stages").glob("sft-*") if path.is_dir()}


def test_of_two_processes_both_stop_and_the_run_says_it_once(project: Project, unbroken: dict[str, Any]) -> None:
    cost = {stage: row["amount"] for stage, row in unbroken["cost"]["stages"].items()}
    more = ("--set", "sft.steps=20000", "--on", "processes=2", "--on", "accelerator=cpu", "--budget", f"{4 * cost['sft']:.2f}")
    done = project.run("run", *words(*more), code=2, timeout_s=900)
    assert done.stderr.count("budget: tiny has cost") == 1 and "so sft was stopped" in done.stderr
    assert {state for _, state in stopped_runs(project)} == {"BudgetSpent"}
    assert 0 < checkpoint(unfinished(project, "sft")) < 20000
