"""What starts a retraining, and what lets it be: new data, a drop of scores, nothing new, a schedule that was missed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml

from components.feedback.people.asking import ask
from components.feedback.people.store import Store
from components.schema.people import AskConfig
from tests.feedback import people
from tests.flows.project import MICRO
from tests.services.deployed import begin, deploy, runs_of, said, until
from tests.services.rig import SHORT, Rig

pytestmark = pytest.mark.services

OVERLAPS = '''
import time
from prefect import flow
from flows.schedules import missed, one_at_a_time, skipped

@flow(name="overlaps")
def overlaps(catch_up: str = "latest"):
    if reason := missed(catch_up, 0):
        return skipped(reason)
    with one_at_a_time("overlaps"):
        began = time.time(); time.sleep(4)
        print(began, time.time(), file=open("overlaps.txt", "a"))
'''


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig.in_folder(tmp_path_factory.mktemp("triggers"))
    (rig.project.folder / "overlaps.py").write_text(OVERLAPS)
    code = "import sys, json; from components.schema.recipe import Recipe; print(Recipe.load('recipes/tiny.yaml', sys.argv[1:]).model_dump_json(exclude_none=True))"
    recipe = yaml.safe_load(said(rig, code, *MICRO, *SHORT, "name=short").splitlines()[-1])
    (rig.project.folder / "recipes" / "short.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    try:
        rig.start("server")
        said(rig, "import asyncio; from prefect.client.orchestration import get_client; from flows.automations import register\nasync def f():\n    async with get_client() as c: await register(c)\nasyncio.run(f())")
        for part in ("worker", "watch"):
            rig.start(part)
        yield rig
    finally:
        rig.stop()


@pytest.fixture(scope="module")
def retrain(rig: Rig) -> str:
    """The recipe's retraining, run once; the watch has seen its data."""
    id = deploy(rig, "flows.retrain.retrain", "retrain", {"recipe": "recipes/short.yaml", "resources": {"threads": 1}})
    until(rig, begin(rig, id), "Completed")
    rig.wait(lambda: rig.api("POST", "/variables/filter", {"variables": {"name": {"like_": "modelyard_data_short"}}}), "the watch to look at the data")
    return id


def latest(rig: Rig, deployment: str, after: int) -> dict[str, Any]:
    rig.wait(lambda: len(runs_of(rig, deployment)) > after, "a run that nobody asked for")
    return runs_of(rig, deployment)[-1]


def test_nothing_new_is_skipped_with_the_reason_in_an_artifact(rig: Rig, retrain: str) -> None:
    run = until(rig, begin(rig, retrain), "Skipped")
    assert "data and code are unchanged" in run["state"]["message"]
    (artifact,) = rig.api("POST", "/artifacts/filter", {"artifacts": {"key": {"any_": ["skipped"]}, "flow_run_id": {"any_": [run["id"]]}}})
    assert "data and code are unchanged" in artifact["data"]


def test_new_data_starts_a_retraining_that_says_why(rig: Rig, retrain: str) -> None:
    before = len(runs_of(rig, retrain))
    with (rig.project.folder / "notes.txt").open("a") as file:
        file.write("\n\nHerons stand in the shallow water and wait for the fish to come with the tide.\n" * 5)
    run = latest(rig, retrain, before)
    assert run["parameters"]["because"] == "what recipes/short.yaml reads has changed: documents/notes.txt"
    until(rig, run["id"], "Completed")
    assert until(rig, begin(rig, retrain), "Skipped")


def test_a_drop_of_scores_starts_a_retraining_with_another_seed(rig: Rig, retrain: str) -> None:
    before = len(runs_of(rig, retrain))
    tell = "import sys; from flows import announce, triggers\nannounce.announce(announce.SCORE_DROPPED, announce.of_model('models:/mine/3'), {'reason': 'mmlu fell'}, related=[triggers.related(triggers.deployments()[0])])"
    said(rig, tell)
    run = latest(rig, retrain, before)
    assert run["parameters"]["unchanged"] == "new_seed" and run["parameters"]["because"] == "mmlu fell" and run["parameters"]["recipe"] == "recipes/short.yaml"
    until(rig, run["id"], "Completed")
    folders = list((rig.project.folder.parent / "yard" / "stages").glob("pretrain-*"))
    seeds = {yaml.safe_load((folder / "record.json").read_text())["config"]["seed"] for folder in folders if folder.is_dir() and (folder / "record.json").exists()}
    assert len(seeds) == 2 and 1 in seeds


def test_of_what_was_missed_the_latest_runs_or_none_as_asked(rig: Rig) -> None:
    rig.kill("worker")
    soon = datetime.now(UTC) + timedelta(seconds=10)
    thrice = f"DTSTART:{soon:%Y%m%dT%H%M%SZ}\nRRULE:FREQ=SECONDLY;INTERVAL=2;COUNT=3"
    asked = {policy: _of(deploy(rig, "overlaps.py:overlaps", f"overlaps-{policy}", {"catch_up": policy}, thrice)) for policy in ("latest", "none")}
    missed = {policy: rig.wait(lambda those=those: len(found := rig.api("POST", "/flow_runs/filter", those)) == 3 and found, "three runs to be planned") for policy, those in asked.items()}
    rig.wait(lambda: datetime.now(UTC) > soon + timedelta(seconds=6), "their time to pass")
    rig.start("worker")
    ended = {policy: [until(rig, run["id"], "Completed", "Skipped")["state"]["name"] for run in runs] for policy, runs in missed.items()}
    assert ended == {"latest": ["Skipped", "Skipped", "Completed"], "none": ["Skipped"] * 3}


@pytest.mark.timeout(900)
def test_enough_new_rankings_by_people_are_exported_and_start_one_retraining(rig: Rig) -> None:
    folder = rig.project.folder
    code = "import sys, json; from components.schema.recipe import Recipe; print(Recipe.load('recipes/tiny.yaml', sys.argv[1:]).model_dump_json(exclude_none=True))"
    reads = "data.preferences=[{kind: files, path: data/feedback/people/preferences}]"
    recipe = yaml.safe_load(said(rig, code, *MICRO, *SHORT, "name=ranked", "data.name=ranked", reads).splitlines()[-1])
    (folder / "recipes" / "ranked.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    store = Store.open(f"sqlite:///{people.made(folder.parent / 'yard' / 'feedback')}/people.db")
    ask(store, AskConfig(gold_share=0.0, retrain_after=3), [people.question(i) for i in range(5)])
    who = people.person(store, "Ada")
    asked = people.claims(store, who, ahead=5)
    for number, claim in enumerate(asked[:2]):
        people.say(store, who, claim, [1, 2, 3], f"ranked-{number:04}")
    id = deploy(rig, "flows.retrain.retrain", "retrain-ranked", {"recipe": "recipes/ranked.yaml", "resources": {"threads": 1}})
    time.sleep(40)  # a look of the watch, and more
    assert not runs_of(rig, id) and not (folder / "data/feedback/people").exists(), "two rankings are not three"
    people.say(store, who, asked[2], [3, 2, 1], "ranked-0002")
    run = latest(rig, id, 0)
    assert run["parameters"]["because"] == "3 new rankings by people are in data/feedback/people" and run["parameters"]["recipe"] == "recipes/ranked.yaml"
    until(rig, run["id"], "Completed")
    assert len((folder / "data/feedback/people/preferences/pairs.jsonl").read_text().splitlines()) == 9 and (folder / "data/feedback/people.dvc").exists()
    counts = (folder / "data/ranked/preferences/counts.json").read_text()
    assert "data/feedback/people/preferences" in counts
    time.sleep(70)  # two looks of the watch
    assert len(runs_of(rig, id)) == 1, "the watch over files starts no second one for the same rankings"


def _of(deployment: str) -> dict[str, Any]:
    """What to ask for a deployment's runs, in the order of their times."""
    return {"flow_runs": {"deployment_id": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}


def test_two_runs_of_one_recipe_wait_for_each_other(rig: Rig) -> None:
    path = rig.project.folder / "overlaps.txt"
    path.unlink(missing_ok=True)
    id = deploy(rig, "overlaps.py:overlaps", "overlaps")
    for run in [begin(rig, id) for _ in range(2)]:
        until(rig, run, "Completed")
    (first, second) = sorted([float(x) for x in line.split()] for line in path.read_text().splitlines())
    assert first[1] <= second[0]
