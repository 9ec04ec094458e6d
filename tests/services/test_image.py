"""The workers' image, built and run without a daemon: buildah on a base that debootstrap makes, then a container with nothing but the network in common
with the servers, which is given a line to run. Many minutes and several GB: `make test-slow`, as root, with `infra/debian.sh containers`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.schema.recipe import Recipe
from tests.flows.project import MICRO, Project
from tests.services import stack
from tests.services.machines import Api, Machine, wait_for
from tests.services.stack import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]

BASE, IMAGE = "localhost/modelyard-test-base", "localhost/modelyard-test"
# As compose starts them: nothing writable but the volume and /tmp, no capabilities, no way to more rights.
RUN = "podman --runtime runc --cgroup-manager cgroupfs run --network host --ulimit nofile=4096:4096 --ulimit nproc=4096:4096 --read-only --tmpfs /tmp --cap-drop all --security-opt no-new-privileges".split()
LINE = ("sft=null", "reward=null", "align=null", "evals=null")


def done(*command: str, cwd: Path | None = None) -> str:
    finished = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert finished.returncode == 0, f"{' '.join(command)}\n{finished.stdout[-5000:]}"
    return finished.stdout


def with_this_machines_pip(folder: Path) -> list[str]:
    """Where this machine's pip finds packages, for the build's: its settings, and whatever files they name."""
    listed = done(sys.executable, "-m", "pip", "config", "list")
    pairs = [line.split("=", 1) for line in listed.splitlines() if line.startswith(("global.", ":env:."))]
    settings = {name.rpartition(".")[2]: value.strip("'\"").replace("\\n", "\n  ") for name, value in pairs}
    (folder / "pip.conf").write_text("\n".join(["[global]", "retries = 1", *(f"{name} = {value}" for name, value in settings.items()), ""]))
    named = {Path("/", *Path(path).parts[1:3]) for path in re.findall(r"(?:file://)?(/[\w./-]+)", " ".join(settings.values())) if Path(path).exists()}
    mounts = [f"{path}:{path}:ro" for path in sorted({*named, Path("/etc/ssl")}) if path != Path("/etc")]
    return [word for mount in (f"{folder / 'pip.conf'}:/etc/pip.conf:ro", *mounts) for word in ("--volume", mount)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.copy_to(tmp_path_factory.mktemp("image") / "project")


@pytest.fixture(scope="module")
def image(project: Project) -> str:
    """Built from a checkout, as infra/README.md says."""
    if reason := stack.missing("containers"):
        pytest.skip(reason)
    if os.geteuid() != 0:
        pytest.skip("debootstrap and containers without a daemon want root")
    folder = project.folder.parent
    if subprocess.run(["podman", "image", "exists", BASE]).returncode:
        done("debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm", str(folder / "base"))
        done("sh", "-c", f"tar -C {folder / 'base'} -c . | podman import - {BASE}")
        shutil.rmtree(folder / "base")
    options = ["--format", "docker", "--isolation", "chroot", "--network", "host", "--build-arg", f"BASE={BASE}", *with_this_machines_pip(folder)]
    done("buildah", "bud", "--layers", *options, "-f", "infra/compose/images/Dockerfile", "-t", IMAGE, ".", cwd=project.folder)
    return IMAGE


@pytest.fixture(scope="module")
def servers(project: Project) -> Iterator[Machine]:
    """Prefect and MLflow, and no worker."""
    ports = {name: str(free_port()) for name in ("PREFECT", "MLFLOW")}
    machine = Machine.cloned(project, project.folder.parent / "servers", **{f"MODELYARD_{name}_PORT": port for name, port in ports.items()}, MODELYARD_WORKERS="0", MODELYARD_DASHBOARD_PORT="0", MODELYARD_METRICS_PORT="0", MODELYARD_FEEDBACK_PORT="0")
    try:
        machine.up()
        yield machine
    finally:
        machine.lose()


def test_the_image_knows_the_command_and_runs_without_rights(image: str) -> None:
    assert "modelyard run" in done(*RUN, "--rm", image, "modelyard", "--help")
    assert done(*RUN, "--rm", image, "id", "-u").strip() == "10001"


def test_a_worker_that_is_told_of_no_server_says_so_and_ends(image: str) -> None:
    ended = subprocess.run([*RUN, "--rm", image], capture_output=True, text=True)
    assert ended.returncode != 0 and "PREFECT_API_URL: names the Prefect server" in ended.stderr


def test_a_container_trains_for_a_platform_elsewhere(image: str, servers: Machine, project: Project, tmp_path: Path) -> None:
    prefect, mlflow = (f"http://127.0.0.1:{servers.environment[f'MODELYARD_{name}_PORT']}" for name in ("PREFECT", "MLFLOW"))
    api, volume = Api(f"{prefect}/api"), tmp_path / "volume"
    volume.mkdir()
    os.chown(volume, 10001, 10001)
    told = {"PREFECT_API_URL": api.address, "MLFLOW_TRACKING_URI": mlflow, "MODELYARD_DASHBOARD_PORT": "0", "MODELYARD_METRICS_PORT": "0", "MODELYARD_FEEDBACK_PORT": "0", "OMP_NUM_THREADS": "1"}
    container = done(*RUN, "-d", "--volume", f"{volume}:/srv/modelyard", *(word for name, value in told.items() for word in ("--env", f"{name}={value}")), image).split()[-1]
    try:
        wait_for("the container's worker", lambda: api.ask("POST", "/work_pools/modelyard/workers/filter", {}))
        recipe = Recipe.load(project.folder / "recipes" / "tiny.yaml", [*MICRO, "data.sources=[{kind: files, path: README.md, domain: notes}]", *LINE], lambda line: None)
        deployment = api.ask("GET", "/deployments/name/train-and-release/train-and-release")["id"]
        asked = {"parameters": {"recipe": recipe.model_dump(mode="json"), "resources": {"threads": 1}}, "state": {"type": "SCHEDULED"}}
        run = api.ask("POST", f"/deployments/{deployment}/create_flow_run", asked)["id"]
        wait_for("the run's end", lambda: api.ask("GET", f"/flow_runs/{run}")["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"))
        ended = api.ask("GET", f"/flow_runs/{run}")
        assert ended["state_type"] == "COMPLETED", ended["state"]["message"] + subprocess.run(["podman", "logs", "--tail", "50", container], capture_output=True, text=True).stdout
        assert [path.parent.name.split("-")[0] for path in (volume / "home" / "stages").glob("pretrain-*/record.json")] == ["pretrain"]
    finally:
        subprocess.run(["podman", "stop", "-t", "40", container], capture_output=True)
        subprocess.run(["podman", "rm", "-f", container], capture_output=True)
