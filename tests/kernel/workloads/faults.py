# SPDX-License-Identifier: Apache-2.0
"""Things that go wrong on real connections, each with the wall clock's times around it.

Run inside a network namespace of its own (`unshare --net`): it brings loopback up, and drops packets by
nftables where it is there. Prints one JSON line per fault: name, pid (whose it is), before_ns, after_ns and
what else is known for certain. Used by test_events.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from typing import Any

ABORT = struct.pack("ii", 1, 0)
_TOTAL_RETRANS = 100  # offset of tcpi_total_retrans in struct tcp_info


def tell(name: str, before_ns: int, after_ns: int, **known: Any) -> None:
    line = {"name": name, "pid": os.getpid(), "before_ns": before_ns, "after_ns": after_ns, **known}
    print(json.dumps(line), flush=True)


def abort(connection: socket.socket) -> None:
    """Close with a RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    connection.close()


def served(serve: Callable[[socket.socket], None]) -> tuple[socket.socket, int]:
    """A connection to a child process that serves it; its end is waited for by `os.wait`."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    if os.fork() == 0:
        connection, _ = listener.accept()
        listener.close()
        serve(connection)
        os._exit(0)
    client = socket.create_connection(listener.getsockname())
    port = listener.getsockname()[1]
    listener.close()
    return client, port


def refused() -> None:
    """A closed port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = time.time_ns()
    client = socket.socket()
    try:
        client.connect(("127.0.0.1", port))
    except ConnectionRefusedError:
        tell("refused", before, time.time_ns(), port=port)
    client.close()


def aborted(name: str, asked: bool, pause_s: float) -> None:
    """The server aborts: after an answer and a pause, or (asked) instead of an answer."""
    reader, writer = os.pipe()

    def serve(connection: socket.socket) -> None:
        connection.recv(100)
        if not asked:
            connection.send(b"answer")
        time.sleep(pause_s)
        before = time.time_ns()
        abort(connection)
        os.write(writer, f"{before} {time.time_ns()}".encode())

    client, port = served(serve)
    client.send(b"question")
    with contextlib.suppress(ConnectionResetError):
        client.recv(100)
    before, after = map(int, os.read(reader, 100).split())
    server, _ = os.wait()
    client.close()
    tell(name, before, after, port=port, server=server, pause_s=pause_s)


def retransmitted() -> None:
    """Everything to the server is dropped for 1.5 s after a send, then goes through."""
    rules = "add table inet faults; add chain inet faults in { type filter hook input priority 0; }"

    def serve(connection: socket.socket) -> None:
        connection.recv(100)
        connection.send(b"answer")

    client, port = served(serve)
    subprocess.run(["nft", f"{rules}; add rule inet faults in tcp dport {port} drop"], check=True)
    before = time.time_ns()
    client.send(b"question")
    time.sleep(1.5)
    subprocess.run(["nft", "delete table inet faults"], check=True)
    client.recv(100)
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    (total,) = struct.unpack_from("=I", info, _TOTAL_RETRANS)
    client.close()
    os.wait()
    # a segment that the kernel could not send again is counted, but only seen at the connection's end
    time.sleep(0.05)
    tell("retransmitted", before, time.time_ns(), port=port, segments=total)


def main() -> None:
    """All of them, once."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    refused()
    aborted("idle reset", asked=False, pause_s=1.3)
    aborted("unanswered", asked=True, pause_s=0.05)
    if shutil.which("nft"):
        retransmitted()


if __name__ == "__main__":
    main()
