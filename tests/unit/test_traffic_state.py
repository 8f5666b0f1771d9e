# SPDX-License-Identifier: Apache-2.0
"""state.traffic and state.processes: what series come out of flows, caps, ends."""

from __future__ import annotations

from opentelemetry.proto.metrics.v1.metrics_pb2 import Sum

from kernob.model import MetricSpec, PeerClass, ProcessInfo, ProcessKey, Role, Transport
from kernob.probes.traffic import FLOW_IO, PROCESS_FLOW_IO, PROCESS_IO, SPECS
from kernob.state.processes import Process
from kernob.state.series import SeriesStore
from kernob.state.traffic import OTHER, Caps, TrafficState, decode_destination
from tests.unit.records import closed, flow_key, live

AT_NS = 1_700_000_000_000_000_000
LATER_S = 1000.0


def resolve(key: ProcessKey) -> ProcessInfo | None:
    """Process N is program pN of service s(N // 10); 666 is unknown."""
    if key.pid == 666:
        return None
    return ProcessInfo(key, f"p{key.pid}", "comm", service=f"s{key.pid // 10}")


def new_state(
    process: int = 100, flow: int = 100, process_flow: int = 100
) -> tuple[TrafficState, SeriesStore]:
    """A state with caps, and the store its series go to."""
    store = SeriesStore()
    return TrafficState(store, SPECS, Caps(process, flow, process_flow), resolve), store


def values(store: SeriesStore, spec: MetricSpec) -> dict[tuple[str, ...], int]:
    """Attribute values as text -> last value, of all series of a metric."""
    found: dict[tuple[str, ...], int] = {}
    for metric in store.batch(AT_NS + 10**9, everything=True).metrics:
        if metric.spec.name == spec.name:
            framed, _ = metric.take(0, 10**6, 1 << 28)
            for point in Sum.FromString(framed).data_points:
                names = tuple(a.value.string_value or str(a.value.int_value) for a in point.attributes)
                found[names] = point.as_int
    return found


def test_one_flow_counts_in_all_three_metrics() -> None:
    """Bytes of a client flow stand under the process, the service's destination, and both together."""
    state, store = new_state()
    state.update((*closed((flow_key(pid=12, peer="203.0.113.9"), 300, 20)), live()), AT_NS)
    assert values(store, PROCESS_IO) == {
        ("12", "p12", "s1", "transmit", "tcp"): 300,
        ("12", "p12", "s1", "receive", "tcp"): 20,
    }
    assert values(store, FLOW_IO) == {
        ("s1", "203.0.113.9", "443", "external", "client", "transmit", "tcp"): 300,
        ("s1", "203.0.113.9", "443", "external", "client", "receive", "tcp"): 20,
    }
    assert values(store, PROCESS_FLOW_IO)[("12", "p12", "s1", "203.0.113.9", "443", "transmit", "tcp")] == 300


def test_processes_of_one_service_share_its_flow_series() -> None:
    """Two PIDs of a service that talk to one destination are one kernob.flow.io series."""
    state, store = new_state()
    rows = closed((flow_key(pid=11), 5, 0), (flow_key(pid=12), 6, 0))
    state.update((*rows, live()), AT_NS)
    assert list(values(store, FLOW_IO).values()) == [11]
    assert len(values(store, PROCESS_IO)) == 2


def test_a_server_is_named_by_its_own_address() -> None:
    """Role server: server.address and port are ours, the client only gives the class."""
    state, store = new_state()
    key = flow_key(pid=50, peer="127.0.0.1", port=5432, role=2, local="127.0.0.1")
    state.update((*closed((key, 1, 2)), live()), AT_NS)
    assert ("s5", "127.0.0.1", "5432", "localhost", "server", "transmit", "tcp") in values(store, FLOW_IO)


def test_unconnected_udp_has_no_destination() -> None:
    """Where the peer is not known, no address, port or role is made up."""
    state, store = new_state()
    state.update((*closed((flow_key(pid=50, role=0, proto=17, peer="0.0.0.0", port=0), 9, 0)), live()), AT_NS)
    assert values(store, FLOW_IO) == {("s5", "unknown", "transmit", "udp"): 9}


def test_a_direction_without_bytes_has_no_series() -> None:
    """No false zero: a process that only sends has no receive series."""
    state, store = new_state()
    state.update((*closed((flow_key(), 1, 0)), live()), AT_NS)
    assert [names[-2] for names in values(store, PROCESS_IO)] == ["transmit"]


def test_beyond_the_cap_bytes_go_to_the_services_other() -> None:
    """With room for 2 process series, three more processes are counted in ~other, per service, and said."""
    state, store = new_state(process=2)
    rows = closed(*((flow_key(pid=pid), 10, 0) for pid in (11, 12, 13, 14, 25)))
    state.update((*rows, live()), AT_NS)
    found = values(store, PROCESS_IO)
    assert found[OTHER, "s1", "transmit", "tcp"] == 20
    assert found[OTHER, "s2", "transmit", "tcp"] == 10
    assert sum(found.values()) == 50
    assert state.folded == 3


def test_process_flows_can_be_switched_off() -> None:
    """A cap of 0 means no PID x destination series at all, not only ~other."""
    state, store = new_state(process_flow=0)
    state.update((*closed((flow_key(), 1, 1)), live()), AT_NS)
    assert values(store, PROCESS_FLOW_IO) == {}


def end(state: TrafficState, store: SeriesStore, *keys: ProcessKey) -> list[Process]:
    """Marks processes as ended and lets two quiet ticks and the display time pass."""
    removed: list[Process] = []
    state.processes.mark_ended(keys)
    for tick in range(3):
        state.update((*closed(), live()), AT_NS)
        state.known.sweep(LATER_S * tick, removed.append)
    store.acknowledge(store.batch(AT_NS + 2 * 10**9))
    return removed


def test_a_dead_process_ends_its_series_and_not_its_services() -> None:
    """After its last value was acknowledged a process' series are gone; the service's flow stays."""
    state, store = new_state()
    state.update((*closed((flow_key(pid=12), 300, 0)), live()), AT_NS)
    removed = end(state, store, ProcessKey(12, 7, 1))
    assert [p.key.pid for p in removed] == [12]
    assert values(store, PROCESS_IO) == {}
    assert list(values(store, FLOW_IO).values()) == [300]
    assert state.rows() == ()


def test_a_dead_process_waits_for_its_last_socket() -> None:
    """Bytes of a socket that outlives its process (FIN_WAIT) still count to it."""
    state, store = new_state()
    key = flow_key(pid=12)
    state.update((*closed(), live((key, 5, 0))), AT_NS)
    state.processes.mark_ended([ProcessKey(12, 7, 1)])
    removed: list[Process] = []
    for tick in range(5):
        state.update((*closed(), live((key, 5, 0))), AT_NS)
        state.known.sweep(LATER_S * tick, removed.append)
    assert removed == []
    state.update((*closed((key, 8, 0)), live()), AT_NS)
    assert list(values(store, PROCESS_IO).values()) == [8]


def test_exec_begins_a_new_name_and_ends_the_old_one() -> None:
    """After exec the same PID counts under another identity; the older image is finished by itself."""
    state, store = new_state()
    state.update((*closed((flow_key(pid=12, exec_id=1), 5, 0)), live()), AT_NS)
    state.update((*closed((flow_key(pid=12, exec_id=2), 6, 0)), live()), AT_NS)
    assert [p.key.exec_id for p in state.processes.alive()] == [2]
    removed = end(state, store)
    assert [p.key.exec_id for p in removed] == [1]
    # same program name, so one series, which the newer image goes on with
    assert list(values(store, PROCESS_IO).values()) == [11]


def test_a_quiet_flow_is_forgotten_and_its_series_goes_on() -> None:
    """After minutes of silence a flow leaves memory; when it comes back, its series counts on."""
    state, store = new_state()
    key = flow_key(pid=12)
    state.update((*closed((key, 300, 0)), live()), AT_NS, now_s=0.0)
    state.update((*closed(), live()), AT_NS, now_s=299.0)
    state.known.sweep(299.0, lambda process: None)
    assert len(state.flows) == 1
    state.update((*closed(), live()), AT_NS, now_s=301.0)
    state.known.sweep(301.0, lambda process: None)
    assert len(state.flows) == 0
    state.update((*closed((key, 7, 0)), live()), AT_NS, now_s=302.0)
    assert list(values(store, PROCESS_IO).values()) == [307]
    assert list(values(store, FLOW_IO).values()) == [307]


def test_a_process_ends_its_series_although_its_flows_are_forgotten() -> None:
    """A process that fell silent long before it ended leaves no series behind."""
    state, store = new_state()
    state.update((*closed((flow_key(pid=12), 300, 0)), live()), AT_NS, now_s=0.0)
    state.update((*closed(), live()), AT_NS, now_s=400.0)
    state.known.sweep(400.0, lambda process: None)
    end(state, store, ProcessKey(12, 7, 1))
    assert values(store, PROCESS_IO) == {}


def test_an_unknown_process_is_a_question_mark() -> None:
    """A process nobody can name any more still has its bytes and its PID."""
    state, store = new_state()
    state.update((*closed((flow_key(pid=666), 4, 0)), live()), AT_NS)
    assert values(store, PROCESS_IO) == {("666", "?", "?", "transmit", "tcp"): 4}


def test_rates_are_growth_over_the_window() -> None:
    """A row's rate is what grew since the last roll, by the window's length; totals go on."""
    state, _store = new_state()
    state.update((*closed((flow_key(), 1000, 0)), live()), AT_NS)
    state.roll(2.0)
    assert [(r.tx_bytes, r.tx_rate) for r in state.rows()] == [(1000, 500.0)]
    state.roll(2.0)
    assert [(r.tx_bytes, r.tx_rate) for r in state.rows()] == [(1000, 0.0)]


def test_destinations_are_decoded_byte_for_byte() -> None:
    """Roles, transports, v4 and v6 out of a raw key."""
    there = decode_destination(flow_key(peer="2001:db8::5", port=53, proto=17))
    assert (there.role, there.transport, there.address, there.port) == (
        Role.CLIENT,
        Transport.UDP,
        "2001:db8::5",
        53,
    )
    assert there.peer_class is PeerClass.EXTERNAL
    server = decode_destination(flow_key(peer="10.1.2.3", port=80, role=2, local="10.0.0.9"))
    assert (server.address, server.peer, server.port) == ("10.0.0.9", "10.1.2.3", 80)
