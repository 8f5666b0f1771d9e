# SPDX-License-Identifier: Apache-2.0
"""Thousands of short-lived processes with several connections each, against one server process.

`swarm.py PROCESSES CONNECTIONS` forks PROCESSES children from a small parent, at most a few at a time.
Connection c of child p sends 1 + (p * CONNECTIONS + c) % 251 bytes and reads an answer of 1 + that % 13.
Prints the server's ledger as usual and, under "children", rows of [pid, sent, received]; notes tell how
long the children lived. A child that could not do it all ends the run with an error.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
import time
from typing import Any

from children import Child
from truth import Ledger, listener, say, server_end

AT_ONCE = 8
PORTS = 8  # so that no (address, port, address, port) comes back while it is in TIME_WAIT


def sizes(serial: int) -> tuple[int, int]:
    """Bytes up and down of the serial-th connection."""
    up = 1 + serial % 251
    return up, 1 + up % 13


def serve(listeners: list[socket.socket], total: int, ledger: Ledger) -> None:
    """Answer `total` connections: the first byte says how many follow it."""
    chooser = selectors.DefaultSelector()
    for listening in listeners:
        listening.setblocking(False)
        chooser.register(listening, selectors.EVENT_READ)
    done = 0
    while done < total:
        for key, _ in chooser.select():
            try:
                sock, _ = key.fileobj.accept()  # type: ignore[union-attr]
            except BlockingIOError:
                continue
            sock.setblocking(True)
            end = server_end(sock, ledger)
            first = sock.recv(1)
            end.received(len(first))
            up = first[0]
            if up > 1:
                end.drain(up - 1)
            end.send(1 + up % 13)
            sock.close()
            done += 1


def live(addresses: list[tuple[str, int]], number: int, connections: int) -> tuple[int, int]:
    """One child's life; returns (bytes sent, bytes received)."""
    sent = received = 0
    for index in range(connections):
        serial = number * connections + index
        up, down = sizes(serial)
        with socket.socket() as sock:
            sock.connect(addresses[serial % PORTS])
            sock.sendall(bytes([up]) + bytes(up - 1))
            sent += up
            answer = sock.recv(down, socket.MSG_WAITALL)
            received += len(answer)
            if len(answer) != down:
                raise EOFError(f"answer {serial} was cut")
    return sent, received


def swarm(processes: int, connections: int) -> dict[str, Any]:
    """Run it all and return the printed object."""
    listeners = [listener(backlog=512) for _ in range(PORTS)]
    addresses = [listening.getsockname() for listening in listeners]
    server = Child(lambda ledger: serve(listeners, processes * connections, ledger))
    started: dict[int, tuple[int, float]] = {}
    rows: list[list[int]] = []
    lives_ms: list[float] = []

    def reap() -> None:
        pid, how = os.wait()
        if pid == server.pid:  # it may be through before the last child is
            if how:
                server.result()
            return
        number, since = started.pop(pid)
        lives_ms.append((time.monotonic() - since) * 1e3)
        if how:
            raise RuntimeError(f"child {number} (pid {pid}) ended with wait status {how}")
        pairs = [sizes(number * connections + index) for index in range(connections)]
        rows.append([pid, sum(up for up, _ in pairs), sum(down for _, down in pairs)])

    for number in range(processes):
        while len(started) == AT_ONCE:
            reap()
        since = time.monotonic()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                live(addresses, number, connections)
                status = 0
            finally:
                os._exit(status)
        started[pid] = (number, since)
    while started:
        reap()
    lives_ms.sort()
    notes = {
        "median_ms": round(lives_ms[len(lives_ms) // 2], 1),
        "p95_ms": round(lives_ms[len(lives_ms) * 95 // 100], 1),
        "under_50_ms": sum(life < 50 for life in lives_ms) / len(lives_ms),
    }
    return {"processes": [server.result()], "children": rows, "notes": notes}


if __name__ == "__main__":
    say(swarm(int(sys.argv[1]), int(sys.argv[2])))
    sys.exit(0)
