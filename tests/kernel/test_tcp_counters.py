# SPDX-License-Identifier: Apache-2.0
"""The counters of kernob.tcp against what a client saw itself, `ss`, and its own clock."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Agent, Puppet, running_agent, wait_until
from otlp import Totals
from otlp_latest import gauges, histograms

SERVICE = "tcp_counters.py"
ACTIVE = "kernob.tcp.connections.active"
SILENT, REFUSED = 9_998, 9_999
ONE_BUCKET = 2**0.25


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def namespace() -> Iterator[tuple[str, ...]]:
    """How to run things in a network namespace where each 8th SYN gets lost, and all to port 9998."""
    if not shutil.which("ip") or not shutil.which("nft"):
        pytest.skip("missing feature: iproute2 and nftables")
    name = f"kernob-tcp-{os.getpid()}"
    inside = ("ip", "netns", "exec", name)
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "-n", name, "link", "set", "lo", "up")
        rules = (
            "table ip faults {",
            "chain lost { type filter hook output priority 0; policy accept;",
            f"tcp dport {SILENT} drop;",
            f"tcp dport != {REFUSED} tcp flags & (syn|ack) == syn numgen inc mod 8 7 drop; }}",
            "}",
        )
        _run(*inside, "nft", "\n".join(rules))
        yield inside
    finally:
        _run("ip", "netns", "delete", name)


def _counts(totals: Totals, metric: str, **wanted: Any) -> Counter[tuple[Any, ...]]:
    """Sums by (role, error.type, direction), over the series with these attributes (dots as underscores)."""
    found: Counter[tuple[Any, ...]] = Counter()
    for a, value in totals.series(metric):
        if all(a.get(key.replace("_", ".")) == expected for key, expected in wanted.items()):
            side = a.get("network.tcp.handshake.role", "")
            found[side, a.get("error.type", ""), a.get("network.io.direction", "")] += value
    return found


def test_outcomes_and_durations_are_the_clients_own(agents: Path, namespace: tuple[str, ...]) -> None:
    """Per process and per service: so many ok, refused, timed out, reset. p95s within one bucket.

    96 exchanges, every eighth SYN sent twice; 23 refused, 3 into silence (given up after two SYNs), 7 reset.
    """
    with running_agent(agents / "tcp_counters") as agent, Puppet("tcp_counters", prefix=namespace) as client:
        here = client.answer()
        for order in ("ask 96", f"refused 23 {REFUSED}", f"silent 3 {SILENT}", "reset 7"):
            ledger = client.order(order)
        agent.wait_exports(4)
        totals = agent.stop()
        connects = list(histograms(agent.otlp, "kernob.tcp.connect.duration"))
        responses = list(histograms(agent.otlp, "kernob.tcp.response.duration"))
    assert (ledger["ok"], ledger["resets"]) == (103, 7)
    assert (ledger["ConnectionRefusedError"], ledger["TimeoutError"]) == (23, 3)
    ours = {
        ("client", "", ""): 103,
        ("client", "refused", ""): 23,
        ("client", "timed_out", ""): 3,
    }
    for kind in ({"kernob_service": SERVICE}, {"process_pid": here["client"]}):
        metric = "kernob.tcp.connections" if "kernob_service" in kind else "kernob.process.tcp.connections"
        served = {("server", "", ""): 103} if "kernob_service" in kind else {}
        assert _counts(totals, metric, **kind) == {**ours, **served}, kind
    assert _counts(totals, "kernob.process.tcp.connections", process_pid=here["server"]) == {
        ("server", "", ""): 103
    }
    resets = _counts(totals, "kernob.tcp.resets", kernob_service=SERVICE)
    assert resets["client", "", "receive"] == 7
    _check_quantile(connects, here["port"], ledger["connect_s"])
    _check_quantile(responses, here["port"], ledger["response_s"])


def test_it_can_be_switched_off(agents: Path, namespace: tuple[str, ...]) -> None:
    """Without KERNOB_TCP bytes are counted all the same; of connections there is neither series nor loss."""
    with (
        running_agent(agents / "tcp_off", tcp="false") as agent,
        Puppet("tcp_counters", prefix=namespace) as client,
    ):
        here = client.answer()
        client.order("ask 8")
        client.order(f"refused 5 {REFUSED}")
        agent.wait_exports(3)
        totals = agent.stop()
    assert totals.process_io()[here["client"]]["transmit", "tcp"] == 8 * 8
    names = {name for name, _ in totals.lives}
    assert not [name for name in names if name.startswith(("kernob.tcp", "kernob.process.tcp"))]
    assert totals.sum_of("kernob.lost") == 0


def _check_quantile(found: list[tuple[dict[str, Any], Any]], port: int, seen_s: list[float]) -> None:
    """Its p50 and p95 lie within one bucket of the client's, and so many were counted."""
    (histogram,) = (h for a, h in found if a["kernob.service"] == SERVICE and a["server.port"] == port)
    assert histogram.count == len(seen_s)
    assert histogram.sum_s <= sum(seen_s)
    truth = sorted(seen_s)[round(0.95 * len(seen_s)) - 1]
    lower, upper = histogram.quantile_bounds(0.95)
    assert lower / ONE_BUCKET <= truth <= upper * ONE_BUCKET, (lower, truth, upper)


def _active(agent: Agent) -> Counter[str]:
    """What the gauge says of the service, by role."""
    found: Counter[str] = Counter()
    for a, value in gauges(agent.otlp, ACTIVE):
        if a["kernob.service"] == SERVICE:
            found[a["network.tcp.handshake.role"]] += value
    return +found


def _open_by_ss(inside: tuple[str, ...], port: int) -> Counter[str]:
    """ESTABLISHED and CLOSE_WAIT sockets of the namespace, by which end is the server's port."""
    found: Counter[str] = Counter()
    for line in _run(*inside, "ss", "-Htn", "state", "established", "state", "close-wait").splitlines():
        local, peer = line.split()[-2:]
        found["server"] += local.endswith(f":{port}")
        found["client"] += peer.endswith(f":{port}")
    return +found


@pytest.mark.parametrize("older", [False, True], ids=["younger", "older"])
def test_active_connections_equal_ss(agents: Path, namespace: tuple[str, ...], older: bool) -> None:
    """Opened, closed, and opened again: the gauge is what `ss` says whenever traffic pauses.

    `older`: the first 20 were open before the agent, and nothing moves on them.
    """
    with Puppet("tcp_counters", prefix=namespace) as client:
        port = client.answer()["port"]
        if older:
            client.order("open 20")
        with running_agent(agents / f"active_{older}") as agent:
            if not older:
                client.order("open 20")
            for order, expected in (("close 7", 13), ("open 5", 18), ("close 18", 0)):
                client.order(order)
                _wait_for_open(namespace, port, expected)
                _wait_for_active(agent, expected)
            agent.stop()


def _both(count: int) -> Counter[str]:
    return +Counter({"client": count, "server": count})


def _wait_for_open(inside: tuple[str, ...], port: int, count: int) -> None:
    """The server takes a moment to close its ends."""
    wait_until(lambda: _open_by_ss(inside, port) == _both(count), f"{count} connections in ss", 90)


def _wait_for_active(agent: Agent, count: int) -> None:
    wait_until(lambda: _active(agent) == _both(count), f"{count} active connections", 90)
