# SPDX-License-Identifier: Apache-2.0
"""The bpf(2) system call and its attribute layouts (include/uapi/linux/bpf.h, union bpf_attr).

Called by `maps`, `programs` and `attach`; knows nothing of probes. It exists because the agent must
not load BCC's library (LLVM stays resident) and libbpf's ABI differs between the supported systems.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import struct

_NUMBERS = {"x86_64": 321, "aarch64": 280}
_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}

MAP_CREATE = 0
MAP_LOOKUP_ELEM = 1
MAP_UPDATE_ELEM = 2
MAP_DELETE_ELEM = 3
PROG_LOAD = 5
PROG_GET_NEXT_ID = 11
OBJ_GET_INFO_BY_FD = 15
RAW_TRACEPOINT_OPEN = 17
MAP_LOOKUP_BATCH = 24
MAP_LOOKUP_AND_DELETE_BATCH = 25
MAP_UPDATE_BATCH = 26
LINK_CREATE = 28
ENABLE_STATS = 32
ITER_CREATE = 33

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_IOC_ENABLE, _IOC_SET_BPF = 0x2400, 0x40042408  # linux/perf_event.h


def pointer(buffer: ctypes.Array[ctypes.c_char] | int) -> int:
    """The address of a ctypes buffer, as the u64 that bpf_attr wants; integers pass through."""
    return buffer if isinstance(buffer, int) else ctypes.addressof(buffer)


def bpf(command: int, attr: bytes | bytearray) -> int:
    """The system call. Returns its non-negative result; raises OSError with the kernel's errno."""
    buffer = ctypes.create_string_buffer(bytes(attr), len(attr))
    return bpf_in_place(command, buffer)


def bpf_in_place(command: int, attr: ctypes.Array[ctypes.c_char]) -> int:
    """Like `bpf`, for commands that write results back into their attributes."""
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(38, f"unsupported architecture {platform.machine()}")
    result = int(_libc.syscall(ctypes.c_long(number), ctypes.c_int(command), attr, ctypes.c_uint(len(attr))))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def object_info(fd: int, size: int) -> bytes:
    """BPF_OBJ_GET_INFO_BY_FD: the first `size` bytes of struct bpf_{prog,map,link}_info of `fd`."""
    info = ctypes.create_string_buffer(size)
    bpf(OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, size, pointer(info)))
    return info.raw


def perf_event_open(attr: bytes, cpu: int) -> int:
    """Opens a perf event for all processes on one CPU; returns a close-on-exec descriptor."""
    number = _PERF_EVENT_OPEN.get(platform.machine(), -1)
    buffer = ctypes.create_string_buffer(attr, len(attr))
    flag_cloexec = 8
    result = int(
        _libc.syscall(
            ctypes.c_long(number),
            buffer,
            ctypes.c_int(-1),
            ctypes.c_int(cpu),
            ctypes.c_int(-1),
            ctypes.c_ulong(flag_cloexec),
        )
    )
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def run_at(event_fd: int, program_fd: int) -> None:
    """Has a program run at a perf event from now on. Raises OSError."""
    fcntl.ioctl(event_fd, _IOC_SET_BPF, program_fd)
    fcntl.ioctl(event_fd, _IOC_ENABLE, 0)
