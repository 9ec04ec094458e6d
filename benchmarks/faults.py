"""What becomes of lines under way when a part of the platform is killed, hangs or goes away: one after the other, at random moments.

    .venv/bin/python -m benchmarks.faults [--seed 1] [--points 2] [--only stage,mlflow] [--write]

PostgreSQL (Debian's, infra/debian.sh services) lies under Prefect and MLflow; `modelyard up` runs two workers in a copy of the project; two lines train at once, with a
checkpoint every three seconds. For each fault: seconds until the part answers again, until the stage that was hit writes checkpoints again, and whether
everything ended as in a run that nobody disturbed: every record's hash, one MLflow run for each stage, every curve with the same points. Rows are printed as they
come; --write puts the table into docs/FAULTS.md.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.results import machine
from tests.services import stack
from tests.services.loaded import STEPS, Line, Loaded, kill
from tests.services.machines import wait_for

DOCUMENT = Path(__file__).parents[1] / "docs" / "FAULTS.md"
MARKS = "<!-- table: python -m benchmarks.faults --write -->", "<!-- end of the table -->"
DATABASE_AWAY_S, HANG_S, STORE_AWAY_S = 10.0, 60.0, 40.0


@dataclass
class Row:
    """One fault and what followed."""

    fault: str
    step: int
    """Where the line that was hit was."""
    answers_s: float | None = None
    """Until the part that was hit answered; None = it is none that answers."""
    works_s: float | None = None
    """Until a stage of the line that was hit wrote a checkpoint again."""
    ended: str = ""
    tries: str = ""
    """How often each line's flow was begun: the one that was hit, and the other one."""
    problems: tuple[str, ...] = ()

    def cells(self) -> list[str]:
        def seconds(value: float | None) -> str:
            return "" if value is None else f"{value:.1f}"

        return [self.fault, str(self.step), seconds(self.answers_s), seconds(self.works_s), self.ended, self.tries, "; ".join(self.problems) or "nothing"]


HEAD = ["fault", "at step", "answers again (s)", "trains again (s)", "ended", "tries", "differs or lost"]

Fault = Callable[[Loaded, Line], str | None]
"""Do it; gives the part that has to answer again."""


def stage(yard: Loaded, line: Line) -> None:
    kill(yard.stage_pid(line))


def flow(yard: Loaded, line: Line) -> None:
    kill(yard.flow_pid(line))


def worker(yard: Loaded, line: Line) -> None:
    kill(yard.worker_of(line))


def worker_and_flow(yard: Loaded, line: Line) -> None:
    dead = yard.worker_of(line), yard.flow_pid(line)
    for process in dead:
        kill(process)


def prefect(yard: Loaded, line: Line) -> str:
    yard.signal_server("prefect", signal.SIGKILL)
    return "prefect"


def mlflow(yard: Loaded, line: Line) -> str:
    yard.signal_server("mlflow", signal.SIGKILL)
    return "mlflow"


def postgres(yard: Loaded, line: Line) -> str:
    """Away for ten seconds, as where a service manager starts it again."""
    yard.postgres.kill()
    time.sleep(DATABASE_AWAY_S)
    yard.postgres.start()
    return "prefect"


def supervisor(yard: Loaded, line: Line) -> str:
    kill(yard.part("supervisor"))
    yard.machine.up()
    return "prefect"


def power(yard: Loaded, line: Line) -> str:
    yard.lose_everything()
    yard.restore()
    return "prefect"


def hang(yard: Loaded, line: Line) -> str:
    """The server stands still for a minute, with its connections open."""
    yard.signal_server("prefect", signal.SIGSTOP)
    time.sleep(HANG_S)
    yard.signal_server("prefect", signal.SIGCONT)
    return "prefect"


def store(yard: Loaded, line: Line) -> None:
    """The S3 store refuses connections."""
    assert yard.store
    yard.store.away()
    time.sleep(STORE_AWAY_S)
    yard.store.back()


def declared(yard: Loaded, line: Line) -> None:
    """Somebody says of a living run that it crashed."""
    yard.prefect.ask("POST", f"/flow_runs/{line.run_id}/set_state", {"state": {"type": "CRASHED", "name": "Crashed"}, "force": True})


FAULTS: dict[str, tuple[str, Fault]] = {
    "stage": ("stage: SIGKILL", stage),
    "flow": ("flow process: SIGKILL", flow),
    "worker": ("worker: SIGKILL", worker),
    "both": ("worker and flow process: SIGKILL", worker_and_flow),
    "prefect": ("Prefect server: SIGKILL", prefect),
    "mlflow": ("MLflow server: SIGKILL", mlflow),
    "postgres": (f"PostgreSQL: SIGKILL, back after {DATABASE_AWAY_S:.0f} s", postgres),
    "supervisor": ("supervisor: SIGKILL, then `modelyard up`", supervisor),
    "power": ("everything: SIGKILL, then `modelyard up`", power),
    "hang": (f"Prefect server: SIGSTOP for {HANG_S:.0f} s", hang),
    "declared": ("a living run declared Crashed", declared),
}
REPLACED = ("stage", "flow", "both", "power", "declared")  # the stage that was at work ends, at once or with a last checkpoint
WITH_STORE: dict[str, tuple[str, Fault]] = {"store": (f"S3 store: refuses for {STORE_AWAY_S:.0f} s", store)}


def suffer(yard: Loaded, name: str, chance: random.Random) -> Row:
    """Two lines, one fault at a random step of one of them, and what both end as."""
    title, fault = (FAULTS | WITH_STORE)[name]
    lines = yard.begin()
    hit = chance.choice(lines)
    reached = yard.wait_for_step(hit, int(yard.steps * chance.uniform(0.15, 0.6)))
    old = yard.stage_pid(hit) if name in REPLACED else None
    began, moment = time.monotonic(), time.time()
    part = fault(yard, hit)
    row = Row(title, reached)
    if part:
        wait_for(f"{part} to answer", lambda: yard.answers(part), 300)
        row.answers_s = time.monotonic() - began
    wait_for("training to go on", lambda: yard.works_since(hit, moment, old), 600)
    row.works_s = time.monotonic() - began
    return closed(yard, row, sorted(lines, key=lambda line: line != hit))


def closed(yard: Loaded, row: Row, lines: list[Line]) -> Row:
    """Wait for the lines to end, and compare."""
    runs = [yard.ended(line) for line in lines]
    row.ended = ", ".join(run["state_name"] for run in runs)
    row.tries = ", ".join(str(run["run_count"]) for run in runs)
    row.problems = tuple(problem for line in lines for problem in (*yard.problems(line), *yard.left_open(line)))
    yard.set_aside()
    return row


def cancel(yard: Loaded, chance: random.Random, alone: bool) -> Row:
    """A run is cancelled over the API, `alone` = its worker was killed before; then the same recipe again, which goes on from the checkpoint."""
    line, other = yard.begin()
    reached = yard.wait_for_step(line, int(yard.steps * chance.uniform(0.15, 0.5)))
    if alone:
        kill(yard.worker_of(line))
    began = time.monotonic()
    yard.prefect.ask("POST", f"/flow_runs/{line.run_id}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    wait_for("its processes to end", lambda: not yard.processes(line), 120)
    gone_s, kept = time.monotonic() - began, yard.checkpoint(line)[0]
    state = yard.ended(line)["state_name"]
    left = yard.left_open(line)
    (again,) = yard.begin(line.seed)
    row = closed(yard, Row(f"cancelled over the API{', its worker killed before' if alone else ''}", reached), [again, other])
    row.ended = f"{state}; every process gone after {gone_s:.1f} s, checkpoint {kept}. Again: {row.ended}"
    row.problems += (*left, *([] if kept >= reached else [f"the checkpoint went back to {kept}"]))
    return row


CANCELS = {"cancel": False, "cancel-alone": True}


def tell(row: Row) -> Row:
    print(" | ".join(row.cells()), flush=True)
    return row


def measured(names: list[str], points: int, seed: int, steps: int, folder: Path) -> Iterator[Row]:
    """Row by row, in the order of the names; those with a store at the end."""
    chance = random.Random(seed)
    if plain := [name for name in names if name not in WITH_STORE]:
        with Loaded.opened(folder / "plain", steps) as yard:
            yield from _rows(yard, plain, points, chance)
    if stored := [name for name in names if name in WITH_STORE]:
        with stack.ObjectStore(folder / "ceph") as store, Loaded.opened(folder / "stored", steps, store=store) as yard:
            yield from _rows(yard, stored, points, chance)


def _rows(yard: Loaded, names: list[str], points: int, chance: random.Random) -> Iterator[Row]:
    yard.undisturbed()
    for name in names:
        for _ in range(points):
            try:
                yield tell(cancel(yard, chance, CANCELS[name]) if name in CANCELS else suffer(yard, name, chance))
            except (AssertionError, OSError) as error:  # told in the table, and the next one begins on a platform that is well
                yield tell(Row(name, 0, ended="not to the end", problems=(str(error).splitlines()[0],)))
                yard.begin_anew()


def table(rows: list[Row]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (HEAD, ["---"] * len(HEAD), *(row.cells() for row in rows)))


def write(rows: list[Row], said: str) -> None:
    """Into docs/FAULTS.md, between its two marks."""
    whole = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = whole.partition(MARKS[0])
    DOCUMENT.write_text(f"{before}{MARKS[0]}\n{said}\n\n{table(rows)}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}", encoding="utf-8")


def main() -> None:
    everything = [*FAULTS, *CANCELS, *WITH_STORE]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of the random moments")
    parser.add_argument("--points", type=int, default=2, help="moments for each fault")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each pretraining")
    parser.add_argument("--only", default=",".join(everything), help="in this order")
    parser.add_argument("--folder", type=Path, help="where everything is kept (default: a temporary folder)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/FAULTS.md")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - set(everything):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(everything)}")
    said = f"Moments by seed {options.seed}, {options.points} for each fault; {options.steps} steps, checkpoints every 3 s. {machine()}, load {os.getloadavg()[1]:.0f}; {versions()}."
    print(said, flush=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="modelyard-faults-") as temporary:
        for row in measured(names, options.points, options.seed, options.steps, options.folder or Path(temporary)):
            rows.append(row)
            if options.write:
                write(rows, said)
    print(table(rows))


def versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("prefect", "mlflow", "torch", "lightning")) + ", PostgreSQL 15"


if __name__ == "__main__":
    main()
