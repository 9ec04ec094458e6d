"""Keeps a platform's children running until it is told to stop: `python -m flows.platform.supervisor`, which `modelyard up` starts detached.

A child that ends is started again after a pause that grows with each failure and is forgotten once the child has lived a while. A server
that stops answering for minutes is ended and started anew. On SIGTERM everything ends: runs first, at a checkpoint, while the servers still
listen. When the supervisor itself is killed, the kernel ends its children (PR_SET_PDEATHSIG); flow runs go on, and find the servers
again after the next `modelyard up`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import IO

from components.schema.config import BadInput
from flows.platform import ending
from flows.platform import state as states
from flows.platform.accounts import prepare
from flows.platform.children import Child, children, environment
from flows.platform.settings import Settings
from flows.platform.state import ChildState, Process, State, log_of

PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
STEADY_S = 60.0
"""A child that lived this long is started again at once."""
SETTLED_S = 3.0
"""A child without a health address counts as ready after this long."""
HUNG_S = 180.0
"""A server that was ready and has not answered for this long is started anew."""
HEARD_S = 3.0
"""The server and the watchers act on runs that just ended for this long before they end themselves."""
LARGEST_LOG = 20 * 2**20
"""Bytes; then it is moved to NAME.log.1 and begun anew."""


class Running:
    """One child and its process."""

    def __init__(self, child: Child, env: dict[str, str], folder: Path) -> None:
        self.child, self.env, self.folder = child, {**child.defaults, **env, **child.env}, folder
        self.process: subprocess.Popen[bytes] | None = None
        self.known: Process | None = None
        self.ready, self.starts, self.failures = False, 0, 0
        self.began = self.answered = self.probed = self.due = 0.0  # monotonic seconds
        self.began_at: float | None = None
        self.how_it_ended: str | None = None

    @property
    def state(self) -> ChildState:
        return ChildState(
            process=self.known, address=self.child.address, health=self.child.health, ready=self.ready, starts=self.starts, began=self.began_at, ended=self.how_it_ended, log=str(log_of(self.child.name)),
        )  # fmt: skip

    def start(self) -> None:
        with log_of(self.child.name).open("ab") as out:
            out.write(f"\n--- {_now()} start {self.starts + 1}: python {' '.join(self.child.command[1:])}\n".encode())
            out.flush()
            prepare_process = _as_a_worker if self.child.is_worker else _as_a_server
            self.process = subprocess.Popen(
                self.child.command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=self.env, cwd=self.folder, start_new_session=True, preexec_fn=prepare_process
            )
        self.began = self.answered = time.monotonic()
        self.known, self.ready, self.starts, self.began_at = Process.of(self.process.pid), False, self.starts + 1, time.time()

    def look(self) -> None:
        """Reap it where it ended, ask it how it is where it lives."""
        if self.process is None:
            return
        if (code := self.process.poll()) is not None:
            return self._ended(f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}")
        now = time.monotonic()
        if now - self.probed < (5.0 if self.ready else 0.5):
            return
        self.probed = now
        if answers(self.child.health) if self.child.health else now - self.began > SETTLED_S:
            self.ready, self.answered = True, now
        elif self.ready and now - self.answered > HUNG_S:
            self.stop(5.0)
            self._ended(f"did not answer for {HUNG_S:.0f} s and was ended")

    def stop(self, grace_s: float) -> None:
        """End it with all of its group. A worker's runs are not of its group."""
        if self.process is None:
            return
        self.tell(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace_s)
        self.tell(signal.SIGKILL)
        self.process.wait()
        ending.kill_group(self.process.pid)

    def tell(self, number: signal.Signals) -> None:
        """To its whole group, while it has not been reaped: until then its number is nobody else's."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    def _ended(self, how: str) -> None:
        assert self.process is not None
        lived = time.monotonic() - self.began
        ending.kill_group(self.process.pid)  # what it left would hold the port
        self.failures = 0 if lived > STEADY_S else self.failures + 1
        pause = PAUSES_S[min(self.failures, len(PAUSES_S)) - 1] if self.failures else 0.0
        self.due = time.monotonic() + pause
        self.process = self.known = None
        self.ready, self.how_it_ended = False, f"{_now()}: {how} after {lived:.0f} s"
        print(f"{_now()} {self.child.name} {how} after {lived:.0f} s; starting it again in {pause:.0f} s", flush=True)


class Supervisor:
    """All children of one platform."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.stopping, self.began = settings, False, time.time()
        env = environment(settings)
        self.all = [Running(child, env, settings.project) for child in children(settings)]

    def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told)
        written = None
        while not self.stopping:
            for running in self.all:
                running.look()
                if running.process is None and time.monotonic() >= running.due and self._may_start(running):
                    running.start()
            if (now := self.state) != written:
                now.write()
                written = now
            self._reap_orphans()
            _rotate_logs()
            time.sleep(0.25)
        self._stop()

    @property
    def state(self) -> State:
        me, s = Process.of(os.getpid()), self.settings
        assert me is not None
        return State(
            supervisor=me, project=str(s.project), began=self.began, prefect_url=s.prefect_url, mlflow_url=s.mlflow_url,
            dashboard_url=self._address("dashboard"), feedback_url=self._address("feedback"), metrics_url=self._address("exporter"), serving_url=self._address("serving"), children={running.child.name: running.state for running in self.all},
        )  # fmt: skip

    def _address(self, name: str) -> str | None:
        return next((running.child.address for running in self.all if running.child.name == name), None)

    def _may_start(self, running: Running) -> bool:
        """The first time, servers come first; later, everybody rides out a server's restart."""
        ready = {other.child.name for other in self.all if other.ready}
        return running.starts > 0 or ready.issuperset(running.child.after)

    def _stop(self) -> None:
        """Runs, then those that watch, then servers."""
        processes = [running.known for running in self.all if running.known]
        workers = [running.known for running in self.all if running.child.is_worker and running.known]
        if ending.end_runs(workers, processes):
            time.sleep(HEARD_S)
        servers = {name for running in self.all for name in running.child.after}
        for are_servers in (False, True):
            group = [running for running in self.all if (running.child.name in servers) == are_servers]
            for running in group:
                running.tell(signal.SIGTERM)
            for running in group:
                running.stop(running.child.grace_s)
        ending.end(ending.marked(), grace_s=10.0)
        states.path().unlink(missing_ok=True)

    def _reap_orphans(self) -> None:
        """In a container the supervisor is the first process, and what loses its parent becomes its child."""
        ours = {running.process.pid for running in self.all if running.process}
        for text in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
            if int(text) not in ours:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(int(text), os.WNOHANG)

    def _told(self, *_: object) -> None:
        self.stopping = True


def answers(url: str, timeout_s: float = 3.0) -> bool:
    """Whether a health address says 200."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return answer.status == 200
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def alone() -> IO[str]:
    """The right to be this home's only supervisor. Errors: BadInput."""
    (states.folder() / "logs").mkdir(parents=True, exist_ok=True)
    with (states.folder() / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"platform: one with its state in {states.folder()} is running already, so no second one is started. Look at it with `modelyard status`") from None
        yield lock


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _rotate_logs() -> None:
    """Copied and emptied: its writer goes on in the same file, at its new end."""
    for log in (states.folder() / "logs").glob("*.log"):
        if log.stat().st_size > LARGEST_LOG:
            shutil.copyfile(log, log.with_suffix(".log.1"))
            os.truncate(log, 0)


def _as_a_server() -> None:
    """Between fork and exec: signals as at login, and the supervisor's death is told."""
    _as_a_child(signal.SIGTERM)


def _as_a_worker() -> None:
    """A worker that is asked to end kills its runs without a word; one that is killed leaves them be."""
    _as_a_child(signal.SIGKILL)


def _as_a_child(at_our_death: signal.Signals) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's `&` leaves it ignored
    ctypes.CDLL(None).prctl(1, int(at_our_death))  # PR_SET_PDEATHSIG


def main() -> None:
    try:
        with alone():
            settings = Settings.read()
            prepare(settings)
            Supervisor(settings).run()
    except BadInput as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
