# SPDX-License-Identifier: Apache-2.0
"""Hostnames where a resolver on this host stands between: a forwarder, and systemd-resolved itself.

Both answer at 127.0.0.53 and ask the test's own server; they are asked by libc, by UDP and by TCP.
KERNOB_TEST_RESOLVED may name the program of systemd-resolved where its package is not installed.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import running_agent, wait_until, workload_command
from names_net import RESOLVER, Network, bytes_by_host, expected, network, require

STUB = "127.0.0.53"
WAYS = ("getaddrinfo", "wire-udp", "wire-udp-unconnected", "wire-tcp")
RESOLVED = Path(os.environ.get("KERNOB_TEST_RESOLVED", "/lib/systemd/systemd-resolved"))
RESOLVED_CONF = f"""[Resolve]
DNS={RESOLVER}
Domains=~.
LLMNR=no
MulticastDNS=no
DNSSEC=no
"""


@contextlib.contextmanager
def running(net: Network, command: list[str], log: Path) -> Iterator[None]:
    """A resolver that listens at STUB."""
    with log.open("wb") as stream:
        process = subprocess.Popen([*net.prefix, *command], stdout=stream, stderr=stream)
    listens = ("ip", "netns", "exec", net.name, "cat", "/proc/net/udp")
    line = f"{int.from_bytes(socket.inet_aton(STUB), 'little'):08X}:0035"
    try:
        wait_until(
            lambda: line in subprocess.run(listens, capture_output=True, text=True, check=True).stdout,
            f"the resolver (see {log})",
            60,
        )
        yield
    finally:
        process.kill()
        process.wait()


def resolved(net: Network, directory: Path) -> list[str]:
    """systemd-resolved without D-Bus and systemd, in a mount namespace that has its user and settings."""
    # it asks nobody while the loopback is all there is
    for line in (
        "link add r0 type veth peer name r1",
        "address add 10.78.0.1/24 dev r0",
        "link set r1 up",
        "link set r0 up",
    ):
        subprocess.run(["ip", "-n", net.name, *line.split()], check=True)
    directory.mkdir()
    (directory / "resolved.conf").write_text(RESOLVED_CONF)
    users = Path("/etc/passwd").read_text()
    if "systemd-resolve:" not in users:
        users += "systemd-resolve:x:989:989::/:/usr/sbin/nologin\n"
    (directory / "passwd").write_text(users)
    here = shlex.quote(str(directory))
    script = (
        f"mount --bind {here}/passwd /etc/passwd; mount -t tmpfs none /run; "
        f"mkdir -p /etc/systemd; mount -t tmpfs none /etc/systemd; cp {here}/resolved.conf /etc/systemd/; "
        f"mkdir -p /run/systemd; exec {shlex.quote(str(RESOLVED))}"
    )
    return ["sh", "-c", script]


@pytest.mark.parametrize("kind", ["forwarder", "systemd-resolved"])
def test_a_resolver_on_this_host_tells_names_to_who_asked_it(agents: Path, kind: str) -> None:
    """Every byte of every client lands on its hostname, whichever way it asked the stub."""
    if kind == "systemd-resolved" and not RESOLVED.exists():
        pytest.skip("missing feature: package systemd-resolved")
    with (
        running_agent(agents / f"names-{kind}") as agent,
        network(agents / f"net-{kind}", resolver=STUB) as net,
    ):
        require(agent, "wire", "cgroup_skb")
        command = workload_command("dns_stub", STUB, RESOLVER)
        if kind == "systemd-resolved":
            command = resolved(net, agents / "resolved")
        with running(net, command, agents / f"{kind}.log"):
            told = {way: net.client(way, 3, 0.4) for way in WAYS}
        agent.wait_exports(2)
        totals = agent.stop()
    for way, client in told.items():
        assert bytes_by_host(totals, client["pid"]) == expected(client), way
