"""The whole platform on services: PostgreSQL under both servers, S3 for artifacts, data and results, accounts on both, and machines that come and go.

Machines share nothing but these services: one runs the servers, two have a worker each. A line is begun on one of the two, which is then lost in the
middle of a stage; the other one fetches what was finished, goes on from the last checkpoint, and releases. On a third one a person types the same line,
and nothing is made again.
"""

from __future__ import annotations

import json
import shutil
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from components.data.steps import MODULES as DATA_STEPS
from components.schema.recipe import Recipe
from components.schema.records import Record
from tests.flows.project import MICRO, Project
from tests.services.machines import PATIENCE_S, Api, Machine, dvc, wait_for
from tests.services.stack import ObjectStore, Postgres, free_port

pytestmark = [pytest.mark.services, pytest.mark.timeout(3600)]

STEPS = 1000
# A line as short as a whole one can be, but for the stage in whose middle the machine is lost.
SETS = (
    "data.curriculum={seed: 1, documents: 120, chats: 80, preferences: 60, benchmark_items: 5}",
    f"sft={{steps: {STEPS}, batch_size: 4, learning_rate: 1e-3, warmup_steps: 2, heldout_chats: 8, checkpoint_every_steps: 20}}",
    "reward=null",
    "align=null",
    "evals={suites: [mini_mmlu], limit: 2, max_new_tokens: 8, perplexity_sequences: 4}",
)
MADE = ["pretrain", "sft", "evaluate", "release"]


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

    def begin(self) -> str:
        """The line, by its deployment, as the form's button does it; gives the run's id."""
        recipe = Recipe.load(self.base.folder / "recipes" / "tiny.yaml", [*MICRO, *SETS], lambda line: None)
        found = self.prefect.ask("GET", "/deployments/name/train-and-release/train-and-release")
        asked = {"parameters": {"recipe": recipe.model_dump(mode="json"), "resources": {"threads": 1}}, "state": {"type": "SCHEDULED"}}
        return self.prefect.ask("POST", f"/deployments/{found['id']}/create_flow_run", asked)["id"]

    def run(self, run_id: str) -> dict[str, Any]:
        return self.prefect.ask("GET", f"/flow_runs/{run_id}")

    def versions(self) -> list[dict[str, Any]]:
        """All model versions of the registry."""
        return self.mlflow.ask("GET", "/api/2.0/mlflow/model-versions/search?max_results=10").get("model_versions", [])

    def said(self, run_id: str) -> list[str]:
        """Log lines of a run and the runs within it."""
        inner = [row["flow_run_id"] for row in self.prefect.ask("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}, "limit": 200})]
        below = [row["id"] for row in self.prefect.ask("POST", "/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run_id]}}, "limit": 200})]
        wanted = {"logs": {"flow_run_id": {"any_": sorted({run_id, *inner, *below})}}, "limit": 200, "sort": "TIMESTAMP_ASC"}
        found: list[str] = []
        while page := self.prefect.ask("POST", "/logs/filter", {**wanted, "offset": len(found)}):
            found += [row["message"] for row in page]
        return found


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
        "MODELYARD_FEEDBACK_PORT": "0",
        "MODELYARD_METRICS_PORT": "0",
        "MODELYARD_HOST_DEAD_S": "60",
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
    run_id = stack.begin()
    wait_for("machine one to begin", lambda: stack.run(run_id)["state_type"] == "RUNNING")
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(two.up)  # its only worker has nothing to do yet
        copied = wait_for("a checkpoint of sft on the store", lambda: (step := step_on_store(stack)) >= 20 and step)
        assert one.lose() > 3
        coming.result()
    assert copied < STEPS, "the stage was over before its machine could be lost: give it more steps"
    assert one.folder_of("pretrain") and not one.folder_of("sft"), "it was lost in the middle of sft"

    ended = wait_for("the run to end", lambda: (run := stack.run(run_id))["state_type"] in ("COMPLETED", "FAILED") and run)
    said = stack.said(run_id)
    assert ended["state_type"] == "COMPLETED", (ended["state"], said[-30:])
    assert ended["run_count"] == 2, "the same run, begun again"
    for words in (("made",), ("fetched", "restored")):
        assert {step for step in DATA_STEPS for word in words if any(line.startswith(f"{step} {word} (") for line in said)} == set(DATA_STEPS), "one made all data, two fetched it"
    assert sum(line.startswith(tuple(f"{step} made (" for step in DATA_STEPS)) for line in said) == len(DATA_STEPS), "machine two made none of it"

    pretrained, record = two.folder_of("pretrain"), Record.read(two.folder_of("sft") or Path())
    assert pretrained and Record.read(pretrained) == Record.read(one.folder_of("pretrain") or Path()), "fetched, not made again"
    resumed = [int(line.split()[3]) for line in said if line.startswith("resumed after step")]
    assert resumed and max(resumed) >= copied, (resumed, copied)
    assert record.execution["mlflow_run_id"] and not list((two.home / "stages").glob("sft-*.partial"))


def test_what_the_line_released_is_in_the_registry_and_its_bytes_on_the_store(stack: Stack) -> None:
    (version,) = stack.versions()
    assert version["tags"]
    artifacts = stack.store.keys(stack.bucket, "mlflow/")
    assert any(key.endswith("model.safetensors") for key in artifacts) and any(key.endswith("record.json") for key in artifacts)
    assert not stack.store.keys(stack.bucket, "team/unfinished/"), "what is finished leaves no state"


def test_a_stage_asked_for_where_there_is_no_data_brings_it_from_the_store(stack: Stack) -> None:
    two, three = stack.machines["two"], stack.machine("three")
    said = three.project.run("stage", "pretrain", *three.project.recipe(*SETS), timeout_s=PATIENCE_S).stdout
    assert "pretrain: fetched" in said and "tokens made" not in said
    assert contents(three.project.folder / "data" / "tiny") == contents(two.project.folder / "data" / "tiny")


def test_the_same_line_typed_on_a_third_machine_makes_nothing_again(stack: Stack) -> None:
    two, three = stack.machines["two"], stack.machines["three"]
    said = three.project.run("run", *three.project.recipe(*SETS), "--json", timeout_s=PATIENCE_S).stdout
    summary = json.loads(said.splitlines()[-1])
    assert summary["release"]["uri"] == "models:/modelyard-tiny/1" and len(stack.versions()) == 1
    assert summary["stages"]["data"]["status"] == "reused", "DVC ran nothing"
    for stage in MADE:
        here, there = three.folder_of(stage), two.folder_of(stage)
        assert here and there and Record.read(here) == Record.read(there), f"{stage} was fetched"
        assert summary["stages"][stage]["status"] == ("reused" if stage == "pretrain" else "fetched")


def test_data_is_pulled_and_pushed_against_the_store(stack: Stack) -> None:
    three = stack.machines["three"].project
    made = contents(three.folder / "data" / "tiny")
    (three.folder / "letter.txt").write_text("kept on the store")
    dvc(stack.machines["three"], "add", "letter.txt")
    three.run("data", "push", timeout_s=PATIENCE_S)
    (three.folder / "letter.txt").unlink()
    for folder in ("data/tiny", ".dvc/cache"):
        shutil.rmtree(three.folder / folder)
    three.run("data", "pull", timeout_s=PATIENCE_S)
    assert contents(three.folder / "data" / "tiny") == made
    assert (three.folder / "letter.txt").read_text() == "kept on the store"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
