"""Programs that a reproduction waits for (pip, dvc): they end with it even where it is killed, since its next start works in the same folder."""

from __future__ import annotations

import ctypes
import signal
import subprocess
from typing import Any


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end; what it said, on either stream, is `stdout`."""
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", preexec_fn=_end_with_parent, **options)


def _end_with_parent() -> None:
    """Between fork and exec."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
