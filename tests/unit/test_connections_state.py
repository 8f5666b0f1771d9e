# SPDX-License-Identifier: Apache-2.0
"""state.connections: what series come out of facts about connections, caps, ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernob.model import (
    AttributeValue,
    ClosedBy,
    Drop,
    Fate,
    Outcome,
    ProcessInfo,
    ProcessKey,
    Role,
    TcpFacts,
    Timeout,
)
from kernob.probes import tcp, traffic
from kernob.state.connections import CLOSE_WAIT, ESTABLISHED, ConnectionState, TcpCaps
from kernob.state.points import HistogramPoints
from kernob.state.series import SeriesStore
from kernob.state.traffic import OTHER, Caps, TrafficState
from tests.unit.records import DURATION_KEY, DURATION_VAL, closed, durations, fates, flow_key, live
from tests.unit.series_points import points_of
from tests.unit.test_histograms import points_of as histograms_of

AT_NS = 1_700_000_000_000_000_000
NOTHING = (np.zeros(0, DURATION_KEY), np.zeros(0, DURATION_VAL))
CLIENT = flow_key(11, "10.0.0.9", 443)
SERVER = flow_key(11, "192.0.2.7", 8080, role=Role.SERVER, local="10.0.0.1")
OK, REFUSED = Outcome.OK, Outcome.REFUSED


def resolve(key: ProcessKey) -> ProcessInfo | None:
    """Process N is program pN of service s(N // 10)."""
    return ProcessInfo(key, f"p{key.pid}", "comm", service=f"s{key.pid // 10}")


class Fixture:
    """Both states over one store, ticked together as the pipeline does it."""

    def __init__(self, process: int = 100, flow: int = 100, histogram: int = 100) -> None:
        self.store = SeriesStore()
        self.traffic = TrafficState(self.store, traffic.SPECS, Caps(100, 100, 100), resolve)
        caps = TcpCaps(process, flow, histogram)
        self.state = ConnectionState(self.store, tcp.SPECS, caps, self.traffic.known)
        self.now_s = 1000.0

    def tick(
        self,
        *facts: tuple[bytes, int, int, int, int, int],
        measured: tuple[NDArray[Any], NDArray[Any]] = NOTHING,
        sockets: tuple[tuple[bytes, int], ...] = (),
    ) -> None:
        """One tick with these facts, durations and live sockets (key, TCP state)."""
        rows = live(*((key, 0, 0) for key, _ in sockets))
        rows["state"] = [state for _, state in sockets]
        self.now_s += 10.0
        self.traffic.update((*closed(), rows), AT_NS, self.now_s)
        self.state.update(fates(*facts), measured, rows, AT_NS)

    def sweep(self) -> None:
        self.traffic.known.sweep(self.now_s, lambda _process: None)

    def values(self, name: str) -> list[tuple[dict[str, AttributeValue], int]]:
        """Attributes and last value of each series of a metric."""
        found: dict[tuple[tuple[str, AttributeValue], ...], int] = {}
        for point in points_of(self.store.batch(AT_NS + 10**10, everything=True), name):
            said = tuple(
                (kv.key, getattr(kv.value, str(kv.value.WhichOneof("value")))) for kv in point.attributes
            )
            found.pop(said, None)
            found[said] = point.as_int
        return [(dict(said), value) for said, value in found.items()]

    def names(self) -> set[str]:
        """Metrics that have a series."""
        return {metric.spec.name for metric in self.store.batch(AT_NS + 10**10, everything=True).metrics}


def test_outcomes_are_counted_by_service_and_by_process() -> None:
    """23 good and 5 refused connections: two series each, error.type on the failed ones only."""
    fixture = Fixture()
    fixture.tick((CLIENT, Fate.CONNECTION, OK, 0, 0, 20), (CLIENT, Fate.CONNECTION, REFUSED, 0, 0, 5))
    fixture.tick((CLIENT, Fate.CONNECTION, OK, 0, 0, 3))
    where = {"kernob.service": "s1", "server.address": "10.0.0.9", "server.port": 443}
    role = {"network.tcp.handshake.role": "client"}
    assert fixture.values("kernob.tcp.connections") == [
        ({**where, **role}, 23),
        ({**where, **role, "error.type": "refused"}, 5),
    ]
    who = {"process.pid": 11, "process.executable.name": "p11", "kernob.service": "s1"}
    assert fixture.values("kernob.process.tcp.connections") == [
        ({**who, **role}, 23),
        ({**who, **role, "error.type": "refused"}, 5),
    ]


@pytest.mark.parametrize("outcome", list(Outcome)[1:])
def test_every_failure_has_its_name(outcome: Outcome) -> None:
    """error.type is the outcome's name in lower case."""
    fixture = Fixture()
    fixture.tick((CLIENT, Fate.CONNECTION, outcome, 0, 0, 1))
    ((said, _),) = fixture.values("kernob.tcp.connections")
    assert said["error.type"] == outcome.name.lower()


def test_resets_drops_timeouts_and_retransmits_say_what_happened() -> None:
    """Direction and idleness, kind of drop and who closed, what was not acknowledged, segments."""
    fixture = Fixture()
    fixture.tick(
        (CLIENT, Fate.RESET, 0, 1, 1, 2),
        (SERVER, Fate.RESET, 0, 0, 0, 1),
        (CLIENT, Fate.DROP, Drop.RESET_MID_RESPONSE, ClosedBy.PEER, 0, 4),
        (CLIENT, Fate.TIMEOUT, Timeout.KEEPALIVE, 0, 0, 1),
        (CLIENT, Fate.RETRANSMIT, 0, 0, 0, 127),
        (CLIENT, Fate.STALL, 0, 0, 0, 3),
    )
    client = {
        "kernob.service": "s1",
        "server.address": "10.0.0.9",
        "server.port": 443,
        "kernob.peer.class": "internal",
        "network.tcp.handshake.role": "client",
    }
    server = {
        **client,
        "server.address": "10.0.0.1",
        "server.port": 8080,
        "kernob.peer.class": "external",
        "network.tcp.handshake.role": "server",
    }
    assert fixture.values("kernob.tcp.resets") == [
        ({**client, "network.io.direction": "receive", "kernob.reset.idle": True}, 2),
        ({**server, "network.io.direction": "transmit", "kernob.reset.idle": False}, 1),
    ]
    drop = {"error.type": "reset_mid_response", "kernob.closed_by": "peer"}
    assert fixture.values("kernob.tcp.drops") == [({**client, **drop}, 4)]
    assert fixture.values("kernob.tcp.timeouts") == [({**client, "error.type": "keepalive"}, 1)]
    assert fixture.values("kernob.tcp.retransmits") == [(client, 127)]
    assert fixture.values("kernob.tcp.stalls") == [(client, 3)]
    who = {"process.pid": 11, "process.executable.name": "p11", "kernob.service": "s1"}
    assert fixture.values("kernob.process.tcp.resets") == [
        ({**who, "network.io.direction": "receive"}, 2),
        ({**who, "network.io.direction": "transmit"}, 1),
    ]
    assert fixture.values("kernob.process.tcp.drops") == [({**who, "error.type": "reset_mid_response"}, 4)]
    assert fixture.values("kernob.process.tcp.retransmits") == [(who, 127)]


def test_what_did_not_happen_has_no_series() -> None:
    """No false zero: only the metrics that something was counted in exist."""
    fixture = Fixture()
    fixture.tick()
    assert fixture.names() == set()
    fixture.tick((CLIENT, Fate.RETRANSMIT, 0, 0, 0, 1))
    assert fixture.names() == {"kernob.tcp.retransmits", "kernob.process.tcp.retransmits"}


def test_a_reset_for_a_closed_port_is_nobodys() -> None:
    """It is counted without service and process, and no process appears for it."""
    fixture = Fixture()
    fixture.tick((bytes(52), Fate.RESET, 0, 0, 0, 7))
    assert fixture.values("kernob.tcp.resets") == [
        ({"network.io.direction": "transmit", "kernob.reset.idle": False}, 7)
    ]
    assert fixture.names() == {"kernob.tcp.resets"}
    assert len(fixture.traffic.processes) == 0


def test_durations_are_histograms_by_destination() -> None:
    """Counts and sums of several ticks and processes of a service add up, each kind apart."""
    fixture = Fixture()
    colleague = flow_key(12, "10.0.0.9", 443)
    fixture.tick(measured=durations((CLIENT, 0, [1_000_000] * 3), (CLIENT, 1, [50_000_000])))
    fixture.tick(
        measured=durations((CLIENT, 0, [2_000_000]), (colleague, 0, [3_000_000]), (SERVER, 2, [40_000]))
    )
    batch = fixture.store.batch(AT_NS + 10**10)
    sums = {
        metric.spec.name: histograms_of(batch)
        for metric in batch.metrics
        if isinstance(metric, HistogramPoints)
    }
    assert set(sums) == {"kernob.tcp.connect.duration", "kernob.tcp.response.duration", "kernob.tcp.rtt"}
    found = {
        (str(point.attributes[1].value.string_value), point.count, round(point.sum, 9))
        for point in histograms_of(batch)
        if point.time_unix_nano == AT_NS + 10**10
    }
    assert found == {("10.0.0.9", 5, 0.008), ("10.0.0.9", 1, 0.05), ("10.0.0.1", 1, 0.00004)}


def test_active_follows_the_live_sockets() -> None:
    """ESTABLISHED and CLOSE_WAIT count, other states do not; a closed one is gone with the next tick."""
    fixture = Fixture()
    states = (ESTABLISHED, ESTABLISHED, CLOSE_WAIT, 2, 5, 0)
    fixture.tick(sockets=(*((CLIENT, state) for state in states), (SERVER, ESTABLISHED)))
    name = "kernob.tcp.connections.active"
    assert [(said["server.address"], value) for said, value in fixture.values(name)] == [
        ("10.0.0.9", 3),
        ("10.0.0.1", 1),
    ]
    fixture.tick(sockets=((CLIENT, ESTABLISHED), (CLIENT, 4)))
    assert [value for _, value in fixture.values(name)] == [1, 0]


def test_active_of_a_forgotten_flow_says_that_it_ends() -> None:
    """After minutes without a socket the gauge ends; a flow that comes back begins it anew."""
    fixture = Fixture()
    fixture.tick(sockets=((CLIENT, ESTABLISHED),))
    fixture.store.acknowledge(fixture.store.batch(AT_NS + 10**9))
    fixture.tick()
    fixture.now_s += 400
    fixture.tick()
    fixture.sweep()
    (point,) = points_of(fixture.store.batch(AT_NS + 2 * 10**9), "kernob.tcp.connections.active")
    assert point.flags == 1
    fixture.store.acknowledge(fixture.store.batch(AT_NS + 3 * 10**9))
    fixture.tick(sockets=((CLIENT, ESTABLISHED),) * 2)
    assert [value for _, value in fixture.values("kernob.tcp.connections.active")] == [2]


def test_foreign_connections_add_to_the_same_series() -> None:
    """What only /proc knows the owner of counts beside the rest, and stops counting when it is gone."""
    fixture = Fixture()
    fixture.tick(sockets=((CLIENT, ESTABLISHED),))
    flow = int(fixture.traffic.flows.live[0])
    names = fixture.state.active_names("s1", fixture.traffic.destination(flow))
    alone = fixture.state.active_names("old", fixture.traffic.destination(flow))
    for found, expected in (({names: 2, alone: 1}, [3, 1]), ({names: 1}, [2]), ({}, [1])):
        fixture.state.see_foreign(found, AT_NS)
        values = fixture.values("kernob.tcp.connections.active")
        assert [value for _, value in values if value] == expected


def test_beyond_the_cap_destinations_fold_into_other() -> None:
    """Two series per metric, then ~other of the service; how often is said, and sums are kept."""
    fixture = Fixture(process=2, flow=2, histogram=2)
    flows = [flow_key(pid, f"10.1.0.{pid}", 443) for pid in range(10, 15)]
    fixture.tick(
        *((flow, Fate.CONNECTION, OK, 0, 0, 1) for flow in flows),
        measured=durations(*((flow, 0, [1_000_000]) for flow in flows)),
        sockets=tuple((flow, ESTABLISHED) for flow in flows),
    )
    for name in ("kernob.tcp.connections", "kernob.tcp.connections.active"):
        by_address = {said["server.address"]: value for said, value in fixture.values(name)}
        assert by_address == {"10.1.0.10": 1, "10.1.0.11": 1, OTHER: 3}
    processes = fixture.values("kernob.process.tcp.connections")
    assert sorted(value for _, value in processes) == [1, 1, 3]
    assert fixture.state.folded == 4 * 3


def test_any_number_of_flows_may_have_facts_only() -> None:
    """5,000 destinations of which nothing but failures is known, twice; then all are forgotten."""
    fixture = Fixture(flow=10_000)
    for tick in range(2):
        flows = [flow_key(11, f"10.{tick}.{n >> 8}.{n & 255}", 443) for n in range(5_000)]
        fixture.tick(*((flow, Fate.CONNECTION, REFUSED, 0, 0, 1) for flow in flows))
        fixture.traffic.roll(10.0)
        fixture.state.roll()
        assert len(fixture.traffic.rows(fixture.state.facts)) == 5_000 * (tick + 1)
    fixture.now_s += 400
    fixture.tick()
    fixture.sweep()
    assert len(fixture.traffic.flows) == 0
    assert sum(value for _, value in fixture.values("kernob.tcp.connections")) == 10_000


def test_a_process_that_ended_ends_its_series() -> None:
    """Its series go after their last value was acknowledged; the service's stay."""
    fixture = Fixture()
    fixture.tick((CLIENT, Fate.CONNECTION, OK, 0, 0, 1), (CLIENT, Fate.RESET, 0, 1, 0, 1))
    fixture.traffic.processes.mark_ended([ProcessKey(11, 7, 1)])
    for _ in range(6):
        fixture.tick()
        fixture.sweep()
    fixture.store.acknowledge(fixture.store.batch(AT_NS + 10**9))
    assert fixture.names() == {"kernob.tcp.connections", "kernob.tcp.resets"}


def test_facts_for_screens_are_totals_and_the_windows() -> None:
    """What happened on a flow since it is known, and in the last window."""
    fixture = Fixture()
    fixture.tick((CLIENT, Fate.CONNECTION, OK, 0, 0, 4), (CLIENT, Fate.CONNECTION, REFUSED, 0, 0, 1))
    fixture.state.roll()
    flow = int(fixture.traffic.flows.indices()[0])
    assert fixture.state.facts(flow) == (TcpFacts(5, 1), TcpFacts(5, 1))
    fixture.tick((CLIENT, Fate.RETRANSMIT, 0, 0, 0, 9), (CLIENT, Fate.DROP, 0, 0, 0, 2))
    fixture.state.roll()
    assert fixture.state.facts(flow) == (TcpFacts(5, 1, 9, 0, 2), TcpFacts(0, 0, 9, 0, 2))
