"""A program that is to be judged, as one text: what somebody wrote, a line that says where it ends, and the tests.

The text is Python and can be read and run as it stands. Who judges it (components/evaluation/sandbox.py) parts it again and keeps the two
in processes of their own, so that what was written cannot touch what judges it.
"""

from __future__ import annotations

TESTS_BEGIN = "# ======== what follows judges what stands above ========"


def joined(candidate: str, tests: str) -> str:
    return f"{candidate}\n{TESTS_BEGIN}\n{tests}"


def parted(program: str) -> tuple[str, str | None]:
    """The candidate and its tests; None where the program has none. The last such line counts: a candidate cannot move it."""
    candidate, line, tests = program.rpartition(f"\n{TESTS_BEGIN}\n")
    return (candidate, tests) if line else (program, None)
