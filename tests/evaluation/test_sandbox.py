"""What model-written code may and may not do. Skipped where the host cannot isolate: there nothing is run at all."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from components.evaluation import sandbox
from components.evaluation.sandbox import JAIL, run_code, run_codes
from components.schema.config import BadInput

ROOT = Path(__file__).parents[2]


def isolates() -> bool:
    try:
        sandbox.require_sandbox()
    except BadInput:
        return False
    return True


needs_namespaces = pytest.mark.skipif(not isolates(), reason="this host allows no user namespaces")


@needs_namespaces
def test_a_program_that_runs_to_its_end_passes() -> None:
    verdict = run_code("import math, collections, hashlib\nassert math.gcd(12, 18) == 6")
    assert verdict.passed and verdict.reason == "passed"


@needs_namespaces
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("print('passed'); raise ValueError('x')", "ValueError: x"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended before the program did"),
        ("import os; os.closerange(3, 256)", "ended before the program did"),
        ("import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'passed')\n    except OSError: pass\nos._exit(0)", "failed: passed"),
    ],
)
def test_a_program_cannot_pass_by_failing_exiting_or_printing(program: str, reason: str) -> None:
    verdict = run_code(program)
    assert not verdict.passed and reason in verdict.reason


@needs_namespaces
def test_an_endless_loop_times_out_and_leaves_nothing_running() -> None:
    start = time.monotonic()
    verdict = run_code("import os\nos.fork()\nwhile True: pass", timeout_s=1.0)
    assert not verdict.passed and "timed out after 1 s" in verdict.reason
    assert time.monotonic() - start < 8
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout if Path("/bin/ps").exists() else ""
    assert str(JAIL) not in running


@needs_namespaces
def test_there_is_no_network_not_even_the_host_s_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            pass  # reachable from here
        verdict = run_code(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)")
    assert not verdict.passed and "unreachable" in verdict.reason


@needs_namespaces
@pytest.mark.parametrize("path", ["/etc/passwd", "/etc/hostname", str(ROOT / "pyproject.toml"), "/proc/1/environ", "/dev/null", str(Path.home())])
def test_the_host_s_files_are_not_there(path: str) -> None:
    verdict = run_code(f"import os\nassert not os.path.exists({path!r})")
    assert verdict.passed, verdict.reason


@needs_namespaces
def test_only_tmp_can_be_written_and_each_program_has_its_own() -> None:
    assert run_code("open('/tmp/mine', 'w').write('x')").passed
    assert run_code("import os\nassert os.listdir('/tmp') == []").passed
    assert not Path("/tmp/mine").exists()
    for place in ("/x", "/python/x", "/usr/lib/x"):
        assert not run_code(f"open({place!r}, 'w')").passed, place


@needs_namespaces
def test_the_environment_is_empty_and_no_secret_of_ours_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SECRET", "hush")
    verdict = run_code("import os\nassert 'SOME_SECRET' not in os.environ and not [k for k in os.environ if k != 'LC_CTYPE'], dict(os.environ)")
    assert verdict.passed, verdict.reason


@needs_namespaces
def test_a_fork_bomb_is_bounded() -> None:
    start = time.monotonic()
    verdict = run_code("import os\nn = 0\ntry:\n    while True:\n        if os.fork() == 0:\n            while True: pass\n        n += 1\nexcept OSError:\n    raise SystemExit(f'{n} children')", timeout_s=3.0)
    assert not verdict.passed
    assert verdict.reason.endswith("children") and int(verdict.reason.split()[-2]) < sandbox.PROCESSES
    assert time.monotonic() - start < 10


@needs_namespaces
def test_a_program_that_leaves_a_child_behind_is_judged_at_its_own_end() -> None:
    verdict = run_code("import os, time\nif os.fork() == 0: time.sleep(60)", timeout_s=20)
    assert verdict.passed and verdict.seconds < 10


@needs_namespaces
def test_memory_is_bounded() -> None:
    verdict = run_code("x = bytearray(400 << 20)", memory_mb=256)
    assert not verdict.passed and "MemoryError" in verdict.reason
    assert run_code("x = bytearray(100 << 20)", memory_mb=256).passed


@needs_namespaces
def test_the_program_has_no_privileges_and_cannot_get_new_ones() -> None:
    assert run_code("import os\nassert os.getuid() != 0").passed
    assert run_code("import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) != 0, 'a new user namespace'").passed
    assert run_code("import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) != 0, 'mount'").passed
    assert run_code("import os\ntry: os.kill(1, 9)\nexcept PermissionError: pass").passed  # the supervisor lives to report


@needs_namespaces
def test_forty_programs_take_less_than_ten_seconds_and_keep_their_order() -> None:
    start = time.monotonic()
    verdicts = run_codes([f"assert {n} % 2 == 0" for n in range(40)])
    assert [v.passed for v in verdicts] == [n % 2 == 0 for n in range(40)]
    assert time.monotonic() - start < 10


@needs_namespaces
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_normal_user_is_isolated_in_the_same_way() -> None:
    system_python = Path("/usr/bin/python3")
    if not system_python.exists():
        pytest.skip("no Python that every user can read")
    program = "import os\nassert os.getuid() == 65533 and not os.path.exists('/etc')"
    job = {"program": program, "timeout_s": 5, "memory_mb": 256, "processes": 8}
    read, write = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        jail = Path(folder) / "jail.py"
        jail.write_text(JAIL.read_text())
        for path in (jail.parent, jail):
            path.chmod(0o755)
        command = [system_python, "-I", "-S", jail, str(write)]
        subprocess.run(command, input=json.dumps(job).encode(), pass_fds=(write,), env={}, cwd="/", user=65533, group=65533, extra_groups=[])
    os.close(write)
    with open(read, "rb") as report:
        words = json.loads(report.read())
    if "refused" in words:
        pytest.skip(f"this host gives normal users no namespaces: {words['refused']}")
    assert words["passed"], words


def test_a_host_that_cannot_isolate_is_refused_and_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    crippled = tmp_path / "jail.py"
    crippled.write_text(JAIL.read_text().replace("libc.unshare(NEW_NAMESPACES)", "libc.unshare(1)"))
    monkeypatch.setattr(sandbox, "JAIL", crippled)
    with pytest.raises(BadInput, match=r"unshare\(user, mount.*not run without isolation.*user\.max_user_namespaces.*drop the humaneval suites"):
        run_code(f"open({str(proof)!r}, 'w')")
    assert not proof.exists()


def test_a_missing_interpreter_is_a_refusal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(BadInput, match="sandbox: starting /nowhere/python failed"):
        run_code("pass")
