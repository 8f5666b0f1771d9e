# SPDX-License-Identifier: Apache-2.0
"""Connections that go wrong, one of each kind, to servers in another network namespace.

`mishaps.py NAMESPACE ADDRESS VANISHING`: ADDRESS is the namespace's; VANISHING is added to it for a moment
and taken away under an open connection. Each run, this process sees as a client: a refused connection; an
RST and an unanswered request, by the peer's abort; a peer that reads nothing, left with an RST; and a request
that is never acknowledged: sent again, timed out, unanswered. Standard library only; needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ABORT = b"\1\0\0\0\0\0\0\0"  # struct linger: on, 0 s
ASK = b"q" * 100
MISSES = 20
USER_TIMEOUT_MS = 700


def abort(sock: socket.socket) -> None:
    """Close with an RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    sock.close()


def served(namespace: str, address: str, serve: Callable[[socket.socket], None]) -> tuple[socket.socket, int]:
    """A connection to a child that serves it in the namespace, and the child's process id."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            descriptor = os.open(Path("/run/netns") / namespace, os.O_RDONLY)
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0):
                raise OSError(ctypes.get_errno(), "setns")
            with socket.create_server((address, 0)) as door:
                os.write(writer, str(door.getsockname()[1]).encode())
                serve(door.accept()[0])
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    port = int(os.read(reader, 10))
    os.close(reader)
    return socket.create_connection((address, port), 30), pid


def ended(pid: int, by: int = 0) -> None:
    """End the child by a signal, or wait for its own end; RuntimeError if it failed."""
    if by:
        os.kill(pid, by)
    _, how = os.waitpid(pid, 0)
    if how != by:
        raise RuntimeError(f"a server ended with wait status {how}")


def read_nothing(_sock: socket.socket) -> None:
    """Keep the connection until the end."""
    signal.pause()


def refused(address: str) -> None:
    """A port on which nobody listens (1, which is privileged)."""
    with socket.socket() as client, contextlib.suppress(ConnectionRefusedError):
        client.connect((address, 1))
        raise RuntimeError(f"somebody listens on {address} port 1")


def unanswered(namespace: str, address: str) -> None:
    """The server reads the request and aborts."""

    def serve(sock: socket.socket) -> None:
        sock.recv(len(ASK), socket.MSG_WAITALL)
        abort(sock)

    client, pid = served(namespace, address, serve)
    with client, contextlib.suppress(ConnectionResetError):
        client.sendall(ASK)
        client.recv(1)
        raise RuntimeError("the server answered, or closed in order")
    ended(pid)


def stalled(namespace: str, address: str) -> None:
    """The server never reads: its window is full after some hundred kilobytes."""
    client, pid = served(namespace, address, read_nothing)
    client.setblocking(False)
    misses = 0
    while misses < MISSES:
        try:
            client.send(bytes(1 << 16))
            misses = 0
        except BlockingIOError:
            misses += 1
            time.sleep(0.02)
    abort(client)
    ended(pid, signal.SIGKILL)


def timed_out(namespace: str, address: str) -> None:
    """The server's address is taken away: nothing that is sent to it is ever acknowledged."""
    place = (f"{address}/32", "dev", "inside")
    subprocess.run(("ip", "-n", namespace, "address", "add", *place), check=True)
    try:
        client, pid = served(namespace, address, read_nothing)
    finally:
        subprocess.run(("ip", "-n", namespace, "address", "delete", *place), check=True)
    with client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        client.sendall(ASK)
        try:
            client.recv(1)
        except TimeoutError:
            ended(pid, signal.SIGKILL)
            return
    raise RuntimeError("an address that is gone answered")


def main(namespace: str, address: str, vanishing: str) -> int:
    """All of them, once."""
    refused(address)
    unanswered(namespace, address)
    stalled(namespace, address)
    timed_out(namespace, vanishing)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
