# SPDX-License-Identifier: Apache-2.0
"""io_uring in each of its modes: bytes belong to the process that owns the ring, whichever thread moved them.

Every case is a function of a ledger; `cases.py` runs each in a process of its own.
"""

from __future__ import annotations

import ctypes
import os
import threading

import linux
import uring
from truth import Ledger, MissingFeatureError, check_pair, tcp_pair
from uring import Ring, sqe

SIZE = 8_192


class _Pair:
    """A ring, a connected pair and a buffer; `send` and `recv` go through the ring and are counted."""

    def __init__(self, ledger: Ledger, ring_flags: int = 0) -> None:
        self.ring = Ring(ring_flags)
        self.client, self.server = tcp_pair(ledger)
        self.buffer = ctypes.create_string_buffer(SIZE)
        self.at = ctypes.addressof(self.buffer)

    def send(self, opcode: int, size: int, name: str, flags: int = 0) -> None:
        entry = sqe(opcode, self.client.sock.fileno(), self.at, size, flags=flags, offset=0)
        self.client.sent(self.ring.do(name, entry))

    def recv(self, opcode: int, name: str, flags: int = 0) -> None:
        entry = sqe(opcode, self.server.sock.fileno(), self.at, SIZE, flags=flags, offset=0)
        self.server.received(self.ring.do(name, entry))

    def finish(self) -> None:
        check_pair(self.client, self.server)
        self.client.close()
        self.server.close()
        os.close(self.ring.fd)


def uring_send_recv(ledger: Ledger) -> None:
    """IORING_OP_SEND and RECV, done in line."""
    pair = _Pair(ledger)
    pair.send(uring.SEND, 1_001, "SEND")
    pair.recv(uring.RECV, "RECV")
    pair.finish()


def uring_write_read(ledger: Ledger) -> None:
    """IORING_OP_WRITE and READ on a socket."""
    pair = _Pair(ledger)
    pair.send(uring.WRITE, 1_002, "WRITE")
    pair.recv(uring.READ, "READ")
    pair.finish()


def uring_writev_readv(ledger: Ledger) -> None:
    """IORING_OP_WRITEV and READV on a socket."""
    pair = _Pair(ledger)
    vector = linux.IoVec(pair.at, 1_003)
    out = sqe(uring.WRITEV, pair.client.sock.fileno(), ctypes.addressof(vector), 1)
    pair.client.sent(pair.ring.do("WRITEV", out))
    into = sqe(uring.READV, pair.server.sock.fileno(), ctypes.addressof(vector), 1)
    pair.server.received(pair.ring.do("READV", into))
    pair.finish()


def uring_sendmsg_recvmsg(ledger: Ledger) -> None:
    """IORING_OP_SENDMSG and RECVMSG."""
    pair = _Pair(ledger)
    messages = linux.Messages([1_004])
    at = messages.message(0).value or 0
    pair.client.sent(pair.ring.do("SENDMSG", sqe(uring.SENDMSG, pair.client.sock.fileno(), at, 1)))
    pair.server.received(pair.ring.do("RECVMSG", sqe(uring.RECVMSG, pair.server.sock.fileno(), at, 1)))
    pair.finish()


def uring_worker(ledger: Ledger) -> None:
    """IOSQE_ASYNC: a worker thread does it."""
    pair = _Pair(ledger)
    pair.send(uring.SEND, 1_005, "SEND async", uring.SQE_ASYNC)
    pair.recv(uring.RECV, "RECV async", uring.SQE_ASYNC)
    pair.finish()


def uring_recv_before_data(ledger: Ledger) -> None:
    """A RECV that waits for its data completes later, in task work, and counts once."""
    pair = _Pair(ledger)
    pair.ring.submit(sqe(uring.RECV, pair.server.sock.fileno(), pair.at, SIZE))
    pair.client.send(1_006)
    result, _ = pair.ring.completion()
    pair.server.received(result)
    pair.finish()


def uring_send_zerocopy(ledger: Ledger) -> None:
    """IORING_OP_SEND_ZC (Linux 6.0)."""
    pair = _Pair(ledger)
    pair.send(uring.SEND_ZC, 1_007, "SEND_ZC")
    pair.recv(uring.RECV, "RECV")
    pair.finish()


def uring_polled(ledger: Ledger) -> None:
    """IORING_SETUP_SQPOLL: a kernel thread submits."""
    pair = _Pair(ledger, uring.SETUP_SQPOLL)
    pair.send(uring.SEND, 1_008, "SEND by SQPOLL")
    pair.recv(uring.RECV, "RECV by SQPOLL")
    pair.finish()


def uring_splice(ledger: Ledger) -> None:
    """IORING_OP_SPLICE, pipe to socket and socket to pipe, both done by a worker."""
    pair = _Pair(ledger)
    read_fd, write_fd = os.pipe()
    os.write(write_fd, bytes(1_009))

    def moved(source: int, target: int, size: int) -> int:
        # off_in and off_out are -1 for pipes and sockets; splice_fd is the source
        entry = sqe(uring.SPLICE, target, -1, size, offset=-1, splice_fd=source)
        return pair.ring.do("SPLICE", entry)

    pair.client.sent(moved(read_fd, pair.client.sock.fileno(), 1_009))
    left = 1_009
    while left:
        left -= pair.server.received(moved(pair.server.sock.fileno(), write_fd, left))
    pair.finish()


def uring_recv_multishot(ledger: Ledger) -> None:
    """One multishot RECV (Linux 6.0) completes once per arrival from provided buffers."""
    pair = _Pair(ledger)
    provide = sqe(uring.PROVIDE_BUFFERS, 8, pair.at, 1_024, offset=0, group=7)
    pair.ring.do("PROVIDE_BUFFERS", provide)
    shot = sqe(
        uring.RECV,
        pair.server.sock.fileno(),
        0,
        0,
        flags=uring.SQE_BUFFER_SELECT,
        ioprio=uring.RECV_MULTISHOT,
        group=7,
    )
    pair.ring.submit(shot)
    for size in (300, 400):
        pair.client.send(size)
        left = size
        while left:
            result, flags = pair.ring.completion()
            if result == -uring.EINVAL:
                raise MissingFeatureError("io_uring RECV multishot")
            left -= pair.server.received(result)
            if not flags & uring.CQE_F_MORE:
                raise MissingFeatureError("io_uring RECV multishot")
    pair.finish()


def uring_ring_of_a_thread(ledger: Ledger) -> None:
    """A ring made and used by a thread that is not the leader."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            pair = _Pair(ledger)
            pair.send(uring.SEND, 1_010, "SEND")
            pair.recv(uring.RECV, "RECV", uring.SQE_ASYNC)
            pair.finish()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


CASES = (
    uring_send_recv,
    uring_write_read,
    uring_writev_readv,
    uring_sendmsg_recvmsg,
    uring_worker,
    uring_recv_before_data,
    uring_send_zerocopy,
    uring_polled,
    uring_splice,
    uring_recv_multishot,
    uring_ring_of_a_thread,
)
