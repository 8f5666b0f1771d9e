# SPDX-License-Identifier: Apache-2.0
"""The agent comes and goes while processes talk: sockets older than it, gaps between its lives."""

from __future__ import annotations

import bisect
from pathlib import Path
from typing import Any

import pytest
from harness import (
    LOAD_PAUSE_S,
    Agent,
    Puppet,
    differences,
    flow_differences,
    run_workload,
    running_agent,
)
from otlp import Totals


def _has_length_tracepoints() -> bool:
    """Whether the kernel tells received lengths by a tracepoint (Linux 6.3), not only at a call's return."""
    return b"btf_trace_sock_recv_length" in Path("/sys/kernel/btf/vmlinux").read_bytes()


def _pair(*options: str) -> tuple[Puppet, Puppet]:
    """A server and a client puppet with an open connection."""
    server = Puppet("puppet", "listen", *options)
    client = Puppet("puppet", "connect", server.answer()["port"])
    assert server.answer()["open"]
    assert client.answer()["open"]
    return server, client


@pytest.mark.lane
@pytest.mark.parametrize("options", [(), ("--once",)], ids=["listening", "listener closed"])
def test_sockets_older_than_the_agent_count_from_its_start_on(agents: Path, options: tuple[str, ...]) -> None:
    """What an open connection moved before the agent is not counted, what it moves afterwards is.

    At both ends, in both directions, also by splice, also where the listener is long gone.
    """
    server, client = _pair(*options)
    with server, client:
        for sender, receiver in ((client, server), (server, client)):
            sender.order("send 50000")
            receiver.order("drain 50000")
        for puppet in (server, client):
            puppet.order("mark")
        with running_agent(agents / f"older{len(options)}") as agent:
            for sender, receiver, size in ((client, server, 1_001), (server, client, 2_003)):
                sender.order(f"send {size}")
                receiver.order(f"drain {size - 1}")
                receiver.order("drain 1")
                sender.order(f"send {size}")
                receiver.order(f"splice {size}")
            ledgers = [puppet.order("report") for puppet in (server, client)]
            agent.wait_exports(2)
            totals = agent.stop()
    assert differences(totals, ledgers) == []
    assert flow_differences(totals, ledgers) == []


@pytest.mark.lane
def test_a_receive_that_began_before_the_agent_counts(agents: Path) -> None:
    """A process that sat in recv(2) when the agent started is charged what that call returns."""
    if not _has_length_tracepoints():
        pytest.skip("missing feature: tracepoint sock_recv_length")
    server, client = _pair()
    with server, client:
        server.order("start-drain 3000")
        with running_agent(agents / "blocked-feature") as agent:
            client.order("send 3000")
            server.order("join")
            ledgers = [puppet.order("report") for puppet in (server, client)]
            totals = agent.stop()
    assert differences(totals, ledgers) == []


def test_a_connection_that_stays_open_is_exact_at_every_scrape(agents: Path) -> None:
    """Bytes of an open socket show while it is open, and closing it changes nothing."""
    with running_agent(agents / "open") as agent:
        server, client = _pair()
        with server, client:
            for _ in range(3):
                client.order("send 700")
                server.order("drain 700")
                agent.wait_exports(2)
                ledgers = [puppet.order("report") for puppet in (server, client)]
                assert differences(agent.totals(), ledgers) == []
        totals = agent.stop()
    assert differences(totals, ledgers) == []
    assert flow_differences(totals, ledgers) == []


class _Load:
    """What the load process had sent, at least and at most, at a time."""

    def __init__(self, ledger: dict[str, Any]) -> None:
        rows = ledger["notes"]["timeline"]
        self.times = [row[0] for row in rows]
        self.sent = [row[1] for row in rows]
        self.total = self.sent[-1]

    def at_least(self, time_s: float) -> int:
        """Bytes surely sent by then."""
        index = bisect.bisect_right(self.times, time_s) - 1
        return int(self.sent[index]) if index >= 0 else 0

    def at_most(self, time_s: float) -> int:
        """Bytes possibly sent by then."""
        index = bisect.bisect_left(self.times, time_s)
        return int(self.sent[index]) if index < len(self.sent) else int(self.total)


@pytest.mark.lane
def test_two_lives_under_load_count_what_was_sent_in_them_and_nothing_twice(agents: Path) -> None:
    """Started, stopped and started again under load: no byte is in two lives, none of a life is missing.

    Processes that live within one life of the agent are exact in it and absent from the other; of one
    that lives through both, each life counts at least what was sent between readiness and SIGTERM, at
    most what was sent between start and end.
    """
    lives: list[tuple[Agent, Totals, list[dict[str, Any]]]] = []
    with Puppet("peer", "load", 600, LOAD_PAUSE_S) as load:
        for number in (1, 2):
            with running_agent(agents / f"life{number}") as agent:
                processes = run_workload("scenarios", "two_processes")[0].demand().processes
                agent.wait_exports(2)
                totals = agent.stop()
            lives.append((agent, totals, processes))
            run_workload("scenarios", "two_processes")
        load.tell("stop")
        ledger = load.answer()
    timeline = _Load(ledger)
    counted = 0
    for agent, totals, processes in lives:
        assert differences(totals, processes) == []
        assert not {p["pid"] for p in processes} & _other_pids(lives, totals)
        io = totals.process_io()[ledger["pid"]]
        surely = timeline.at_least(agent.asked_to_stop_s) - timeline.at_most(agent.ready_s)
        possibly = timeline.at_most(agent.ended_s) - timeline.at_least(agent.started_s)
        for direction in ("transmit", "receive"):
            assert surely <= io[direction, "tcp"] <= possibly
        assert surely > 0
        counted += io["transmit", "tcp"]
    assert counted < timeline.total


def _other_pids(lives: list[tuple[Agent, Totals, list[dict[str, Any]]]], totals: Totals) -> set[int]:
    """Processes that lives other than the one of these totals saw."""
    return {pid for _, other, _ in lives if other is not totals for pid in other.process_io()}
