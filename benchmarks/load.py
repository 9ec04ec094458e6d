"""Many flow runs at once on the whole platform, first in peace, then while its parts are killed.

    .venv/bin/python -m benchmarks.load [--runs 50] [--kills 20] [--seed 1] [--slots 4] [--write]

PostgreSQL (Debian's, infra/debian.sh services) lies under Prefect and MLflow; `modelyard up` runs two workers in a copy of the project. --runs runs of the
deployment `pretrain`, one small real stage each with a seed of its own, are submitted one after the other without waiting. From outside (/proc/locks, /proc/PID)
it is watched how many stages, slots and flow processes there are at any time. Asked: every run Completed, each begun in the order submitted, never more stages than
slots, one result and one MLflow run each. The same seeds again with --kills SIGKILLs at random moments (seeded) among stage, flow process, worker,
Prefect server, MLflow server and PostgreSQL: the same is asked, and every result has the bytes of the first time.
--write puts what came out into benchmarks/RESULTS.md.

Order. A run is due when it is submitted; the server offers runs by when they were due, workers begin them as places become free (flows/platform/places.py), and
slots are given by the same time. Runs that begin within the same seconds overtake each other while they import; none may overtake by more than there are places.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.results import machine, write_section
from components.schema.recipe import Recipe
from components.schema.records import Record, file_md5
from tests.flows.project import MICRO
from tests.services.loaded import Loaded
from tests.services.machines import wait_for

STAGE = "pretrain"
PRETRAIN = "pretrain={steps: 40, batch_size: 4, learning_rate: 1e-3, warmup_steps: 2, heldout_sequences: 4, checkpoint_every_steps: 10}"
ENDED = ("COMPLETED", "FAILED", "CANCELLED")
TARGETS = ("stage", "flow", "worker", "prefect", "mlflow", "postgres")
WEIGHTS = (5, 4, 3, 3, 2, 3)  # of twenty kills
PAUSE_S = (6.0, 26.0)
DATABASE_AWAY_S = 5.0
LOOK_EVERY_S = 0.4


@dataclass
class Batch:
    """One batch of runs and what was seen of it."""

    runs: dict[str, int]
    """Seed by run id, in the order submitted."""
    seconds: float = 0.0
    seen: Watch | None = None
    kills: list[str] = field(default_factory=list)
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    claimed: dict[str, str] = field(default_factory=dict)
    """When each was Pending first."""
    begun: dict[str, str] = field(default_factory=dict)
    """When each was Running first."""
    hashes: dict[int, str] = field(default_factory=dict)
    """Of each seed's record."""
    problems: list[str] = field(default_factory=list)

    def overtaken(self, when: dict[str, str]) -> int:
        """The most places in the order that one run came too early."""
        order = sorted(when, key=lambda run: when[run])
        place = {run: number for number, run in enumerate(self.runs)}
        return max((place[run] - number for number, run in enumerate(order)), default=0)

    @property
    def tries(self) -> int:
        return sum(run["run_count"] for run in self.ended.values())


class Watch(threading.Thread):
    """Looks from outside at what runs, until it is told to stop: processes by their environment, locks by the kernel's list."""

    def __init__(self, yard: Loaded) -> None:
        super().__init__(daemon=True)
        self.home, self.locks = str(yard.machine.home), Path(yard.machine.environment["MODELYARD_SLOT_LOCKS"])
        self.known: dict[tuple[int, float], tuple[str, str]] = {}
        """By process: what it is (stage, flow, or nothing of interest), and its flow run."""
        self.stages: dict[tuple[int, float], list[Any]] = {}
        """By process: flow run, when it was first seen, and last."""
        self.most = {"stages": 0, "slots": 0, "flows": 0}
        self.most_bytes = 0
        self.twice: set[str] = set()
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(LOOK_EVERY_S):
            with contextlib.suppress(psutil.Error, OSError):
                self.look()

    def look(self) -> None:
        now, living = time.time(), self._living()
        runs = [run for what, run, _ in living if what == "stage"]
        self.twice |= {run for run in runs if runs.count(run) > 1}
        for _, run, key in (row for row in living if row[0] == "stage"):
            self.stages.setdefault(key, [run, now, now])[2] = now
        flows = sum(what == "flow" for what, _, _ in living)
        for name, count in (("stages", len(runs)), ("flows", flows), ("slots", self._slots_held())):
            self.most[name] = max(self.most[name], count)

    def processes(self, what: str) -> list[int]:
        """Pids of the stages, or of the flow processes, that live now."""
        return [key[0] for kind, _, key in self._living() if kind == what]

    def _living(self) -> list[tuple[str, str, tuple[int, float]]]:
        rows, used = [], 0
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                key = (process.pid, process.create_time())
                what, run = self.known.get(key) or self._what(process)
                if time.time() - key[1] > 10.0:  # a young process may still be what it was forked from
                    self.known[key] = (what, run)
                if what and process.status() != psutil.STATUS_ZOMBIE:
                    rows.append((what, run, key, process.ppid()))
                    used += process.memory_info().rss
        self.most_bytes = max(self.most_bytes, used)
        kinds = {key[0]: what for what, _, key, _ in rows}
        return [(what, run, key) for what, run, key, parent in rows if kinds.get(parent) != what]  # a fork that is about to become something else

    def _what(self, process: psutil.Process) -> tuple[str, str]:
        told, words = process.environ(), process.cmdline()
        if told.get("MODELYARD_HOME") != self.home:
            return "", ""
        kind = "stage" if words[1:4] == ["-m", "components", STAGE] else "flow" if words[1:3] in (["-m", "prefect.engine"], ["-m", "prefect.flow_engine"]) else ""
        return (kind, told.get("PREFECT__FLOW_RUN_ID", "")) if kind else ("other", "")

    def _slots_held(self) -> int:
        files = {path.stat().st_ino for path in self.locks.glob("cpu-?.lock")}
        held = {int(line.split()[-3].split(":")[2]) for line in Path("/proc/locks").read_text().splitlines() if "FLOCK" in line and "WRITE" in line}
        return len(files & held)


# ------------------------------------------------------------ a batch


def prepare(yard: Loaded, seeds: range) -> None:
    """A recipe file for each seed, committed, and the data that all of them read."""
    project = yard.machine.project
    for seed in seeds:
        recipe = Recipe.load(project.folder / "recipes" / "tiny.yaml", [*MICRO, PRETRAIN, f"seed={seed}", f"name=load-{seed}"], lambda line: None)
        _file(yard, seed).write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    project.commit("recipes of the load")
    project.run("stage", "data", f"recipes/{_file(yard, seeds[0]).name}", "--threads", "1", timeout_s=900)


def run_batch(yard: Loaded, seeds: range, kills: int, seed: int, slots: int, say: Callable[[str], None] = print) -> Batch:
    """Submit, watch, kill where that is asked, and judge."""
    began, watch = time.time(), Watch(yard)
    batch = Batch(_submitted(yard, seeds), seen=watch)
    say(f"{len(batch.runs)} runs submitted in {time.time() - began:.1f} s")
    killer = Killer(yard, watch, batch, kills, random.Random(seed), say)
    watch.start()
    try:
        wait_for("all runs to end", lambda: killer.step() or _all_ended(yard, batch, say), patience_s=120.0 * len(batch.runs) + 60.0 * kills)
        batch.seconds = time.time() - began
    finally:
        watch.done.set()
    if killer.due:
        batch.problems.append(f"only {len(batch.kills)} of {kills} kills were done before everything was over")
    wait_for("both servers to answer", lambda: yard.answers("prefect") and yard.answers("mlflow"), patience_s=300)
    _judge(yard, batch, slots)
    return batch


def _submitted(yard: Loaded, seeds: range) -> dict[str, int]:
    deployment = yard.prefect.ask("GET", f"/deployments/name/{STAGE}/{STAGE}")["id"]
    found = {}
    for seed in seeds:
        asked = {"recipe": f"recipes/{_file(yard, seed).name}", "model": None, "pretrain": None, "resources": {"threads": 1}}
        found[yard.prefect.ask("POST", f"/deployments/{deployment}/create_flow_run", {"parameters": asked, "state": {"type": "SCHEDULED"}})["id"]] = seed
    return found


def _all_ended(yard: Loaded, batch: Batch, say: Callable[[str], None]) -> bool:
    before = len(batch.ended)
    runs = []
    for start in range(0, len(batch.runs), 100):
        runs += yard.prefect.ask("POST", "/flow_runs/filter", {"flow_runs": {"id": {"any_": list(batch.runs)[start : start + 100]}}, "limit": 200})
    batch.ended = {run["id"]: run for run in runs if run["state_type"] in ENDED}
    if len(batch.ended) != before:
        states = [run["state_name"] for run in runs]
        say(f"{time.strftime('%H:%M:%S')} " + ", ".join(f"{states.count(name)} {name}" for name in sorted(set(states))))
    time.sleep(1.0)
    return len(batch.ended) == len(batch.runs)


# ------------------------------------------------------------ kills


class Killer:
    """One kill after the other; every kind in its share, in an order and at moments that the seed gives. Stepped by the main thread, since what it starts again ends with the thread that did it."""

    def __init__(self, yard: Loaded, watch: Watch, batch: Batch, kills: int, chance: random.Random, say: Callable[[str], None]) -> None:
        self.yard, self.watch, self.batch, self.kills, self.chance, self.say = yard, watch, batch, kills, chance, say
        kinds = [kind for kind, weight in zip(TARGETS, WEIGHTS, strict=True) for _ in range(weight)]
        chance.shuffle(kinds)
        self.due = (kinds * (kills // len(kinds) + 1))[:kills]
        self.moment = time.monotonic() + chance.uniform(*PAUSE_S)

    def step(self) -> None:
        """Kill, where it is time and there is one to kill."""
        if not self.due or time.monotonic() < self.moment:
            return
        with contextlib.suppress(psutil.Error, OSError, KeyError, TypeError):  # it is just not there
            if _kill(self.yard, self.watch, self.due[0], self.chance):
                self.batch.kills.append(self.due.pop(0))
                self.say(f"{time.strftime('%H:%M:%S')} killed: {self.batch.kills[-1]} ({len(self.batch.kills)} of {self.kills})")
                self.moment = time.monotonic() + self.chance.uniform(*PAUSE_S)


def _kill(yard: Loaded, watch: Watch, kind: str, chance: random.Random) -> bool:
    """SIGKILL to one of a kind; False where there is none now."""
    if kind == "postgres":
        yard.postgres.kill()
        time.sleep(DATABASE_AWAY_S)
        yard.postgres.start()
    elif kind in ("prefect", "mlflow"):
        yard.signal_server(kind, signal.SIGKILL)
    else:
        pids = [yard.part(f"worker-{number}").pid for number in (1, 2)] if kind == "worker" else watch.processes(kind)
        if not pids:
            return False
        os.kill(chance.choice(sorted(pids)), signal.SIGKILL)
    return True


# ------------------------------------------------------------ what was left


def _judge(yard: Loaded, batch: Batch, slots: int) -> None:
    """Everything that is not as it is asked becomes a problem, in words."""
    wrong, watch = batch.problems, batch.seen
    assert watch is not None
    for run, ended in batch.ended.items():
        if ended["state_type"] != "COMPLETED":
            wrong.append(f"run {batch.runs[run]} ended {ended['state_name']}: {str(ended['state'].get('message'))[:300]}")
        states = yard.prefect.ask("GET", f"/flow_run_states/?flow_run_id={run}")
        for name, when in (("PENDING", batch.claimed), ("RUNNING", batch.begun)):
            when[run] = min((state["timestamp"] for state in states if state["type"] == name), default="")
    places = slots + 2
    for name, when in (("taken", batch.claimed), ("begun", batch.begun)):
        if batch.overtaken(when) > places:
            wrong.append(f"a run was {name} {batch.overtaken(when)} places too early")
    for name, most in (("stages", slots), ("slots", slots), ("flows", places)):
        if watch.most[name] > most:
            wrong.append(f"{watch.most[name]} {name} at once, {most} allowed")
    wrong += [f"run {batch.runs.get(run, run)} had two stages at once" for run in watch.twice]
    _judge_results(yard, batch)


def _judge_results(yard: Loaded, batch: Batch) -> None:
    stages = yard.machine.home / "stages"
    for path in stages.glob(f"{STAGE}-*/record.json"):
        record = Record.read(path.parent)
        if damaged := [name for name, file in record.files.items() if file_md5(path.parent / name) != file.md5]:
            batch.problems.append(f"{path.parent.name}: {', '.join(damaged)} damaged")
        batch.hashes[record.config["seed"]] = record.hash
    if missing := sorted(set(batch.runs.values()) - set(batch.hashes)):
        batch.problems.append(f"no result of {missing}")
    batch.problems += [f"{path.name} is left" for path in stages.glob(f"{STAGE}-*.partial")]
    tracked: dict[str, int] = {}
    for run in _mlflow_runs(yard):
        tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
        tracked[tags["modelyard.stage_identity"]] = tracked.get(tags["modelyard.stage_identity"], 0) + 1
        if run["info"]["status"] != "FINISHED":
            batch.problems.append(f"MLflow's run {run['info']['run_name']} is {run['info']['status']}")
    if len(tracked) != len(batch.runs) or set(tracked.values()) != {1}:
        batch.problems.append(f"{sum(tracked.values())} MLflow runs of {len(tracked)} stages, {len(batch.runs)} expected")


def set_aside(yard: Loaded) -> None:
    """The results and their MLflow runs are gone: the same seeds are new again."""
    for run in _mlflow_runs(yard):
        yard.mlflow.ask("POST", "/api/2.0/mlflow/runs/delete", {"run_id": run["info"]["run_id"]})
    aside = yard.machine.home / "aside"
    aside.mkdir(exist_ok=True)
    for folder in (yard.machine.home / "stages").glob(f"{STAGE}-*"):
        folder.rename(aside / folder.name)


def _mlflow_runs(yard: Loaded) -> list[dict[str, Any]]:
    experiments = [found["experiment_id"] for found in yard.mlflow.ask("GET", "/api/2.0/mlflow/experiments/search?max_results=100")["experiments"]]
    body = {"experiment_ids": experiments, "filter": f"tags.`modelyard.stage` = '{STAGE}'", "max_results": 1000}
    return yard.mlflow.ask("POST", "/api/2.0/mlflow/runs/search", body).get("runs", [])


def _file(yard: Loaded, seed: int) -> Path:
    return yard.machine.project.folder / "recipes" / f"load-{seed}.yaml"


# ------------------------------------------------------------ the command


def row(name: str, batch: Batch) -> str:
    watch = batch.seen
    assert watch is not None
    killed = ", ".join(f"{batch.kills.count(kind)} {kind}" for kind in TARGETS if kind in batch.kills) or "none"
    completed = sum(run["state_type"] == "COMPLETED" for run in batch.ended.values())
    cells = (
        name, killed, f"{completed} of {len(batch.runs)}", f"{batch.seconds:.0f}", str(batch.tries), str(len(watch.stages)), f"{batch.overtaken(batch.claimed)}, {batch.overtaken(batch.begun)}",
        f"{watch.most['stages']}, {watch.most['slots']}", str(watch.most["flows"]), f"{watch.most_bytes / 2**30:.1f}", "; ".join(batch.problems) or "nothing",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


HEAD = """| | killed | Completed | s | tries | stage processes | most places too early: taken, begun | most at once: stages, slots held | most flow processes | most memory (GiB) | lost, doubled or different |
|---|---|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--kills", type=int, default=20, help="0: only in peace")
    parser.add_argument("--calm", type=int, help="so many of the runs in peace first (default: all of them)")
    parser.add_argument("--seed", type=int, default=1, help="of what is killed and when")
    parser.add_argument("--slots", type=int, default=4, help="slots of the processor; one thread each")
    parser.add_argument("--folder", type=Path, help="keep everything there (default: a temporary folder)")
    parser.add_argument("--write", action="store_true", help="write the section Operations of benchmarks/RESULTS.md")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary, Loaded.opened(options.folder or Path(temporary), slots=options.slots) as yard:
        seeds = range(1, options.runs + 1)
        prepare(yard, seeds)
        calm = run_batch(yard, seeds[: options.calm], 0, options.seed, options.slots)
        rows = [row("in peace", calm)]
        print(rows[-1], flush=True)
        if options.kills:
            set_aside(yard)
            hurt = run_batch(yard, seeds, options.kills, options.seed, options.slots)
            hurt.problems += compared(calm, hurt)
            rows.append(row(f"with kills (seed {options.seed})", hurt))
    text = "\n".join([told(options, load), "", HEAD, *rows])
    print(text)
    if options.write:
        write_section("Operations", text)


def compared(calm: Batch, hurt: Batch) -> list[str]:
    """Seeds whose results have other bytes than in peace."""
    return [f"{STAGE} of seed {seed} has other bytes" for seed, told in calm.hashes.items() if hurt.hashes.get(seed) != told]


def told(options: argparse.Namespace, load: float) -> str:
    """What was run, on what."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("prefect", "mlflow", "torch"))
    return (
        f"{machine()}; {versions}, PostgreSQL 15 under both servers; load {load:.1f} when begun. {options.runs} runs of the deployment {STAGE} (a micro model, one thread each) submitted at once to "
        f"2 workers with {options.slots} slots of the processor. Tries: how often flows were begun. Places too early: by how many a run overtook earlier ones, when a worker took it and when it "
        f"ran; {options.slots + 2} flow processes at once are allowed. Memory: of the whole platform, its runs included, without PostgreSQL. `python -m benchmarks.load --write`"
    )


if __name__ == "__main__":
    main()
