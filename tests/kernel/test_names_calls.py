# SPDX-License-Identifier: Apache-2.0
"""Hostnames by calls of the C library: every byte and connect lands on the name that was asked for."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from harness import running_agent, wait_until, workload_command
from names_net import HOSTS, PORT, bytes_by_host, expected, network, require
from otlp import Totals

WAYS = ("getaddrinfo", "gethostbyname", "gethostbyname_r", "gethostbyname2_r")


def _libc() -> Path:
    lines = Path("/proc/self/maps").read_text().splitlines()
    found = [line.split(maxsplit=5)[5] for line in lines if line.endswith("/libc.so.6")]
    if not found:
        pytest.skip("missing feature: glibc")
    return Path(found[0])


def _connections(totals: Totals) -> Counter[str]:
    """By names of this test and addresses of its network; others of this host may use the port, too."""
    found: Counter[str] = Counter()
    for a, value in totals.series("kernob.tcp.connections"):
        where = a.get("server.address", "")
        ours = where.endswith(".names.test") or where.startswith("10.77.")
        if ours and a["server.port"] == PORT and a["network.tcp.handshake.role"] == "client":
            found[where] += value
    return found


@pytest.mark.lane
def test_every_byte_and_connect_lands_on_its_hostname(agents: Path) -> None:
    """Four ways to ask, answers that rotate each second, addresses that two names share, an alias."""
    with running_agent(agents / "names-calls") as agent, network(agents / "net-calls") as net:
        require(agent, "calls", "uprobes")
        clients = [net.client(way) for way in WAYS]
        agent.wait_exports(2)
        totals = agent.stop()
    for way, client in zip(WAYS, clients, strict=True):
        assert bytes_by_host(totals, client["pid"]) == expected(client), way
    assert any(len(client["addresses"]) > len(HOSTS) for client in clients), "the answers did not rotate"
    assert _connections(totals) == Counter({host: 5 * len(WAYS) for host in HOSTS})


def test_two_processes_keep_their_names_of_one_address_apart(agents: Path) -> None:
    """Both talk to one load balancer's address, at the same time, each by its own name."""
    pools = {"left.names.test": "10.77.2.1", "right.names.test": "10.77.2.1"}
    with running_agent(agents / "names-shared") as agent, network(agents / "net-shared", pools) as net:
        require(agent, "calls", "uprobes")
        command = [*net.prefix, *workload_command("name_client", "getaddrinfo", 6, 0.1, PORT)]
        both = [subprocess.Popen([*command, host], stdout=subprocess.PIPE, text=True) for host in pools]
        printed = [each.communicate()[0] for each in both]
        by_turns = net.client("getaddrinfo", 5, 0, tuple(pools))
        agent.wait_exports(2)
        totals = agent.stop()
    for line in printed:
        client = json.loads(line)
        assert bytes_by_host(totals, client["pid"]) == expected(client)
    assert bytes_by_host(totals, by_turns["pid"]) == expected(by_turns)


def test_libraries_that_appear_later_or_were_deleted_tell_names(agents: Path) -> None:
    """Copies of libc as upgrades and containers leave them: one first mapped under the agent, one deleted."""
    libc, copies = _libc(), {when: agents / f"libc-{when}" for when in ("late", "gone")}
    for copy in copies.values():
        copy.mkdir()
        shutil.copy(libc, copy / "libc.so.6")
    with network(agents / "net-libraries") as net:

        def client(copy: Path, rounds: int, wait: str = "") -> subprocess.Popen[str]:
            command = shlex.join(
                workload_command("name_client", wait + "getaddrinfo", rounds, 0.2, PORT, *HOSTS)
            )
            script = f"LD_LIBRARY_PATH={copy} exec {command}"
            return subprocess.Popen(
                [*net.prefix, "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )

        deleted = client(copies["gone"], 3, wait="wait:")
        assert deleted.stdout
        assert deleted.stdout.readline() == "waiting\n"
        (copies["gone"] / "libc.so.6").unlink()
        with running_agent(agents / "names-libraries", log_level="debug") as agent:
            require(agent, "calls", "uprobes")
            first = client(copies["late"], 3, wait="wait:")
            wait_until(
                lambda: f"{copies['late']}/libc.so.6 (process" in agent.log.read_text(), "the late libc"
            )
            printed = [each.communicate("go\n")[0].splitlines()[-1] for each in (deleted, first)]
            agent.wait_exports(2)
            totals = agent.stop()
    for line in printed:
        told = json.loads(line)
        assert bytes_by_host(totals, told["pid"]) == expected(told)


def test_the_older_way_of_probing_tells_names_too(agents: Path) -> None:
    """Before Linux 6.6 the PMU of uprobes is what there is; it takes CAP_SYS_ADMIN, which is then kept."""
    with (
        running_agent(agents / "names-pmu", strategies_off="uprobe_multi") as agent,
        network(agents / "net-pmu") as net,
    ):
        require(agent, "calls", "uprobes")
        told = net.client("getaddrinfo", 2, 0)
        agent.wait_exports(2)
        totals = agent.stop()
    assert "names.calls: uprobe:getaddrinfo" in agent.log.read_text()
    assert bytes_by_host(totals, told["pid"]) == expected(told)


def test_the_switch_leaves_addresses(agents: Path) -> None:
    """KERNOB_NAMES=off: nothing is attached, destinations are addresses."""
    with running_agent(agents / "names-off", names="off") as agent, network(agents / "net-off") as net:
        client = net.client("getaddrinfo", 1, 0)
        agent.wait_exports(2)
        assert "names." not in agent.log.read_text()
        totals = agent.stop()
    assert set(bytes_by_host(totals, client["pid"])) <= set(client["addresses"])
