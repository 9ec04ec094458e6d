"""Which system calls a program may make: a seccomp filter, built by hand and put in place by prctl, so no package is needed.

Everything may be called but what is named below (EPERM) and what is newer than this file (ENOSYS). What is named reaches beyond a
program: other processes' memory, mounts, namespaces, sockets, other executables, kernel modules, keys, the clock; and what the limits
of a process do not count: System V memory, message queues, memory files. A call by another architecture's numbers ends the process.
x86_64 and aarch64; a machine of another kind is refused.
"""

from __future__ import annotations

import ctypes
import platform
import struct
from functools import cache

EPERM, ENOSYS = 1, 38
ALLOW, DENY, UNKNOWN, KILL = 0x7FFF0000, 0x00050000 | EPERM, 0x00050000 | ENOSYS, 0x80000000
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # classic BPF: BPF_LD|W|ABS, BPF_JMP|JEQ/JGE/JSET|K, BPF_RET|K
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data, little endian
AF_UNIX = 1
NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000  # CLONE_NEW*
LAST_KNOWN = 462  # mseal, Linux 6.10

# name: number on (x86_64, aarch64); None where there is no such call.
DENIED = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "execve": (59, 221), "execveat": (322, 281), "uselib": (134, None), "process_mrelease": (448, 448),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268),
    "socket": (41, 198), "bind": (49, 200), "connect": (42, 203), "listen": (50, 201),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "quotactl": (179, 60), "acct": (163, 89), "swapon": (167, 224), "swapoff": (168, 225),
    "reboot": (169, 142), "sethostname": (170, 161), "setdomainname": (171, 162), "vhangup": (153, 58), "syslog": (103, 116), "personality": (135, 92),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "sysfs": (139, None), "_sysctl": (156, None), "ustat": (136, None),
    "lookup_dcookie": (212, 18), "nfsservctl": (180, 42),
    "mbind": (237, 235), "set_mempolicy": (238, 237), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "memfd_create": (319, 279), "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "shmdt": (67, 197),
    "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
    # from here on the numbers are the same everywhere
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "mount_setattr": (442, 442), "quotactl_fd": (443, 443), "memfd_secret": (447, 447),
}  # fmt: skip
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column in the table, AUDIT_ARCH_*
CLONE, SOCKETPAIR = (56, 220), (53, 199)
CLONE3 = 435  # its flags lie in memory, where a filter cannot look; the C library falls back to clone

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))  # struct sock_fprog


@cache
def available() -> bool:
    """Whether this machine and kernel take the filter: with no program at all a kernel that knows filters answers EFAULT, another EINVAL."""
    libc = ctypes.CDLL(None, use_errno=True)
    return platform.machine() in MACHINES and libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, None, 0, 0) == -1 and ctypes.get_errno() == 14


@cache
def build(machine: str) -> bytes:
    """The filter as classic BPF, 8 bytes an instruction."""
    column, architecture = MACHINES[machine]
    code = [_do(LOAD, ARCHITECTURE), _jump(JUMP_EQUAL, architecture, over_if_true=1), _do(RETURN, KILL), _do(LOAD, NUMBER)]
    code += [_jump(JUMP_AT_LEAST, LAST_KNOWN + 1, over_if_false=1), _do(RETURN, UNKNOWN)]  # x32's numbers too: they begin at 2 ** 30
    code += [_jump(JUMP_EQUAL, CLONE3, over_if_false=1), _do(RETURN, UNKNOWN)]
    for number in sorted({numbers[column] for numbers in DENIED.values()} - {None}):
        code += [_jump(JUMP_EQUAL, number, over_if_false=1), _do(RETURN, DENY)]
    code += [_jump(JUMP_EQUAL, CLONE[column], over_if_false=3), _do(LOAD, FIRST_ARGUMENT), _jump(JUMP_BITS, NEW_NAMESPACES, over_if_false=1), _do(RETURN, DENY)]
    code += [_do(LOAD, NUMBER)]
    code += [_jump(JUMP_EQUAL, SOCKETPAIR[column], over_if_false=3), _do(LOAD, FIRST_ARGUMENT), _jump(JUMP_EQUAL, AF_UNIX, over_if_true=1), _do(RETURN, DENY)]
    return b"".join([*code, _do(RETURN, ALLOW)])


def install(code: bytes) -> None:
    """For this process and all it starts, for good. No new privileges must have been set. Errors: OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(_Program(len(code) // 8, code)), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "installing the filter of system calls")


def _do(operation: int, value: int) -> bytes:
    return struct.pack("<HBBI", operation, 0, 0, value)


def _jump(test: int, value: int, over_if_true: int = 0, over_if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", test, over_if_true, over_if_false, value)
