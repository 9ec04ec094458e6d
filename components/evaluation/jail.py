"""The inside of the sandbox: run one untrusted Python program in namespaces of its own. Started by sandbox.py, stdlib only.

    python -I -S jail.py REPORT_FD      < {"program": ..., "timeout_s": ..., "memory_mb": ..., "processes": ...}

Three processes, each less trusted than the one before:

    launcher     outside; starts the supervisor and writes its user map
      supervisor   process 1 of new user, mount, pid, net, ipc and uts namespaces; builds the root, holds the report, keeps the time
        worker       no capabilities, limits set, report closed; becomes the program

The root is an empty read-only tmpfs with the standard library, the system's shared libraries and a small /tmp: no home,
no project, no /etc, no /proc, no /dev. There is no network device but a loopback that is down.

The verdict is what the supervisor saw, never what the program printed: a worker that ran the program to its end writes a
random token to a pipe of its own, so printing, `exit(0)` or `os._exit(0)` do not pass. Not promised: a program that
searches the interpreter's frames for the token can still pass itself, as it shares a process with it; the system calls are
not filtered; the kernel is shared.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import secrets
import select
import signal
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

NOBODY = 65534
NEW_NAMESPACES = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000  # user, mount, pid, net, ipc, uts
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
# A host mount's own restrictions are locked inside a user namespace: a remount has to repeat them. (statvfs flag, mount flag)
LOCKED_FLAGS = ((2, MS_NOSUID), (4, MS_NODEV), (8, 8), (1024, 1024), (2048, 2048), (4096, 1 << 21))
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
TMP_BYTES = 16 << 20
ROOT = "/tmp"  # where the new root is built, in the supervisor's private mount namespace
PYTHON = "/python"

libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """This host does not let us isolate the program; the text names the step that failed."""


def main() -> None:
    report = int(sys.argv[1])
    job = json.loads(sys.stdin.buffer.read())
    try:
        launch(job, report)
    except Refused as refusal:
        os.write(report, json.dumps({"refused": str(refusal)}).encode())


# ---------------------------------------------------------------- launcher


def launch(job: dict, report: int) -> None:
    """Unshare in a child, map its user from outside, and wait for it."""
    die_with_parent()
    unshared, tell_unshared = os.pipe()
    mapped, tell_mapped = os.pipe()
    child = os.fork()
    if child == 0:
        run_and_exit(lambda: enter_namespaces(job, report, tell_unshared, mapped), report)
    os.close(tell_unshared)
    if os.read(unshared, 1):  # nothing is read where unshare was refused: the child has reported it
        map_users(child)
        os.write(tell_mapped, b"1")
    os.waitpid(child, 0)


def map_users(pid: int) -> None:
    """Root keeps itself for the mounts and gets nobody for the program (limits on processes never bind root); a user keeps itself."""
    proc = Path("/proc") / str(pid)
    try:
        if os.geteuid() == 0:
            (proc / "uid_map").write_text(f"0 0 1\n{NOBODY} {NOBODY} 1")
            (proc / "gid_map").write_text(f"0 0 1\n{NOBODY} {NOBODY} 1")
        else:
            (proc / "setgroups").write_text("deny")
            (proc / "uid_map").write_text(f"{os.geteuid()} {os.geteuid()} 1")
            (proc / "gid_map").write_text(f"{os.getegid()} {os.getegid()} 1")
    except OSError as error:
        os.kill(pid, signal.SIGKILL)
        raise Refused(f"mapping users into the new namespace failed ({error.strerror})") from None


def enter_namespaces(job: dict, report: int, tell_unshared: int, mapped: int) -> None:
    die_with_parent()
    check(libc.unshare(NEW_NAMESPACES), "unshare(user, mount, pid, net, ipc, uts)")
    os.write(tell_unshared, b"1")
    os.read(mapped, 1)
    forbid_further_user_namespaces()
    child = os.fork()  # the first process of the new pid namespace
    if child == 0:
        run_and_exit(lambda: supervise(job, report), report)
    os.waitpid(child, 0)


def forbid_further_user_namespaces() -> None:
    """Where the kernel allows it; the program has no capability to undo it."""
    try:
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
    except OSError:
        pass


def run_and_exit(work: Callable[[], None], report: int) -> None:
    """A forked child never returns into its parent's code."""
    try:
        work()
    except Refused as refusal:
        os.write(report, json.dumps({"refused": str(refusal)}).encode())
    except BaseException as error:
        os.write(report, json.dumps({"refused": f"{type(error).__name__}: {error}"}).encode())
    finally:
        os._exit(0)


# ---------------------------------------------------------------- supervisor


def supervise(job: dict, report: int) -> None:
    """Build the root, start the worker, and report what it did. When this process ends, the kernel kills all that is left."""
    die_with_parent()
    build_root()
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # not to be traced or read by the worker
    token = secrets.token_bytes(16)
    said, tell = os.pipe()
    start = time.monotonic()
    worker = os.fork()
    if worker == 0:
        os.close(report)
        os.close(said)
        become_program(job, tell, token)
    os.close(tell)
    verdict = await_worker(worker, said, token, job["timeout_s"])
    os.write(report, json.dumps({**verdict, "seconds": time.monotonic() - start}).encode())


def await_worker(worker: int, said: int, token: bytes, timeout_s: float) -> dict:
    """The worker's last words, its death or its time-out, whichever comes first."""
    if not select.select([said], [], [], timeout_s)[0]:
        os.kill(worker, signal.SIGKILL)
        return {"passed": False, "reason": f"timed out after {timeout_s:g} s"}
    words = os.read(said, 4096)  # what is said first counts: children that the program left behind keep the pipe open
    if words == token:
        return {"passed": True, "reason": "passed"}
    if words:
        return {"passed": False, "reason": "failed: " + words.decode(errors="replace")[:300]}
    return {"passed": False, "reason": "failed: the process ended before the program did"}


def build_root() -> None:
    """An empty read-only root with the standard library, the shared libraries and a small /tmp."""
    stdlib = sysconfig.get_path("stdlib")
    check(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "making mounts private")
    sources = {stdlib: os.open(stdlib, os.O_PATH)}
    links = {}
    for folder in ("/lib", "/lib64", "/usr/lib", "/usr/lib64"):
        if os.path.islink(folder):
            links[folder] = os.readlink(folder)
        elif os.path.isdir(folder):
            sources[folder] = os.open(folder, os.O_PATH)
    mount_tmpfs(ROOT, 1 << 20)
    for source, handle in sources.items():
        target = ROOT + (PYTHON if source == stdlib else source)
        os.makedirs(target, exist_ok=True)
        bind_read_only(f"/proc/self/fd/{handle}", target)
        os.close(handle)
    for link, target in links.items():
        os.makedirs(ROOT + os.path.dirname(link), exist_ok=True)
        os.symlink(target, ROOT + link)
    for name in ("site-packages", "dist-packages"):  # of the interpreter itself: not the program's business
        if os.path.isdir(f"{ROOT}{PYTHON}/{name}"):
            mount_tmpfs(f"{ROOT}{PYTHON}/{name}", 4096, MS_RDONLY)
    os.mkdir(f"{ROOT}/tmp")
    mount_tmpfs(f"{ROOT}/tmp", TMP_BYTES, mode="1777")
    os.chdir(ROOT)
    check(libc.pivot_root(b".", b"."), "pivot_root")
    check(libc.umount2(b".", MNT_DETACH), "leaving the old root")
    check(libc.mount(None, b"/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, None), "making the root read-only")
    os.chdir("/tmp")


def mount_tmpfs(target: str, size: int, flags: int = 0, mode: str = "0755") -> None:
    options = f"size={size},nr_inodes=4096,mode={mode}".encode()
    check(libc.mount(b"tmpfs", target.encode(), b"tmpfs", flags | MS_NOSUID | MS_NODEV, options), f"mounting a tmpfs on {target}")


def bind_read_only(source: str, target: str) -> None:
    locked = sum(mount_flag for statvfs_flag, mount_flag in LOCKED_FLAGS if os.statvfs(source).f_flag & statvfs_flag)
    check(libc.mount(source.encode(), target.encode(), None, MS_BIND | MS_REC, None), f"binding {target}")
    flags = locked | MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV
    check(libc.mount(None, target.encode(), None, flags, None), f"making {target} read-only")


# ---------------------------------------------------------------- worker


def become_program(job: dict, tell: int, token: bytes) -> None:
    """Give everything up, run the program, and say how it ended."""
    try:
        drop_privileges()
        set_limits(job)
        look_for_modules_in_the_new_root()
        os.write(tell, run(job["program"]) or token)
    except BaseException as error:
        os.write(tell, f"the worker could not start: {error}".encode())
    finally:
        os._exit(0)


def look_for_modules_in_the_new_root() -> None:
    stdlib = sysconfig.get_path("stdlib")
    sys.path[:] = [PYTHON, f"{PYTHON}/lib-dynload"]
    for module in list(sys.modules.values()):
        if hasattr(module, "__path__"):
            module.__path__ = [path.replace(stdlib, PYTHON, 1) for path in module.__path__]


def run(program: str) -> bytes | None:
    """None where the program ran to its end, else what stopped it. `exit(0)` is not the end: it skips the tests that follow."""
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "program"})
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:300].encode(errors="replace")
    return None


def drop_privileges() -> None:
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    check(libc.capset(header, (ctypes.c_uint32 * 6)()), "dropping capabilities")
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def set_limits(job: dict) -> None:
    limits = {
        resource.RLIMIT_AS: job["memory_mb"] << 20,
        resource.RLIMIT_CPU: int(job["timeout_s"]) + 2,
        resource.RLIMIT_FSIZE: TMP_BYTES,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_NPROC: job["processes"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def die_with_parent() -> None:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def check(result: int, what: str) -> None:
    if result != 0:
        raise Refused(f"{what} failed ({os.strerror(ctypes.get_errno())})")


if __name__ == "__main__":
    main()
