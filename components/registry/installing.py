"""An environment with what was installed when a model was made: a venv, filled by pip with the recorded versions as constraints."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from components.registry import children
from components.schema.config import BadInput

OURS = "modelyard"


def environment(folder: Path, code: Path, installed: list[str], python: str) -> Path:
    """Its interpreter; made where it is not there whole. `installed`: NAME==VERSION lines; `python`: the version then. Errors: BadInput, with pip's last words."""
    interpreter = folder / "bin" / "python"
    if (folder / "whole").is_file():
        return interpreter
    shutil.rmtree(folder, ignore_errors=True)
    _run([_base(python), "-m", "venv", str(folder)], "an environment could not be made")
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{line}\n" for line in (without_build(one) for one in installed) if not line.startswith(f"{OURS}==")))
    _run([str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(constraints), "-e", str(code)], "pip could not install what was installed then")
    (folder / "whole").touch()
    return interpreter


def without_build(line: str) -> str:
    """torch==2.13.0+cpu as torch==2.13.0: an index names no local builds, and pip takes one of them where it finds it."""
    return line.partition("+")[0]


def _base(version: str) -> str:
    """An interpreter of that minor version."""
    minor = ".".join(version.split(".")[:2])
    if f"{sys.version_info.major}.{sys.version_info.minor}" == minor:
        return sys.executable
    if found := shutil.which(f"python{minor}"):
        return found
    raise BadInput(f"reproduce: Python {minor}, which made this model, is not installed here, so its environment cannot be built. Install it, or leave --fresh-environment out")


def _run(command: list[str], what: str) -> None:
    done = children.run(command)
    if done.returncode:
        raise BadInput(f"reproduce: {what}:\n{done.stdout[-1500:]}\nRun again with pip's index in reach, or leave --fresh-environment out")
