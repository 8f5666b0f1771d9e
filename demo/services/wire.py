# SPDX-License-Identifier: Apache-2.0
"""Clients of Redis, PostgreSQL and RabbitMQ, as small as they can be: for the demo's programs only.

Standard library, so that they run in any image with a python3. One connection each, blocking, one thread at
a time.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from datetime import datetime, timezone

FRAME_END = b"\xce"
EMPTY_TABLE = struct.pack(">I", 0)


def place(text: str) -> tuple[str, int]:
    """HOST:PORT."""
    host, _, port = text.rpartition(":")
    return host, int(port)


def log(text: str) -> None:
    """One line with the time (UTC) to the millisecond."""
    now = datetime.now(timezone.utc).strftime("%H:%M:%S.%f")[:-3]
    sys.stdout.write(f"{now} {text}\n")
    sys.stdout.flush()


def patiently(address: str, port: int, limit_s: float = 60.0) -> socket.socket:
    """A connection, tried again while the server starts."""
    deadline_s = time.monotonic() + limit_s
    while True:
        try:
            sock = socket.create_connection((address, port), 10)
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.3)
        else:
            sock.settimeout(None)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock


def exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes; ConnectionError at an earlier end."""
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise ConnectionError("connection closed by peer")
        data += part
    return data


class Redis:
    """GET, SET, INCR and the like."""

    def __init__(self, address: str, port: int) -> None:
        self._file = patiently(address, port).makefile("rwb")

    def do(self, *words: bytes) -> bytes:
        """Send a command; its answer if that is a string or number, empty for nil."""
        self._file.write(b"*%d\r\n" % len(words))
        for word in words:
            self._file.write(b"$%d\r\n%s\r\n" % (len(word), word))
        self._file.flush()
        line = self._file.readline().rstrip(b"\r\n")
        if line[:1] == b"$":
            size = int(line[1:])
            return self._file.read(size + 2)[:-2] if size >= 0 else b""
        if line[:1] in (b"+", b":"):
            return line[1:]
        raise ConnectionError(f"redis: {line.decode() or 'connection closed'}")


class Postgres:
    """Simple queries of a trusted user."""

    def __init__(self, address: str, port: int, user: str = "postgres") -> None:
        self._sock = patiently(address, port)
        words = b"".join(w.encode() + b"\0" for w in ("user", user, "database", "postgres"))
        body = struct.pack(">I", 196_608) + words + b"\0"
        self._sock.sendall(struct.pack(">I", len(body) + 4) + body)
        self._until_ready()

    def do(self, query: str) -> list[list[str]]:
        """The rows it answers, as text."""
        body = query.encode() + b"\0"
        self._sock.sendall(b"Q" + struct.pack(">I", len(body) + 4) + body)
        return self._until_ready()

    def _until_ready(self) -> list[list[str]]:
        rows, error = [], ""
        while True:
            kind, size = struct.unpack(">cI", exactly(self._sock, 5))
            body = exactly(self._sock, size - 4)
            if kind == b"D":
                rows.append(_columns(body))
            elif kind == b"E":
                error = body.replace(b"\0", b" ").decode()
            elif kind == b"Z":
                if error:
                    raise ValueError(f"postgresql: {error}")
                return rows


def _columns(body: bytes) -> list[str]:
    (count,), at, found = struct.unpack_from(">H", body), 2, []
    for _ in range(count):
        (size,) = struct.unpack_from(">i", body, at)
        found.append(body[at + 4 : at + 4 + max(size, 0)].decode())
        at += 4 + max(size, 0)
    return found


def _short(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def _long(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


class Rabbit:
    """One AMQP 0-9-1 channel: declare, publish, get. `heartbeat_s` is what is agreed; the caller beats."""

    def __init__(self, address: str, port: int, heartbeat_s: int = 0) -> None:
        self.sock = patiently(address, port)
        self.sock.sendall(b"AMQP\x00\x00\x09\x01")
        self._wait(10, 10)
        plain = _short("PLAIN") + _long(b"\0guest\0guest") + _short("en_US")
        self._method(0, 10, 11, EMPTY_TABLE + plain)
        self._wait(10, 30)
        self._method(0, 10, 31, struct.pack(">HIH", 2047, 131_072, heartbeat_s))
        self._method(0, 10, 40, _short("/") + _short("") + b"\0")
        self._wait(10, 41)
        self._method(1, 20, 10, _short(""))
        self._wait(20, 11)

    def beat(self) -> None:
        """The heartbeat that the broker wants to hear."""
        self._frame(8, 0, b"")

    def declare(self, queue: str) -> None:
        """Make the queue if there is none."""
        self._method(1, 50, 10, struct.pack(">H", 0) + _short(queue) + b"\0" + EMPTY_TABLE)
        self._wait(50, 11)

    def publish(self, queue: str, body: bytes) -> None:
        """Put a message into the queue."""
        self._method(1, 60, 40, struct.pack(">H", 0) + _short("") + _short(queue) + b"\0")
        self._frame(2, 1, struct.pack(">HHQH", 60, 0, len(body), 0))
        self._frame(3, 1, body)

    def get(self, queue: str) -> bytes | None:
        """The next message, acknowledged by that; None if there is none."""
        self._method(1, 60, 70, struct.pack(">H", 0) + _short(queue) + b"\1")
        while True:
            kind, payload = self._read()
            if kind == 1 and payload[:4] == struct.pack(">HH", 60, 72):
                return None
            if kind == 3:
                return payload

    def _method(self, channel: int, group: int, number: int, arguments: bytes) -> None:
        self._frame(1, channel, struct.pack(">HH", group, number) + arguments)

    def _frame(self, kind: int, channel: int, payload: bytes) -> None:
        self.sock.sendall(struct.pack(">BHI", kind, channel, len(payload)) + payload + FRAME_END)

    def _read(self) -> tuple[int, bytes]:
        kind, _channel, size = struct.unpack(">BHI", exactly(self.sock, 7))
        return kind, exactly(self.sock, size + 1)[:-1]

    def _wait(self, group: int, number: int) -> None:
        while True:
            kind, payload = self._read()
            if kind == 1 and payload[:4] == struct.pack(">HH", group, number):
                return
