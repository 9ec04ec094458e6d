"""Starting a platform and ending it, whatever state an earlier one was left in."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from components.schema.config import BadInput
from flows.platform import state as states
from flows.platform.children import children, environment
from flows.platform.settings import PORTS, Settings
from flows.platform.state import State, log_of

READY_WITHIN_S = 240.0
ENDED_WITHIN_S = 120.0

Say = Callable[[str], None]


def up(settings: Settings, say: Say) -> State:
    """Start what is not running and register everything; returns the platform. Errors: BadInput."""
    if found := State.running():
        say(f"The platform is up already, since {time.strftime('%Y-%m-%d %H:%M', time.localtime(found.began))}. Registering again.")
    else:
        clear_leftovers(say)
        check_ports(settings)
        found = _start(settings)
    found = _wait(found, settings, say)
    for line in _register(settings, found):
        say(f"  {line}")
    return found


def down(say: Say) -> bool:
    """End the platform and whatever a killed supervisor left; False where there was nothing."""
    found = State.running()
    if found:
        found.supervisor.signal(15)
        deadline = time.monotonic() + ENDED_WITHIN_S
        while found.supervisor.alive and time.monotonic() < deadline:
            time.sleep(0.2)
        if found.supervisor.alive:
            say(f"The supervisor (pid {found.supervisor.pid}) did not end within {ENDED_WITHIN_S:.0f} s and is killed.")
            found.supervisor.signal(9)
    return clear_leftovers(say) or found is not None


def clear_leftovers(say: Say) -> bool:
    """End what is left of a platform whose supervisor is gone; whether there was anything."""
    found = State.read()
    if found is None or found.supervisor.alive:
        return False
    left = {process.pid: process for process in states.marked(found.id)}
    left |= {c.process.pid: c.process for c in found.children.values() if c.process and c.process.alive}
    if left:
        say(f"Ending {len(left)} processes that an earlier platform left (pid {', '.join(map(str, sorted(left)))}).")
        states.end(left.values(), grace_s=20.0)
    states.path().unlink(missing_ok=True)
    return bool(left)


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
        raise BadInput(f"platform: MODELYARD_HOST={host!r} is not an address of this machine, so no server could listen there. Correct it, or unset it for 127.0.0.1") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: a connection that just ended is no obstacle
        try:
            probe.bind(address)
        except OSError:
            return False
    return True


def _start(settings: Settings) -> State:
    """A supervisor that outlives this terminal."""
    states.folder().mkdir(parents=True, exist_ok=True)
    log = log_of("supervisor")
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.platform.supervisor"], cwd=settings.project, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (found := State.running()) and found.supervisor.pid == process.pid:
            return found
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise BadInput(f"platform: its supervisor did not start, so nothing runs. Read the end of {log}")


def _wait(found: State, settings: Settings, say: Say) -> State:
    """Until every child is ready. Errors: BadInput, naming the log of the one that is not."""
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        now = State.running()
        if now is None or now.id != found.id:
            raise BadInput(f"platform: its supervisor ended while it was coming up. Read {log_of('supervisor')}")
        waiting = [name for name, child in now.children.items() if not child.ready]
        if not waiting:
            return now
        if failing := [name for name in waiting if now.children[name].starts >= 4]:
            say(f"{failing[0]} does not stay up ({now.children[failing[0]].ended}); the rest is left running. Read {now.children[failing[0]].log}")
            return now
        time.sleep(0.3)
    say(f"Not ready after {READY_WITHIN_S:.0f} s: {', '.join(waiting)}; read {now.children[waiting[0]].log}")
    return now


def _register(settings: Settings, found: State) -> list[str]:
    """In a process of its own: it needs Prefect, with the settings of this platform from the start. Errors: BadInput."""
    env = environment(settings, "")
    env["PREFECT_API_URL"], env["MLFLOW_TRACKING_URI"] = found.prefect_url, found.mlflow_url
    done = subprocess.run([sys.executable, "-m", "flows.platform.register"], cwd=settings.project, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        told = next((number for number, line in enumerate(lines) if line.startswith("error: ")), None)
        raise BadInput("\n".join(lines[told:]).removeprefix("error: ") if told is not None else f"platform: registering failed. What it said:\n{done.stderr[-3000:]}")
    return done.stdout.strip().splitlines()
