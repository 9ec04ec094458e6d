"""Where a run's result came from: the code, the data's pins, the environment and the machine, as plain data.

    found = lineage(Path.cwd())     # kept with every run in MLflow, by tracking.open_pipeline and open_stage
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from components.registry.working_tree import working_tree

KEY_PACKAGES = ("torch", "transformers", "tokenizers", "lightning", "lm_eval", "datasets", "mlflow", "dvc", "prefect", "numpy")
PINS = ("params.yaml", "dvc.lock")  # what the data is: parameters and pins asked for, and the hashes of what was made
# Variables that can change a result's bits.
WATCHED = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY", "GLIBC_TUNABLES", "MKL_CBWR", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA",
    "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "PYTHONHASHSEED", "MODELYARD_HUB_MIRROR",
)  # fmt: skip


def lineage(project_root: Path) -> dict[str, Any]:
    """Everything that a rerun of the same recipe could differ by. Works outside a git checkout too: then `git_commit` is None."""
    installed = installed_versions()
    tree = working_tree(project_root, PINS)
    return {
        "git_commit": tree.commit,
        "git_patch": tree.patch,
        "git_untracked": tree.untracked,
        "git_left_out": tree.left_out,
        "git_prefix": tree.prefix,
        "pins": {name: (project_root / name).read_text(encoding="utf-8") for name in PINS if (project_root / name).is_file()},
        "python": platform.python_version(),
        "packages": {name: installed[name] for name in KEY_PACKAGES if name in installed},
        "installed": [f"{name}=={version}" for name, version in installed.items()],
        "environment": {name: os.environ[name] for name in WATCHED if name in os.environ},
        "cpu": cpu_model(),
        "cpu_instructions": cpu_instructions(),
        "gpus": gpus(),
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
    return _cpuinfo("model name") or platform.processor() or "unknown"


def cpu_instructions() -> list[str]:
    """The vector instructions that numerical libraries choose their code by; sums are rounded differently by each."""
    flags = (_cpuinfo("flags") or "").split()
    return sorted(flag for flag in flags if flag.startswith(("avx", "amx", "fma", "sse4")))


@cache
def gpus() -> list[str]:
    """Names of the NVIDIA devices, as the driver tells them; asked without torch."""
    try:
        done = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _cpuinfo(name: str) -> str | None:
    """The first processor's entry of this name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), None)
