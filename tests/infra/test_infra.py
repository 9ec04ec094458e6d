"""What infra/ promises: every file is valid for the tool that reads it, nothing listens to the world, nothing has a default password."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
COMPOSE = sorted((INFRA / "compose").glob("*.yaml"))
OVERLAYS = ("base", "overlays/production", "overlays/gpu", "overlays/people")
BESIDE = Path(sys.executable).parent  # where the environment's programs are


def program(name: str, feature: str | None = None) -> str:
    """Where a program is; skips where it is not."""
    found = shutil.which(name, path=f"{BESIDE}:/usr/bin:/usr/local/bin")
    if not found:
        pytest.skip(f"{name} is not installed: {f'sudo infra/debian.sh {feature}' if feature else 'pip install modelyard[dev]'}")
    return found


def said(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---------------------------------------------------------------- compose


def services() -> list[tuple[str, str, dict[str, Any]]]:
    return [(path.name, name, entry) for path in COMPOSE for name, entry in yaml.safe_load(path.read_text())["services"].items()]


NAMED = [pytest.param(entry, id=f"{file}:{name}") for file, name, entry in services()]


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_a_compose_file_fits_the_specification(path: Path) -> None:
    said(program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(path))


@pytest.mark.parametrize("service", NAMED)
def test_ports_are_published_on_loopback_only(service: dict[str, Any]) -> None:
    for port in service.get("ports", ()):
        assert str(port).startswith("127.0.0.1:"), port


@pytest.mark.parametrize("service", NAMED)
def test_no_password_has_a_default(service: dict[str, Any]) -> None:
    environment = service.get("environment", {})
    for name, value in environment.items():
        if re.search(r"PASSWORD|SECRET|ACCESS_KEY|AUTH_STRING|CONNECTION_URL|STORE_URI|ACCOUNTS_URI|DOCKET_URL|USERNAME", name):
            assert re.search(r"\$\{\w+:\?", str(value)), f"{name} must come from .env, and nothing may start without it: {value}"


@pytest.mark.parametrize("service", [value for value in NAMED if value.id and value.id.startswith("compose.yaml")])
def test_a_service_says_how_it_is(service: dict[str, Any]) -> None:
    assert "healthcheck" in service or service.get("restart") == "no", "what stays up has a health check"


@pytest.mark.parametrize("service", [value for value in NAMED if "modelyard:" in str(value.values[0].get("image"))])
def test_our_containers_are_read_only_and_without_capabilities(service: dict[str, Any]) -> None:
    if "extends" in service:
        return
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]


def test_images_are_pinned() -> None:
    for _, name, entry in services():
        image = str(entry.get("image", "modelyard:cpu"))
        image = re.sub(r"\$\{\w+:-(.+)\}", r"\1", image)
        assert ":" in image and not image.endswith(":latest"), (name, image)


def test_every_variable_that_compose_asks_for_is_in_the_example() -> None:
    example = (INFRA / "compose" / ".env.example").read_text()
    for path in COMPOSE:
        for name in re.findall(r"\$\{(\w+):\?", path.read_text()):
            assert re.search(rf"^{name}=$", example, re.M), f"{path.name} asks for {name}"


def test_every_file_that_compose_mounts_is_there() -> None:
    for path in COMPOSE:
        for entry in yaml.safe_load(path.read_text())["services"].values():
            for volume in entry.get("volumes", ()):
                if str(volume).startswith("."):
                    assert (path.parent / str(volume).split(":")[0]).exists(), volume


def test_the_databases_are_out_of_reach() -> None:
    whole = yaml.safe_load((INFRA / "compose" / "compose.yaml").read_text())
    assert whole["networks"]["stores"]["internal"] is True
    for name in ("postgres", "s3"):
        assert whole["services"][name]["networks"] == ["stores"] and "ports" not in whole["services"][name]


# ---------------------------------------------------------------- images and scripts


def test_the_dockerfile_passes_hadolint() -> None:
    said(program("hadolint"), str(INFRA / "compose" / "images" / "Dockerfile"))


def test_what_the_dockerfile_copies_is_there() -> None:
    for words in re.findall(r"^COPY (?!--from)(.+)$", (INFRA / "compose" / "images" / "Dockerfile").read_text(), re.M):
        for source in [word for word in words.split() if not word.startswith("--")][:-1]:
            assert (ROOT / source).exists(), source


@pytest.mark.parametrize("path", sorted(INFRA.rglob("*.sh")), ids=lambda path: path.relative_to(INFRA).as_posix())
def test_a_script_is_shell(path: Path) -> None:
    said("sh", "-n", str(path))


def test_the_debian_script_lists_what_it_would_install() -> None:
    listed = said("sh", str(INFRA / "debian.sh"), "list")
    assert [line.split(":")[0] for line in listed.splitlines()] == ["services", "browser", "monitoring", "containers"]
    refused = subprocess.run(["sh", str(INFRA / "debian.sh"), "nothing-of-the-kind"], capture_output=True, text=True)
    assert refused.returncode == 2 and "is none of services" in refused.stderr


# ---------------------------------------------------------------- Kubernetes


@cache
def built(overlay: str) -> list[dict[str, Any]]:
    return [row for row in yaml.safe_load_all(said(program("kubectl"), "kustomize", str(INFRA / "kubernetes" / overlay))) if row]


def pods(overlay: str) -> list[tuple[str, dict[str, Any]]]:
    return [(row["metadata"]["name"], row["spec"]["template"]["spec"]) for row in built(overlay) if row["kind"] in ("Deployment", "StatefulSet")]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_fits_kubernetes_own_schema(overlay: str, tmp_path: Path) -> None:
    path = tmp_path / "built.yaml"
    path.write_text(yaml.safe_dump_all(built(overlay)))
    said(program("kubernetes-validate"), "--strict", str(path))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_restricted(overlay: str) -> None:
    for name, pod in pods(overlay):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] and context["seccompProfile"]["type"] == "RuntimeDefault", name
        assert pod["automountServiceAccountToken"] is False, name
        for container in pod["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}, name
            assert set(container["resources"]["limits"]) >= {"cpu", "memory"} and container["livenessProbe"], name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_by_reference(overlay: str) -> None:
    assert not [row for row in built(overlay) if row["kind"] == "Secret"]
    settings = next(row for row in built(overlay) if row["kind"] == "ConfigMap")["data"]
    assert not [name for name in settings if re.search(r"PASSWORD|SECRET|KEY|AUTH", name)]
    for name, pod in pods(overlay):
        for entry in pod["containers"][0].get("env", ()):
            if re.search(r"PASSWORD|SECRET|ACCESS_KEY|AUTH_STRING|_URI$|CONNECTION_URL", entry["name"]):
                assert "secretKeyRef" in entry.get("valueFrom", {}), (name, entry)


def test_the_readme_names_every_key_of_the_secret() -> None:
    readme = (INFRA / "README.md").read_text()
    keys = {entry["valueFrom"]["secretKeyRef"]["key"] for _, pod in pods("base") for entry in pod["containers"][0]["env"] if "valueFrom" in entry}
    assert {key for key in keys if f"{key}=" not in readme} == set()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_is_denied_that_is_not_allowed(overlay: str) -> None:
    policies = [row["spec"] for row in built(overlay) if row["kind"] == "NetworkPolicy"]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies
    for policy in policies:
        for rule in policy.get("ingress", []) + policy.get("egress", []):
            assert rule.get("ports") and (rule.get("from") or rule.get("to")), policy


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_set_selects_its_own_pods_only(overlay: str) -> None:
    sets = [row for row in built(overlay) if row["kind"] in ("Deployment", "StatefulSet")]
    for one in sets:
        wanted = one["spec"]["selector"]["matchLabels"].items()
        chosen = [other["metadata"]["name"] for other in sets if wanted <= other["spec"]["template"]["metadata"]["labels"].items()]
        assert chosen == [one["metadata"]["name"]]


def test_gpu_workers_ask_for_devices() -> None:
    pod = dict(pods("overlays/gpu"))["gpu-worker"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 8


# ---------------------------------------------------------------- Prometheus


def test_prometheus_takes_its_configuration_and_the_rules() -> None:
    told = said(program("promtool", "monitoring"), "check", "config", "prometheus.yaml", cwd=INFRA / "prometheus")
    assert "rule files found" in told


@pytest.mark.parametrize("path", sorted((INFRA / "prometheus" / "tests").glob("*.yaml")), ids=lambda path: path.name)
def test_alerts_fire_when_they_should_and_not_otherwise(path: Path) -> None:
    said(program("promtool", "monitoring"), "test", "rules", str(path))


def test_the_operator_of_kubernetes_gets_every_file_of_rules() -> None:
    made = yaml.safe_load_all(said(program("kubectl"), "kustomize", "--load-restrictor", "LoadRestrictionsNone", str(INFRA / "kubernetes" / "monitoring")))
    given = next(row["data"] for row in made if row["kind"] == "ConfigMap")
    assert given == {path.name: path.read_text() for path in (INFRA / "prometheus" / "rules").glob("*.yaml")}


def test_every_alert_has_a_case_and_says_what_to_do() -> None:
    tested = {case["alertname"] for path in (INFRA / "prometheus" / "tests").glob("*.yaml") for test in yaml.safe_load(path.read_text())["tests"] for case in test.get("alert_rule_test", ()) if case["exp_alerts"]}
    for rule in rules():
        assert "record" in rule or (rule["alert"] in tested and rule["annotations"]["next"]), rule


def test_every_metric_that_an_alert_reads_is_exported_and_explained() -> None:
    from components.serving.metrics import Metrics

    source = "".join(path.read_text() for path in (ROOT / "flows" / "exported").glob("*.py")) + (ROOT / "flows" / "exporter.py").read_text()
    people = (ROOT / "components" / "feedback" / "people" / "metrics.py").read_text()
    exported = set(re.findall(r'"(modelyard_\w+)"', source)) | {family.name for family in Metrics().registry.collect()}
    exported |= {f"modelyard_feedback_{name.removeprefix('modelyard_feedback_')}" for name in re.findall(r'"(\w+)"', people)}
    readme = (INFRA / "prometheus" / "README.md").read_text()
    for rule in rules():
        for name in {re.sub(r"_(total|bucket)$", "", found) for found in re.findall(r"modelyard_\w+", rule["expr"])}:
            assert name in exported and name in readme, f"{rule.get('alert') or rule['record']} reads {name}"


def rules() -> list[dict[str, Any]]:
    return [rule for path in (INFRA / "prometheus" / "rules").glob("*.yaml") for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
