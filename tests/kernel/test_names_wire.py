# SPDX-License-Identifier: Apache-2.0
"""Hostnames off the wire: programs that ask a DNS server by themselves, without a C library's help."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import running_agent
from names_net import HOSTS, bytes_by_host, expected, network

pytestmark = pytest.mark.lane

WAYS = ("wire-udp", "wire-udp-unconnected", "wire-tcp")


def test_answers_by_udp_and_tcp_name_what_is_connected_to_next(agents: Path) -> None:
    """v4 and v6, connected sockets and not, an alias, mixed case, two names on one address in turn."""
    with running_agent(agents / "names-wire") as agent, network(agents / "net-wire") as net:
        told = {way: net.client(way, 4, 0.4) for way in WAYS}
        told |= {f"{way}-6": net.client(f"{way}-6", 2, 0, ("six.names.test",)) for way in WAYS}
        agent.wait_exports(2)
        totals = agent.stop()
    if "names.wire: cgroup_skb" not in agent.log.read_text():
        pytest.skip("missing feature: cgroup_skb")
    for way, client in told.items():
        assert bytes_by_host(totals, client["pid"]) == expected(client), way
    assert any(len(client["addresses"]) > len(HOSTS) for client in told.values()), "answers did not rotate"
