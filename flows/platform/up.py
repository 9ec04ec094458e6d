"""Starting a platform and ending it, whatever state an earlier one was left in."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import psutil

from components.schema.config import BadInput, Unavailable
from flows.platform import ending
from flows.platform import state as states
from flows.platform.children import environment, lacking
from flows.platform.settings import PORTS, Settings
from flows.platform.state import State, log_of
from flows.server import check_answers

READY_WITHIN_S = 240.0
ENDED_WITHIN_S = 180.0

Say = Callable[[str], None]


def up(settings: Settings, say: Say) -> State:
    """Start what is not running and register everything; returns the platform. Errors: BadInput."""
    if found := State.running():
        say(f"The platform is up already, since {time.strftime('%Y-%m-%d %H:%M', time.localtime(found.began))}. Registering again.")
    else:
        ready_to_start(settings, say)
        found = _started()
    found = _wait(found, say)
    for line in register(settings, found):
        say(f"  {line}")
    return found


def run_in_foreground(settings: Settings, say: Say) -> int:
    """The supervisor in this terminal, container or service; gives its exit code. Errors: BadInput."""
    ready_to_start(settings, say)
    process = subprocess.Popen([sys.executable, "-m", "flows.platform.supervisor"], cwd=settings.project, start_new_session=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: process.send_signal(signal.SIGTERM))
    try:
        for line in register(settings, _wait(_appeared(process), say)):
            say(f"  {line}")
    except BaseException:
        process.terminate()  # a container or service that is not what it should be ends, and is started again
        process.wait()
        raise
    return process.wait()


def ready_to_start(settings: Settings, say: Say) -> None:
    """Nothing of an earlier platform in the way, no port taken by another program. Errors: BadInput."""
    if sys.platform != "linux":
        raise BadInput(f"platform: it tells its processes apart by /proc, and {sys.platform} has none, so nothing was started. Run it on Linux or in its container (infra/)")
    clear_leftovers(say, keep_runs_of=settings.prefect_url)
    if settings.prefect_given:
        check_answers(settings.prefect_given)
    check_ports(settings)
    for name, cure in lacking().items():
        if settings.ports[{"exporter": "metrics"}.get(name, name)]:
            say(f"NOT STARTED: {name}; its library is not installed. {cure}")


def down(say: Say) -> bool:
    """End the platform and whatever a killed one left; False where there was nothing."""
    found = State.running()
    if found:
        found.supervisor.tell(signal.SIGTERM)
        deadline = time.monotonic() + ENDED_WITHIN_S
        while found.supervisor.alive and time.monotonic() < deadline:
            time.sleep(0.1)
        if found.supervisor.alive:
            say(f"The supervisor (pid {found.supervisor.pid}) did not end within {ENDED_WITHIN_S:.0f} s and is killed.")
            found.supervisor.tell(signal.SIGKILL)
            time.sleep(1)
    return clear_leftovers(say) or found is not None


def clear_leftovers(say: Say, keep_runs_of: str | None = None) -> bool:
    """End what a platform left whose supervisor is gone, but for flow runs that report to the API `keep_runs_of`; whether there was anything."""
    found = State.read()
    if State.running():
        return False
    known = [child.process for child in found.children.values() if child.process] if found else []
    runs = {process.pid for process in ending.runs(known)}
    families = _families(runs) if found and keep_runs_of == found.prefect_url else set()
    left = [process for process in ending.marked() if process.pid not in families]
    if left:
        say(f"Ending what an earlier platform left: {len(left)} processes (pid {', '.join(str(process.pid) for process in left)}).")
        ending.end(left, grace_s=30.0)
    if families:
        say(f"{len(runs)} flow runs outlived it and go on (pid {', '.join(map(str, sorted(runs)))}).")
    states.path().unlink(missing_ok=True)
    return bool(left)


def _families(runs: set[int]) -> set[int]:
    """Flow runs with everything they started."""
    found = set(runs)
    for pid in runs:
        try:
            found |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
        except psutil.NoSuchProcess:
            continue
    return found


def check_ports(settings: Settings) -> None:
    """Errors: BadInput, naming every port that is taken."""
    taken = [name for name in settings.served if not _is_free(settings.host, settings.ports[name])]
    if taken:
        named = ", ".join(f"{settings.host}:{settings.ports[name]} ({name})" for name in taken)
        raise BadInput(f"platform: {named} is in use by another program, so nothing was started. End that program, or choose other ports with {', '.join(PORTS[name][0] for name in taken)}")


def _is_free(host: str, port: int) -> bool:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        raise BadInput(f"platform: MODELYARD_HOST={host!r} is no address of this machine, so no server could listen there. Correct it, or unset it for 127.0.0.1") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: a connection that just ended is no obstacle
        try:
            probe.bind(address)
        except OSError:
            return False
    return True


def _started() -> State:
    """A supervisor that outlives this terminal."""
    log = log_of("supervisor")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        process = subprocess.Popen([sys.executable, "-m", "flows.platform.supervisor"], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    return _appeared(process)


def _appeared(process: subprocess.Popen[bytes]) -> State:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (found := State.running()) and found.supervisor.pid == process.pid:
            return found
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise BadInput(f"platform: its supervisor did not start, so nothing runs. Read the end of {log_of('supervisor')}")


def _wait(found: State, say: Say) -> State:
    """Until every child is ready, or one has failed often enough to be told. Errors: Unavailable where a server does not come up."""
    deadline = time.monotonic() + READY_WITHIN_S
    now = found
    while time.monotonic() < deadline:
        now = State.running()
        if now is None:
            raise BadInput(f"platform: its supervisor ended while it was coming up. Read the end of {log_of('supervisor')}")
        waiting = {name: child for name, child in now.children.items() if not child.ready}
        if not waiting or any(child.starts >= 4 for child in waiting.values()):
            break
        time.sleep(0.2)
    for name, child in now.children.items():
        if not child.ready:
            say(f"NOT READY: {name} ({child.ended or 'no answer yet'}); it is tried again and again. Read the end of {child.log}")
    if any(name in ("prefect", "mlflow") and not child.ready for name, child in now.children.items()):
        raise Unavailable("platform: a server is not ready, so nothing was registered. Mend what its log says, then run `modelyard up` again; `modelyard down` ends the rest")
    return now


def register(settings: Settings, found: State) -> list[str]:
    """In a process of its own, which has this platform's settings from its first import. Errors: BadInput."""
    env = {**environment(settings), "PREFECT_API_URL": found.prefect_url, "MLFLOW_TRACKING_URI": found.mlflow_url}
    env.pop(ending.MARK)
    done = subprocess.run([sys.executable, "-m", "flows.platform.register"], cwd=settings.project, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        told = next((number for number, line in enumerate(lines) if line.startswith("error: ")), None)
        raise BadInput("\n".join(lines[told:]).removeprefix("error: ") if told is not None else f"platform: registering failed, so forms and automations may be old. What it said:\n{done.stderr[-3000:]}")
    return done.stdout.strip().splitlines()
