"""Where a run's result came from: the code, the environment and the machine, as plain data."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

KEY_PACKAGES = ("torch", "transformers", "tokenizers", "lightning", "lm_eval", "datasets", "mlflow", "dvc", "prefect", "numpy")


def lineage(project_root: Path) -> dict[str, Any]:
    """Everything that a rerun of the same recipe could differ by. Works outside a git checkout too: then `git_commit` is None."""
    installed = installed_versions()
    return {
        "git_commit": _git(project_root, "rev-parse", "HEAD"),
        "git_patch": _git(project_root, "diff", "HEAD", "--binary", "--no-ext-diff") or "",
        "git_untracked": (_git(project_root, "ls-files", "--others", "--exclude-standard") or "").splitlines(),
        "python": platform.python_version(),
        "packages": {name: installed[name] for name in KEY_PACKAGES if name in installed},
        "installed": [f"{name}=={version}" for name, version in installed.items()],
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
        "platform": platform.platform(),
        "executable": sys.executable,
    }


def installed_versions() -> dict[str, str]:
    """Every distribution on the path by its normalised name, sorted."""
    found = {(d.metadata["Name"] or "").lower().replace("-", "_"): d.version for d in metadata.distributions()}
    return {name: found[name] for name in sorted(found) if name}


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown")


def _git(root: Path, *arguments: str) -> str | None:
    """git's answer, or None where there is no git or no checkout."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    text = done.stdout.decode(errors="replace")
    return text if arguments[0] == "diff" else text.strip()
