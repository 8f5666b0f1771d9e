# SPDX-License-Identifier: Apache-2.0
"""An interface of the host with somebody behind it: what a container's bridge or loopback is not.

Enters: bytes to move in either direction. Leaves: traffic of exactly that size over `kwan0`, which
hostmetrics and the recording rules take for an interface like any other. Called by tests of the stack;
needs root.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator

from .compose import run
from .load import LIMIT_S, SCRIPT, WORKLOADS

INTERFACE = "kwan0"
NAMESPACE = "kernob-wan"
HERE, THERE = "10.97.40.1", "10.97.40.2"
_VANISHING = "10.97.40.3"
_NOWHERE, _NOWHERES = "10.97.41.1", "10.97.41.0/24"
"""Packets to there go to the namespace, which drops them."""
MISHAPS = "mishaps.py"
_BEHIND = ("ip", "netns", "exec", NAMESPACE)


class Server:
    """senders.py in its serving part; on the host, or `behind` the interface."""

    def __init__(self, behind: bool) -> None:
        self.address = THERE if behind else HERE
        command = [*(_BEHIND if behind else ()), sys.executable, str(WORKLOADS / SCRIPT)]
        self.process = subprocess.Popen(
            [*command, "serve", self.address, "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        self.port = int(json.loads(self.process.stdout.readline())["port"])

    def end(self) -> None:
        """Let it finish what it has, then wait for it."""
        self.process.communicate(timeout=60)


def send_here(server: Server, size: int) -> None:
    """A process behind the interface sends so many bytes to a server of the host, and exits."""
    words = ("once", server.address, str(server.port), str(size))
    run(*_BEHIND, sys.executable, str(WORKLOADS / SCRIPT), *words, limit_s=LIMIT_S)


def mishaps() -> None:
    """A process of the host whose connections over the interface go wrong, each in one way (mishaps.py)."""
    run(sys.executable, str(WORKLOADS / MISHAPS), NAMESPACE, THERE, _VANISHING, limit_s=LIMIT_S)


@contextlib.contextmanager
def dark() -> Iterator[None]:
    """Meanwhile a process of the host calls who never answers, and waits for who never answers (dark.py)."""
    words = (sys.executable, str(WORKLOADS / "dark.py"), NAMESPACE, THERE, _NOWHERE)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"dark.py ended with {process.wait()}")
            yield
        finally:
            process.terminate()


@contextlib.contextmanager
def wan() -> Iterator[tuple[Server, Server]]:
    """The interface, and a server behind it and one on the host. All gone at the end, whatever happened."""
    _remove()
    run("ip", "netns", "add", NAMESPACE)
    try:
        run("ip", "link", "add", INTERFACE, "type", "veth", "peer", "name", "inside", "netns", NAMESPACE)
        run("ip", "address", "add", f"{HERE}/24", "dev", INTERFACE)
        run("ip", "link", "set", INTERFACE, "up")
        run(*_BEHIND, "ip", "address", "add", f"{THERE}/24", "dev", "inside")
        run(*_BEHIND, "ip", "link", "set", "inside", "up")
        run("ip", "route", "add", _NOWHERES, "via", THERE)
        run(*_BEHIND, "ip", "route", "add", "blackhole", _NOWHERES)
        with contextlib.ExitStack() as stack:
            servers = []
            for behind in (True, False):
                servers.append(Server(behind))
                stack.callback(servers[-1].end)
            yield servers[0], servers[1]
    finally:
        _remove()


def _remove() -> None:
    """Take away what an earlier run that was killed may have left, too."""
    for command in (("link", "delete", INTERFACE), ("netns", "delete", NAMESPACE)):
        subprocess.run(("ip", *command), capture_output=True, check=False)
