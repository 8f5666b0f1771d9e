# SPDX-License-Identifier: Apache-2.0
"""Hostnames off the wire: programs that ask a DNS server by themselves, without a C library's help."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from harness import Agent, running_agent, wait_until, workload_command
from names_net import HOSTS, PORT, bytes_by_host, expected, network, require

WAYS = ("wire-udp", "wire-udp-unconnected", "wire-tcp")


@pytest.mark.lane
def test_answers_by_udp_and_tcp_name_what_is_connected_to_next(agents: Path) -> None:
    """v4 and v6, connected sockets and not, an alias, mixed case, two names on one address in turn."""
    with running_agent(agents / "names-wire") as agent, network(agents / "net-wire") as net:
        require(agent, "wire", "cgroup_skb")
        told = {way: net.client(way, 4, 0.4) for way in WAYS}
        told |= {f"{way}-6": net.client(f"{way}-6", 2, 0, ("six.names.test",)) for way in WAYS}
        agent.wait_exports(2)
        totals = agent.stop()
    for way, client in told.items():
        assert bytes_by_host(totals, client["pid"]) == expected(client), way
    assert any(len(client["addresses"]) > len(HOSTS) for client in told.values()), "answers did not rotate"


def moved(agent: Agent, pid: int) -> tuple[int, int]:
    """What was exported of a process so far, under whatever names: (transmitted, received)."""
    by_host = bytes_by_host(agent.totals(), pid).values() if agent.otlp.exists() else ()
    return sum(sent for sent, _ in by_host), sum(received for _, received in by_host)


def test_tls_clients_and_hosts_files_name_what_nothing_else_does(agents: Path) -> None:
    """A connection to a bare address is called what its TLS client asks for, or what /etc/hosts says."""
    hosts = agents / "hosts"
    hosts.write_text("127.0.0.1 localhost\n10.77.3.2 files.names.test alias\n")
    with running_agent(agents / "names-sni") as agent, network(agents / "net-sni") as net:
        require(agent, "hello", "cgroup_skb")
        greeted = net.client("sni", 2, 0, ("sni.names.test@10.77.3.1",))
        inside = ("sh", "-c", f'mount --bind {hosts} /etc/hosts; exec "$@"', "sh")
        client = workload_command("name_client", "numeric", 1, 600, PORT, "10.77.3.2")
        reader = subprocess.Popen([*net.prefix, *inside, *client])
        try:
            wait_until(lambda: moved(agent, reader.pid) == (1000, 1000), "its bytes")
        finally:
            reader.kill()
            reader.wait()
        agent.wait_exports(2)
        totals = agent.stop()
    assert bytes_by_host(totals, greeted["pid"]) == expected(greeted)
    assert bytes_by_host(totals, reader.pid) == {"files.names.test": (1000, 1000)}
