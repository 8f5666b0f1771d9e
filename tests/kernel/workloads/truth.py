# SPDX-License-Identifier: Apache-2.0
"""What a workload knows of its own traffic: a ledger of the values its system calls returned.

Workloads call `Ledger.sent` and `Ledger.received` beside each call; `Ledger.as_dict` is what they print
as one JSON line for the tests (tests/kernel/harness.py) to hold against the agent's figures. Standard
library only: workloads also run in guests that have nothing else.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
PATIENCE_S = 60.0
"""How long a workload waits for something that is bound to come; an emulated machine is slow."""


class MissingFeatureError(Exception):
    """This kernel lacks what the case needs; the message is the feature's name."""


class Ledger:
    """Bytes of one process by (role, server address, server port, direction, transport)."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.counts: Counter[tuple[str, str, int, str, str]] = Counter()
        self.notes: dict[str, Any] = {}

    def add(self, role: str, address: str, port: int, direction: str, transport: str, size: int) -> None:
        """Count `size` bytes (>= 0) that one call reported."""
        if size < 0:
            raise ValueError(f"a call failed and must not be counted: {size}")
        self.counts[role, address, port, direction, transport] += size

    def as_dict(self) -> dict[str, Any]:
        """The ledger as JSON types, zero entries left out."""
        keys = ("role", "address", "port", "direction", "transport")
        rows = [dict(zip(keys, key, strict=True), bytes=n) for key, n in sorted(self.counts.items()) if n]
        executable = Path("/proc/self/exe").readlink().name
        return {"pid": self.pid, "executable": executable, "counts": rows, "notes": self.notes}

    def total(self, direction: str) -> int:
        """Bytes of one direction over all peers."""
        return sum(n for key, n in self.counts.items() if key[3] == direction)


class End:
    """One end of a connection, bound to the ledger of the process that uses it."""

    def __init__(self, sock: socket.socket, ledger: Ledger, role: str, address: str, port: int) -> None:
        self.sock = sock
        self.ledger = ledger
        self.role = role
        self.address = address
        self.port = port
        self.transport = "udp" if sock.type == socket.SOCK_DGRAM else "tcp"

    def sent(self, size: int) -> int:
        """Count what a sending call returned, and return it."""
        self.ledger.add(self.role, self.address, self.port, "transmit", self.transport, size)
        return size

    def received(self, size: int) -> int:
        """Count what a receiving call returned, and return it."""
        self.ledger.add(self.role, self.address, self.port, "receive", self.transport, size)
        return size

    def send(self, size: int, flags: int = 0) -> int:
        """Send exactly `size` bytes, each call counted."""
        left = size
        while left:
            left -= self.sent(self.sock.send(bytes(min(left, 1 << 20)), flags))
        return size

    def drain(self, size: int) -> int:
        """Receive exactly `size` bytes, each call counted."""
        left = size
        while left:
            got = self.received(len(self.sock.recv(min(left, 1 << 20))))
            if not got:
                raise EOFError(f"peer closed with {left} of {size} bytes to come")
            left -= got
        return size

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()


def plain(address: str) -> str:
    """An address as the agent writes it: v4-mapped v6 as v4."""
    return address.removeprefix("::ffff:") if "." in address else address


def client_end(sock: socket.socket, ledger: Ledger) -> End:
    """The connecting end; its destination is the peer."""
    address, port = sock.getpeername()[:2]
    return End(sock, ledger, "client", plain(address), port)


def server_end(sock: socket.socket, ledger: Ledger) -> End:
    """The accepting end; its destination is its own address and port."""
    address, port = sock.getsockname()[:2]
    return End(sock, ledger, "server", plain(address), port)


def listener(family: int = socket.AF_INET, protocol: int = 0, backlog: int = 128) -> socket.socket:
    """A listening TCP (or MPTCP) socket on loopback and a free port."""
    sock = socket.socket(family, socket.SOCK_STREAM, protocol)
    sock.bind((LOOPBACK[socket.AddressFamily(family)], 0))
    sock.listen(backlog)
    return sock


def tcp_pair(ledger: Ledger, family: int = socket.AF_INET) -> tuple[End, End]:
    """A connected loopback pair (client, server), both ends in this process; the listener is closed."""
    listening = listener(family)
    client = socket.socket(family, socket.SOCK_STREAM)
    client.connect(listening.getsockname()[:2])
    server, _ = listening.accept()
    listening.close()
    return client_end(client, ledger), server_end(server, ledger)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll until `condition` holds; raises TimeoutError naming `what` after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_S:.0f} s for {what}")
        time.sleep(0.002)


def tcp_info(sock: socket.socket) -> tuple[int, int, int]:
    """(unacked segments, bytes_acked, bytes_received) of struct tcp_info, the figures `ss -ti` prints."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    (unacked,) = struct.unpack_from("I", raw, 24)
    acked, received = struct.unpack_from("QQ", raw, 120)
    return unacked, acked, received


def ss_figures(*socks: socket.socket) -> list[tuple[int, int]] | None:
    """(bytes_acked, bytes_received) of each socket as `ss -ti` prints them; None where there is no ss."""
    if not shutil.which("ss"):
        return None
    ports = [(sock.getsockname()[1], sock.getpeername()[1]) for sock in socks]
    terms = " or ".join(f"( sport = :{local} and dport = :{peer} )" for local, peer in ports)
    text = subprocess.run(["ss", "-tinOH", terms], capture_output=True, text=True, check=True).stdout
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for line in text.splitlines():
        local, peer = (int(field.rpartition(":")[2]) for field in line.split()[3:5])
        figures = dict(re.findall(r"\b(bytes_acked|bytes_received):(\d+)", line))
        found[local, peer] = int(figures.get("bytes_acked", 0)), int(figures.get("bytes_received", 0))
    return [found[pair] for pair in ports]


def check_pair(client: End, server: End) -> None:
    """Hold the ledger of a still open pair against the kernel's own count of it.

    The client's SYN counts one in its bytes_acked, the server's SYN-ACK does not. Whatever one end sent
    the other must have received, and the calls must have returned exactly that.
    """
    wait_until(lambda: not tcp_info(client.sock)[0] and not tcp_info(server.sock)[0], "the last ACK")
    shown = ss_figures(client.sock, server.sock)
    ends = (client, server)
    for me, syn in ((0, 1), (1, 0)):
        end, other = ends[me], ends[1 - me]
        figures = {
            "sent": end.ledger.counts[end.role, end.address, end.port, "transmit", "tcp"],
            "acked": tcp_info(end.sock)[1] - syn,
            "arrived": tcp_info(other.sock)[2],
            "read": other.ledger.counts[other.role, other.address, other.port, "receive", "tcp"],
        }
        if shown:
            figures |= {"ss acked": shown[me][0] - syn, "ss arrived": shown[1 - me][1]}
        if len(set(figures.values())) != 1:
            raise AssertionError(f"{end.role} to {other.role}: the kernel and the ledger differ: {figures}")
    client.ledger.notes["ss"] = shown is not None


def say(value: dict[str, Any]) -> None:
    """Print one JSON line at once."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
