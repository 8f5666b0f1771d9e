# SPDX-License-Identifier: Apache-2.0
"""A minimal io_uring by its raw system calls (linux/io_uring.h), one request at a time.

`Ring` is used by calls_uring.py. Only what the standard library offers plus ctypes; offsets and numbers
are the kernel's ABI.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import time

from linux import checked, libc
from truth import PATIENCE_S, MissingFeatureError

SYS_SETUP, SYS_ENTER = 425, 426
SETUP_SQPOLL = 2
ENTER_GETEVENTS, ENTER_SQ_WAKEUP = 1, 2
OFF_SQ_RING, OFF_CQ_RING, OFF_SQES = 0, 0x8000000, 0x10000000
SQE_ASYNC = 16
SQE_BUFFER_SELECT = 32
CQE_F_MORE, CQE_F_NOTIF = 2, 8
SQE_SIZE, CQE_SIZE, PARAMS_SIZE = 64, 16, 120

READV, WRITEV, SENDMSG, RECVMSG = 1, 2, 9, 10
READ, WRITE, SEND, RECV, SPLICE, PROVIDE_BUFFERS, SEND_ZC = 22, 23, 26, 27, 30, 31, 47
RECV_MULTISHOT = 2  # in the sqe's ioprio
EINVAL, EOPNOTSUPP = 22, 95


def sqe(opcode: int, fd: int, address: int, size: int, **other: int) -> bytes:
    """One submission queue entry; `other` may name flags, ioprio, offset, op_flags, group, splice_fd."""
    return struct.pack(
        "=BBHiQQIIQHHi16x",
        opcode,
        other.get("flags", 0),
        other.get("ioprio", 0),
        fd,
        other.get("offset", 0) & (2**64 - 1),
        address & (2**64 - 1),
        size,
        other.get("op_flags", 0),
        1,
        other.get("group", 0),
        0,
        other.get("splice_fd", 0),
    )


class Ring:
    """A ring of eight entries; raises MissingFeatureError where the kernel has none or forbids it."""

    def __init__(self, flags: int = 0) -> None:
        params = bytearray(PARAMS_SIZE)
        struct.pack_into("=III", params, 8, flags, 0, 2_000)
        pointer = (ctypes.c_char * PARAMS_SIZE).from_buffer(params)
        try:
            self.fd = checked(libc.syscall(SYS_SETUP, 8, pointer))
        except OSError as error:
            kind = "SQPOLL" if flags & SETUP_SQPOLL else "setup"
            raise MissingFeatureError(f"io_uring {kind} ({error.strerror})") from error
        self.flags = flags
        entries, cq_entries = struct.unpack_from("=II", params, 0)
        sq_off = struct.unpack_from("=7I", params, 40)
        cq_off = struct.unpack_from("=7I", params, 80)
        self.sq_tail, self.sq_mask, self.sq_array = sq_off[1], sq_off[2], sq_off[6]
        self.cq_head, self.cq_tail, self.cq_mask, self.cqes = cq_off[0], cq_off[1], cq_off[2], cq_off[5]
        self.sq = mmap.mmap(self.fd, self.sq_array + entries * 4, offset=OFF_SQ_RING)
        self.cq = mmap.mmap(self.fd, self.cqes + cq_entries * CQE_SIZE, offset=OFF_CQ_RING)
        self.entries = mmap.mmap(self.fd, entries * SQE_SIZE, offset=OFF_SQES)

    def submit(self, entry: bytes) -> None:
        """Hand one entry to the kernel."""
        tail = self._word(self.sq, self.sq_tail)
        slot = tail & self._word(self.sq, self.sq_mask)
        self.entries[slot * SQE_SIZE : (slot + 1) * SQE_SIZE] = entry
        struct.pack_into("=I", self.sq, self.sq_array + slot * 4, slot)
        struct.pack_into("=I", self.sq, self.sq_tail, (tail + 1) & 0xFFFFFFFF)
        polled = bool(self.flags & SETUP_SQPOLL)
        flags = ENTER_SQ_WAKEUP if polled else 0
        checked(libc.syscall(SYS_ENTER, self.fd, 0 if polled else 1, 0, flags, None, 0))

    def completion(self) -> tuple[int, int]:
        """The next completion's (result, flags); waits for it."""
        head = self._word(self.cq, self.cq_head)
        deadline = time.monotonic() + PATIENCE_S
        while head == self._word(self.cq, self.cq_tail):
            if time.monotonic() > deadline:
                raise TimeoutError("no completion came")
            if not self.flags & SETUP_SQPOLL:
                checked(libc.syscall(SYS_ENTER, self.fd, 0, 1, ENTER_GETEVENTS, None, 0))
            else:
                time.sleep(0.001)
        slot = head & self._word(self.cq, self.cq_mask)
        result, flags = struct.unpack_from("=iI", self.cq, self.cqes + slot * CQE_SIZE + 8)
        struct.pack_into("=I", self.cq, self.cq_head, (head + 1) & 0xFFFFFFFF)
        return result, flags

    def do(self, name: str, entry: bytes) -> int:
        """Submit one entry and wait for its result (>= 0); raises MissingFeatureError naming `name`."""
        self.submit(entry)
        result, flags = self.completion()
        while flags & CQE_F_MORE:
            _, flags = self.completion()
        if result in (-EINVAL, -EOPNOTSUPP):
            raise MissingFeatureError(f"io_uring {name}")
        if result < 0:
            raise OSError(-result, f"io_uring {name}")
        return result

    @staticmethod
    def _word(area: mmap.mmap, offset: int) -> int:
        (value,) = struct.unpack_from("=I", area, offset)
        return int(value)
