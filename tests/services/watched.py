"""Everything that Prometheus watches, for real: a platform with a line on it, the model that it releases behind an endpoint, people who rank, and Prometheus with our rules.

    with Watched.begun(folder) as yard:
        yard.run_a_line(); yard.serve(); yard.rank()
        yard.ports["prometheus"]

GPUs are told by the exporter's own code over a stand-in driver, since few machines that run tests have one; the canary's history is a line as a canary writes it.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any, Self

import yaml
from prometheus_client import CollectorRegistry, start_http_server

from components.cost.energy import held_gpus
from components.schema.recipe import Recipe
from flows.exported.devices import GPU, Devices
from tests.flows.project import MICRO, ROOT, Project
from tests.flows.test_exporter import _Only
from tests.monitoring.test_exported import Telling
from tests.services.machines import Api, Machine, wait_for
from tests.services.stack import Daemon, free_port

PORTS = ("PREFECT", "MLFLOW", "METRICS", "FEEDBACK")
# Long enough for each stage to be seen at work, at a look a second.
SETS = (
    *MICRO, "data.mix.max_epochs=100",
    "pretrain={steps: 600, batch_size: 8, learning_rate: 1e-3, warmup_steps: 2, heldout_sequences: 4, validate_every_steps: 20, checkpoint_every_steps: 1000}",
    "sft={steps: 400, batch_size: 4, learning_rate: 1e-3, warmup_steps: 2, heldout_chats: 8, checkpoint_every_steps: 1000}",
    "reward={steps: 400, batch_size: 4, learning_rate: 1e-3, warmup_steps: 2, heldout_pairs: 8, checkpoint_every_steps: 1000}",
    "align={method: ppo, iterations: 40, rollout_size: 4, minibatch_size: 4, epochs: 1, max_new_tokens: 8, heldout_prompts: 4, checkpoint_every_iterations: 100}",
    "evals={suites: [mini_gsm8k], limit: 2, max_new_tokens: 8, perplexity_sequences: 4}",
)  # fmt: skip
MODEL = "modelyard-tiny"  # what the recipe releases
CANARY = {"recipe": "recipes/tiny.yaml", "seconds_in_all": 61.5, "changes": []}
DATASET = "people"


@dataclass
class Watched:
    """The servers, and how they are reached."""

    machine: Machine
    ports: dict[str, int]
    daemons: list[Daemon] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def begun(cls, folder: Path) -> Iterator[Self]:
        """A platform that is up in a copy of the project, and Prometheus; at the end nothing of it runs."""
        ports = {name: free_port() for name in (*PORTS, "gpus", "endpoint", "prometheus")}
        told = {
            **{f"MODELYARD_{name}_PORT": str(ports[name]) for name in PORTS},
            "MODELYARD_DASHBOARD_PORT": "0", "MODELYARD_METRICS_EVERY_S": "1", "MODELYARD_CPU_SLOTS": "1", "MODELYARD_GPUS": "0", "OMP_NUM_THREADS": "1",
            "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1", "MODELYARD_HOME": str(folder / "yard"), "MODELYARD_SLOT_LOCKS": str(folder / "locks"),
        }  # fmt: skip
        history = folder / "yard" / "canary" / "history.jsonl"
        history.parent.mkdir(parents=True)
        history.write_text(json.dumps({**CANARY, "at": datetime.now(UTC).isoformat()}) + "\n")
        project = Project.copy_to(folder / "project")
        project.environment = told
        found = cls(Machine(project, told), ports)
        gpus, thread = _gpus(ports["gpus"])
        try:
            found._watch(folder)
            found.machine.up()
            yield found
        finally:
            for daemon in reversed(found.daemons):
                daemon.end(signal.SIGTERM, grace_s=10)
            found.machine.lose()
            gpus.shutdown()
            thread.join()

    @property
    def env(self) -> dict[str, str]:
        return {**self.machine.project.env(), "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.ports['MLFLOW']}", "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONUNBUFFERED": "1"}

    def _start(self, name: str, *command: str) -> None:
        self.daemons.append(Daemon(name, list(command), self.machine.home.parent / f"{name}.log", self.env, cwd=self.machine.project.folder))

    def _watch(self, folder: Path) -> None:
        """Prometheus with the configuration and the rules of the tree; only addresses and intervals are others."""
        config = yaml.safe_load((ROOT / "infra" / "prometheus" / "prometheus.yaml").read_text())
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [f"{ROOT}/infra/prometheus/rules/*.yaml"]
        ours = {"modelyard": "METRICS", "endpoint": "endpoint", "feedback": "FEEDBACK", "prometheus": "prometheus"}
        assert {job["job_name"] for job in config["scrape_configs"]} == set(ours)
        for job in config["scrape_configs"]:
            job["static_configs"] = [{"targets": [f"127.0.0.1:{self.ports[ours[job['job_name']]]}"]}]
        config["scrape_configs"].append({"job_name": "gpus", "static_configs": [{"targets": [f"127.0.0.1:{self.ports['gpus']}"]}]})
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self._start("prometheus", "prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address=127.0.0.1:{self.ports['prometheus']}")

    # ------------------------------------------------------------ what is watched

    def run_a_line(self) -> None:
        """From text to a release, as the form's button begins it."""
        prefect = Api(f"http://127.0.0.1:{self.ports['PREFECT']}/api")
        deployment = prefect.ask("GET", "/deployments/name/train-and-release/train-and-release")["id"]
        recipe = Recipe.load(self.machine.project.folder / "recipes" / "tiny.yaml", list(SETS), lambda line: None)
        asked = {"recipe": recipe.model_dump(mode="json"), "resources": {"threads": 1}}
        made = prefect.ask("POST", f"/deployments/{deployment}/create_flow_run", {"parameters": asked, "state": {"type": "SCHEDULED"}})["id"]
        run = wait_for("the line to end", lambda: (run := prefect.ask("GET", f"/flow_runs/{made}"))["state_type"] in ("COMPLETED", "FAILED", "CANCELLED") and run)
        assert run["state_type"] == "COMPLETED", run["state"]

    def serve(self, seconds: float = 25.0) -> None:
        """The champion with the chat model before it as canary and shadow, asked all the time: whole and streamed, rightly and wrongly."""
        (chat,) = (str(path.parent) for path in (self.machine.home / "stages").glob("sft-*/record.json"))
        options = {"model": f"models:/{MODEL}@champion", "canary": chat, "canary_share": 0.5, "shadow": chat, "port": self.ports["endpoint"], "running": 2}
        self._start("endpoint", sys.executable, "-m", "components", "serve", "--options", json.dumps(options))
        self._wait("endpoint", "/ready")
        until, number = time.monotonic() + seconds, 0
        while time.monotonic() < until or number < 40:
            number += 1
            message = {"role": "user", "content": f"Please describe Kai, for the {number}th time."}
            chat = {"messages": [message], "max_tokens": 4, "user": f"user {number}", "stream": number % 2 == 0}
            assert self._asked("endpoint", "/v1/chat/completions", chat) == 200
            if number % 5 == 0:
                assert self._asked("endpoint", "/v1/chat/completions", {**chat, "max_tokens": 10_000}) == 400
            time.sleep(0.1)

    def rank(self) -> None:
        """Five questions and two known ones, asked of two people: one likes long answers, the other does so half of the time. One question stays open."""
        code = (
            "from components.feedback.people import asking; from components.feedback.people.store import Store; from components.schema.people import AskConfig\n"
            "rows = [{'prompt': [{'role': 'user', 'content': f'Question {n}'}], 'answers': [{'text': 'b' * k, 'model': 'm'} for k in (1, 2, 3)], 'gold': [3, 2, 1] if n < 2 else None} for n in range(7)]\n"
            f"asking.ask(Store.open(), AskConfig(name='{DATASET}', overlap=2, gold_share=0.5), rows)"
        )
        self._start("asked", sys.executable, "-c", code)
        assert self.daemons.pop().process.wait(120) == 0, (self.machine.home.parent / "asked.log").read_text()
        self._wait("FEEDBACK", "/health")
        for number, who in enumerate(("Ada", "Bo")):
            ask = _Browser(f"http://127.0.0.1:{self.ports['FEEDBACK']}").ask
            ask("/api/sign-in", {"name": who})
            for count in range(6):
                items = ask("/api/next", {"dataset": DATASET})["items"]
                if not items:
                    break
                ranks = [4 - len(answer) for answer in items[0]["answers"]]
                opinion = {"ranks": ranks if number == 0 or count % 2 else [4 - rank for rank in ranks]}
                ask("/api/submit", {"submission": f"{who}-submission-{count}", "item": items[0]["id"], "opinion": opinion})
                time.sleep(0.5)

    def _wait(self, where: str, path: str) -> None:
        """Until a server answers well; fails at once where one of ours has ended."""

        def ready() -> bool:
            assert all(daemon.running for daemon in self.daemons), "\n".join(daemon.log.read_text()[-2000:] for daemon in self.daemons if not daemon.running)
            return self._asked(where, path) == 200

        wait_for(f"{where}{path}", ready, patience_s=200)

    def _asked(self, where: str, path: str, body: Any = None) -> int:
        """The status of an answer that was read to its end; 0 where nobody answers."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports[where]}{path}", None if body is None else json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                answer.read()
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


class _Browser:
    """One person's, with its cookies."""

    def __init__(self, address: str) -> None:
        self.address, self.open = address, urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar())).open

    def ask(self, path: str, body: Any) -> Any:
        with self.open(urllib.request.Request(self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}), timeout=60) as answer:
            return json.load(answer)


def _gpus(port: int) -> Any:
    """An exporter's GPUs, as the stand-in driver tells of them, and nothing of its machine's own."""
    devices, shown = Devices(held_gpus("auto", 2, {}, Telling()), ("0", "1")), {name for name, _ in GPU.values()}
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Only([family for family in devices.collect() if family.name in shown]))
    return start_http_server(port, addr="127.0.0.1", registry=registry)
