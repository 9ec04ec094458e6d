"""Attempts to break out of the sandbox, to exhaust the host, and to forge a verdict. Each is shown to work without the sandbox where that does no harm."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from components.evaluation import sandbox
from components.evaluation.sandbox import Verdict, run_code
from components.schema.programs import joined
from tests.evaluation.test_sandbox import judged, needs_namespaces

pytestmark = needs_namespaces
ROOT = Path(__file__).parents[2]
ANYBODY, ROOT_ONLY, NEVER = "anybody", "root", "never"  # who may try it outside the sandbox without harm, and succeeds
C = (
    "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\ndef call(name, *args):\n"
    "    if getattr(libc, name)(*args) == -1: raise OSError(ctypes.get_errno(), name)\n"
)
REFUSED = (
    "import errno, os, pathlib\ntry: {}\nexcept OSError as error:\n"
    "    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.EINVAL): raise ValueError('refused')\n    raise\n"
)
BY_LAYER = {"calls_filtered": ("PermissionError", "[Errno 38] clone3"), "memory_counted": ("together used more than 256 MiB",)}


class Attempt(NamedTuple):
    """A program that runs to its end only where it gets what it wants."""

    program: str
    stopped_by: str
    """What must be in the verdict, so that an attempt which failed for a reason of its own does not count as held."""
    outside: str = ANYBODY


READ = {
    "a file of the host": Attempt("open('/etc/passwd').read()", "FileNotFoundError"),
    "a file of the project": Attempt(f"open({str(ROOT / 'pyproject.toml')!r}).read()", "FileNotFoundError"),
    "the home folder": Attempt(f"import os\nos.listdir({str(Path.home())!r})", "FileNotFoundError"),
    "a file by way of a symbolic link": Attempt(
        "import os, tempfile\nlink = tempfile.mktemp()\nos.symlink('/etc/hostname', link)\ntry: open(link).read()\n"
        "finally: os.remove(link)",
        "FileNotFoundError",
    ),
    "a file above the root": Attempt("open('/../../../../etc/passwd').read()", "FileNotFoundError"),
    "the memory map of a process": Attempt("open('/proc/self/maps').read()", "FileNotFoundError"),
    "the environment of its parent": Attempt("import os\nopen(f'/proc/{os.getppid()}/environ').read()", "FileNotFoundError"),
    "the devices": Attempt("open('/dev/zero', 'rb').read(1)", "FileNotFoundError"),
    "the kernel's settings": Attempt("import os\nassert os.listdir('/sys')", "FileNotFoundError"),
    "the packages of this environment": Attempt("import torch", "ModuleNotFoundError"),
    "a file by its handle": Attempt(
        C + "handle = ctypes.create_string_buffer((128).to_bytes(4, 'little') + bytes(132))\n"
        "call('name_to_handle_at', -100, b'/', handle, ctypes.byref(ctypes.c_int()), 0)",
        "PermissionError",
    ),
    "another process's memory": Attempt(
        C + "libc.process_vm_readv.restype = ctypes.c_ssize_t\n"
        "call('process_vm_readv', os.getpid(), None, 0, None, 0, 0)",
        "PermissionError",
    ),
}
WRITE = {
    "the standard library": Attempt(REFUSED.format("open('/python/os.py', 'a')"), "refused", NEVER),
    "the root": Attempt("open('/planted', 'w')", "Read-only file system", NEVER),
    "a shared library": Attempt(REFUSED.format("open(next(pathlib.Path('/usr').rglob('libc.so.6')), 'a')"), "refused", NEVER),
    "a hard link to what it may only read": Attempt("import os\nos.link('/python/os.py', '/tmp/os.py')", "Invalid cross-device link", NEVER),
}
REACH = {
    "a socket of any kind": Attempt("import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "PermissionError"),
    "a socket by the C library": Attempt(C + "call('socket', 1, 1, 0)", "PermissionError"),
    "a pair of sockets that is not local": Attempt("import socket\nsocket.socketpair(socket.AF_INET)", "PermissionError", NEVER),
    "a netlink socket": Attempt("import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", "PermissionError"),
    "another program": Attempt("import os\nos.execv('/bin/true', ['true'])", "PermissionError"),
    "a shell": Attempt("import subprocess\nsubprocess.run(['true'], check=True)", "PermissionError"),
    "code of its own on /tmp": Attempt(
        "import mmap, os\nwith open('/tmp/code', 'w+b') as f:\n    os.truncate(f.fileno(), 4096)\n"
        "    mmap.mmap(f.fileno(), 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)\n",
        "PermissionError", NEVER,
    ),
    "a process of the host": Attempt(f"import os\nos.kill({os.getpid()}, 0)", "ProcessLookupError"),
    "to trace a process": Attempt(C + "call('ptrace', 0, 0, 0, 0)", "PermissionError"),
    "a new user namespace": Attempt(C + "call('unshare', 0x10000000)", "PermissionError"),
    "a namespace by clone": Attempt(
        C + "import signal\n"
        "pid = libc.syscall({'x86_64': 56, 'aarch64': 220}[os.uname().machine], 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)\n"
        "if pid == 0: os._exit(0)\nif pid < 0: raise OSError(ctypes.get_errno(), 'clone')",
        "PermissionError",
    ),
    "a namespace by clone3": Attempt(C + "size = libc.syscall(435, None, 0)\nif ctypes.get_errno() == 38: raise OSError(38, 'clone3')", "[Errno 38] clone3"),
    "a mount": Attempt(C + "call('mount', b'none', b'/tmp', b'tmpfs', 0, None)", "PermissionError", NEVER),
    "another root": Attempt("import os\nos.chroot('/tmp')", "PermissionError", ROOT_ONLY),
    "to be root": Attempt(REFUSED.format("os.setuid(0)"), "refused", ROOT_ONLY),
    "to be the judge": Attempt(REFUSED.format("os.setuid(65533)"), "refused", ROOT_ONLY),
    "another name for the host": Attempt("import socket\nsocket.sethostname('mine')", "PermissionError", NEVER),
    "an asynchronous ring of the kernel": Attempt(C + "call('syscall', 425, 1, ctypes.create_string_buffer(120))", "PermissionError", NEVER),
    "a memory file that no limit counts": Attempt("import os\nos.memfd_create('x')", "PermissionError"),
    "memory that is shared by a key": Attempt(
        C + "segment = libc.shmget(0, 4096, 0o600)\nif segment == -1: raise OSError(ctypes.get_errno(), 'shmget')\n"
        "libc.shmctl(segment, 0, None)",
        "PermissionError",
    ),
    "the keys of a user": Attempt(C + "call('syscall', {'x86_64': 250, 'aarch64': 219}[os.uname().machine], 0, -3, 0)", "PermissionError", NEVER),
    "the kernel's log": Attempt(C + "call('klogctl', 10, None, 0)", "PermissionError", ROOT_ONLY),
    "a higher limit": Attempt("import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (1000, 1000))", "not allowed to raise maximum limit", NEVER),
    "what is written to the sandbox": Attempt("import os\nassert os.read(0, 1)", "AssertionError", NEVER),
}
EXHAUST = {
    "processes": Attempt("import os\nwhile True:\n    if os.fork() == 0:\n        while True: pass", "BlockingIOError", NEVER),
    "threads": Attempt(
        "import threading, time\n"
        "for _ in range(100): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        "can't start new thread",
    ),
    "memory": Attempt("x = bytearray(400 << 20)", "MemoryError"),
    "memory, shared out over processes": Attempt(
        "import os, time\nfor _ in range(4):\n    if os.fork() == 0: break\n"
        "x = bytearray(90 << 20)\ntime.sleep(2)",
        "together used more than 256 MiB", NEVER,
    ),
    "memory, by a bomb of zeros": Attempt("import gzip\nassert len(gzip.decompress(gzip.compress(bytes(1 << 20)) * 400)) == 400 << 20", "MemoryError", NEVER),
    "memory, by a number": Attempt("x = 1 << (1 << 33)", "MemoryError", NEVER),
    "the disk, by one file": Attempt("open('/tmp/big', 'wb').write(bytes(12 << 20))", "File too large", NEVER),
    "the disk, by many": Attempt("for n in range(4): open(f'/tmp/{n}', 'wb').write(bytes(6 << 20))", "No space left", NEVER),
    "the disk, by names": Attempt("for n in range(5000): open(f'/tmp/{n}', 'w')", "No space left", NEVER),
    "open files": Attempt("files = [open('/tmp/x', 'w') for _ in range(100)]", "Too many open files"),
    "output": Attempt("while True: print('x' * 1000)", "printed more than 8 MiB", NEVER),
    "time, by working": Attempt("while True: pass", "timed out after 0.5 s", NEVER),
    "time, by sleeping": Attempt("import time\ntime.sleep(1000)", "timed out after 0.5 s", NEVER),
    "time, deaf to signals": Attempt(
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass",
        "timed out after 0.5 s", NEVER,
    ),
    "the interpreter, by crashing it": Attempt("import ctypes\nctypes.string_at(0)", "the process ended before the program did", NEVER),
}


def held(attempt: Attempt) -> None:
    missing = [layer for layer, there in sandbox.layers().items() if not there and attempt.stopped_by in BY_LAYER[layer]]
    if missing:
        pytest.skip(f"this host gives no {missing[0]}")
    verdict = run_code(attempt.program, timeout_s=0.5 if "timed out" in attempt.stopped_by else 10.0)
    assert not verdict.passed and attempt.stopped_by in verdict.reason, verdict
    if attempt.outside == ANYBODY or (attempt.outside == ROOT_ONLY and os.geteuid() == 0):
        done = subprocess.run([sys.executable, "-c", attempt.program], capture_output=True, text=True, cwd="/tmp") if "torch" not in attempt.program else None
        assert done is None or done.returncode == 0, f"it fails outside as well, so it shows nothing: {done.stderr}"


@pytest.mark.parametrize("what", READ)
def test_a_program_cannot_read(what: str) -> None:
    held(READ[what])


@pytest.mark.parametrize("what", WRITE)
def test_a_program_cannot_write(what: str) -> None:
    held(WRITE[what])


@pytest.mark.parametrize("what", REACH)
def test_a_program_cannot_have(what: str) -> None:
    held(REACH[what])


@pytest.mark.parametrize("what", EXHAUST)
def test_a_program_cannot_use_up(what: str) -> None:
    held(EXHAUST[what])


def test_a_server_of_the_host_hears_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0modelyard-{os.getpid()}")
        abstract.listen()
        port = tcp.getsockname()[1]
        attempts = (f"socket.create_connection(('127.0.0.1', {port}), 2)", f"socket.socket(socket.AF_UNIX).connect('\\0modelyard-{os.getpid()}')")
        for server, program in zip((tcp, abstract), attempts, strict=True):
            held(Attempt(f"import socket\n{program}", "PermissionError"))
            server.settimeout(10)
            server.accept()[0].close()  # the one from outside
            server.settimeout(0.05)
            with pytest.raises(TimeoutError):
                server.accept()


def test_the_environment_is_empty_and_no_secret_of_ours_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SECRET", "hush")
    monkeypatch.setattr(sandbox, "_idle", {})
    verdict = run_code("import os\nassert set(os.environ) <= {'LC_CTYPE', 'OPENBLAS_NUM_THREADS'}, dict(os.environ)")
    sandbox._idle[sandbox._kind()].pop().end()
    assert verdict.passed, verdict.reason


def test_no_line_of_ours_is_open_in_a_program_but_its_own() -> None:
    program = (
        "import os\nopen_ones = []\nfor fd in range(1024):\n    try: os.fstat(fd)\n    except OSError: continue\n"
        "    open_ones.append(fd)\nprint(open_ones)"
    )
    assert run_code(program).output == "[0, 1, 2, 3]\n"


def test_signals_to_its_supervisor_and_to_everybody_change_nothing() -> None:
    kill = (
        "import os, signal\nfor pid in (1, os.getppid(), -1, 0):\n"
        "    for s in (signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL):\n        if pid == 0: continue\n"
        "        try: os.kill(pid, s)\n        except (PermissionError, ProcessLookupError): pass\n"
    )
    assert run_code(kill).passed
    assert not judged(kill + "f = None", "assert f == 1").passed
    assert run_code("assert True").passed


def test_a_program_leaves_nothing_behind() -> None:
    """Neither a file, nor a process that has gone into the background, nor a patched module."""
    run_code("pass")
    before = descendants()
    plant = (
        "import os, json, time, builtins\nopen('/tmp/mine', 'w').write('x')\njson.loads = builtins.len = None\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\n    os._exit(0)"
    )
    assert run_code(plant).passed
    assert run_code("import os, json\nassert os.listdir('/tmp') == [] and json.loads('[1]') == [1] and len('a') == 1").passed
    assert not Path("/tmp/mine").exists()
    assert descendants() == before


def test_two_programs_that_run_together_cannot_meet() -> None:
    """Not by files, nor by process numbers: each sees itself, its supervisor and nobody else."""
    program = (
        "import os, time\nopen(f'/tmp/{os.getpid()}', 'w')\ntime.sleep(0.3)\nseen = []\nfor pid in range(1, 100):\n"
        "    try: os.kill(pid, 0)\n    except ProcessLookupError: continue\n    except PermissionError: pass\n"
        "    seen.append(pid)\nprint(seen, len(os.listdir('/tmp')))"
    )
    assert {verdict.output for verdict in sandbox.run_codes([program] * 2, workers=2)} == {"[1, 2] 1\n"}


def test_one_program_finds_nothing_of_the_one_before_in_its_memory() -> None:
    secret = "hush" + "-" * 20 + "hush"
    run_code(f"x = {secret!r}")
    look = (
        "import gc, sys\nword = ''.join(['hu', 'sh--'])\n"
        "seen = [r for o in [*gc.get_objects(), *sys._current_frames().values()] for r in gc.get_referents(o)]\n"
        "found = [r for r in seen if isinstance(r, str) and word in r and r is not word]\n"
    )
    assert run_code(look + "assert not found").passed
    assert run_code(f"x = {secret!r}\n{look}assert found").passed  # it finds what is there


def descendants() -> int:
    """How many processes the warm jails consist of."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents[int(stat.parent.name)] = int(parent)
    ours = {jail.process.pid for jail in sandbox._idle[sandbox._kind()]}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return len(ours)


# ---------------------------------------------------------------- forging a verdict


class Forgery(NamedTuple):
    """A wrong answer that passes its tests where both run in one process."""

    candidate: str
    tests: str = "expected = 3\nassert f() == expected"


FORGERIES = {
    "an answer that equals everything": Forgery("class Yes:\n    def __eq__(self, other): return True\ndef f(): return Yes()"),
    "a number that equals everything": Forgery("class Yes(int):\n    def __eq__(self, other): return True\ndef f(): return Yes(5)"),
    "a list that equals everything": Forgery("class Yes(list):\n    def __eq__(self, other): return True\ndef f(): return Yes()", "assert f() == [1, 2]"),
    "a text that differs from nothing": Forgery(
        "class Yes(str):\n    def __ne__(self, other): return False\n"
        "def f(): return Yes()",
        "if f() != 'abc': raise ValueError",
    ),
    "the standard library's own wildcard": Forgery("from unittest.mock import ANY\ndef f(): return ANY"),
    "a builtin of its own": Forgery("def all(items): return True\ndef f(): return 0", "assert all(f() == n for n in (1, 2))"),
    "a patched builtin": Forgery("import builtins\nbuiltins.abs = lambda x: 0\ndef f(): return 99", "assert abs(f() - 3) < 1e-6"),
    "a patched module": Forgery("import math\nmath.isclose = lambda *a, **k: True\ndef f(): return 99", "import math\nassert math.isclose(f(), 3)"),
    "a module in another's place": Forgery(
        "import sys, types\nfake = types.ModuleType('math')\nfake.isclose = lambda *a: True\nsys.modules['math'] = fake\n"
        "def f(): return 99",
        "import math\nassert math.isclose(f(), 3)",
    ),
    "a module that is no module of theirs": Forgery(
        "import types\nmath = types.ModuleType('math')\n"
        "math.isclose = lambda *a: True\ndef f(): return 99",
        "assert math.isclose(f(), 3)",
    ),
    "the checker's own variables": Forgery("import sys\ndef f():\n    sys._getframe(1).f_globals['expected'] = 5\n    return 5"),
    "the checker's constants": Forgery("import sys\ndef f():\n    return [c for c in sys._getframe(1).f_code.co_consts if isinstance(c, int)][-1]"),
    "the checker's text": Forgery(
        "import gc\ndef f():\n    for o in gc.get_objects():\n"
        "        if isinstance(o, dict) and 'expected' in o and 'f' in o: return o['expected']"
    ),
    "the checker's code": Forgery(
        "import sys\ndef f():\n    g = sys._getframe(1).f_globals\n"
        "    if 'check' in g: g['check'].__code__ = (lambda: None).__code__\n    return 3",
        "def check(): assert f() == 4\nassert f() == 3\ncheck()",
    ),
    "the assertions, by a trace": Forgery(
        "import sys\ndef f():\n    frame, jumped = sys._getframe(1), []\n    def jump(fr, event, arg):\n"
        "        if event == 'line' and not jumped:\n            jumped.append(1)\n            fr.f_lineno += 1\n"
        "        return jump\n    frame.f_trace = jump\n    sys.settrace(jump)\n    return 5",
        "x = f()\nassert x == 3\ny = 1",
    ),
    "all builtins of its own": Forgery(
        "import builtins\n__builtins__ = dict(vars(builtins), abs=lambda x: 0)\ndef f(): return 99",
        "names = __builtins__\ndef check(): return abs(f() - 3) < 1e-6\nassert check()",
    ),
    "leaving early": Forgery("import os\nos._exit(0)"),
    "leaving when asked": Forgery("import os\ndef f(): os._exit(0)"),
    "leaving politely": Forgery("import sys\ndef f(): sys.exit(0)"),
    "leaving by a thread": Forgery("import os, threading, time\nthreading.Timer(0.05, os._exit, [0]).start()\ndef f(): time.sleep(1)"),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a_wrong_answer_does_not_pass_by(what: str) -> None:
    forgery = FORGERIES[what]
    naive = subprocess.run([sys.executable, "-c", f"{forgery.candidate}\n{forgery.tests}"], capture_output=True, text=True)
    assert naive.returncode == 0, f"it does not work in one process either, so it shows nothing: {naive.stderr}"
    verdict = judged(forgery.candidate, forgery.tests)
    assert not verdict.passed, verdict


WRONG = "\ndef f(): return 5"
TESTS = "assert f() == 3"
TO_EVERY_LINE = "import os\nfor fd in range(3, 64):\n    try: os.write(fd, {words})\n    except OSError: pass\n"


@pytest.mark.parametrize(
    "candidate",
    [
        TO_EVERY_LINE.format(words="b'passed'") + WRONG,
        TO_EVERY_LINE.format(words="b''.join(len(m).to_bytes(4, 'big') + m for m in (b'{\"ready\": true}', b'{}', b'{\"passed\": true}'))") + WRONG,
        TO_EVERY_LINE.format(words="(1 << 30).to_bytes(4, 'big')") + WRONG,
        TO_EVERY_LINE.format(words="b'\\0\\0\\x40\\0' + b'[' * 16384") + WRONG,
        "import sys, gc, os\nfound = {r for o in gc.get_objects() for r in gc.get_referents(o) if isinstance(r, bytes) and len(r) == 16}\n"
        "for fd in range(3, 64):\n    for token in found:\n        try: os.write(fd, token)\n        except OSError: pass" + WRONG,
        "import os\nos.fork()" + WRONG,
        "import os\nos.kill(-1, 9)" + WRONG,
        "print('passed')\nimport sys\nprint('{\"passed\": true}', file=sys.stderr)" + WRONG,
        "import sys\nfor module in list(sys.modules.values()):\n"
        "    for name in ('judge', 'run', 'report_end', 'watch'):\n        if hasattr(module, name): setattr(module, name, lambda *a, **k: None)" + WRONG,
        "# ======== what follows judges what stands above ========\nassert True\ndef f(): return 5",
        "def f(): return f",
        "def f():\n    raise SystemExit(0)",
        "class Liar(type):\n    def __instancecheck__(cls, other): return True\nclass f(metaclass=Liar): pass",
    ],
)
def test_a_verdict_cannot_be_written_by_the_one_it_is_about(candidate: str) -> None:
    verdict = judged(candidate, TESTS, timeout_s=5.0)
    assert not verdict.passed, verdict
    assert judged("def f(): return 3", TESTS).passed  # the jail is as it was


def test_the_tests_are_not_in_the_memory_of_the_candidate_s_process() -> None:
    """It is forked before they are read. Every object that its collector knows, and every frame, is searched for a word of theirs."""
    look = (
        "import gc, sys\ndef f():\n    seen = [o for o in gc.get_objects()] + list(sys._current_frames().values())\n"
        "    word = ''.join(['nightin', 'gale'])\n"
        "    return any(word in repr(r) and r is not word for o in seen for r in gc.get_referents(o) if isinstance(r, (str, bytes)))"
    )
    tests = "assert f() is {}  # nightingale"
    assert judged(look, tests.format("False"), timeout_s=20.0).passed
    assert judged("secret = 'a nightingale'\n" + look, tests.format("True"), timeout_s=20.0).passed  # it finds what is there


def test_a_judge_that_is_kept_waiting_times_out() -> None:
    def stalled() -> Iterator[Verdict]:
        yield judged("import time\ndef f(): time.sleep(100)", TESTS, timeout_s=0.5)
        yield judged("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", TESTS, timeout_s=0.5)
        yield judged("class Endless:\n    def __iter__(self): return self\n    def __next__(self): return 1\nf = Endless", "for x in f(): pass", timeout_s=0.5)

    assert [verdict.reason for verdict in stalled()] == ["timed out after 0.5 s"] * 3


def test_many_threads_may_ask_at_once() -> None:
    verdicts: dict[int, bool] = {}

    def ask(n: int) -> None:
        verdicts[n] = run_code(joined("def f(x): return x", f"assert f({n}) == {n % 3}")).passed

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {n: n == n % 3 for n in range(6)}
