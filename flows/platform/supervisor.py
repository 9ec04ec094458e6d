"""Keeps a platform's children running until it is told to stop: `python -m flows.platform.supervisor`, which `modelyard up` starts detached.

A child that ends is started again after a pause that doubles with each failure and is forgotten once the child has lived a while. A server
that stops answering for minutes is ended and started anew. On SIGTERM all children end, workers first, so that what they run
can still write its checkpoint and say so; when the supervisor itself is killed, the kernel tells its children (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path
from typing import IO

from components.schema.config import BadInput
from flows.platform import state as states
from flows.platform.children import Child, children, environment, start_folder
from flows.platform.settings import Settings
from flows.platform.state import ChildState, Process, State, log_of

PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
STEADY_S = 60.0
"""A child that lived this long is started again at once."""
SETTLED_S = 3.0
"""A child without a health address counts as ready after this long."""
HUNG_S = 180.0
"""A server that was ready and has not answered for this long is started anew."""
LARGEST_LOG = 20 * 2**20


class Running:
    """One child and its process."""

    def __init__(self, child: Child, env: dict[str, str], folder: Path) -> None:
        self.child, self.env, self.folder = child, {**env, **_missing(child.env, env)}, folder
        self.known = ChildState(address=child.address, health=child.health, log=str(log_of(child.name)))
        self.process: subprocess.Popen[bytes] | None = None
        self.began, self.answered, self.probed, self.due, self.failures = 0.0, 0.0, 0.0, 0.0, 0

    def start(self) -> None:
        log = log_of(self.child.name)
        _rotate(log)
        with log.open("ab") as out:
            out.write(f"\n--- {time.strftime('%Y-%m-%d %H:%M:%S')} start {self.known.starts + 1}: {' '.join(self.child.command[1:])}\n".encode())
            out.flush()
            self.process = subprocess.Popen(
                self.child.command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=self.env, cwd=self.folder, start_new_session=True, preexec_fn=_as_a_child
            )
        self.began = self.answered = time.monotonic()
        self.known.process, self.known.ready = Process.of(self.process.pid), False
        self.known.starts += 1

    def look(self) -> None:
        """Reap it where it ended, ask it how it is where it lives."""
        if self.process is None:
            return
        if (code := self.process.poll()) is not None:
            return self._ended(f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}")
        now = time.monotonic()
        if now - self.probed < (5.0 if self.known.ready else 0.5):
            return
        self.probed = now
        well = answers(self.child.health) if self.child.health else now - self.began > SETTLED_S
        if well:
            self.known.ready, self.answered = True, now
        elif self.known.ready and now - self.answered > HUNG_S:
            self.stop(5.0)
            self._ended(f"did not answer for {HUNG_S:.0f} s and was ended")

    def stop(self, grace_s: float) -> None:
        """End it and, unless they may outlive it, all that it started."""
        if self.process is None:
            return
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace_s)
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _signal(self, number: int) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.child.keeps_descendants and self.process.poll() is None:
                os.kill(self.process.pid, number)
            else:
                os.killpg(self.process.pid, number)  # the group lives on while one of it does, and no other gets its number until then

    def _ended(self, how: str) -> None:
        lived = time.monotonic() - self.began
        if not self.child.keeps_descendants:
            self._signal(signal.SIGKILL)  # what it left of its group would hold the port
        self.failures = 0 if lived > STEADY_S else self.failures + 1
        pause = PAUSES_S[min(self.failures, len(PAUSES_S)) - 1] if self.failures else 0.0
        self.due = time.monotonic() + pause
        self.known.process, self.known.ready, self.known.ended = None, False, f"{time.strftime('%H:%M:%S')} {how} after {lived:.0f} s"
        self.process = None
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self.child.name} {how} after {lived:.0f} s; starting it again in {pause:.0f} s", flush=True)


class Supervisor:
    """All children of one platform."""

    def __init__(self, settings: Settings) -> None:
        self.stopping = False
        platform_id = uuid.uuid4().hex
        env = environment(settings, platform_id)
        self.all = [Running(child, env, start_folder(settings)) for child in children(settings)]
        me = Process.of(os.getpid())
        assert me is not None
        served = settings.served
        self.state = State(
            id=platform_id, supervisor=me, project=str(settings.project), prefect_url=settings.prefect_url, mlflow_url=settings.mlflow_url,
            dashboard_url=settings.url("dashboard") if "dashboard" in served else None, metrics_url=f"{settings.url('metrics')}/metrics" if "metrics" in served else None,
            accounts=bool(settings.prefect_account or settings.mlflow_account), children={running.child.name: running.known for running in self.all},
        )  # fmt: skip

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told)
        written = ""
        while not self.stopping:
            for running in self.all:
                running.look()
                if running.process is None and time.monotonic() >= running.due and self._may_start(running):
                    running.start()
            if (now := self.state.model_dump_json()) != written:
                self.state.write()
                written = now
            time.sleep(0.25)
        self._stop()

    def _may_start(self, running: Running) -> bool:
        """The first time, servers come first; later, whoever rides out a server's restart need not wait for it."""
        ready = {other.child.name for other in self.all if other.known.ready}
        return running.known.starts > 0 or ready.issuperset(running.child.after)

    def _stop(self) -> None:
        """In the opposite order: workers and watchers while the servers still listen."""
        servers = {name for running in self.all for name in running.child.after}
        for group in ([r for r in self.all if r.child.name not in servers], [r for r in self.all if r.child.name in servers]):
            for running in group:
                if running.process is not None:
                    running._signal(signal.SIGTERM)
            for running in group:
                running.stop(running.child.grace_s)
                running.known.process, running.known.ready = None, False
            self.state.write()
        states.end(states.marked(self.state.id), grace_s=10.0)

    def _told(self, *_: object) -> None:
        self.stopping = True


def answers(url: str, timeout_s: float = 3.0) -> bool:
    """Whether a health address says 200."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return answer.status == 200
    except (OSError, ValueError):
        return False


def hold() -> IO[str]:
    """The right to be this home's only supervisor, held until the process ends. Errors: BadInput."""
    states.folder().mkdir(parents=True, exist_ok=True)
    (states.folder() / "logs").mkdir(exist_ok=True)
    lock = (states.folder() / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BadInput(f"platform: one is running already with its state in {states.folder()}, so no second one is started. Look at it with `modelyard status`") from None
    return lock


def _missing(wanted: object, env: dict[str, str]) -> dict[str, str]:
    assert isinstance(wanted, dict)
    return {name: value for name, value in wanted.items() if name not in env}


def _rotate(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > LARGEST_LOG:
        log.replace(log.with_suffix(".log.1"))


def _as_a_child() -> None:
    """Between fork and exec: signals as at login (a shell's `&` leaves SIGINT ignored, and a worker needs it), and the supervisor's death is its own."""
    import ctypes

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def main() -> None:
    with hold():
        Supervisor(Settings.read()).run()


if __name__ == "__main__":
    try:
        main()
    except BadInput as error:
        sys.exit(f"error: {error}")
