# SPDX-License-Identifier: Apache-2.0
"""Four network namespaces at once, two pairs with the very same addresses and ports."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Puppet, differences, flow_differences, run_workload, running_agent

pytestmark = pytest.mark.lane

PORT = 9_100
V4, V6 = ("10.99.7.1", "10.99.7.2"), ("fd99:7::1", "fd99:7::2")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _inside(name: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", name)


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    """Names of four namespaces, joined two by two with the same addresses; removed by name at the end."""
    if not shutil.which("ip"):
        pytest.skip("missing feature: iproute2")
    names = [f"kernob-test-{os.getpid()}-{letter}" for letter in "abcd"]
    with contextlib.ExitStack() as stack:
        for name in names:
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "delete", name)
            _ip("-n", name, "link", "set", "lo", "up")
        for left, right in (names[:2], names[2:]):
            try:
                _ip(
                    "-n",
                    left,
                    "link",
                    "add",
                    "veth0",
                    "type",
                    "veth",
                    "peer",
                    "name",
                    "veth0",
                    "netns",
                    right,
                )
            except subprocess.CalledProcessError as error:
                pytest.skip(f"missing feature: veth ({error.stderr.strip()})")
            for name, v4, v6 in ((left, V4[0], V6[0]), (right, V4[1], V6[1])):
                _ip("-n", name, "address", "add", f"{v4}/24", "dev", "veth0")
                _ip("-n", name, "address", "add", f"{v6}/64", "dev", "veth0", "nodad")
                _ip("-n", name, "link", "set", "veth0", "up")
        yield names


def test_equal_addresses_in_four_namespaces_stay_apart(agents: Path, namespaces: list[str]) -> None:
    """Each process has exactly its own bytes, each destination the sum, over IPv4 and IPv6.

    Two servers and two clients with pairwise equal addresses and ports talk at the same time.
    """
    exchanges = {"a": (3, 1_000, 2_000), "c": (4, 30_000, 1)}
    ledgers: list[dict[str, Any]] = []
    with running_agent(agents / "namespaces") as agent:
        for client_address, server_address in (V4, V6):
            servers = []
            with contextlib.ExitStack() as stack:
                for server, (count, _, _) in zip(
                    (namespaces[1], namespaces[3]), exchanges.values(), strict=True
                ):
                    arguments = ("serve", server_address, PORT, count)
                    servers.append(stack.enter_context(Puppet("peer", *arguments, prefix=_inside(server))))
                    assert servers[-1].answer()["port"] == PORT
                assert client_address != server_address
                for client, exchange in zip((namespaces[0], namespaces[2]), exchanges.values(), strict=True):
                    question = ("ask", server_address, PORT, *exchange)
                    ledgers += run_workload("peer", *question, prefix=_inside(client))[0].demand().processes
                ledgers += [server.answer() for server in servers]
        totals = agent.stop()
    assert len(ledgers) == 8
    assert differences(totals, ledgers) == []
    assert flow_differences(totals, ledgers) == []
