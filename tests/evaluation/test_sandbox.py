"""How model-written code is run and judged. Skipped where the host cannot isolate: there nothing is run at all.

Attempts to break out: test_sandbox_escapes.py.
"""

from __future__ import annotations

import os
import platform
import shutil
import struct
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import lm_eval
import pandas as pd
import pytest
from lm_eval.tasks._yaml_loader import _load_module_with_cache

from components.evaluation import sandbox
from components.evaluation.code_eval import SandboxedCodeEval, sandboxed_code_eval
from components.evaluation.jail import calls
from components.evaluation.sandbox import JAIL, run_code, run_codes
from components.schema.config import BadInput
from components.schema.programs import joined, parted

HUMANEVAL = Path(__file__).parents[2].parent / "shared/real/hub/openai/openai_humaneval/openai_humaneval/test-00000-of-00001.parquet"
EXACT = "from decimal import Decimal\nfrom fractions import Fraction\nimport datetime as d\n"
UNISTD = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


def isolates() -> bool:
    try:
        sandbox.require_sandbox()
    except BadInput:
        return False
    return True


needs_namespaces = pytest.mark.skipif(not isolates(), reason="this host allows no user namespaces")


def judged(candidate: str, tests: str, **settings: float) -> sandbox.Verdict:
    return run_code(joined(candidate, tests), **settings)


# ---------------------------------------------------------------- a program's own end


@needs_namespaces
def test_a_program_that_runs_to_its_end_passes() -> None:
    verdict = run_code("import math, collections, hashlib\nassert math.gcd(12, 18) == 6\nprint('seen')")
    assert verdict.passed and verdict.reason == "passed" and verdict.output == "seen\n"


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
        ("import os\nif os.fork(): raise ValueError('the parent')\n", "ValueError: the parent"),
        ("x = '\\ud800'.encode()", "UnicodeEncodeError"),
    ],
)
def test_a_program_cannot_pass_by_failing_exiting_or_printing(program: str, reason: str) -> None:
    verdict = run_code(program)
    assert not verdict.passed and reason in verdict.reason


@needs_namespaces
def test_a_program_that_leaves_a_child_behind_is_judged_at_its_own_end() -> None:
    verdict = run_code("import os, time\nif os.fork() == 0: time.sleep(60)", timeout_s=20)
    assert verdict.passed and verdict.seconds < 10


@needs_namespaces
def test_a_program_meets_the_same_world_every_time() -> None:
    order = "print(list({'ant', 'bee', 'cat', 'dog', 'emu', 'fox'}), hash('x'))"
    one, two = (run_code(order).output for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "_idle", {})
        other_jail = run_code(order).output
        sandbox._idle[sandbox._kind()].pop().end()
    assert one == two == other_jail != ""


@needs_namespaces
def test_numpy_can_be_used_and_what_else_this_environment_has_cannot() -> None:
    assert run_code("import numpy as np\nassert np.ones((50, 50)).sum() == 2500").passed
    assert "No module named 'torch'" in run_code("import torch").reason


# ---------------------------------------------------------------- a candidate and its tests


def test_a_program_s_parts_are_found_again_and_a_candidate_cannot_move_the_line() -> None:
    assert parted(joined("a\n", "b")) == ("a\n", "b")
    assert parted("assert True") == ("assert True", None)
    assert parted(joined(joined("a", "assert True"), "b")) == (joined("a", "assert True"), "b")
    namespace: dict[str, int] = {}
    exec(joined("x = 1", "y = x + 1"), namespace)  # the text is a program as it stands
    assert namespace["y"] == 2


@needs_namespaces
@pytest.mark.parametrize(
    ("candidate", "tests"),
    [
        ("def f(x): return [x, (x,), {x: {x}}, None, True, 1.5, 'é', b'\\xff', 2 + 3j, range(3), frozenset([x])]",
         "assert f(2) == [2, (2,), {2: {2}}, None, True, 1.5, 'é', b'\\xff', 2 + 3j, range(3), frozenset([2])]"),
        ("def f(n): return n ** n", "assert f(3000) == 3000 ** 3000"),
        ("from collections import *\ndef f(): return Counter('aab'), OrderedDict(a=1), deque([1]), namedtuple('P', 'x y')(1, 2)",
         "from collections import *\na, b, c, d = f()\nassert (a, b, c, d) == ({'a': 2, 'b': 1}, {'a': 1}, deque([1]), (1, 2))\nassert isinstance(a, Counter)"),
        (EXACT + "def f(): return Decimal('0.1'), Fraction(1, 3), d.date(2020, 2, 29), d.timedelta(days=1.5)",
         EXACT + "assert f() == (Decimal('0.1'), Fraction(1, 3), d.date(2020, 2, 29), d.timedelta(days=1.5))"),
        ("def f(xs): xs.sort()", "xs = [3, 1]\nassert f(xs) is None and xs == [1, 3]"),
        ("def f(d, *, s): d['b'] = s.pop()", "d, s = {'a': 1}, {2}\nf(d, s=s)\nassert d == {'a': 1, 'b': 2} and s == set()"),
        ("def f(n):\n    for i in range(n): yield i", "assert list(f(3)) == [0, 1, 2]\ng = f(2)\nassert (next(g), next(g)) == (0, 1)"),
        ("class Pair:\n    def __init__(self, a, b): self.a, self.b = a, b\ndef f(pairs): return sum(p.b for p in pairs)",
         "p = Pair(1, 5)\nassert p.a == 1 and f([p, Pair(2, 6)]) == 11 and p == p and p != Pair(1, 5)"),
        ("def f(x):\n    if x < 0: raise ValueError('below')\n    return {}[x]",
         "for x, kind in ((-1, ValueError), (0, KeyError)):\n    try: f(x)\n"
         "    except kind as error: assert 'below' in str(error) or x == 0\n    else: assert False"),
        ("def f(g, xs): return [g(x) for x in xs]", "assert f(lambda x: x + 1, [1, 2]) == [2, 3]\nassert f(len, ['ab']) == [2]"),
        ("def f(xs, kind): return [x for x in xs if type(x) is kind]", "assert f([1, 'a', 2.0], str) == ['a']"),
        ("def sum(a, b): return a * b", "assert sum(2, 5) == 10"),  # MBPP asks for functions that are named like builtins
        ("import math\ndef inner(x): return x + 1\ndef f(x): return inner(x)", "assert math.isclose(f(1), inner(1))"),
        ("import numpy as np\ndef f(): return np.int64(3), np.float32(0.5), np.bool_(True)", "assert f() == (3, 0.5, True)"),
        ("def f(x): return x", "x = []\nx.append(1)\nassert f(x) == [1] and str(f([])) == '[]' and f('') in ('', 'a')"),
        (
            "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
            "def f(): return P(3)",
            "assert f().x == 3 and bool(f()) and 'P(x=3)' in str(f())",
        ),
    ],
)  # fmt: skip
def test_tests_see_of_a_candidate_what_they_would_see_in_one_process(candidate: str, tests: str) -> None:
    exec(f"{candidate}\n{tests}", {})  # so it is in one process
    verdict = judged(candidate, tests)
    assert verdict.passed, verdict.reason


@needs_namespaces
@pytest.mark.parametrize(
    ("candidate", "tests", "reason"),
    [
        ("def f(): return 1", "assert f() == 2, 'two'", "AssertionError: two"),
        ("def f(): return 1 / 0", "f()", "ZeroDivisionError: division by zero"),
        ("def g(): return 1", "assert f() == 1", "NameError: name 'f' is not defined"),
        ("def f(: return 1", "assert True", "SyntaxError"),
        ("raise ValueError('early')", "assert True", "ValueError: early"),
        ("def f(): return [[1, 2], [3, 5]]", "assert f() == [[1, 2], [3, 4]]", "AssertionError"),
        ("def f(): return True", "assert f() is False", "AssertionError"),
        ("x = 1", "assert x ==", "SyntaxError"),
        ("def f():\n    while True: pass", "f()", "timed out after 1 s"),
    ],
)
def test_what_fails_a_test_is_told(candidate: str, tests: str, reason: str) -> None:
    verdict = judged(candidate, tests, timeout_s=1.0)
    assert not verdict.passed and reason in verdict.reason


@needs_namespaces
@pytest.mark.skipif(not HUMANEVAL.exists(), reason="the shared hub with HumanEval is not here")
def test_humaneval_s_own_solutions_score_one_and_empty_ones_nothing() -> None:
    problems = pd.read_parquet(HUMANEVAL)
    references = [f"{row.test}\ncheck({row.entry_point})" for row in problems.itertuples()]
    metric = SandboxedCodeEval()
    for answers, expected in ((problems.canonical_solution, 1.0), ([""] * 164, 0.0)):
        predictions = [[prompt + answer] for prompt, answer in zip(problems.prompt, answers, strict=True)]
        metric.prefetch(joined(prediction[0], reference) for prediction, reference in zip(predictions, references, strict=True))
        assert metric.compute(references, predictions, [1])[0] == {"pass@1": expected}
    assert len(metric.verdicts) == 2 * 164


@needs_namespaces
def test_the_metrics_of_mbpp_and_humaneval_are_ours_for_a_while() -> None:
    official = [Path(lm_eval.__file__).parent / f"tasks/{task}/utils.py" for task in ("mbpp", "humaneval")]
    with sandboxed_code_eval():
        mbpp, humaneval = (_load_module_with_cache(path) for path in official)
        right, wrong, forged = "def f(): return 1", "def f(): return 2", "from unittest.mock import ANY\ndef f(): return ANY"
        assert [mbpp.pass_at_1("assert f() == 1", [answer]) for answer in (right, wrong, forged)] == [1.0, 0.0, 0.0]
        assert humaneval.pass_at_k(["assert f() == 1"], [[right, wrong, forged]], [1, 3]) == {"pass@1": pytest.approx(1 / 3), "pass@3": 1.0}
    assert not {"lm_eval.tasks.mbpp.utils", "lm_eval.tasks.humaneval.utils"} & set(sys.modules)


# ---------------------------------------------------------------- warm jails


@needs_namespaces
def test_forty_programs_keep_their_order_and_share_their_jails() -> None:
    run_codes(["pass"] * 2, workers=2)
    warm = {id(jail) for jail in sandbox._idle[sandbox._kind()]}
    verdicts = run_codes([f"assert {n} % 2 == 0" for n in range(40)], workers=2)
    assert [v.passed for v in verdicts] == [n % 2 == 0 for n in range(40)]
    assert len(warm) == len(sandbox._idle[sandbox._kind()]) and warm == {id(jail) for jail in sandbox._idle[sandbox._kind()]}


@needs_namespaces
def test_a_jail_that_died_between_two_programs_is_replaced() -> None:
    run_code("pass")
    for jail in sandbox._idle[sandbox._kind()]:
        jail.process.kill()
        jail.process.wait()
    assert run_code("assert True").passed


@needs_namespaces
def test_a_process_that_forks_does_not_share_its_jails_with_its_child() -> None:
    run_code("pass")
    child = os.fork()
    if child == 0:
        os._exit(0 if not sandbox._idle.get(sandbox._kind()) and run_code("assert True").passed else 1)
    assert os.waitpid(child, 0)[1] == 0 and run_code("assert True").passed


@needs_namespaces
def test_jails_end_with_the_process_that_started_them() -> None:
    script = (
        "import os, signal\nfrom components.evaluation import sandbox\nsandbox.run_code('pass')\n"
        "print(sandbox._idle[sandbox._kind()][0].process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    jail, deadline = Path(f"/proc/{int(done.stdout)}"), time.monotonic() + 20
    while jail.exists() and "(zombie)" not in (jail / "status").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not jail.exists() or "(zombie)" in (jail / "status").read_text()


# ---------------------------------------------------------------- hosts


@needs_namespaces
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_normal_user_is_isolated_in_the_same_way(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    system_python = Path("/usr/bin/python3")
    if not system_python.exists():
        pytest.skip("no Python that every user can read")
    folder = Path(shutil.copytree(JAIL, f"/tmp/jail-of-a-user-{os.getpid()}"))
    monkeypatch.setattr(sandbox, "JAIL", folder)
    monkeypatch.setattr(sandbox, "_packages", lambda: ())
    monkeypatch.setattr(sys, "executable", str(system_python))
    monkeypatch.setattr(sandbox.subprocess, "Popen", partial(subprocess.Popen, user=65432, group=65432, extra_groups=[]))
    try:
        verdict = run_code("import os\nassert os.getuid() == 65432 and not os.path.exists('/etc')\nos.kill(1, 9)")
        equal = judged("class Yes:\n    def __eq__(self, other): return True\nf = Yes", "assert f() == 1")
        killed = judged("import os\ndef f():\n    os.kill(-1, 9)\n    return 1", "assert f() == 2")
    except BadInput as refusal:
        pytest.skip(f"this host gives normal users no namespaces: {refusal}")
    finally:
        shutil.rmtree(folder)
        for jail in sandbox._idle.pop(sandbox._kind(), []):
            jail.end()
    assert verdict.passed, verdict
    assert "AssertionError" in equal.reason and not killed.passed


@needs_namespaces
def test_a_host_that_cannot_isolate_is_refused_and_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    crippled = Path(shutil.copytree(JAIL, tmp_path / "jail"))
    walls = crippled / "walls.py"
    walls.write_text(walls.read_text().replace("libc.unshare(namespaces)", "libc.unshare(1)"))
    monkeypatch.setattr(sandbox, "JAIL", crippled)
    with pytest.raises(BadInput, match=r"unshare\(user, mount.*not run without isolation.*user\.max_user_namespaces.*drop the humaneval suites"):
        run_code(f"open({str(proof)!r}, 'w')")
    assert not proof.exists()


def test_a_missing_interpreter_is_a_refusal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(BadInput, match="sandbox: starting /nowhere/python failed"):
        run_code("pass")


@pytest.mark.skipif(platform.machine() != "x86_64" or not UNISTD.exists(), reason="the kernel's own list is not here")
def test_the_numbers_of_the_system_calls_are_the_kernel_s() -> None:
    lines = [line.split() for line in UNISTD.read_text().splitlines() if line.startswith("#define __NR_")]
    kernel = {name.removeprefix("__NR_"): int(number) for _, name, number in lines}
    ours = {**calls.DENIED, "clone": calls.CLONE, "socketpair": calls.SOCKETPAIR, "clone3": (calls.CLONE3, calls.CLONE3)}
    known = {name: numbers[0] for name, numbers in ours.items() if name in kernel}
    assert known == {name: kernel[name] for name in known} and len(known) > len(ours) - 5


def test_the_filter_does_what_its_table_says() -> None:
    """The program of the filter, run by a small interpreter of classic BPF."""
    for machine, (column, architecture) in calls.MACHINES.items():
        code = calls.build(machine)

        def verdict(number: int, first: int = 0, code: bytes = code, architecture: int = architecture) -> int:
            data, accumulator, at = {0: number, 4: architecture, 16: first}, 0, 0
            while True:
                operation, true, false, value = struct.unpack_from("<HBBI", code, at * 8)
                if operation == 0x06:
                    return value
                if operation == 0x20:
                    accumulator, at = data[value], at + 1
                    continue
                held = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: accumulator & value != 0}[operation]
                at += 1 + (true if held else false)

        assert {verdict(numbers[column]) for numbers in calls.DENIED.values() if numbers[column] is not None} == {calls.DENY}
        assert verdict(calls.CLONE[column], 17) == calls.ALLOW and verdict(calls.CLONE[column], 17 | 0x10000000) == calls.DENY
        assert verdict(calls.SOCKETPAIR[column], 1) == calls.ALLOW and verdict(calls.SOCKETPAIR[column], 2) == calls.DENY
        assert verdict(calls.CLONE3) == verdict(463) == verdict(0x40000000) == calls.UNKNOWN
        assert verdict(0, architecture=0x40000003) == calls.KILL
        assert verdict({"x86_64": 0, "aarch64": 63}[machine]) == calls.ALLOW  # read
