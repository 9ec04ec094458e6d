"""Run code that a model wrote, and say whether it ran to its end. What isolates it is described in jail/.

    run_code("assert 1 + 1 == 2")                       # Verdict(passed=True, reason="passed", seconds=0.002, output="")
    run_code(joined(candidate, tests))                  # the same, the tests in a process that the candidate cannot touch
    run_codes(programs)                                 # the same, several at a time, in the order given

A program without tests of its own (components.schema.programs) is judged by its own end alone. Jails are kept warm between calls, one for
each worker: 5 to 15 ms a program. Linux 5.3 and later; works for root and for a normal user with user namespaces, and needs no package.
A host that cannot isolate is refused with BadInput: nothing ever runs unprotected.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from components.schema.config import BadInput
from components.schema.programs import parted

JAIL = Path(__file__).with_name("jail")
PACKAGES = ("numpy",)  # what a program may import beyond the standard library
PROCESSES = 8  # a program's own, threads included
START_S = 30.0  # beyond its time, before we give up on the sandbox itself


class Verdict(NamedTuple):
    """How one program ended."""

    passed: bool
    reason: str
    """passed; failed: <error>; timed out after ..."""
    seconds: float
    output: str = ""
    """The first 2,000 characters of what it printed."""


def run_code(program: str, timeout_s: float = 3.0, memory_mb: int = 256) -> Verdict:
    """Run one program from its first to its last line. Errors: BadInput where this host cannot isolate it."""
    candidate, tests = parted(program)
    settings = {"program": candidate, "judged": tests is not None, "timeout_s": timeout_s, "memory_mb": memory_mb, "processes": PROCESSES}
    for _ in range(2):  # a jail that the host ended (its memory killer, say) is replaced once
        jail = _take()
        try:
            answer = jail.run(settings, tests or "", timeout_s + START_S)
        except BaseException:
            jail.end()
            raise
        if answer is not None:
            _give_back(jail)
            break
        jail.end()
    else:
        return Verdict(False, "failed: the sandbox itself ended twice while it ran", 0.0)
    if "refused" in answer:
        raise BadInput(_refusal(answer["refused"]))
    return Verdict(**answer)


def run_codes(programs: Sequence[str], timeout_s: float = 3.0, memory_mb: int = 256, workers: int | None = None) -> list[Verdict]:
    """Run programs side by side, `workers` at a time (None = one for each core)."""
    with ThreadPoolExecutor(max_workers=workers or os.cpu_count() or 1) as pool:
        return list(pool.map(lambda program: run_code(program, timeout_s, memory_mb), programs))


@cache
def require_sandbox() -> None:
    """Find out before a long run whether this host can isolate programs. Errors: BadInput."""
    if sys.platform != "linux":
        raise BadInput(_refusal(f"{sys.platform} has no namespaces"))
    verdict = run_code("assert True", timeout_s=10.0)
    if not verdict.passed:
        raise BadInput(_refusal(f"an empty program did not pass ({verdict.reason})"))


def layers() -> dict[str, bool]:
    """What this host gives beyond namespaces and limits: calls_filtered (seccomp), memory_counted (all of a program's processes together)."""
    jail = _take()
    _give_back(jail)
    return {name: jail.greeting[name] for name in ("calls_filtered", "memory_counted")}


def _refusal(problem: str) -> str:
    return (
        f"sandbox: {problem}. Code that a model wrote is not run without isolation, so humaneval and mbpp cannot be measured here, "
        "nor rewards of kind code given. "
        "Allow user namespaces (sysctl user.max_user_namespaces > 0 and, where they exist, kernel.unprivileged_userns_clone=1, "
        "kernel.apparmor_restrict_unprivileged_userns=0; in a container: --security-opt seccomp=unconfined or --cap-add SYS_ADMIN), "
        "or drop the humaneval suites from evals.suites, mbpp with them, and such rewards from the recipe"
    )


# ---------------------------------------------------------------- warm jails


class Jail:
    """One jail's outer process, and the lines to it. It ends when this process does, as its standard input ends then."""

    def __init__(self) -> None:
        """Errors: BadInput where this host cannot isolate."""
        read, write = os.pipe()
        command = [sys.executable, "-S", "-s", str(JAIL), str(write), *_packages()]
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(write,), cwd="/",
                env={"PYTHONHASHSEED": "0"}, bufsize=0, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            os.close(read)
            raise BadInput(_refusal(f"starting {sys.executable} failed ({error})")) from None
        finally:
            os.close(write)
        self.report = open(read, "rb", buffering=0)
        self.greeting = self._answer(START_S) or {"refused": "the sandbox's own process ended without a word"}
        if refused := self.greeting.get("refused"):
            self.end()
            raise BadInput(_refusal(refused))

    def run(self, settings: dict[str, Any], tests: str, patience_s: float) -> dict[str, Any] | None:
        """The verdict; None where the jail ended."""
        texts = [json.dumps(settings).encode(), tests.encode("utf-8", "surrogatepass")]
        job = memoryview(b"1" + b"".join(len(text).to_bytes(4, "big") + text for text in texts))
        try:
            while job:
                job = job[self.process.stdin.write(job) :]
        except OSError:
            return None
        answer = self._answer(patience_s)
        return None if answer is None or "lost" in answer else answer

    def end(self) -> None:
        """All namespaces end with it."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.report.close()

    def _answer(self, patience_s: float) -> dict[str, Any] | None:
        deadline = time.monotonic() + patience_s
        size = self._read(4, deadline)
        words = self._read(int.from_bytes(size, "big"), deadline) if size else b""
        return json.loads(words) if words else None

    def _read(self, size: int, deadline: float) -> bytes:
        data = b""
        while len(data) < size:
            ready = select.select([self.report], [], [], max(0.0, deadline - time.monotonic()))[0]
            part = self.report.read(size - len(data)) if ready else b""
            if not part:
                return b""
            data += part
        return data


_idle: dict[tuple[Any, ...], list[Jail]] = {}
_lock = threading.Lock()


def _take() -> Jail:
    """A jail that nobody uses and that still stands, or a new one."""
    while True:
        with _lock:
            idle = _idle.get(_kind())
            jail = idle.pop() if idle else None
        if jail is None:
            return Jail()
        if jail.process.poll() is None:
            return jail
        jail.end()


def _give_back(jail: Jail) -> None:
    with _lock:
        _idle.setdefault(_kind(), []).append(jail)


def _kind() -> tuple[Any, ...]:
    """What makes jails alike. A process that was forked has none of its parent's."""
    return os.getpid(), sys.executable, JAIL


@cache
def _packages() -> tuple[str, ...]:
    """Folders of the packages, and of the libraries that wheels keep beside them."""
    found = [Path(spec.submodule_search_locations[0]) for name in PACKAGES if (spec := importlib.util.find_spec(name)) and spec.submodule_search_locations]
    return tuple(str(folder) for package in found for folder in (package, package.with_name(f"{package.name}.libs")) if folder.is_dir())
