"""Run code that a model wrote, and say whether it ran to its end. What isolates it is described in jail.py.

    run_code("assert 1 + 1 == 2")            # Verdict(passed=True, reason="passed", seconds=0.002)
    run_codes(programs)                      # the same, several at a time, in the order given

About 35 ms a program. Linux only; works for root and for a normal user with user namespaces, and needs no package.
A host that cannot isolate is refused with BadInput: nothing ever runs unprotected.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

from components.schema.config import BadInput

JAIL = Path(__file__).with_name("jail.py")
PROCESSES = 8  # a program's own, threads included
START_S = 30.0  # beyond its time, before we give up on the sandbox itself


class Verdict(NamedTuple):
    """How one program ended."""

    passed: bool
    reason: str
    """passed; failed: <error>; timed out after ..."""
    seconds: float


def run_code(program: str, timeout_s: float = 3.0, memory_mb: int = 256) -> Verdict:
    """Run one program from its first to its last line. Errors: BadInput where this host cannot isolate it."""
    job = {"program": program, "timeout_s": timeout_s, "memory_mb": memory_mb, "processes": PROCESSES}
    read, write = os.pipe()
    try:
        command = [sys.executable, "-I", "-S", str(JAIL), str(write)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(write,), env={}, cwd="/"
        )
        os.close(write)
        with open(read, "rb") as report:
            try:
                process.communicate(json.dumps(job).encode(), timeout=timeout_s + START_S)
            except subprocess.TimeoutExpired:
                process.kill()  # the supervisor dies with its launcher, and all namespaces with the supervisor
                process.wait()
                return Verdict(False, f"timed out after {timeout_s + START_S:g} s: the sandbox did not answer", timeout_s + START_S)
            words = report.read()
    except OSError as error:
        raise BadInput(_refusal(f"starting {sys.executable} failed ({error})")) from None
    verdict = json.loads(words) if words else {"refused": "the sandbox's own process ended without a word"}
    if refused := verdict.get("refused"):
        raise BadInput(_refusal(refused))
    return Verdict(**verdict)


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


def _refusal(problem: str) -> str:
    return (
        f"sandbox: {problem}. Code that a model wrote is not run without isolation, so humaneval suites cannot be measured here. "
        "Allow user namespaces (sysctl user.max_user_namespaces > 0 and, where they exist, kernel.unprivileged_userns_clone=1, "
        "kernel.apparmor_restrict_unprivileged_userns=0; in a container: --security-opt seccomp=unconfined or --cap-add SYS_ADMIN), "
        "or drop the humaneval suites from evals.suites"
    )
