"""What a process that scores an answer may still do: compute, read files, write to its asker.

Limits hold on every system with ``fork``. On Linux, on x86-64 and 64-bit ARM, a seccomp filter
lets through the few system calls that computing needs and refuses all others with EPERM:
sockets, processes, signals to others, files opened to write. What it does not refuse is reading
files, and its own memory is the answer's to write.

References:
  `seccomp(2) <https://man7.org/linux/man-pages/man2/seccomp.2.html>`_, whose filters are
  programs of ``struct sock_filter`` in ``linux/filter.h``.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import resource
import struct
import sys

MEMORY_BYTES = 1 << 30
"""Memory that a score may take beyond what its process has at the start."""

OPEN_FILES = 64

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_FILTER_MODE = 2
_SIGKILL = 9

_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""By machine: the name of its interface to the kernel, and its column of the numbers below."""

_OPENAT = (257, 56)
"""Let through where it does not write."""

_ALLOWED = (
    (0, 63),  # read
    (1, 64),  # write, to what is open
    (3, 57),  # close
    (4, None),  # stat
    (5, 80),  # fstat
    (6, None),  # lstat
    (262, 79),  # newfstatat
    (332, 291),  # statx
    (8, 62),  # lseek
    (17, 67),  # pread64
    (79, 17),  # getcwd
    (89, 78),  # readlink, readlinkat
    (217, 61),  # getdents64
    (9, 222),  # mmap
    (10, 226),  # mprotect
    (11, 215),  # munmap
    (12, 214),  # brk
    (25, 216),  # mremap
    (28, 233),  # madvise
    (13, 134),  # rt_sigaction
    (14, 135),  # rt_sigprocmask
    (15, 139),  # rt_sigreturn
    (131, 132),  # sigaltstack
    (24, 124),  # sched_yield
    (35, 101),  # nanosleep
    (230, 115),  # clock_nanosleep
    (228, 113),  # clock_gettime
    (96, 169),  # gettimeofday
    (202, 98),  # futex
    (334, 293),  # rseq
    (39, 172),  # getpid
    (110, 173),  # getppid
    (186, 178),  # gettid
    (318, 278),  # getrandom
    (63, 160),  # uname
    (99, 179),  # sysinfo
    (204, 123),  # sched_getaffinity
    (98, 165),  # getrusage
    (100, 153),  # times
    (229, 114),  # clock_getres
    (21, None),  # access
    (269, 48),  # faccessat
    (60, 93),  # exit
    (231, 94),  # exit_group
)
"""Numbers of the calls that are let through."""


def confine(deadline_s: float) -> bool:
    """Give up, for good, what a score does not need.

    Args:
      deadline_s: seconds of computing after which the kernel ends the process.

    Returns:
      True if the kernel took the filter too.
    """
    seconds = math.ceil(deadline_s) + 1
    for limit, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, _memory_bytes() + MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # a lower one holds already
            resource.setrlimit(limit, (value, value))
    return sys.platform == "linux" and _filtered()


def end_with_parent() -> None:
    """Have the kernel end this process when its parent ends, where it can (Linux)."""
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


def _memory_bytes() -> int:
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 3 << 30


def _filtered() -> bool:
    if platform.machine() not in _MACHINES:
        return False
    program = filter_program(platform.machine())
    instructions = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a short and, aligned, a pointer
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    libc = _libc()
    return (
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        and libc.prctl(_PR_SET_SECCOMP, _FILTER_MODE, ctypes.c_char_p(header), 0, 0) == 0
    )


def filter_program(machine: str) -> bytes:
    """The filter, instructions of eight bytes: code, two jumps, an operand.

    A call of another machine's numbering, such as 32-bit ones, is refused like any unknown.
    """
    interface, column = _MACHINES[machine]
    allowed = [call for row in _ALLOWED if (call := row[column]) is not None]
    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    permit, refuse = 0x7FFF0000, 0x00050000 | 1  # SECCOMP_RET_ALLOW; RET_ERRNO, EPERM
    writes = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    lines = [
        (load, 0, 0, 4),  # seccomp_data.arch
        (equal, 1, 0, interface),
        (give, 0, 0, refuse),
        (load, 0, 0, 0),  # seccomp_data.nr
        (equal, 0, 3, _OPENAT[column]),
        (load, 0, 0, 32),  # args[2], the flags
        (any_bit, 0, len(allowed) + 2, writes),
        (give, 0, 0, refuse),
    ]
    # each call that is let through jumps over the rest and the refusal
    lines += [(equal, len(allowed) - at, 0, call) for at, call in enumerate(allowed)]
    lines += [(give, 0, 0, refuse), (give, 0, 0, permit)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
