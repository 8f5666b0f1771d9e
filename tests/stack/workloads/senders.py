# SPDX-License-Identifier: Apache-2.0
"""Traffic of known size over TCP: short-lived processes, or one that goes on until it is told to stop.

`senders.py many COUNT BYTES`: COUNT processes, a few at a time, each connects to a server process, sends
BYTES once and exits. `senders.py steady BYTES PAUSE`: a client process sends BYTES, sleeps PAUSE seconds
(0.5 to 1.5 of it at random), and so on until standard input ends; with PAUSE 0 it sends once for each line
that it reads there. `senders.py once ADDRESS PORT BYTES`:
connect there, send, exit. `senders.py serve ADDRESS PORT`: take whatever comes until standard input ends.

Prints one JSON object at its end: {"transmit": {pid: bytes}, "receive": {pid: bytes}}, as the calls returned
them. `steady` and `serve` print {"port": n, "pid": n} first. Standard library only: it also runs in images.
"""

from __future__ import annotations

import json
import os
import random
import select
import socket
import sys

AT_ONCE = 8
PORTS = 8  # so that no pair of addresses and ports comes back while it is in TIME_WAIT
Counts = dict[int, int]


def say(value: object) -> None:
    """Print one JSON line at once."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def send(where: tuple[str, int], size: int) -> int:
    """Connect, send exactly `size` bytes, wait until the other end has read them all; bytes sent."""
    with socket.create_connection(where, 60) as sock:
        sent = 0
        while sent < size:
            sent += sock.send(bytes(min(size - sent, 1 << 18)))
        sock.shutdown(socket.SHUT_WR)
        if sock.recv(1):
            raise RuntimeError("the server answered, which it must not")
    return sent


class Sink:
    """Takes connections and reads each to its end. The work of one process."""

    def __init__(self, listeners: list[socket.socket]) -> None:
        self.received = 0
        self._listeners = listeners
        self._open: list[socket.socket] = []

    def step(self, timeout_s: float | None, stop_fd: int | None = None) -> bool:
        """Serve what is ready; False once `stop_fd` has ended and no connection is open."""
        watched: list[socket.socket | int] = [*self._listeners, *self._open]
        if stop_fd is not None:
            watched.append(stop_fd)
        ready = select.select(watched, [], [], timeout_s)[0]
        stopping = False
        for item in ready:
            if isinstance(item, int):
                stopping = not os.read(item, 100)
            elif item in self._listeners:
                self._open.append(item.accept()[0])
            else:
                data = item.recv(1 << 18)
                self.received += len(data)
                if not data:
                    self._open.remove(item)
                    item.close()
        return not stopping or bool(self._open)


def listeners(count: int, address: str = "127.0.0.1", port: int = 0) -> list[socket.socket]:
    """Listening sockets, on free ports unless a port is named."""
    return [socket.create_server((address, port), backlog=512) for _ in range(count)]


def fork_sink(listening: list[socket.socket]) -> tuple[int, int, int]:
    """A process that serves until the returned descriptor is closed: (pid, that, where its count comes)."""
    stop_read, stop_write = os.pipe()
    count_read, count_write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(stop_read)
        os.close(count_write)
        return pid, stop_write, count_read
    status = 1
    try:
        os.close(stop_write)
        sink = Sink(listening)
        while sink.step(None, stop_read):
            pass
        os.write(count_write, str(sink.received).encode())
        status = 0
    finally:
        os._exit(status)


def end_sink(pid: int, stop_write: int, count_read: int) -> Counts:
    """Close it; what it received."""
    os.close(stop_write)
    _, how = os.waitpid(pid, 0)
    if how:
        raise RuntimeError(f"the server ended with wait status {how}")
    return {pid: int(os.read(count_read, 100))}


def many(count: int, size: int) -> dict[str, Counts]:
    """See the module."""
    listening = listeners(PORTS)
    places = [each.getsockname() for each in listening]
    sink = fork_sink(listening)
    transmit: Counts = {}
    running: set[int] = set()

    def reap() -> None:
        pid, how = os.wait()
        running.remove(pid)
        if how:
            raise RuntimeError(f"a sender ended with wait status {how}")
        transmit[pid] = transmit.get(pid, 0) + size

    for number in range(count):
        while len(running) >= AT_ONCE:
            reap()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = 0 if send(places[number % PORTS], size) == size else 1
            finally:
                os._exit(status)
        running.add(pid)
    while running:
        reap()
    return {"transmit": transmit, "receive": end_sink(*sink)}


def go_on(pause_s: float) -> bool:
    """Wait for about so long, or (0) for the next line of standard input; False at its end."""
    if pause_s:
        return not select.select([sys.stdin], [], [], random.uniform(0.5, 1.5) * pause_s)[0]
    return bool(sys.stdin.readline())


def steady(size: int, pause_s: float) -> dict[str, Counts]:
    """See the module. One connection; every byte is read by the server process."""
    listening = listeners(1)
    sink = fork_sink(listening)
    sent = 0
    with socket.create_connection(listening[0].getsockname()) as sock:
        say({"port": listening[0].getsockname()[1], "pid": os.getpid()})
        while go_on(pause_s):
            left = size
            while left:
                done = sock.send(bytes(min(left, 1 << 18)))
                sent += done
                left -= done
    return {"transmit": {os.getpid(): sent}, "receive": end_sink(*sink)}


def serve(address: str, port: int) -> dict[str, Counts]:
    """See the module."""
    listening = listeners(1, address, port)
    say({"port": listening[0].getsockname()[1], "pid": os.getpid()})
    sink = Sink(listening)
    while sink.step(None, sys.stdin.fileno()):
        pass
    return {"transmit": {}, "receive": {os.getpid(): sink.received}}


def main(arguments: list[str]) -> int:
    """Run the named part and print its counts."""
    part, *rest = arguments
    if part == "many":
        say(many(int(rest[0]), int(rest[1])))
    elif part == "steady":
        say(steady(int(rest[0]), float(rest[1])))
    elif part == "once":
        say({"transmit": {os.getpid(): send((rest[0], int(rest[1])), int(rest[2]))}, "receive": {}})
    elif part == "serve":
        say(serve(rest[0], int(rest[1])))
    else:
        raise ValueError(f"no part {part!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
