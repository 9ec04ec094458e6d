"""The walls around a program: namespaces, a read-only root, limits, no privileges. What a host does not allow raises Refused, naming the step.

The root is an empty read-only tmpfs with the standard library, the packages that a program may import, the system's shared libraries
and, for each program anew, a small /tmp on which nothing can be executed: no home, no project, no /etc, no /proc, no /dev, no /sys.
The only network device is a loopback that is down.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import calls

CANDIDATE, JUDGE = 65534, 65533  # who runs what, where we are root; a normal user stays itself, as it may map nobody else
MOUNT, UTS, IPC, USER, PID, NETWORK = 0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000  # CLONE_NEW*
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
# A host mount's own restrictions are locked inside a user namespace: a remount has to repeat them. (statvfs flag, mount flag)
LOCKED_FLAGS = ((2, MS_NOSUID), (4, MS_NODEV), (8, MS_NOEXEC), (1024, 1024), (2048, 2048), (4096, 1 << 21))
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
TMP_BYTES = 16 << 20
FILE_BYTES = 8 << 20
FILES = 64  # open at a time
ROOT = "/tmp"  # where the new root is built, in a mount namespace of our own
PYTHON, PACKAGES = "/python", "/packages"

libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """This host does not let us isolate a program; the text names the step that failed."""


def check(result: int, what: str) -> None:
    if result != 0:
        raise Refused(f"{what} failed ({os.strerror(ctypes.get_errno())})")


# ---------------------------------------------------------------- namespaces


def unshare(namespaces: int, names: str) -> None:
    check(libc.unshare(namespaces), f"unshare({names})")


def map_users(pid: int) -> None:
    """Root keeps itself for the mounts and gets two nobodies for the programs (limits on processes never bind root); a user keeps itself."""
    proc = Path("/proc") / str(pid)
    try:
        if os.geteuid() == 0:
            (proc / "uid_map").write_text(f"0 0 1\n{JUDGE} {JUDGE} 2")
            (proc / "gid_map").write_text(f"0 0 1\n{JUDGE} {JUDGE} 2")
        else:
            (proc / "setgroups").write_text("deny")
            (proc / "uid_map").write_text(f"{os.geteuid()} {os.geteuid()} 1")
            (proc / "gid_map").write_text(f"{os.getegid()} {os.getegid()} 1")
    except OSError as error:
        os.kill(pid, signal.SIGKILL)
        raise Refused(f"mapping users into the new namespace failed ({error.strerror})") from None


def forbid_further_user_namespaces() -> None:
    """Where the kernel allows it; no program has the capability to undo it. The filter of system calls forbids them too."""
    try:
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
    except OSError:
        pass


def die_with_parent() -> None:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def not_to_be_read() -> None:
    """No process of the same user may trace this one or read its memory."""
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


# ---------------------------------------------------------------- the root


def build_root(packages: Sequence[str]) -> int | None:
    """Leave the host's files for good. Gives back a way to the process table for our own eyes, or None where the host hides its own."""
    check(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "making mounts private")
    sources, links = _places(packages)
    handles = {target: os.open(source, os.O_PATH) for target, source in sources.items()}
    mount_tmpfs(ROOT, 1 << 20)
    for target, handle in handles.items():
        os.makedirs(ROOT + target, exist_ok=True)
        bind_read_only(f"/proc/self/fd/{handle}", ROOT + target)
        os.close(handle)
    for link, target in links.items():
        os.makedirs(ROOT + os.path.dirname(link), exist_ok=True)
        os.symlink(target, ROOT + link)
    for name in ("site-packages", "dist-packages"):  # of the interpreter itself: not the program's business
        if os.path.isdir(f"{ROOT}{PYTHON}/{name}"):
            mount_tmpfs(f"{ROOT}{PYTHON}/{name}", 4096, MS_RDONLY)
    os.mkdir(f"{ROOT}/tmp")
    processes = _process_table(f"{ROOT}/tmp")
    os.chdir(ROOT)
    check(libc.pivot_root(b".", b"."), "pivot_root")
    check(libc.umount2(b".", MNT_DETACH), "leaving the old root")
    check(libc.mount(None, b"/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, None), "making the root read-only")
    return processes


def _places(packages: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """(where in the root: what of the host), (link: its target)"""
    sources = {PYTHON: sysconfig.get_path("stdlib"), **{f"{PACKAGES}/{os.path.basename(package)}": package for package in packages}}
    links = {folder: os.readlink(folder) for folder in ("/lib", "/lib64") if os.path.islink(folder)}
    multiarch = sysconfig.get_config_var("MULTIARCH")  # where Debian keeps its libraries: the rest of /usr/lib is nobody's business
    libraries = [f"/lib/{multiarch}", f"/usr/lib/{multiarch}"] if multiarch and os.path.isdir(f"/usr/lib/{multiarch}") else ["/lib", "/usr/lib"]
    for folder in (*libraries, "/lib64", "/usr/lib64"):
        if os.path.isdir(folder) and not any(folder == link or folder.startswith(link + "/") for link in links):
            sources[folder] = folder
    return sources, links


def _process_table(place: str) -> int | None:
    """The processes of our namespace, by a handle alone: it stands nowhere in the tree, and no program inherits it."""
    if libc.mount(b"proc", place.encode(), b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, None) != 0:
        return None
    handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    check(libc.umount2(place.encode(), MNT_DETACH), "hiding the process table")
    return handle


def own_tmp() -> None:
    """A new, empty /tmp for this mount namespace."""
    mount_tmpfs("/tmp", TMP_BYTES, MS_NOEXEC, mode="1777")
    os.chdir("/tmp")


def mount_tmpfs(target: str, size: int, flags: int = 0, mode: str = "0755") -> None:
    options = f"size={size},nr_inodes=4096,mode={mode}".encode()
    check(libc.mount(b"tmpfs", target.encode(), b"tmpfs", flags | MS_NOSUID | MS_NODEV, options), f"mounting a tmpfs on {target}")


def bind_read_only(source: str, target: str) -> None:
    locked = sum(mount_flag for statvfs_flag, mount_flag in LOCKED_FLAGS if os.statvfs(source).f_flag & statvfs_flag)
    check(libc.mount(source.encode(), target.encode(), None, MS_BIND | MS_REC, None), f"binding {target}")
    flags = locked | MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV
    check(libc.mount(None, target.encode(), None, flags, None), f"making {target} read-only")


def look_for_modules_in_the_new_root() -> None:
    stdlib = sysconfig.get_path("stdlib")
    sys.path[:] = [PYTHON, f"{PYTHON}/lib-dynload", PACKAGES]
    for module in list(sys.modules.values()):
        if hasattr(module, "__path__"):
            module.__path__ = [path.replace(stdlib, PYTHON, 1) for path in module.__path__]


# ---------------------------------------------------------------- a program's own process


def confine(user: int, timeout_s: float, memory_mb: int, processes: int) -> None:
    """Give everything up, for this process and all it starts. Errors: Refused, OSError."""
    drop_privileges(user)
    limits = {
        resource.RLIMIT_AS: memory_mb << 20,
        resource.RLIMIT_CPU: int(timeout_s) + 2,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: FILES,
        resource.RLIMIT_NPROC: processes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    if calls.available():
        calls.install(calls.build(platform.machine()))


def drop_privileges(user: int) -> None:
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    check(libc.capset(header, (ctypes.c_uint32 * 6)()), "dropping capabilities")
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "giving up new privileges")


def memory_in_use(table: int, without: set[int]) -> int:
    """Bytes that the processes of a table hold for themselves alone. Process numbers are the table's own."""
    total = 0
    for name in os.listdir(table):
        if name.isdecimal() and int(name) not in without:
            try:
                with open(os.open(f"{name}/statm", os.O_RDONLY, dir_fd=table), "rb") as file:
                    _, resident, shared, *_ = map(int, file.read().split())
            except (OSError, ValueError):
                continue  # it has just ended
            total += (resident - shared) * resource.getpagesize()
    return total
