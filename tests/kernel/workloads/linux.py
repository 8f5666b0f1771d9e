# SPDX-License-Identifier: Apache-2.0
"""Linux calls and constants that Python's standard library does not offer, through ctypes.

Used by the workloads only. Structures follow the 64-bit Linux ABI (linux/socket.h, linux/sched.h,
linux/tcp.h); every wrapper raises OSError with the call's errno.
"""

from __future__ import annotations

import ctypes
import mmap
import os

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

MSG_ERRQUEUE = 0x2000
MSG_ZEROCOPY = 0x4000000
MSG_FASTOPEN = 0x20000000
MSG_WAITFORONE = 0x10000
SO_ZEROCOPY = 60
IP_RECVERR = 11
TCP_FASTOPEN = 23
TCP_ZEROCOPY_RECEIVE = 35
UDP_SEGMENT = 103
UDP_CORK = 1
IPPROTO_MPTCP = 262
CLONE_NEWNET = 0x40000000
PR_SET_NAME = 15
SYS_CLONE3 = 435
SIGCHLD = 17


class IoVec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


class MsgHdr(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_size", ctypes.c_uint32),
        ("iov", ctypes.POINTER(IoVec)),
        ("iov_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class MMsgHdr(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (("hdr", MsgHdr), ("size", ctypes.c_uint))


class Messages:
    """An array of struct mmsghdr, one buffer each; `name` is a raw sockaddr for unconnected sockets."""

    def __init__(self, sizes: list[int], name: bytes = b"") -> None:
        self.buffers = [ctypes.create_string_buffer(size) for size in sizes]
        self.vectors = [IoVec(ctypes.addressof(b), s) for b, s in zip(self.buffers, sizes, strict=True)]
        self.name = ctypes.create_string_buffer(name, len(name)) if name else None
        self.array = (MMsgHdr * len(sizes))()
        for header, vector in zip(self.array, self.vectors, strict=True):
            header.hdr.iov = ctypes.pointer(vector)
            header.hdr.iov_count = 1
            if self.name is not None:
                header.hdr.name = ctypes.addressof(self.name)
                header.hdr.name_size = len(name)

    def message(self, index: int) -> ctypes.c_void_p:
        """Address of the index-th struct msghdr."""
        return ctypes.c_void_p(ctypes.addressof(self.array) + index * ctypes.sizeof(MMsgHdr))

    def send(self, fd: int) -> list[int]:
        """sendmmsg(2); the size of each message that went out."""
        done = checked(libc.sendmmsg(fd, self.array, len(self.array), 0))
        return [self.array[i].size for i in range(done)]

    def receive(self, fd: int, flags: int = 0) -> list[int]:
        """recvmmsg(2); the size of each message that came in."""
        done = checked(libc.recvmmsg(fd, self.array, len(self.array), flags, None))
        return [self.array[i].size for i in range(done)]


def map_socket(fd: int, size: int) -> int:
    """Address of a read-only mapping of a TCP socket (mmap(2)), for TCP_ZEROCOPY_RECEIVE; 0 if refused."""
    call = libc.mmap
    call.restype = ctypes.c_void_p
    call.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    address = call(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    return 0 if address in (None, ctypes.c_void_p(-1).value) else int(address)


class ZerocopyReceive(ctypes.Structure):
    """struct tcp_zerocopy_receive up to `copybuf_len` (Linux 5.10 and later accept this size)."""

    _fields_ = (
        ("address", ctypes.c_uint64),
        ("length", ctypes.c_uint32),
        ("recv_skip_hint", ctypes.c_uint32),
        ("inq", ctypes.c_uint32),
        ("err", ctypes.c_int32),
        ("copybuf_address", ctypes.c_uint64),
        ("copybuf_len", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
    )


class CloneArgs(ctypes.Structure):
    """struct clone_args, version 1 (80 bytes, Linux 5.5)."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
        )
    )


def checked(result: int) -> int:
    """A call's result, or the OSError its errno stands for."""
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def fork_as(pid: int) -> int:
    """fork(2) whose child gets exactly `pid` (clone3 with set_tid; root, Linux 5.5).

    Returns 0 in the child. FileExistsError while `pid` is taken. The child must not rely on Python's
    fork hooks: it may do plain work and leave by os._exit or os.exec*.
    """
    wanted = (ctypes.c_int32 * 1)(pid)
    args = CloneArgs(exit_signal=SIGCHLD, set_tid=ctypes.addressof(wanted), set_tid_size=1)
    return checked(libc.syscall(SYS_CLONE3, ctypes.byref(args), ctypes.sizeof(args)))


def unshare(flags: int) -> None:
    """Leave the namespaces that the flags name."""
    checked(libc.unshare(flags))


def set_process_name(name: bytes) -> None:
    """prctl(PR_SET_NAME): the thread's comm, cut to 15 bytes."""
    checked(libc.prctl(PR_SET_NAME, ctypes.c_char_p(name), 0, 0, 0))
