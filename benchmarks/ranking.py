"""People rank at once while their server is killed: is a ranking lost, or kept twice?

    python -m benchmarks.ranking                                          # 1,000 rankings by 8 people, two SIGKILLs, SQLite
    python -m benchmarks.ranking --url postgresql://USER@HOST/NAME        # the same in PostgreSQL

Each person is a thread that does what the page does: it asks for questions, makes an id for what it sends, and sends it again until there is an answer. Every
seventh is sent twice on purpose. In the end the database is compared with what each of them says was confirmed. Writes its section of RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
from sqlalchemy import select

from benchmarks.results import machine, write_section
from components.feedback.people.asking import ask
from components.feedback.people.opinions import said
from components.feedback.people.store import Annotator, Claim, Revision, Store
from components.schema.people import AskConfig
from tests.services.stack import free_port

READY_S, STUCK_S = 120.0, 900.0
OVERLAP, ANSWERS, AHEAD, TWICE = 2, 4, 3, 7


@dataclass
class Server:
    """The real server in a process of its own, on one port, however often it is started."""

    folder: Path
    url: str | None = None
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "MODELYARD_HOME": str(self.folder), **({"MODELYARD_FEEDBACK_URL": self.url} if self.url else {}), "PREFECT_API_AUTH_STRING": ""}

    def start(self) -> None:
        """Until it answers. Errors: RuntimeError."""
        command = [sys.executable, "-m", "components.feedback.people.server", "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if httpx.get(f"{self.address}/health", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        self.end()
        raise RuntimeError(f"the server did not come up: {(self.folder / 'server.log').read_text()[-2000:]}")

    def end(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait()


@dataclass
class Person:
    """Ranks until nothing is left; keeps what was confirmed, and how long it took in seconds."""

    name: str
    address: str
    stop: threading.Event
    confirmed: dict[str, int] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)
    again: int = 0
    """How often something was sent once more: lost answers, a server that was not there, and on purpose."""

    def work(self) -> Person:
        rng = random.Random(self.name)
        with httpx.Client(base_url=self.address, timeout=30) as client:
            self._ask(client, "/api/sign-in", {"name": self.name})
            while not self.stop.is_set() and (items := self._ask(client, "/api/next", {"dataset": "people", "ahead": AHEAD})["items"]):
                for item in items:
                    ranks = [rng.randint(1, ANSWERS) for _ in item["answers"]]
                    body = {"submission": str(uuid.UUID(int=rng.getrandbits(128))), "item": item["id"], "opinion": {"ranks": ranks}}
                    began = time.perf_counter()
                    self._ask(client, "/api/submit", body)
                    self.waits.append(time.perf_counter() - began)
                    self.confirmed[body["submission"]] = item["id"]
                    if len(self.confirmed) % TWICE == 0:
                        self.again += 1
                        self._ask(client, "/api/submit", body)
        return self

    def _ask(self, client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """As the page does: what gets no answer is sent again as it was. Errors: RuntimeError for an answer that is an error."""
        while not self.stop.is_set():
            try:
                answer = client.post(path, json=body)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code == 200:
                return answer.json()
            if answer is not None and answer.status_code < 500:
                raise RuntimeError(f"{path} answers {answer.status_code}: {answer.text[:300]}")
            self.again += 1
            time.sleep(0.1)
        raise RuntimeError("told to stop")


def stress(folder: Path, rankings: int, people: int, kills: int, url: str | None = None) -> dict[str, Any]:
    """Figures of one run; `lost`, `doubled` and `odd` must be 0. Errors: RuntimeError."""
    store = Store.open(url or f"sqlite:///{_made(folder / 'feedback')}/people.db")
    rows = [{"prompt": [{"role": "user", "content": f"Question {i}?"}], "answers": [{"text": f"answer {k} to {i}", "model": f"model {k % 2}"} for k in range(ANSWERS)]} for i in range(rankings // OVERLAP)]
    ask(store, AskConfig(overlap=OVERLAP, gold_share=0.0, lease_minutes=60), rows)
    server, stop = Server(folder, url), threading.Event()
    crowd = [Person(f"person {i}", server.address, stop) for i in range(people)]
    killed_at: list[int] = []
    try:
        server.start()
        began = time.monotonic()
        with ThreadPoolExecutor(people) as pool:
            try:
                futures = [pool.submit(person.work) for person in crowd]
                while not all(future.done() for future in futures):
                    if any(future.done() and future.exception() for future in futures) or time.monotonic() - began > STUCK_S:
                        break
                    done = sum(len(person.confirmed) for person in crowd)
                    if len(killed_at) < kills and done >= rankings * (len(killed_at) + 1) / (kills + 1):
                        killed_at.append(done)
                        server.end(signal.SIGKILL)
                        server.start()
                    time.sleep(0.01)
            finally:
                stop.set()
            for future in futures:
                future.result()
        seconds = time.monotonic() - began
    finally:
        server.end(signal.SIGTERM)
    return {**_compared(store, crowd), "rankings": rankings, "people": people, "killed_at": killed_at, "seconds": seconds, "again": sum(person.again for person in crowd),
            "median_ms": 1000 * median(waits := [wait for person in crowd for wait in person.waits]), "p95_ms": 1000 * quantiles(waits, n=20)[-1], "share": [len(person.confirmed) for person in crowd]}  # fmt: skip


def _compared(store: Store, crowd: list[Person]) -> dict[str, int]:
    """What the database has, beside what each person says was confirmed."""
    asked = select(Revision.submission, Claim.item_id, Annotator.name).join(Claim, Claim.id == Revision.claim_id).join(Annotator, Annotator.id == Claim.annotator_id)
    kept = store.read(lambda session: session.execute(asked).tuples().all())
    wanted = {(submission, item, person.name) for person in crowd for submission, item in person.confirmed.items()}
    people_of_items = Counter(one.item.id for one in store.read(lambda session: said(session, "people")))
    return {
        "kept": len(kept),
        "lost": len(wanted - set(kept)),
        "doubled": len(kept) - len({(item, name) for _, item, name in kept}),
        "odd": len(set(kept) - wanted) + sum(count != OVERLAP for count in people_of_items.values()),
    }


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _table(found: dict[str, Any], database: str) -> str:
    rows = {
        "rankings kept": f"{found['kept']:,} of {found['rankings']:,}",
        "lost": found["lost"],
        "kept twice": found["doubled"],
        "questions with more or fewer people than wanted, or rankings that nobody sent": found["odd"],
        "SIGKILLs of the server": f"{len(found['killed_at'])}, after {' and '.join(map(str, found['killed_at']))} rankings",
        "sent again": found["again"],
        "seconds, the server's restarts included": f"{found['seconds']:.0f}",
        "milliseconds until a ranking is confirmed: median, 95 %": f"{found['median_ms']:.0f}, {found['p95_ms']:.0f}",
        "rankings by person": ", ".join(map(str, found["share"])),
    }
    head = f"{machine()}. {found['people']} people at once over HTTP, {database}, {ANSWERS} answers, {OVERLAP} people for each question."
    return "\n".join([head, "", "| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rankings", type=int, default=1000, help="rankings in all")
    parser.add_argument("--people", type=int, default=8, help="people at once")
    parser.add_argument("--kills", type=int, default=2, help="SIGKILLs of the server")
    parser.add_argument("--url", help="an empty PostgreSQL database; SQLite unless told")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = stress(Path(folder), given.rankings, given.people, given.kills, given.url)
    database = "PostgreSQL" if given.url else "SQLite"
    print(text := _table(found, database))
    if (given.rankings, given.people, given.kills) == (1000, 8, 2):
        write_section(f"Rankings at once, {database}", text)
    sys.exit(1 if found["lost"] or found["doubled"] or found["odd"] or found["kept"] != found["rankings"] else 0)


if __name__ == "__main__":
    main()
