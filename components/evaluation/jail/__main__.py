"""The inside of the sandbox: run untrusted Python programs one after the other, each in namespaces of its own. Started by sandbox.py.

    python components/evaluation/jail REPORT_FD [PACKAGE ...]

Five kinds of processes, each less trusted than the one before:

    launcher        outside; starts the keeper and writes its user map
      keeper        process 1 of new user, mount, pid, net, ipc and uts namespaces; builds the root, imports what programs often need, and
                    starts a supervisor for each job. It reads no job, so no program can find another's in its memory
        supervisor  process 1 of a pid namespace of its own, with its own /tmp; holds the report, keeps the time, counts memory and output
          candidate   no capabilities, limits, a filter of system calls; runs what a model wrote
          judge       the same, as another user; runs the tests, which the candidate's process never holds (judge.py)

The verdict is what the supervisor was told by the judge, never what a program printed. A program without tests is judged by its own
end alone: it says so itself with a random token, so printing, `exit(0)` or `os._exit(0)` do not pass.

A job arrives on standard input as one byte, then two texts, each after its length in four bytes: the settings with the program, and the tests.
Each verdict goes to REPORT_FD in the same form. The first report says {"ready": ...} or {"refused": why}.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import secrets
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import calls
import judge
import walls
from walls import Refused

OFTEN_USED = (
    "array bisect cmath collections copy ctypes dataclasses datetime decimal enum fractions functools hashlib heapq inspect io itertools json math "
    "numbers operator os random re statistics string struct sys textwrap time traceback typing"
)  # fmt: skip
OUTPUT_BYTES = 8 << 20  # printed by one program before it is ended
KEPT_CHARACTERS = 2000  # of what it printed
LOOK_S = 0.02  # between two looks at the memory in use
FIRST, SECOND = 3, 4  # where a program's process finds its ends of lines


def main() -> None:
    report, packages = int(sys.argv[1]), sys.argv[2:]
    try:
        launch(report, packages)
    except Refused as refusal:
        say(report, {"refused": str(refusal)})


# ---------------------------------------------------------------- launcher


def launch(report: int, packages: list[str]) -> None:
    """Unshare in a child, map its user from outside, and wait for it."""
    unshared, tell_unshared = os.pipe()
    mapped, tell_mapped = os.pipe()
    child = os.fork()
    if child == 0:
        run_and_exit(lambda: enter_namespaces(report, packages, tell_unshared, mapped), report)
    os.close(tell_unshared)
    if os.read(unshared, 1):  # nothing is read where unshare was refused: the child has reported it
        walls.map_users(child)
        os.write(tell_mapped, b"1")
    os.waitpid(child, 0)


def enter_namespaces(report: int, packages: list[str], tell_unshared: int, mapped: int) -> None:
    walls.die_with_parent()
    walls.unshare(walls.USER | walls.MOUNT | walls.PID | walls.NETWORK | walls.IPC | walls.UTS, "user, mount, pid, net, ipc, uts")
    os.write(tell_unshared, b"1")
    os.read(mapped, 1)
    walls.forbid_further_user_namespaces()
    child = os.fork()  # the first process of the new pid namespace
    if child == 0:
        run_and_exit(lambda: keep(report, packages), report)
    os.waitpid(child, 0)


def run_and_exit(work: Callable[[], None], report: int) -> None:
    """A forked child never returns into its parent's code."""
    try:
        work()
    except Refused as refusal:
        say(report, {"refused": str(refusal)})
    except BaseException as error:
        say(report, {"refused": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(0)


# ---------------------------------------------------------------- keeper


def keep(report: int, packages: list[str]) -> None:
    """Serve jobs until the launcher's own parent ends: then standard input ends too."""
    walls.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a candidate of the same user as its judge must not be able to interrupt it
    own_processes = os.open("/proc/self/ns/pid", os.O_RDONLY)
    table = walls.build_root(packages)
    walls.not_to_be_read()
    walls.look_for_modules_in_the_new_root()
    for name in OFTEN_USED.split():
        importlib.import_module(name)
    os.environ.clear()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy would start one for each core
    gc.freeze()
    say(report, {"ready": True, "calls_filtered": calls.available(), "memory_counted": table is not None})
    while os.read(0, 1):
        verdict = supervised(own_processes, table)
        say(report, verdict)
        if "lost" in verdict:
            return  # the rest of the job may still stand in the line


def supervised(own_processes: int, table: int | None) -> dict[str, Any]:
    """One job. When its supervisor has ended, the kernel has ended all it started."""
    hear, tell = os.pipe()
    walls.unshare(walls.PID, "pid")
    child = os.fork()
    if child == 0:
        run_and_exit(lambda: say(tell, supervise(table)), tell)
    os.close(tell)
    walls.check(walls.libc.setns(own_processes, walls.PID), "coming back from the program's namespace")
    os.waitpid(child, 0)
    with open(hear, "rb") as answer:
        words = answer.read()[4:]
    return json.loads(words) if words else {"lost": True}


# ---------------------------------------------------------------- supervisor


def supervise(table: int | None) -> dict[str, Any]:
    """Start what the job asks for, and say how it ended."""
    walls.die_with_parent()
    walls.unshare(walls.MOUNT | walls.IPC, "mount, ipc")
    walls.own_tmp()
    job = json.loads(read_text())
    (hear, tell), (read, printed) = os.pipe(), os.pipe()
    nothing, end = os.pipe()
    os.close(end)
    start = time.monotonic()

    def begin(user: int, lines: list[int], work: Callable[[], object]) -> int:
        process = os.fork()
        if process == 0:
            become_program(job, user, nothing, printed, lines, work)
        return process

    if job.pop("judged"):
        here, there = socket.socketpair()
        begin(walls.CANDIDATE, [here.fileno()], lambda: judge.serve_candidate(FIRST, job["program"]))
        here.close()
        token, tests = secrets.token_bytes(16), read_text()  # only now: the candidate's process is a copy of this one as it was
        decisive = begin(walls.JUDGE, [there.fileno(), tell], lambda: report_end(lambda: judge.judge(FIRST, tests), SECOND, token))
    else:
        token, _ = secrets.token_bytes(16), read_text()
        decisive = begin(walls.CANDIDATE, [tell], lambda: report_end(lambda: judge.run(job["program"], {}, "<program>"), FIRST, token))
    for fd in (tell, printed, nothing):
        os.close(fd)
    return {**watch(job, token, decisive, hear, read, table), "seconds": time.monotonic() - start}


def watch(job: dict[str, Any], token: bytes, decisive: int, hear: int, read: int, table: int | None) -> dict[str, Any]:
    """The decisive process's last words, its death, or the first limit that is passed, whichever comes first."""
    deadline = time.monotonic() + job["timeout_s"]
    ended = os.pidfd_open(decisive)
    ours = {1, int(os.readlink("self", dir_fd=table))} if table is not None else set()
    os.set_blocking(hear, False)
    os.set_blocking(read, False)
    poll, printed, size, looked = select.poll(), b"", 0, time.monotonic()
    for fd in (hear, read, ended):
        poll.register(fd, select.POLLIN)
    reason = None
    while reason is None:
        events = dict(poll.poll(LOOK_S * 1000))
        if read in events:
            size += len(part := take(read))
            printed += part[: 4 * KEPT_CHARACTERS - len(printed)]
            if not part:
                poll.unregister(read)
        now = time.monotonic()
        if hear in events or ended in events:  # what is said first counts: children that a program left behind keep the line open
            words = take(hear)
            ended_how = words.decode(errors="replace")[:300] or "the process ended before the program did"
            reason = "passed" if words == token else f"failed: {ended_how}"
        elif size > OUTPUT_BYTES:
            reason = f"failed: printed more than {OUTPUT_BYTES >> 20} MiB"
        elif now > deadline:
            reason = f"timed out after {job['timeout_s']:g} s"
        elif table is not None and now - looked > LOOK_S:
            looked = now
            if walls.memory_in_use(table, ours) > job["memory_mb"] << 20:
                reason = f"failed: its processes together used more than {job['memory_mb']} MiB"
    printed += take(read)[: 4 * KEPT_CHARACTERS]
    return {"passed": reason == "passed", "reason": reason, "output": printed.decode(errors="replace")[:KEPT_CHARACTERS]}


def take(fd: int) -> bytes:
    """What there is to read now, at most 64 KiB."""
    try:
        return os.read(fd, 1 << 16)
    except BlockingIOError:
        return b""


# ---------------------------------------------------------------- candidate and judge


def become_program(job: dict[str, Any], user: int, nothing: int, printed: int, lines: list[int], work: Callable[[], object]) -> None:
    """Keep the ends of its own lines, give everything else up, and work."""
    try:
        for k, fd in enumerate([nothing, printed, printed, *lines]):
            os.dup2(fd, 100 + k)  # out of the way first
        for k in range(3 + len(lines)):
            os.dup2(100 + k, k, inheritable=False)
        os.closerange(3 + len(lines), 1 << 16)
        sys.stdin, sys.stdout, sys.stderr = (open(k, mode, closefd=False, errors="backslashreplace", encoding="utf-8") for k, mode in enumerate("rww"))
        walls.confine(user, job["timeout_s"], job["memory_mb"], job["processes"])
        walls.not_to_be_read()
        work()
    finally:
        os._exit(0)


def report_end(work: Callable[[], str | None], line: int, token: bytes) -> None:
    """Say how it ended; a child that the program left behind says nothing."""
    speaker = os.getpid()
    stopped = work()
    if os.getpid() != speaker:
        return
    try:
        sys.stdout.flush()
    except BaseException:
        pass  # the program closed it, or put something else in its place
    os.write(line, token if stopped is None else (stopped or "?").encode(errors="replace"))


# ---------------------------------------------------------------- texts on a line


def read_text() -> str:
    """The next text of the job."""
    return exactly(int.from_bytes(exactly(4), "big")).decode("utf-8", "surrogatepass")


def exactly(size: int) -> bytes:
    parts = []
    while size:
        part = os.read(0, min(size, 1 << 20))
        if not part:
            raise EOFError("the job ended in the middle")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def say(report: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    os.write(report, len(data).to_bytes(4, "big") + data)


if __name__ == "__main__":
    main()
