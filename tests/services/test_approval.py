"""A deployed run asks a person: suspended it is no process, survives a restart of everything, and does what the answer says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.services.deployed import begin, deploy, said, until
from tests.services.rig import Rig

pytestmark = pytest.mark.services

# A top flow as the real ones are, around a release that costs nothing: a version in a real registry about which the gate asked.
ASKS = '''
from pathlib import Path
from prefect import flow
from components.registry import models, tracking
from components.schema.records import Record
from flows import approval

@flow(name="asks", log_prints=True)
def asks(name: str, identity: str, before: str = "none"):
    if answered := approval.resumed():
        return answered
    folder = Path("checkpoint"); folder.mkdir(exist_ok=True); (folder / "config.json").write_text("{}")
    run_id = tracking.open_stage(None, "release", identity, {}, {})
    version = models.release(name, folder, run_id, identity, {}, "ask", {"modelyard.champion_before": before})
    tracking.close_stage(run_id, "FINISHED", {})
    figures = {"uri": f"models:/{name}/{version}", "action": "ask", "reason": "too few items to tell", "comparisons": []}
    return approval.settled(Record(stage="release", identity=identity, revision=1, config={}, inputs={}, files={}, figures=figures))
'''


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig.in_folder(tmp_path_factory.mktemp("approval"))
    (rig.project.folder / "asks.py").write_text(ASKS)
    try:
        for part in ("server", "worker", "watch"):
            rig.start(part)
        yield rig
    finally:
        rig.stop()


@pytest.fixture(scope="module")
def asks(rig: Rig) -> str:
    return deploy(rig, "asks.py:asks", "asks")


def champion(rig: Rig, name: str) -> str:
    """Version of the champion, as the registry says it; - for none."""
    return said(rig, f"from components.registry import models; print((models.champion({name!r}) or {{}}).get('version', '-'))").strip()


def resume(rig: Rig, run_id: str, **answer: object) -> str:
    return rig.api("POST", f"/flow_runs/{run_id}/resume", {"run_input": {"why": "", "anyway": False, **answer}})["status"]


def processes_of(rig: Rig) -> list[str]:
    """Command lines of flow runs that work in the project."""
    found = subprocess.run(["pgrep", "-af", "prefect.engine|prefect flow-run execute"], capture_output=True, text=True).stdout.splitlines()
    return [line for line in found if _folder(line.split()[0]) == str(rig.project.folder)]


def _folder(pid: str) -> str:
    return subprocess.run(["readlink", f"/proc/{pid}/cwd"], capture_output=True, text=True).stdout.strip()


def test_an_approval_survives_the_death_of_server_worker_and_watch(rig: Rig, asks: str) -> None:
    run_id = begin(rig, asks, name="one", identity="a")
    run = until(rig, run_id, "Suspended")
    assert {"waits-for-a-person", "models:/one/1"} <= set(run["tags"])
    rig.wait(lambda: not processes_of(rig), "the flow's process to end")
    for part in ("server", "worker", "watch"):
        rig.kill(part)
    for part in ("server", "worker", "watch"):
        rig.start(part)
    assert resume(rig, run_id, decision="perhaps", who="Ada") == "ABORT" or rig.run(run_id)["state"]["name"] == "Suspended"
    assert champion(rig, "one") == "-"
    assert resume(rig, run_id, decision="approve", who="Ada", why="looked at it") == "ACCEPT"
    run = until(rig, run_id, "Approved")
    assert run["state"]["message"] == "models:/one/1 is the champion: approved by Ada (looked at it)"
    assert champion(rig, "one") == "1" and "waits-for-a-person" not in run["tags"]


def test_the_question_stands_in_the_form_and_as_an_artifact(rig: Rig, asks: str) -> None:
    run_id = begin(rig, asks, name="two", identity="b")
    run = until(rig, run_id, "Suspended")
    keys = run["state"]["state_details"]["run_input_keyset"]
    described = json.dumps(rig.api("GET", f"/flow_runs/{run_id}/input/{keys['description']}"))
    assert "too few items to tell" in described and "modelyard approve models:/two/1" in described
    (artifact,) = rig.api("POST", "/artifacts/filter", {"artifacts": {"key": {"any_": ["approval"]}, "flow_run_id": {"any_": [run_id]}}})
    assert "too few items to tell" in artifact["data"]
    assert resume(rig, run_id, decision="reject", who="Ada") == "ACCEPT"
    until(rig, run_id, "Rejected")
    assert champion(rig, "two") == "-"


def test_the_command_settles_and_resumes_the_run_or_the_watch_does(rig: Rig, asks: str) -> None:
    told, untold = (begin(rig, asks, name=name, identity=name) for name in ("three", "three-b"))
    for run_id in (told, untold):
        until(rig, run_id, "Suspended")
    command = [sys.executable, "-m", "flows.cli", "approve", "models:/three/1", "--why", "good"]
    done = subprocess.run(command, cwd=rig.project.folder, env=rig.env(), capture_output=True, text=True, timeout=200)
    assert "1 run that waited for this goes on" in done.stdout, done.stdout + done.stderr
    rig.project.run("reject", "models:/three-b/1", "--why", "not yet")  # without an address of the server: it knows the registry alone
    assert "(good)" in until(rig, told, "Approved")["state"]["message"]
    assert "not yet" in until(rig, untold, "Rejected")["state"]["message"]


def test_a_person_answers_in_the_browser(rig: Rig, asks: str, page: Any) -> None:
    run_id = begin(rig, asks, name="six", identity="g")
    until(rig, run_id, "Suspended")
    page.goto(f"{rig.url.removesuffix('/api')}/runs/flow-run/{run_id}", timeout=90_000)
    page.get_by_role("button", name="Resume").first.click(timeout=90_000)
    page.get_by_text("Your name; kept with the version.").wait_for(timeout=90_000)
    assert "too few items to tell" in page.inner_text("body")
    page.locator(".schema-form-property-string .p-select-button__control").first.click()
    page.wait_for_timeout(800)
    for key in ("ArrowDown", "Enter"):  # the list's options are beside the dialog, where a click closes it
        page.keyboard.press(key)
    page.locator("textarea").nth(0).fill("Bea")
    page.locator("textarea").nth(1).fill("read the samples")
    page.wait_for_timeout(1000)  # the form takes in what was typed only after a moment
    if folder := os.environ.get("MODELYARD_PICTURES"):
        page.screenshot(path=f"{folder}/approval.png")
    page.get_by_role("button", name="Submit").click()
    page.get_by_role("button", name="Submit").wait_for(state="hidden", timeout=30_000)
    assert until(rig, run_id, "Approved")["state"]["message"] == "models:/six/1 is the champion: approved by Bea (read the samples)"


def test_an_answer_about_another_champion_is_asked_anew_with_the_reason(rig: Rig, asks: str) -> None:
    until(rig, first := begin(rig, asks, name="four", identity="d"), "Suspended")
    until(rig, second := begin(rig, asks, name="four", identity="e"), "Suspended")
    resume(rig, first, decision="approve", who="Ada")
    until(rig, first, "Approved")
    resume(rig, second, decision="approve", who="Ada")
    rig.wait(lambda: rig.run(second)["state"]["state_details"].get("pause_key") == "approval-2" and rig.run(second)["state"]["name"] == "Suspended", "the second question")
    keys = rig.run(second)["state"]["state_details"]["run_input_keyset"]
    assert "nobody has compared these two" in json.dumps(rig.api("GET", f"/flow_runs/{second}/input/{keys['description']}"))
    assert champion(rig, "four") == "1"
    resume(rig, second, decision="approve", who="Ada", anyway=True)
    until(rig, second, "Approved")
    assert champion(rig, "four") == "2"


def test_what_nobody_answers_is_held(rig: Rig, asks: str) -> None:
    soon = {"env": {"MODELYARD_APPROVAL_DAYS": "0.00001"}}
    asked = {"parameters": {"name": "five", "identity": "f"}, "state": {"type": "SCHEDULED"}, "job_variables": soon}
    run = until(rig, rig.api("POST", f"/deployments/{asks}/create_flow_run", asked)["id"], "Held")
    assert "nobody answered until" in run["state"]["message"] and champion(rig, "five") == "-"
