"""The whole platform on services: PostgreSQL under both servers, S3 for artifacts, data and results, accounts on both, and machines that come and go.

Three machines share nothing but these services: one runs the servers, two have a worker each. A line is begun on one of the two, which is then lost in the
middle of a stage; the other one fetches what was finished, goes on from the last checkpoint, and releases.
"""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from components.schema.recipe import Recipe
from components.schema.records import Record
from tests.flows.project import MICRO, Project
from tests.services.machines import Api, Machine, dvc, wait_for
from tests.services.stack import ObjectStore, Postgres, free_port

pytestmark = [pytest.mark.services, pytest.mark.timeout(3600)]

STEPS = 1500
LONG = f"sft={{steps: {STEPS}, batch_size: 4, learning_rate: 1e-3, warmup_steps: 2, heldout_chats: 8, checkpoint_every_steps: 20}}"


@dataclass
class Stack:
    """The services, the machines, and how to reach them."""

    base: Project
    folder: Path
    bucket: str
    store: ObjectStore
    services: dict[str, str]
    prefect: Api
    mlflow: Api
    machines: dict[str, Machine] = field(default_factory=dict)

    def machine(self, name: str, **environment: str) -> Machine:
        """A new machine with a clone of the project, which knows the services."""
        self.machines[name] = Machine.cloned(self.base, self.folder / name, **{**self.services, **environment})
        return self.machines[name]

    def begin(self, *sets: str) -> str:
        """The line, by its deployment, as the form's button does it; gives the run's id."""
        recipe = Recipe.load(self.base.folder / "recipes" / "tiny.yaml", [*MICRO, *sets], lambda line: None)
        found = self.prefect.ask("GET", "/deployments/name/train-and-release/train-and-release")
        asked = {"parameters": {"recipe": recipe.model_dump(mode="json"), "resources": {"threads": 1}}, "state": {"type": "SCHEDULED"}}
        return self.prefect.ask("POST", f"/deployments/{found['id']}/create_flow_run", asked)["id"]

    def run(self, run_id: str) -> dict[str, Any]:
        return self.prefect.ask("GET", f"/flow_runs/{run_id}")

    def said(self, run_id: str) -> list[str]:
        """Log lines of a run and the runs within it."""
        inner = [row["flow_run_id"] for row in self.prefect.ask("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}, "limit": 200})]
        below = [row["id"] for row in self.prefect.ask("POST", "/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run_id]}}, "limit": 200})]
        wanted = {"logs": {"flow_run_id": {"any_": sorted({run_id, *inner, *below})}}, "limit": 200, "sort": "TIMESTAMP_DESC"}
        return [row["message"] for row in self.prefect.ask("POST", "/logs/filter", wanted)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, object_store: ObjectStore) -> Iterator[Stack]:
    """Servers on the first machine; it has no worker."""
    folder, bucket = tmp_path_factory.mktemp("machines"), object_store.bucket()
    ports = {name: free_port() for name in ("PREFECT", "MLFLOW")}
    account, password = "team:a-password-for-tests", "another-password-for-tests"
    prefect, mlflow = f"http://127.0.0.1:{ports['PREFECT']}/api", f"http://127.0.0.1:{ports['MLFLOW']}"
    shared = {
        **object_store.environment,
        "MODELYARD_STORE": f"s3://{bucket}/team",
        "MODELYARD_STORE_EVERY_S": "0.5",
        "MODELYARD_DASHBOARD_PORT": "0",
        "MODELYARD_METRICS_PORT": "0",
        "MODELYARD_HOST_DEAD_S": "45",
        "PREFECT_API_AUTH_STRING": account,
        "MLFLOW_TRACKING_USERNAME": "team",
        "MLFLOW_TRACKING_PASSWORD": password,
    }
    made = Stack(Project.copy_to(folder / "origin"), folder, bucket, object_store, shared, Api(prefect, account), Api(mlflow, f"team:{password}"))
    servers = made.machine(
        "servers",
        **{f"MODELYARD_{name}_PORT": str(port) for name, port in ports.items()},
        MODELYARD_WORKERS="0",
        PREFECT_SERVER_API_AUTH_STRING=account,
        PREFECT_API_DATABASE_CONNECTION_URL=postgres.url("prefect", "postgresql+asyncpg"),
        MLFLOW_BACKEND_STORE_URI=postgres.url("mlflow", "postgresql+psycopg2"),
        MLFLOW_ARTIFACTS_DESTINATION=f"s3://{bucket}/mlflow",
    )
    made.services = {**shared, "PREFECT_API_URL": prefect, "MLFLOW_TRACKING_URI": mlflow}
    try:
        servers.up()
        yield made
    finally:
        for machine in reversed(made.machines.values()):
            machine.lose()


def test_neither_server_answers_without_an_account(stack: Stack) -> None:
    for api, path in ((stack.prefect, "/flow_runs/count"), (stack.mlflow, "/api/2.0/mlflow/experiments/search?max_results=1")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            Api(api.address).ask("POST" if api is stack.prefect else "GET", path, {} if api is stack.prefect else None)
        assert refused.value.code == 401


def test_a_line_goes_on_on_another_machine_when_the_first_one_is_lost(stack: Stack) -> None:
    one, two = stack.machine("one"), stack.machine("two")
    one.up()
    run_id = stack.begin(LONG)
    copied = wait_for("a checkpoint of sft on the store", lambda: step_on_store(stack) >= 20 and step_on_store(stack))
    assert copied < STEPS, "the stage was over before its machine could be lost: give it more steps"
    assert one.lose() > 3
    assert one.folder_of("pretrain") and not one.folder_of("sft"), "it was lost in the middle of sft"
    two.up()

    ended = wait_for("the run to end", lambda: (run := stack.run(run_id))["state_type"] in ("COMPLETED", "FAILED") and run)
    said = stack.said(run_id)
    assert ended["state_type"] == "COMPLETED", (ended["state"], said[:30])
    assert ended["run_count"] == 2, "the same run, begun again"

    pretrained, record = two.folder_of("pretrain"), Record.read(two.folder_of("sft") or Path())
    assert pretrained and Record.read(pretrained) == Record.read(one.folder_of("pretrain") or Path()), "fetched, not made again"
    resumed = [int(line.split()[3]) for line in said if line.startswith("resumed after step")]
    assert resumed and max(resumed) >= copied, (resumed, copied)
    assert record.execution["mlflow_run_id"] and not list((two.home / "stages").glob("sft-*.partial"))
    assert any("fetched" in line for line in said)


def test_what_the_line_released_is_in_the_registry_and_its_bytes_on_the_store(stack: Stack) -> None:
    (version,) = stack.mlflow.ask("GET", "/api/2.0/mlflow/model-versions/search?max_results=10")["model_versions"]
    assert version["tags"]
    artifacts = stack.store.keys(stack.bucket, "mlflow/")
    assert any(key.endswith("model.safetensors") for key in artifacts) and any(key.endswith("record.json") for key in artifacts)
    assert not stack.store.keys(stack.bucket, "team/unfinished/"), "what is finished leaves no state"


def test_a_third_machine_reuses_everything_and_trains_nothing(stack: Stack) -> None:
    stack.machines["two"].lose()
    three = stack.machine("three")
    three.up()
    run_id = stack.begin(LONG)
    ended = wait_for("the run to end", lambda: (run := stack.run(run_id))["state_type"] in ("COMPLETED", "FAILED", "CRASHED") and run)
    assert ended["state_type"] == "COMPLETED", (ended["state"], stack.said(run_id)[:30])
    made = [Record.read(three.home / "stages" / name) for name in three.stages() if not name.startswith("data-")]
    assert {record.stage for record in made} >= {"pretrain", "sft", "reward", "ppo", "evaluate", "release"}
    two = stack.machines["two"]
    before = {Record.read(two.home / "stages" / name).identity for name in two.stages()}
    assert {record.identity for record in made} <= before
    assert sum("fetching" in line for line in stack.said(run_id)) == len(made)
    three.lose()


def test_data_is_pushed_and_pulled_with_dvc_against_the_store(stack: Stack) -> None:
    four = stack.machine("four")
    (four.project.folder / ".dvc" / "config.local").write_text(
        f"['remote \"shared\"']\n    url = s3://{stack.bucket}/by-hand\n    endpointurl = {stack.store.endpoint}\n"
    )
    (four.project.folder / "letter.txt").write_text("kept on the store")
    dvc(four, "add", "letter.txt")
    dvc(four, "push", "-r", "shared", "letter.txt.dvc")
    (four.project.folder / "letter.txt").unlink()
    for cached in (four.project.folder / ".dvc" / "cache").rglob("*"):
        if cached.is_file():
            cached.chmod(0o644)
            cached.unlink()
    dvc(four, "pull", "-r", "shared", "letter.txt.dvc")
    assert (four.project.folder / "letter.txt").read_text() == "kept on the store"


def step_on_store(stack: Stack) -> int:
    """Steps done at the newest checkpoint of sft on the store; 0 = none."""
    client = stack.store.client()
    for key in stack.store.keys(stack.bucket, "team/unfinished/sft-"):
        if key.endswith("state.json"):
            try:
                return json.loads(client.get_object(Bucket=stack.bucket, Key=key)["Body"].read())["step"]
            except client.exceptions.NoSuchKey:
                return 0
    return 0
