"""`modelyard doctor`: is this machine able to run the line, and if not, what would mend it?"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from components.schema.records import home

Finding = tuple[bool, str, str]  # fine, what was seen, what to do if not

MUST_BE_BELOW = {"fastapi": ((0, 151), "Prefect 3.8's server answers 422 or dies with it"), "sqlalchemy": ((2, 1), "Prefect's scheduler silently makes no runs with it")}


def examine() -> bool:
    """Run every check, print one line each; True where nothing is wrong."""
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("python", _python),
        ("pins", _pins),
        ("disk", _disk),
        ("memory", _memory),
        ("project", _project),
        ("git", _git),
        ("sandbox", _sandbox),
        ("hub", _hub),
        ("prefect", lambda: _service("PREFECT_API_URL", "a server of the run's own, history in " + str(home() / "prefect"))),
        ("mlflow", lambda: _service("MLFLOW_TRACKING_URI", "SQLite in " + str(home() / "mlflow"))),
    ]
    all_fine = True
    for name, check in checks:
        fine, seen, advice = check()
        all_fine &= fine
        print(f"{'ok  ' if fine else 'BAD '} {name:<8} {seen}" + ("" if fine else f"\n              → {advice}"))
    print("Everything is fine. Next: modelyard run recipes/tiny.yaml" if all_fine else "Mend what is BAD above, then run modelyard doctor again.")
    return all_fine


def _python() -> Finding:
    version = sys.version.split()[0]
    return sys.version_info[:2] == (3, 11), f"{version} at {sys.executable}", "every tested version is pinned for Python 3.11: make the environment with python3.11"


def _pins() -> Finding:
    problems = []
    for name, (limit, why) in MUST_BE_BELOW.items():
        version = importlib.metadata.version(name)
        if tuple(int(x) for x in version.split(".")[:2]) >= limit:
            problems.append(f"{name} {version} ({why})")
    stack = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("torch", "lightning", "transformers", "prefect", "mlflow", "dvc", "lm-eval"))
    return not problems, "; ".join(problems) or stack, "install again with the pins: make setup"


def _disk() -> Finding:
    folder = home()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    return free > 3, f"{free:.1f} GiB free at {folder}", "free some space, or set MODELYARD_HOME to a folder on a larger disk"


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return total > 3.5, f"{total:.1f} GiB, {os.cpu_count()} cores", "the embedded recipe wants 4 GiB; lower model.hidden_size and batch sizes with --set"


def _project() -> Finding:
    return Path("dvc.yaml").exists(), str(Path.cwd()), "change to the project's folder: the one with dvc.yaml"


def _git() -> Finding:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.returncode == 0, f"commit {done.stdout.strip()}" if done.returncode == 0 else "no git checkout", "lineage needs a commit: git init, then commit the project"


def _sandbox() -> Finding:
    script = "from components.evaluation.sandbox import *; v = run_code('assert 1 + 1 == 2'); assert v.passed, v; print(*[k for k, there in layers().items() if not there])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    last, missing = (done.stderr.strip().splitlines() or ["?"])[-1], done.stdout.strip()
    found = "model-written code runs in namespaces of its own" + (f"; not to be had here: {missing}" if missing else ", its system calls filtered")
    return done.returncode == 0, found if done.returncode == 0 else last, "humaneval suites need it; leave them out of evals.suites until it works"


def _hub() -> Finding:
    mirror = os.environ.get("MODELYARD_HUB_MIRROR")
    if not mirror:
        return True, "no mirror set: hub ids are fetched from the network (only recipes that name them need it)", ""
    return Path(mirror).is_dir(), f"mirror {mirror}", "MODELYARD_HUB_MIRROR names no folder: unset it or correct it"


def _service(variable: str, embedded: str) -> Finding:
    return True, os.environ.get(variable) or f"embedded: {embedded}", ""
