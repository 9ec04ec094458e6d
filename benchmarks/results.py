"""benchmarks/RESULTS.md: one section for each benchmark, replaced when it is run again."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

PATH = Path(__file__).parent / "RESULTS.md"
HEAD = "# Results\n\nWhat the benchmarks printed when they were last run. Figures depend on the machine; ratios less so.\n"


def write_section(title: str, text: str) -> None:
    """Put `text` under `## title`; other sections stay."""
    whole = PATH.read_text(encoding="utf-8") if PATH.exists() else HEAD
    head, *sections = re.split(r"^## ", whole, flags=re.M)
    kept = [s for s in sections if s.partition("\n")[0].strip() != title]
    PATH.write_text(head.rstrip() + "\n\n" + "\n\n".join(f"## {s.strip()}" for s in [*kept, f"{title}\n\n{text}"]) + "\n", encoding="utf-8")


def machine() -> str:
    """The processor, cores and Python, in one line."""
    try:
        model = next(line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
