"""The platform without its servers: what the environment asks for, what is started for it, and that only its own processes are ever ended."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from components.schema.config import BadInput
from flows import server
from flows.platform import children as specifications
from flows.platform import ending, supervisor, up, worker
from flows.platform.children import Child, children, environment
from flows.platform.register import schedules_kept
from flows.platform.settings import Settings
from flows.platform.state import ChildState, Process, State

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "home/platform/logs").mkdir(parents=True)
    return tmp_path / "home"


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that a test started; none outlives it."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def settings(tmp_path: Path, **environ: str) -> Settings:
    return Settings.read(environ, project=tmp_path)


# ---------------------------------------------------------------- what the environment asks for


def test_nothing_said_means_loopback_and_the_usual_ports(tmp_path: Path) -> None:
    asked = settings(tmp_path)
    assert asked.prefect_url == "http://127.0.0.1:4200/api" and asked.mlflow_url == "http://127.0.0.1:5000"
    assert asked.is_local and asked.served == ("prefect", "mlflow", "dashboard", "feedback", "metrics")


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as error:
        settings(tmp_path, MODELYARD_PREFECT_PORT="http", MODELYARD_MLFLOW_PORT="9464", MODELYARD_WORKERS="-1", MLFLOW_TRACKING_USERNAME="ann")
    said = str(error.value)
    assert "MODELYARD_PREFECT_PORT='http' is not a whole number" in said and "MODELYARD_WORKERS='-1'" in said
    assert "port 9464 is asked for by MODELYARD_MLFLOW_PORT and MODELYARD_METRICS_PORT" in said and "MLFLOW_TRACKING_PASSWORD is not" in said


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "yard.example.org", "::"])
def test_servers_that_others_reach_are_refused_without_accounts(tmp_path: Path, host: str) -> None:
    with pytest.raises(BadInput, match="PREFECT_SERVER_API_AUTH_STRING=user:password and MLFLOW_TRACKING_USERNAME"):
        settings(tmp_path, MODELYARD_HOST=host)
    with_accounts = {"PREFECT_SERVER_API_AUTH_STRING": "a:b", "MLFLOW_TRACKING_USERNAME": "a", "MLFLOW_TRACKING_PASSWORD": "long-enough-12"}
    assert not settings(tmp_path, MODELYARD_HOST=host, **with_accounts).is_local


def test_a_folder_without_a_project_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has no dvc\.yaml"):
        Settings.read({}, project=tmp_path / "home")


# ---------------------------------------------------------------- what is started


def test_a_machine_that_joins_starts_no_servers(tmp_path: Path) -> None:
    asked = settings(tmp_path, PREFECT_API_URL="http://yard:4200/api", MLFLOW_TRACKING_URI="http://yard:5000", MODELYARD_WORKERS="2", MODELYARD_DASHBOARD_PORT="0", MODELYARD_FEEDBACK_PORT="0", MODELYARD_METRICS_PORT="0")
    assert [child.name for child in children(asked, {})] == ["worker-1", "worker-2", "watching"]
    assert environment(asked, {})["PREFECT_API_URL"] == "http://yard:4200/api"
    assert asked.served == ()


def test_children_wait_for_the_servers_and_the_servers_for_nobody(tmp_path: Path) -> None:
    by_name = {child.name: child for child in children(settings(tmp_path), {})}
    assert list(by_name) == ["prefect", "mlflow", "worker-1", "watching", "exporter", "dashboard", "feedback"]
    assert by_name["prefect"].after == by_name["mlflow"].after == ()
    assert all(child.after == ("prefect", "mlflow") for name, child in by_name.items() if name not in ("prefect", "mlflow"))


def test_a_child_whose_library_is_missing_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(specifications.NEEDS, "dashboard", ("no_such_library", "dashboard"))
    assert "dashboard" not in [child.name for child in children(settings(tmp_path), {})]
    said: list[str] = []
    free = {f"MODELYARD_{name}_PORT": str(_free()) for name in ("PREFECT", "MLFLOW", "DASHBOARD", "FEEDBACK", "METRICS")}
    up.ready_to_start(settings(tmp_path, **free), said.append)
    assert said == ["NOT STARTED: dashboard; its library is not installed. pip install 'modelyard[dashboard]'"]


def test_no_secret_stands_on_a_command_line(tmp_path: Path) -> None:
    secrets = {"PREFECT_SERVER_API_AUTH_STRING": "ann:hidden-one", "MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "hidden-two-long"}
    environ = {**secrets, "PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://u:hidden-three@db/p", "MLFLOW_BACKEND_STORE_URI": "postgresql://u:hidden-four@db/m"}
    asked = settings(tmp_path, **environ)
    assert not [word for child in children(asked, environ) for word in child.command if "hidden" in word]
    mlflow = next(child for child in children(asked, environ) if child.name == "mlflow")
    assert mlflow.env["MLFLOW_AUTH_ADMIN_PASSWORD"] == "hidden-two-long" and "basic-auth" in mlflow.command


def test_whoever_set_a_variable_keeps_it(tmp_path: Path) -> None:
    environ = {"MLFLOW_BACKEND_STORE_URI": "postgresql://db/m", "PREFECT_WORKER_QUERY_SECONDS": "20"}
    asked = settings(tmp_path, **environ)
    env = environment(asked, environ)
    for child in children(asked, environ):
        running = supervisor.Running(child, env, tmp_path)
        assert running.env["MLFLOW_BACKEND_STORE_URI"] == "postgresql://db/m" and running.env["PREFECT_WORKER_QUERY_SECONDS"] == "20"
        assert running.env["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"


def test_registering_again_leaves_schedules_as_people_set_them() -> None:
    from prefect.client.schemas.objects import DeploymentSchedule
    from prefect.client.schemas.schedules import CronSchedule, RRuleSchedule

    ours = [{"slug": "nightly", "cron": "0 2 * * *", "active": False}, {"slug": "new", "cron": "0 5 * * *", "active": False}]
    there = [
        DeploymentSchedule(slug="nightly", schedule=CronSchedule(cron="0 1 * * *"), active=True),
        DeploymentSchedule(slug="gone from the file", schedule=CronSchedule(cron="0 4 * * *"), active=True),
        DeploymentSchedule(schedule=RRuleSchedule(rrule="FREQ=WEEKLY;BYDAY=MO", timezone="Europe/Berlin"), active=False, parameters={"recipe": "a.yaml"}),
    ]
    added = {"rrule": "FREQ=WEEKLY;BYDAY=MO", "timezone": "Europe/Berlin", "active": False, "parameters": {"recipe": "a.yaml"}}
    kept = schedules_kept(ours, there)
    assert kept[:2] == [{**ours[0], "active": True}, ours[1]]
    assert len(kept) == 3 and {**kept[2], "rrule": kept[2]["rrule"].split()[-1]} == added


def test_a_port_in_use_is_told_with_the_variable_that_moves_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=rf"127\.0\.0\.1:{port} \(mlflow\) is in use .* MODELYARD_MLFLOW_PORT$"):
            up.check_ports(settings(tmp_path, MODELYARD_MLFLOW_PORT=str(port), MODELYARD_PREFECT_PORT=str(_free()), MODELYARD_DASHBOARD_PORT="0", MODELYARD_FEEDBACK_PORT="0", MODELYARD_METRICS_PORT="0"))


# ---------------------------------------------------------------- whose a process is


def test_a_pid_that_came_round_again_is_another_process(started: list[subprocess.Popen[bytes]]) -> None:
    started.append(subprocess.Popen(SLEEP))
    found = Process.of(started[0].pid)
    assert found is not None and found.alive
    later = found.model_copy(update={"started": found.started - 1})
    assert not later.alive and not found.model_copy(update={"boot": "before"}).alive
    later.tell(signal.SIGKILL)
    time.sleep(0.1)
    assert started[0].poll() is None


def test_only_marked_processes_are_ended(started: list[subprocess.Popen[bytes]], own_home: Path) -> None:
    mark = {ending.MARK: ending.mark()}
    started += [subprocess.Popen(SLEEP, env={**os.environ, **mark}), subprocess.Popen(SLEEP), subprocess.Popen(SLEEP, env={**os.environ, ending.MARK: ending.mark() + "0"})]
    time.sleep(0.2)  # their environment stands once they are executed
    assert [process.pid for process in ending.marked()] == [started[0].pid]
    ending.end(ending.marked(), grace_s=5)
    assert started[0].wait(5) == -signal.SIGTERM and started[1].poll() is started[2].poll() is None


def test_a_run_is_told_from_children_and_from_its_own_stages(started: list[subprocess.Popen[bytes]]) -> None:
    env = {**os.environ, ending.MARK: ending.mark()}
    with_a_stage = [sys.executable, "-c", f"import subprocess; subprocess.run({SLEEP!r}, start_new_session=True)"]
    started += [subprocess.Popen(SLEEP, env=env, start_new_session=True), subprocess.Popen(with_a_stage, env=env, start_new_session=True)]
    _until(lambda: len(ending.marked()) == 3)
    child = Process.of(started[0].pid)
    assert child is not None
    assert [run.pid for run in ending.runs([child])] == [started[1].pid]
    ending.end([process for process in ending.marked() if process.pid != child.pid], grace_s=5)


# ---------------------------------------------------------------- keeping them running


def test_a_killed_child_comes_back_and_one_that_keeps_failing_ever_more_slowly(tmp_path: Path, own_home: Path) -> None:
    running = supervisor.Running(Child("sleeper", tuple(SLEEP)), dict(os.environ), tmp_path)
    running.start()
    first = running.process.pid
    os.kill(first, signal.SIGKILL)
    _until(lambda: running.look() or running.process is None)
    assert "was killed by SIGKILL" in running.state.ended and not running.ready
    pauses = []
    for _ in range(8):
        pauses.append(math.ceil(running.due - time.monotonic()))
        running.start()
        os.kill(running.process.pid, signal.SIGKILL)
        _until(lambda: running.look() or running.process is None)
    assert pauses == [1, 2, 5, 10, 30, 60, 60, 60] and running.state.starts == 9


def test_whoever_ends_a_child_ends_its_group(tmp_path: Path, own_home: Path) -> None:
    with_a_grandchild = (sys.executable, "-c", f"import subprocess; subprocess.run({SLEEP!r})")
    running = supervisor.Running(Child("parent", with_a_grandchild), {**os.environ, ending.MARK: ending.mark()}, tmp_path)
    running.start()
    _until(lambda: len(ending.marked()) == 2)
    running.stop(grace_s=5)
    _until(lambda: not ending.marked())


def test_a_second_supervisor_is_refused(own_home: Path) -> None:
    with supervisor.alone(), pytest.raises(BadInput, match="is running already"), supervisor.alone():
        pass


def test_what_a_dead_supervisor_left_is_ended_and_its_runs_only_where_they_could_not_go_on(started: list[subprocess.Popen[bytes]], own_home: Path) -> None:
    env = {**os.environ, ending.MARK: ending.mark()}
    started += [subprocess.Popen(SLEEP, env=env, start_new_session=True) for _ in range(2)]
    child, me = Process.of(started[0].pid), Process.of(os.getpid())
    assert child is not None and me is not None
    dead = me.model_copy(update={"started": 1})
    State(supervisor=dead, project="", began=0.0, prefect_url="http://127.0.0.1:1/api", mlflow_url="", children={"prefect": ChildState(process=child, log="")}).write()
    _until(lambda: len(ending.marked()) == 2)
    said: list[str] = []
    assert up.clear_leftovers(said.append, keep_runs_of="http://127.0.0.1:1/api")
    assert started[0].wait(5) == -signal.SIGTERM and started[1].poll() is None
    assert "1 flow runs outlived it and go on" in said[-1] and State.read() is None
    assert up.clear_leftovers(said.append)
    assert started[1].wait(5) == -signal.SIGTERM


def test_a_worker_asks_for_as_long_as_the_api_is_away_and_stops_where_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([httpx.ConnectError("refused")] * 30 + [None, _answered(503), None, _answered(401)])
    asked, said = [], []

    async def workload() -> None:
        asked.append(1)
        if error := next(answers):
            raise error

    async def no_pause(seconds: float) -> None:
        assert seconds <= worker.LONGEST_PAUSE_S

    monkeypatch.setattr(worker.asyncio, "sleep", no_pause)
    with pytest.raises(httpx.HTTPStatusError):
        asyncio.run(worker.ask_forever(workload, 2.0, printer=said.append))
    assert len(asked) == 34 and "the API answers again, after 30 failures" in said


def test_prefects_worker_still_has_the_places_that_ours_changes() -> None:
    from prefect.runner import _starter_engine
    from prefect.workers import base

    assert callable(base.critical_service_loop) and callable(_starter_engine.run_process)
    source = inspect.getsource(base.BaseWorker)
    for place in ("async def setup(", "async def _submit_run(", "self._limiter.acquire_on_behalf_of_nowait(flow_run.id)", "self._limiter.release_on_behalf_of(flow_run_id)", "self._submitting_flow_run_ids"):
        assert place in source, place


# ---------------------------------------------------------------- who uses it


def test_a_command_uses_the_platform_of_its_home_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, own_home: Path) -> None:
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "x")  # so that it is put back
        monkeypatch.delenv(name)
    me = Process.of(os.getpid())
    assert me is not None
    State(supervisor=me.model_copy(update={"started": 1}), project="", began=0.0, prefect_url="http://p/api", mlflow_url="http://m").write()
    server.join()
    assert "PREFECT_API_URL" not in os.environ  # its supervisor is gone
    State(supervisor=me, project="", began=0.0, prefect_url="http://p/api", mlflow_url="http://m").write()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://another")
    server.join()
    assert os.environ["PREFECT_API_URL"] == "http://p/api" and os.environ["MLFLOW_TRACKING_URI"] == "http://another"


def test_a_server_that_does_not_answer_is_told_before_a_flow_starts() -> None:
    with pytest.raises(BadInput, match=r"does not answer .*modelyard status"):
        server.check_answers(f"http://127.0.0.1:{_free()}/api", patience_s=0)


def _answered(code: int) -> httpx.HTTPStatusError:
    asked = httpx.Request("POST", "http://x")
    return httpx.HTTPStatusError("said", request=asked, response=httpx.Response(code, request=asked))


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _until(condition: object, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_endpoint_is_started_where_a_model_is_named_and_only_there(tmp_path: Path) -> None:
    asked = settings(tmp_path, MODELYARD_SERVE="models:/yard@champion", MODELYARD_SERVE_PORT="8123")
    (child,) = (one for one in children(asked, {}) if one.name == "serving")
    assert child.health == "http://127.0.0.1:8123/health" and '"wait":true' in child.command[-1] and '"model":"models:/yard@champion"' in child.command[-1]
    assert environment(asked, {})["MODELYARD_SERVING_URL"] == "http://127.0.0.1:8123" and "serving" in asked.served
    assert "serving" not in {one.name for one in children(settings(tmp_path), {})} and "serving" not in settings(tmp_path).served


def test_an_endpoint_of_the_platform_takes_its_options_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "serving.yaml"
    file.write_text("{model: 'models:/yard@champion', canary: 'models:/yard@challenger', canary_share: 0.2, port: 9000}")
    (child,) = (one for one in children(settings(tmp_path, MODELYARD_SERVE=str(file), MODELYARD_SERVE_PORT="8123"), {}) if one.name == "serving")
    assert json.loads(child.command[-1]) == {"model": "models:/yard@champion", "canary": "models:/yard@challenger", "canary_share": 0.2, "host": "127.0.0.1", "port": 8123, "wait": True}
    file.write_text("{model: 'models:/yard@champion', canary_share: 2, shadwo: x}")
    with pytest.raises(BadInput, match=r"(?s)2 problem.*canary_share.*shadwo"):
        settings(tmp_path, MODELYARD_SERVE=str(file))
