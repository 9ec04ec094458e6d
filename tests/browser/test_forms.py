"""The forms in a browser, as a person uses them: opened, filled in, submitted, watched to the end; and what a wrong value says.

MODELYARD_PICTURES=docs/pictures keeps the pages as pictures.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import RUN_S, Prefect, micro, wait
from tests.flows.project import Project

pytestmark = [pytest.mark.services, pytest.mark.timeout(2400)]
PAGE_MS = 60_000


def field(where: Any, label: str) -> Any:
    """The field of a form, or of a section of it, that has this label."""
    named = f"span[contains(@class,'schema-form-property__label') and normalize-space()='{label}']"
    return where.locator(f"xpath=.//{named}/ancestor::div[contains(concat(' ',@class,' '),' schema-form-property ')][1]").first


def open_form(page: Any, prefect: Prefect, name: str) -> None:
    page.goto(f"{prefect.url}/deployments/deployment/{prefect.deployment(name)['id']}/run", timeout=PAGE_MS)
    field(page, "resources (Optional)").wait_for(timeout=PAGE_MS)


def submit(page: Any, prefect: Prefect) -> str:
    """Press the button; gives the id of the run that it made."""
    before = {run["id"] for run in prefect.post("/flow_runs/filter", {})}
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url(re.compile(r"(?!.*/run$).*"), timeout=PAGE_MS)
    wait(lambda: {run["id"] for run in prefect.post("/flow_runs/filter", {})} - before, 60, "a new run")
    (run,) = [run for run in prefect.post("/flow_runs/filter", {}) if run["id"] not in before and run["parent_task_run_id"] is None]
    return run["id"]


def refused(page: Any) -> str:
    """What the page says after the button was pressed."""
    page.get_by_role("button", name="Submit").click()
    said = page.get_by_text("Error creating flow run").last
    said.wait_for(timeout=PAGE_MS)
    return said.inner_text()


def picture(page: Any, name: str) -> None:
    if folder := os.environ.get("MODELYARD_PICTURES"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png")


def plan(project: Project, line: str) -> dict[str, dict[str, str]]:
    """What the command line that a run showed would do, stage by stage."""
    words = shlex.split(line)
    assert words[0] == "modelyard"
    return json.loads(project.run(*words[1:], "--plan", "--json").stdout.splitlines()[-1])["stages"]


def test_a_recipe_filled_in_and_submitted_runs_to_its_end_and_its_command_line_has_the_same_results(page: Any, prefect: Prefect, project: Project) -> None:
    open_form(page, prefect, "train-and-release/short")
    assert "Every random choice of every training stage follows from it." in page.inner_text("body")
    recipe = field(page, "recipe")
    field(recipe, "Name").locator("input, textarea").first.fill("mine")
    field(field(recipe, "Sft (Optional)"), "Steps").locator("input").first.fill("6")
    field(recipe, "Name").scroll_into_view_if_needed()
    picture(page, "form-recipe")
    run = submit(page, prefect)
    state = prefect.ended(run)
    assert state["type"] == "COMPLETED", state["message"]
    page.goto(f"{prefect.url}/runs/flow-run/{run}", timeout=PAGE_MS)
    page.get_by_text("Completed").first.wait_for(timeout=PAGE_MS)
    assert [tag for tag in prefect.get(f"/flow_runs/{run}")["tags"] if tag.startswith("recipe:")] == ["recipe:mine"]
    assert "name: mine" in prefect.artifact(run, "asked")
    line = prefect.artifact(run, "command")
    assert line == "modelyard run recipes/short.yaml --set name=mine --set sft.steps=6 --threads 1"
    found = plan(project, line)
    assert {name: row["action"] for name, row in found.items()} == dict.fromkeys(found, "reuse"), found
    made = {path.name for path in (project.folder / ".modelyard/stages").iterdir() if not path.name.startswith(("data-", "."))}
    assert {Path(row["folder"]).name for row in found.values() if "folder" in row} <= made
    page.get_by_text("Artifacts", exact=True).last.click()
    page.get_by_text("The same from a terminal").first.wait_for(timeout=PAGE_MS)
    picture(page, "run-completed")
    kept = prefect.post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}, "key": {"any_": ["command"]}}})[0]["id"]
    page.goto(f"{prefect.url}/artifacts/artifact/{kept}", timeout=PAGE_MS)
    page.get_by_text("--set sft.steps=6").first.wait_for(timeout=PAGE_MS)
    picture(page, "run-command")


def test_a_wrong_value_is_refused_with_its_reason_and_nothing_is_started(page: Any, prefect: Prefect, project: Project) -> None:
    runs = len(prefect.post("/flow_runs/filter", {}))
    open_form(page, prefect, "train-and-release/micro")
    field(field(field(page, "recipe"), "Sft (Optional)"), "Steps").locator("input").first.fill("0")
    said = refused(page)
    assert "recipe.sft.steps" in said and "0 is less than or equal to the minimum of 0" in said
    picture(page, "form-refused")
    assert len(prefect.post("/flow_runs/filter", {})) == runs


def test_a_wrong_value_of_a_method_is_refused_by_its_own_name(page: Any, prefect: Prefect, project: Project) -> None:
    open_form(page, prefect, "train-and-release/micro")
    field(field(field(page, "recipe"), "Align (Optional)"), "Iterations").locator("input").first.fill("0")
    said = refused(page)
    assert "recipe.align.iterations" in said and "minimum of 0" in said


def test_values_that_contradict_each_other_end_the_run_with_the_sentence_that_says_so(prefect: Prefect, project: Project) -> None:
    recipe = prefect.deployment("train-and-release/micro")["parameters"]["recipe"]
    recipe["align"] |= {"rollout_size": 6, "minibatch_size": 4}
    state = prefect.ended(prefect.submit("train-and-release/micro", recipe=recipe), 180)
    assert state["type"] == "FAILED"
    assert "rollout_size=6 is not a multiple of minibatch_size=4" in state["message"] and "Use minibatch_size in [1, 2, 3, 6]" in state["message"]


def test_another_method_of_alignment_is_chosen_by_its_button(page: Any, prefect: Prefect, project: Project) -> None:
    project.run("deploy", "recipes/micro.yaml", "--stage", "align", "--threads", "1")
    open_form(page, prefect, "align/micro")
    align = field(page, "align (Optional)")
    picture(page, "form-align")
    align.get_by_text("DPO, IPO, KTO, ORPO", exact=True).click()
    for label, value in (("Steps", "2"), ("Batch Size", "2"), ("Learning Rate", "0.0001"), ("Warmup Steps (Optional)", "1"), ("Heldout Pairs (Optional)", "4")):
        field(align, label).locator("input").first.fill(value)
    run = submit(page, prefect)
    state = prefect.ended(run)
    line = prefect.artifact(run, "command")
    assert line.startswith("modelyard stage align recipes/micro.yaml --set 'align={"), line
    # The chat model of the recipe as it stands was never made here: the run says what to do first, by the command that does it.
    assert state["type"] == "FAILED" and "Run first: modelyard stage" in state["message"], state


def test_one_stage_alone_finds_its_base_and_data_and_its_command_line_reuses_its_result(page: Any, prefect: Prefect, project: Project) -> None:
    for name in ("data", "pretrain"):
        project.run("deploy", "recipes/micro.yaml", "--stage", name, "--threads", "1")
    project.run("deploy", "recipes/micro.yaml", "--stage", "sft", "--threads", "1")
    for name in ("prepare-data/micro", "pretrain/micro"):
        state = prefect.ended(prefect.submit(name))
        assert state["type"] == "COMPLETED", state["message"]
    open_form(page, prefect, "finetune/micro")
    field(field(page, "sft (Optional)"), "Steps").locator("input").first.fill("7")
    run = submit(page, prefect)
    state = prefect.ended(run)
    assert state["type"] == "COMPLETED", state["message"]
    line = prefect.artifact(run, "command")
    assert line == "modelyard stage sft recipes/micro.yaml --set sft.steps=7 --threads 1"
    assert "sft: reuse" in project.run(*shlex.split(line)[1:]).stdout


def test_a_recipe_deployed_with_a_clock_starts_by_itself_and_without_one_not_any_more(prefect: Prefect, project: Project) -> None:
    said = project.run("deploy", "recipes/safe.yaml", "--cron", "0 3 * * 1", "--timezone", "Europe/Berlin").stdout
    assert "train-and-release/safe, by itself at 0 3 * * 1 (Europe/Berlin)" in said and "/deployments/deployment/" in said
    made = prefect.deployment("train-and-release/safe")
    assert [(s["schedule"]["cron"], s["schedule"]["timezone"], s["active"]) for s in made["schedules"]] == [("0 3 * * 1", "Europe/Berlin", True)]
    assert made["parameters"]["recipe"]["name"] == "safe" and made["pull_steps"] and made["entrypoint"] == "flows.pipeline.train_and_release"

    def planned() -> list[Any]:
        return prefect.post("/flow_runs/filter", {"flow_runs": {"deployment_id": {"any_": [made["id"]]}, "state": {"type": {"any_": ["SCHEDULED"]}}}})

    wait(lambda: bool(planned()), 120, "a scheduled run")
    project.run("deploy", "recipes/safe.yaml", "--set", "seed=9")
    again = prefect.deployment("train-and-release/safe")
    assert (again["id"], again["schedules"], again["parameters"]["recipe"]["seed"]) == (made["id"], [], 9)
    assert not planned()


def test_deploy_says_what_to_do_where_there_is_no_server_or_one_that_knows_nothing(prefect: Prefect, project: Project, tmp_path: Path) -> None:
    alone = Project(project.folder, {"MODELYARD_HOME": str(tmp_path)})
    assert "Start one: modelyard up" in alone.run("deploy", "recipes/micro.yaml", code=2).stderr
    gone = Project(project.folder, {"MODELYARD_HOME": str(tmp_path), "PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_CLIENT_MAX_RETRIES": "0"})
    assert "does not answer" in gone.run("deploy", "recipes/micro.yaml", code=2).stderr


def test_workers_in_two_clones_each_run_their_own_code_in_their_own_folder(prefect: Prefect, project: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    second = micro(tmp_path_factory.mktemp("two") / "elsewhere", prefect.environment())
    prefect.worker(second, "two", "--limit", "1", folder=tmp_path_factory.mktemp("nowhere"))
    for number, clone in enumerate((project, second)):
        flows = clone.folder / "flows/doors/line.py"
        flows.write_text(flows.read_text().replace('announce(asked, resources, ("stage", name))', f'announce(asked, resources, ("stage", name)); __import__("pathlib").Path("mine-{number}").touch()'))
    runs = [prefect.submit("evaluate/evaluate", recipe="recipes/micro.yaml", evals=None) for _ in range(4)]
    said = [prefect.ended(run, RUN_S)["message"] for run in runs]
    assert [(project.folder / name).exists() for name in ("mine-0", "mine-1")] == [True, False], said
    assert [(second.folder / name).exists() for name in ("mine-0", "mine-1")] == [False, True], said
