# SPDX-License-Identifier: Apache-2.0
"""A network namespace with its own DNS server, and the sums that hostnames got."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import WORKLOAD_LIMIT_S, Agent, workload_command
from otlp import PROCESS_FLOW_IO, Totals

PORT = 8443
RESOLVER = "10.77.255.53"
POOLS = {
    "api.names.test": "10.77.0.1,10.77.0.2,10.77.0.3,10.77.0.4",
    "db.names.test": "10.77.0.3,10.77.0.4,10.77.0.5,10.77.0.6",  # shares two addresses with api
    "www.names.test": "@lb.names.test",
    "lb.names.test": "10.77.1.1,10.77.1.2,10.77.1.3",
    "six.names.test": "fd77::1,fd77::2",
}
HOSTS = ("api.names.test", "db.names.test", "www.names.test")
_numbers = itertools.count()


@dataclass(frozen=True)
class Network:
    """`prefix` goes before a command that shall run in it, with the resolver in its resolv.conf."""

    name: str
    prefix: tuple[str, ...]

    def run(self, *command: object) -> dict[str, Any]:
        """Run a client to its end; what it printed last, as JSON."""
        done = subprocess.run(
            [*self.prefix, *map(str, command)],
            capture_output=True,
            text=True,
            timeout=WORKLOAD_LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stderr}\n{done.stdout}"
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def client(self, way: str, rounds: int = 5, pause_s: float = 0.4, hosts: tuple[str, ...] = HOSTS) -> Any:
        """Run name_client.py."""
        return self.run(*workload_command("name_client", way, rounds, pause_s, PORT, *hosts))


@contextlib.contextmanager
def network(directory: Path, pools: dict[str, str] = POOLS, resolver: str = RESOLVER) -> Iterator[Network]:
    """A namespace where all of 10.77.0.0/16 and fd77::/64 is local; a DNS server answers for `pools`.

    `resolver` is whom resolv.conf names.
    """
    with _something_to_mount_over(Path("/etc/resolv.conf")), _network(directory, pools, resolver) as found:
        yield found


@contextlib.contextmanager
def _something_to_mount_over(path: Path) -> Iterator[None]:
    """An empty file while it is needed, where there is none, as in the emulated machines."""
    there = path.exists()
    if not there:
        path.touch()
    try:
        yield
    finally:
        if not there:
            path.unlink()


@contextlib.contextmanager
def _network(directory: Path, pools: dict[str, str], resolver: str) -> Iterator[Network]:
    name = f"kn{os.getpid()}-{next(_numbers)}"
    directory.mkdir(parents=True, exist_ok=True)
    resolv, switch = directory / "resolv.conf", directory / "nsswitch.conf"
    resolv.write_text(f"nameserver {resolver}\noptions timeout:5 attempts:3\n")
    switch.write_text("hosts: files dns\n")
    mounts = f"mount --bind {resolv} /etc/resolv.conf; "
    if Path("/etc/nsswitch.conf").exists():
        mounts += f"mount --bind {switch} /etc/nsswitch.conf; "
    prefix = ("ip", "netns", "exec", name, "unshare", "-m", "sh", "-c", mounts + 'exec "$@"', "sh")
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for line in (
            "link set lo up",
            "route add local 10.77.0.0/16 dev lo",
            "-6 route add local fd77::/64 dev lo",
        ):
            subprocess.run(["ip", "-n", name, *line.split()], check=True)
        server = subprocess.Popen(
            [
                *("ip", "netns", "exec", name),
                *workload_command("dns_server", RESOLVER, PORT, *(f"{n}={p}" for n, p in pools.items())),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stdout
            assert server.stdout.readline() == "ready\n"
            yield Network(name, prefix)
        finally:
            server.kill()
            server.communicate()
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def require(agent: Agent, hook: str, feature: str) -> None:
    """Skip the test where the agent could not attach a hook."""
    if f"names.{hook}: failed" in agent.log.read_text():
        pytest.skip(f"missing feature: {feature}")


def bytes_by_host(totals: Totals, pid: int) -> dict[str, tuple[int, int]]:
    """(transmitted, received) of one process with everything at PORT, by server.address."""
    found: dict[str, Counter[str]] = {}
    for a, value in totals.series(PROCESS_FLOW_IO):
        if a.get("process.pid") == pid and a.get("server.port") == PORT:
            found.setdefault(a["server.address"], Counter())[a["network.io.direction"]] += value
    return {host: (n["transmit"], n["receive"]) for host, n in found.items()}


def expected(client: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """What the client's ledger says that must be."""
    return {host: (size, size) for host, (_count, size) in client["hosts"].items()}
