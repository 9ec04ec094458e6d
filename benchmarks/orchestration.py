"""What the platform costs: a stage through Prefect's API against the same stage's plain process, and a run that has nothing to do.

    modelyard run recipes/tiny.yaml && modelyard up
    .venv/bin/python -m benchmarks.orchestration recipes/tiny.yaml [--minutes 1] [--rounds 3]
    .venv/bin/python -m benchmarks.orchestration recipes/tiny.yaml --minutes 10 --rounds 1 --layers 12

Stage: pretraining of about --minutes, in turn as `python -m components pretrain --config job.yaml` and as the deployment `pretrain`, from the API call to
Completed, with as many threads and on the same MLflow; learning rates a millionth apart make each a run of its own. What is added is told as fixed
seconds around the work and as the speed within it (tokens a second), and both together as the share of a stage of ten minutes that is left: at least
0.98 is asked. Reuse: the deployment train-and-release on a recipe whose results stand, from the API call to Completed: within 15 s is asked.
Prints `ratio NAME VALUE BAR` and writes the section Orchestration of benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import yaml

from benchmarks.results import machine, write_section
from components.data.versioning import versions
from components.schema import jobs
from components.schema.config import BadInput
from components.schema.jobs import Job, Run
from components.schema.recipe import Recipe, Resources
from components.schema.records import Record
from components.schema.training import PretrainConfig
from flows.platform.state import State
from flows.server import join, request

TEN_MINUTES_S = 600.0
REUSE_S = 15.0
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Timed(NamedTuple):
    """One run of the stage."""

    seconds: float
    """From the call to its end, by the wall's clock."""
    work_seconds: float
    """Within the stage, as its record says."""
    tokens_per_s: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orchestration", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="a recipe that was run and whose results stand")
    parser.add_argument("--minutes", type=float, default=1.0, help="length of the stage's work; ten say most")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs; medians are told")
    parser.add_argument("--layers", type=int, help="layers of the model that is trained; the recipe's own would read a small data set too often in ten minutes")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the stage")
    options = parser.parse_args()
    if State.running() is None:
        raise BadInput("orchestration: no platform runs here, so there is nothing to measure. Start it: modelyard up")
    join()
    yard = Yard(options.recipe, Resources(threads=options.threads), options.layers)
    text = [f"{machine()}. {options.recipe}, {yard.model.layers} layers, threads: {options.threads}, rounds: {options.rounds} of {options.minutes:g} minutes.", ""]
    text += yard.reuse(options.rounds) + yard.overhead(options.minutes, options.rounds)
    print("\n".join(text))
    write_section("Orchestration", "\n".join(text))


class Yard:
    """One recipe on the running platform."""

    def __init__(self, path: Path, resources: Resources, layers: int | None) -> None:
        self.path, self.recipe, self.resources = path, Recipe.load(path), resources
        self.model = self.recipe.model.model_copy(update={"layers": layers} if layers else {})
        self.dataset = versions.current(self.recipe.data)
        self.api = State.running().prefect_url
        self.variant = time.time_ns() // 10**6 % 10**6

    def reuse(self, rounds: int) -> list[str]:
        """Runs that reuse everything, in seconds."""
        parameters = {"recipe": self.recipe.model_dump(mode="json"), "resources": self.resources.model_dump(mode="json")}
        seconds = [self.deployed("train-and-release", parameters) for _ in range(rounds)]
        print(f"ratio orchestration_reuse {REUSE_S / median(seconds):.3f} 1")
        return [f"A deployed run that reuses everything: {median(seconds):.1f} s from the API call to Completed ({', '.join(f'{s:.1f}' for s in seconds)}); asked: within {REUSE_S:.0f} s.", ""]

    def overhead(self, minutes: float, rounds: int) -> list[str]:
        """The stage both ways, in turn; which goes first changes with the round."""
        steps = self._steps_of(minutes)
        pairs: list[dict[str, Timed]] = []
        for number in range(rounds):
            ways = (self.plain, self.through_api)
            pairs.append({way.__name__: way(steps) for way in (ways if number % 2 == 0 else ways[::-1])})
            print(f"round {number + 1}: {pairs[-1]}")
        return _told(pairs, steps)

    def plain(self, steps: int) -> Timed:
        """`python -m components pretrain`, as a person would type it."""
        job = self._job(self._config(steps))
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(job.model_dump(mode="json"), file)
            file.flush()
            began = time.monotonic()
            subprocess.run([sys.executable, "-m", "components", "pretrain", "--config", file.name], check=True, stdout=subprocess.DEVNULL)
            return _timed(job, time.monotonic() - began)

    def through_api(self, steps: int) -> Timed:
        """The deployment's form, filled in over the API."""
        config = self._config(steps)
        sections = {"model": self.model.model_dump(mode="json"), "pretrain": config.model_dump(mode="json")}  # what a call leaves out is what the form begins with
        seconds = self.deployed("pretrain", {"recipe": str(self.path), **sections, "resources": self.resources.model_dump(mode="json")})
        return _timed(self._job(config), seconds)

    def deployed(self, name: str, parameters: dict[str, Any]) -> float:
        """Seconds from the API call until the server says Completed. Errors: BadInput where it ends otherwise."""
        deployment = self._ask(f"/deployments/name/{name}/{name}")["id"]
        began = time.monotonic()
        run = self._ask(f"/deployments/{deployment}/create_flow_run", {"parameters": parameters, "state": {"type": "SCHEDULED"}})
        while (state := self._ask(f"/flow_runs/{run['id']}")["state"])["type"] not in ENDED:
            time.sleep(0.2)
        seconds = time.monotonic() - began
        if state["type"] != "COMPLETED":
            raise BadInput(f"orchestration: the run of {name} ended {state['name']} ({state['message']}), so there is nothing to compare. Look at it in Prefect: {self.api.removesuffix('/api')}/runs/flow-run/{run['id']}")
        return seconds

    def _steps_of(self, minutes: float) -> int:
        """As many steps as take about so long, after a short run that says how fast they are here."""
        before = self.plain(max(self.recipe.pretrain.warmup_steps + 1, 8))
        tokens = self.recipe.pretrain.batch_size * self.model.context_tokens
        return max(self.recipe.pretrain.warmup_steps + 1, round(minutes * 60 * before.tokens_per_s / tokens))

    def _config(self, steps: int) -> PretrainConfig:
        self.variant += 1
        rate = self.recipe.pretrain.learning_rate * (1 + self.variant * 1e-9)
        return self.recipe.pretrain.model_copy(update={"steps": steps, "learning_rate": rate})

    def _job(self, config: PretrainConfig) -> Job:
        return jobs.pretrain(self.model, config, self.dataset, Run(recipe_name=self.recipe.name, seed=self.recipe.seed, resources=self.resources), None)

    def _ask(self, path: str, question: dict[str, Any] | None = None) -> dict[str, Any]:
        asking = request(self.api + path)
        if question is not None:
            asking.data = json.dumps(question).encode()
            asking.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(asking, timeout=60) as answer:
            return json.load(answer)


def _timed(job: Job, seconds: float) -> Timed:
    execution = Record.read(job.folder).execution
    return Timed(round(seconds, 2), execution["work_seconds"], execution["tokens_per_s"])


def _told(pairs: list[dict[str, Timed]], steps: int) -> list[str]:
    """A table of both ways, and the share of ten minutes that is left to the work."""
    around = {way: median(pair[way].seconds - pair[way].work_seconds for pair in pairs) for way in ("plain", "through_api")}
    added = around["through_api"] - around["plain"]
    speed = median(pair["through_api"].tokens_per_s / pair["plain"].tokens_per_s for pair in pairs)
    left = TEN_MINUTES_S / (TEN_MINUTES_S / speed + max(added, 0.0))
    print(f"ratio orchestration_ten_minutes {left:.4f} 0.98")
    rows = [f"| {way.replace('_', ' ')} | {median(pair[way].seconds for pair in pairs):.1f} | {around[way]:.1f} | {median(pair[way].tokens_per_s for pair in pairs):,.0f} |" for way in around]
    head = ["| pretraining, " + f"{steps} steps | seconds, whole | seconds around the work | tokens/s |", "|---|---|---|---|"]
    return [*head, *rows, "", f"Added: {added:.1f} s, speed within {speed:.4f} of the plain process's: of a stage of ten minutes {left:.2%} is work (asked: 98 %)."]


if __name__ == "__main__":
    try:
        main()
    except BadInput as error:
        sys.exit(f"error: {error}")
