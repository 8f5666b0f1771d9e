# SPDX-License-Identifier: Apache-2.0
"""One case per call that receives on TCP: what consumes data counts once, what only looks at it never.

Every case is a function of a ledger; `cases.py` runs each in a process of its own.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import socket
import struct
import termios
import threading
import time

import linux
from truth import End, Ledger, MissingFeatureError, check_pair, tcp_pair, wait_until


def _finish(client: End, server: End) -> None:
    """Check both ledgers against the kernel's figures and close."""
    check_pair(client, server)
    client.close()
    server.close()


def _arrive(end: End, size: int) -> None:
    """Wait until `size` bytes lie unread in the socket (FIONREAD), so that one call sees them all."""

    def unread() -> bool:
        (count,) = struct.unpack("i", fcntl.ioctl(end.sock, termios.FIONREAD, bytes(4)))
        return bool(count >= size)

    wait_until(unread, f"{size} unread bytes")


def recv(ledger: Ledger) -> None:
    """A recv and a recvfrom into larger buffers."""
    client, server = tcp_pair(ledger)
    client.send(100)
    _arrive(server, 100)
    server.received(len(server.sock.recv(1_000)))
    client.send(101)
    _arrive(server, 101)
    server.received(len(server.sock.recvfrom(1_000)[0]))
    _finish(client, server)


def read(ledger: Ledger) -> None:
    """A plain read."""
    client, server = tcp_pair(ledger)
    client.send(50)
    _arrive(server, 50)
    server.received(len(os.read(server.sock.fileno(), 1_000)))
    _finish(client, server)


def readv(ledger: Ledger) -> None:
    """One readv into two buffers."""
    client, server = tcp_pair(ledger)
    client.send(70)
    _arrive(server, 70)
    server.received(os.readv(server.sock.fileno(), [bytearray(16), bytearray(100)]))
    _finish(client, server)


def recvmsg(ledger: Ledger) -> None:
    """A plain recvmsg."""
    client, server = tcp_pair(ledger)
    client.send(15)
    _arrive(server, 15)
    server.received(len(server.sock.recvmsg(100)[0]))
    _finish(client, server)


def recvmmsg(ledger: Ledger) -> None:
    """In one recvmmsg each message counts."""
    client, server = tcp_pair(ledger)
    client.send(33)
    _arrive(server, 33)
    for size in linux.Messages([11, 11, 11]).receive(server.sock.fileno()):
        server.received(size)
    _finish(client, server)


def peek(ledger: Ledger) -> None:
    """MSG_PEEK counts nothing, also with MSG_DONTWAIT and by recvmsg; the read that follows counts once."""
    client, server = tcp_pair(ledger)
    client.send(20)
    _arrive(server, 20)
    for flags in (socket.MSG_PEEK, socket.MSG_PEEK | socket.MSG_DONTWAIT, socket.MSG_PEEK | socket.MSG_TRUNC):
        if len(server.sock.recv(100, flags)) != 20:
            raise AssertionError("the peek saw less than was there")
    server.sock.recvmsg(100, 0, socket.MSG_PEEK)
    server.drain(20)
    _finish(client, server)


def truncate(ledger: Ledger) -> None:
    """MSG_TRUNC on TCP discards: consumed bytes count, partly and wholly discarded."""
    client, server = tcp_pair(ledger)
    client.send(200)
    _arrive(server, 200)
    target = ctypes.create_string_buffer(150)
    for size in (150, 50):
        got = linux.checked(linux.libc.recv(server.sock.fileno(), target, size, socket.MSG_TRUNC))
        server.received(got)
    _finish(client, server)


def wait_for_all(ledger: Ledger) -> None:
    """MSG_WAITALL that is fed in three parts counts the whole once."""
    client, server = tcp_pair(ledger)

    def feed() -> None:
        for _ in range(3):
            client.send(100)
            time.sleep(0.02)

    feeder = threading.Thread(target=feed)
    feeder.start()
    server.received(len(server.sock.recv(300, socket.MSG_WAITALL)))
    feeder.join()
    if ledger.total("receive") != 300:
        raise AssertionError("MSG_WAITALL returned early")
    _finish(client, server)


def nothing_to_read(ledger: Ledger) -> None:
    """EAGAIN, a receive timeout and poll time-outs count nothing."""
    client, server = tcp_pair(ledger)
    client.send(1)
    server.drain(1)
    server.sock.setblocking(False)
    _refused(server)
    server.sock.setblocking(True)
    server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 20_000))
    _refused(server)
    server.sock.settimeout(0.02)
    _refused(server)
    _finish(client, server)


def _refused(end: End) -> None:
    try:
        end.sock.recv(10)
    except (BlockingIOError, TimeoutError):
        return
    raise AssertionError("there was something to read")


def end_of_stream_and_reset(ledger: Ledger) -> None:
    """Data then FIN, then reads of 0; and data that a reset destroyed unread is received by nobody."""
    client, server = tcp_pair(ledger)
    client.send(25)
    check = threading.Thread(target=server.drain, args=(25,))
    check.start()
    check.join()
    client.close()
    for _ in range(3):
        server.received(len(server.sock.recv(10)))
    server.close()

    client, server = tcp_pair(ledger)
    client.send(26)
    server.drain(6)
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    try:
        while server.received(len(server.sock.recv(5))):
            continue
    except ConnectionResetError:
        ledger.notes["reset"] = True
    server.close()


def receive_out_of_band_inline(ledger: Ledger) -> None:
    """An urgent byte read in line counts as any other."""
    client, server = tcp_pair(ledger)
    server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    client.send(8)
    client.sent(client.sock.send(b"!", socket.MSG_OOB))
    client.send(7)
    server.drain(16)
    _finish(client, server)


def splice_from_socket(ledger: Ledger) -> None:
    """splice(2) from the socket into a pipe, mixed with recv(2)."""
    client, server = tcp_pair(ledger)
    read_fd, write_fd = os.pipe()
    for size in (500, 40_000):
        client.send(size)
        left = size - 100
        while left:
            moved = server.received(os.splice(server.sock.fileno(), write_fd, left))
            os.read(read_fd, moved)
            left -= moved
        server.drain(100)
    _finish(client, server)


def splice_through(ledger: Ledger) -> None:
    """A proxy's splice: socket to pipe to the next socket, both charged in full."""
    client, middle_in = tcp_pair(ledger)
    middle_out, server = tcp_pair(ledger)
    read_fd, write_fd = os.pipe()
    size = 150_000
    reader = threading.Thread(target=server.drain, args=(size,))
    sender = threading.Thread(target=client.send, args=(size,))
    reader.start()
    sender.start()
    left = size
    while left:
        moved = middle_in.received(os.splice(middle_in.sock.fileno(), write_fd, left))
        left -= moved
        while moved:
            moved -= middle_out.sent(os.splice(read_fd, middle_out.sock.fileno(), moved))
    sender.join()
    reader.join()
    _finish(client, middle_in)
    _finish(middle_out, server)


def splice_nothing(ledger: Ledger) -> None:
    """splice(2) that finds nothing (EAGAIN) or the end of the stream counts nothing."""
    client, server = tcp_pair(ledger)
    _, write_fd = os.pipe()
    client.send(9)
    _arrive(server, 9)
    server.received(os.splice(server.sock.fileno(), write_fd, 9))
    server.sock.setblocking(False)
    try:
        server.received(os.splice(server.sock.fileno(), write_fd, 9))
    except BlockingIOError:
        ledger.notes["EAGAIN"] = True
    server.sock.setblocking(True)
    check_pair(client, server)
    client.close()
    server.received(os.splice(server.sock.fileno(), write_fd, 9))
    server.close()


def splice_until_the_end(ledger: Ledger) -> None:
    """splice(2) that meets data and FIN together, three connections: the FIN is no byte."""
    for size in (9, 5_000, 60_000):
        client, server = tcp_pair(ledger)
        read_fd, write_fd = os.pipe()
        client.send(size)
        client.sock.shutdown(socket.SHUT_WR)
        moved = size
        while moved:
            moved = server.received(os.splice(server.sock.fileno(), write_fd, 1 << 16))
            os.read(read_fd, moved or 0)
        client.close()
        server.close()
        os.close(read_fd)
        os.close(write_fd)


def zerocopy_receive(ledger: Ledger) -> None:
    """TCP_ZEROCOPY_RECEIVE: pages mapped and bytes copied both count, and so does the rest read by recv."""
    client, server = tcp_pair(ledger)
    size = 1 << 16
    client.sock.setsockopt(socket.SOL_SOCKET, linux.SO_ZEROCOPY, 1)
    client.sent(client.sock.send(mmap.mmap(-1, size), linux.MSG_ZEROCOPY))
    size = ledger.total("transmit")
    _arrive(server, size)
    window = 1 << 15
    mapped = linux.map_socket(server.sock.fileno(), window)
    if not mapped:
        raise MissingFeatureError("mmap of a TCP socket")
    copied = ctypes.create_string_buffer(8_192)
    call = linux.ZerocopyReceive(
        address=mapped, length=window, copybuf_address=ctypes.addressof(copied), copybuf_len=8_192
    )
    length = ctypes.c_uint32(ctypes.sizeof(call))
    linux.checked(
        linux.libc.getsockopt(
            server.sock.fileno(),
            socket.IPPROTO_TCP,
            linux.TCP_ZEROCOPY_RECEIVE,
            ctypes.byref(call),
            ctypes.byref(length),
        )
    )
    mapped_bytes, copied_bytes = int(call.length), max(0, int(call.copybuf_len))
    ledger.notes.update(mapped=mapped_bytes, copied=copied_bytes)
    server.received(mapped_bytes)
    server.received(copied_bytes)
    server.drain(size - mapped_bytes - copied_bytes)
    _finish(client, server)


CASES = (
    recv,
    read,
    readv,
    recvmsg,
    recvmmsg,
    peek,
    truncate,
    wait_for_all,
    nothing_to_read,
    end_of_stream_and_reset,
    receive_out_of_band_inline,
    splice_from_socket,
    splice_through,
    splice_nothing,
    splice_until_the_end,
    zerocopy_receive,
)
