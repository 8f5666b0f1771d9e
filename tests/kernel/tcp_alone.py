# SPDX-License-Identifier: Apache-2.0
"""Cases that one forked process plays in a network namespace of its own, with rules of nftables.

Used by tests/kernel/test_tcp_network.py and test_tcp_loss.py.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from tcp_watch import Watch, act, snmp

_NEWNET = 0x40000000


def run(*command: str) -> None:
    """A tool that must succeed."""
    subprocess.run(command, check=True, capture_output=True)


def rule(text: str, hook: str = "input") -> None:
    """Adds a rule to a hook of this namespace."""
    chain = f"add chain ip t {hook} {{ type filter hook {hook} priority 0; }}"
    run("nft", f"add table ip t; {chain}; add rule ip t {hook} {text}")


def flush() -> None:
    """Removes all rules again."""
    run("nft", "flush ruleset")


def setting(name: str, value: int) -> None:
    """A sysctl of this namespace."""
    Path(f"/proc/sys/net/ipv4/{name}").write_text(str(value))


def alone(watch: Watch, function: Callable[[], None]) -> dict[str, int]:
    """Facts of a process that played the case in a namespace of its own.

    Retransmits must be as many as that namespace's RetransSegs; they are left out of what is returned.
    """
    found, segments = played(watch, function)
    assert found.pop("client retransmit", 0) + found.pop("server retransmit", 0) == segments
    return found


def played(watch: Watch, function: Callable[[], None]) -> tuple[dict[str, int], int]:
    """All of its facts, and the namespace's RetransSegs."""
    reader, writer = os.pipe()

    def inside() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        run("ip", "link", "set", "lo", "up")
        function()
        os.write(writer, str(snmp()["RetransSegs"]).encode())

    actor = act(inside)
    os.close(writer)
    actor.wait()
    with os.fdopen(reader) as stream:
        segments = int(stream.read())
    return watch.of(actor.pid, retransmits=True), segments


def door(backlog: int = 16) -> socket.socket:
    """A listener on a free port of loopback."""
    found = socket.socket()
    found.bind(("127.0.0.1", 0))
    found.listen(backlog)
    return found


def pair() -> tuple[socket.socket, socket.socket]:
    """A client's socket and the accepted one."""
    with door() as listening:
        client = socket.create_connection(listening.getsockname())
        server, _ = listening.accept()
    return client, server
