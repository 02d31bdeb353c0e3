"""A process gives up what a decoder does not need, for good (Linux).

Afterwards the kernel ends it at the first system call that is not on a short list: it can use the
memory and the descriptors that it has, and nothing else. No file, no socket, no program, no
process, no memory that can be executed. Threads it may start, for the one decoder of HEIC cannot
do without: they are held to the same list.
"""

import contextlib
import ctypes
import os
import platform
import signal
import struct
from pathlib import Path

_DEATH_SIGNAL, _DUMPABLE, _SECCOMP, _NO_NEW_PRIVILEGES = 1, 4, 22, 38
_FILTER = 2

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""The kernel's constant, and the column in the tables below."""

_ALLOWED = {
    "recvfrom": (45, 207),
    "sendto": (44, 206),
    "futex": (202, 98),
    "brk": (12, 214),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "clock_gettime": (228, 113),
    "sched_yield": (24, 124),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "getrandom": (318, 278),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "restart_syscall": (219, 128),
    "close": (3, 57),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
_CLONE, _CLONE3 = (56, 220), (435, 435)
_ALLOWED_UNLESS_EXECUTABLE = {"mmap": (9, 222), "mprotect": (10, 226)}

# Of `struct seccomp_data` and `struct sock_filter`.
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT, _THIRD_ARGUMENT_AT = 0, 4, 16, 32
_LOAD, _IF_EQUAL, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_KILL, _ALLOW = 0x80000000, 0x7FFF0000
_FAIL_WITH, _ENOSYS = 0x00050000, 38
_PROT_EXEC, _CLONE_THREAD = 4, 0x10000


def tie_to_parent() -> None:
    """Die with the thread that started this process, and tell nobody what was in memory.

    SIGTERM and Ctrl-C are the parent's business, which ends us when it has drained. If the machine
    runs out of memory, this process goes first.
    """
    parent = os.getppid()
    _prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be asked for
        os._exit(1)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_bytes(b"1000")
    _prctl(_DUMPABLE, 0)  # from here on what is in /proc/self belongs to root
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def confine() -> bool:
    """Give up everything but memory and open descriptors. False where the kernel cannot do it."""
    _prctl(_NO_NEW_PRIVILEGES, 1)
    architecture = platform.machine()
    if architecture not in _ARCHITECTURES:
        return False
    program = filter_program(architecture)
    code = ctypes.create_string_buffer(program, len(program))
    pointer = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    return _prctl(_SECCOMP, _FILTER, ctypes.create_string_buffer(pointer))


def filter_program(architecture: str) -> bytes:
    """The filter in the kernel's BPF, 8 bytes an instruction."""
    constant, column = _ARCHITECTURES[architecture]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_IF_EQUAL, 1, 0, constant),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    for numbers in _ALLOWED.values():
        program += [(_IF_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _ALLOW)]
    for numbers in _ALLOWED_UNLESS_EXECUTABLE.values():
        program += [
            (_IF_EQUAL, 0, 4, numbers[column]),
            (_LOAD, 0, 0, _THIRD_ARGUMENT_AT),
            (_IF_ANY_BIT, 1, 0, _PROT_EXEC),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _KILL),
        ]
    program += [
        # What it would start is out of a filter's sight; without it libc takes the older call.
        (_IF_EQUAL, 0, 1, _CLONE3[column]),
        (_RETURN, 0, 0, _FAIL_WITH | _ENOSYS),
        (_IF_EQUAL, 0, 3, _CLONE[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_IF_ANY_BIT, 0, 1, _CLONE_THREAD),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _KILL),
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def _prctl(option: int, argument: int, more: "ctypes.Array[ctypes.c_char] | int" = 0) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    last = ctypes.c_ulong(0)
    second = more if isinstance(more, ctypes.Array) else ctypes.c_ulong(more)
    return not libc.prctl(option, ctypes.c_ulong(argument), second, last, last)
