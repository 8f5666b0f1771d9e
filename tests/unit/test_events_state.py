# SPDX-License-Identifier: Apache-2.0
"""state.events: what the kernel noted becomes events with names, times and sentences, bounded in number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernob.kernel.ringbuf import unix_offset_ns
from kernob.model import EVENT_KINDS, Drop, Event, Fate, Outcome, Severity, Timeout
from kernob.state import last_times as last_times_module
from kernob.state.events import EventState
from kernob.state.known import Known
from kernob.state.sentences import size, span
from kernob.state.series import SeriesStore
from tests.unit.series_points import points_of
from tests.unit.tcp_events import flow_key, records, resolve

UNIX = 1_700_000_000 * 10**9


def made(*rows: dict[str, Any], per_second: int = 20) -> list[Event]:
    return EventState(Known(resolve), SeriesStore(), per_second).update(records(*rows), UNIX)


def only(**row: Any) -> Event:
    (event,) = made(row)
    return event


def test_an_idle_reset_says_who_whom_and_how_long() -> None:
    """The silent broker: process, destination, time, and how long nothing had come."""
    hours = (4 * 3600 + 12 * 60) * 10**9
    event = only(
        time_ns=5_000_000_123, kind=Fate.RESET, side=1, idle=1, sport=40000, dport=5672, error=104,
        tx=10, rx=2000, age_ns=2 * hours, gap_ns=hours,
    )  # fmt: skip
    assert event.body == (
        "orders.py (PID 4711) lost its connection to 10.0.0.7:5672: the peer reset it after 4 h 12 min idle"
    )
    assert event.time_unix_ns == UNIX + 5_000_000_123
    assert (event.kind, event.severity, event.direction) == ("kernob.tcp.reset", Severity.WARN, "receive")
    assert (event.service, event.executable, event.pid, event.start_ticks) == (
        "orders.py", "orders.py", 4711, 77,
    )  # fmt: skip
    assert (event.address, event.port, event.role, event.peer, event.peer_port, event.local_port) == (
        "10.0.0.7", 5672, "client", "10.0.0.7", 5672, 40000,
    )  # fmt: skip
    assert (event.tx_bytes, event.rx_bytes, event.age_s, event.gap_s) == (10, 2000, 30240.0, 15120.0)
    assert event.idle


def test_an_idle_reset_right_behind_a_heartbeat_does_not_claim_that_nothing_had_come() -> None:
    """How long it was idle cannot be told from the last byte then; its age is what is known."""
    event = only(kind=Fate.RESET, side=1, idle=1, age_ns=6_100_000_000)
    assert event.body == (
        "orders.py (PID 4711) lost its connection to 10.0.0.7:5672: "
        "the peer reset it while it was idle, 6.1 s after it was opened"
    )


SAID = [
    (
        {"kind": Fate.CONNECTION, "reason": Outcome.REFUSED, "age_ns": 312_000, "error": 111},
        "kernob.tcp.connect_failed",
        "orders.py (PID 4711) was refused by 10.0.0.7:5672 after 0.3 ms",
    ),
    (
        {"kind": Fate.CONNECTION, "reason": Outcome.TIMED_OUT, "age_ns": 130_000_000_000},
        "kernob.tcp.connect_failed",
        "orders.py (PID 4711) could not connect to 10.0.0.7:5672: no answer within 2 min 10 s",
    ),
    (
        {"kind": Fate.CONNECTION, "reason": Outcome.HOST_UNREACHABLE, "flow": flow_key(9, "fd00::1", 80)},
        "kernob.tcp.connect_failed",
        "worker.py (python3, PID 9) could not connect to [fd00::1]:80: the host is unreachable",
    ),
    (
        {"kind": Fate.CONNECTION, "reason": Outcome.CANCELLED, "age_ns": 250_000_000},
        "kernob.tcp.connect_failed",
        "orders.py (PID 4711) gave up connecting to 10.0.0.7:5672 after 250 ms",
    ),
    (
        {"kind": Fate.CONNECTION, "reason": Outcome.OTHER, "error": 13},
        "kernob.tcp.connect_failed",
        "orders.py (PID 4711) could not connect to 10.0.0.7:5672: permission denied",
    ),
    (
        {"kind": Fate.CONNECTION, "reason": Outcome.OK, "age_ns": 1_000_000},
        "kernob.tcp.connection",
        "orders.py (PID 4711) connected to 10.0.0.7:5672 in 1 ms",
    ),
    (
        {"kind": Fate.RESET, "side": 0, "age_ns": 3_000_000_000},
        "kernob.tcp.reset",
        "orders.py (PID 4711) reset its connection to 10.0.0.7:5672 3.0 s after it was opened",
    ),
    (
        {"kind": Fate.RESET, "side": 1, "flow": flow_key(role=2, port=80), "dport": 51234, "gap_ns": 10**7},
        "kernob.tcp.reset",
        "orders.py (PID 4711) lost its connection to its client 10.0.0.7:51234 on port 80: "
        "the peer reset it 10 ms after the last byte from it",
    ),
    (
        {"kind": Fate.RETRANSMIT, "count": 3, "first_ns": 10**9, "time_ns": 1_700_000_000},
        "kernob.tcp.retransmit",
        "orders.py (PID 4711) had to send 3 segments again to 10.0.0.7:5672 within 700 ms",
    ),
    (
        {"kind": Fate.RETRANSMIT},
        "kernob.tcp.retransmit",
        "orders.py (PID 4711) had to send 1 segment again to 10.0.0.7:5672",
    ),
    (
        {"kind": Fate.DROP, "reason": Drop.UNANSWERED, "side": 0},
        "kernob.tcp.drop",
        "orders.py (PID 4711) got no answer from 10.0.0.7:5672: the peer closed the connection",
    ),
    (
        {"kind": Fate.DROP, "reason": Drop.RESET_MID_RESPONSE, "error": 104, "gap_ns": 2 * 10**7, "rx": 1536},
        "kernob.tcp.drop",
        "orders.py (PID 4711) was cut off in the middle of a response from 10.0.0.7:5672: "
        "the peer reset the connection 20 ms after the last byte from it, 1.5 KiB received in all",
    ),
    (
        {"kind": Fate.DROP, "reason": Drop.STALLED_MID_RESPONSE, "side": 1, "gap_ns": 30 * 10**9, "rx": 1},
        "kernob.tcp.drop",
        "orders.py (PID 4711) waits for the rest of a response from 10.0.0.7:5672: "
        "nothing more came for 30 s, 1 byte received in all",
    ),
    (
        {"kind": Fate.DROP, "reason": Drop.EOF_MID_RESPONSE, "rx": 700},
        "kernob.tcp.drop",
        "orders.py (PID 4711) got only part of a response from 10.0.0.7:5672: "
        "the peer closed the connection, 700 bytes received in all",
    ),
    (
        {"kind": Fate.STALL},
        "kernob.tcp.stall",
        "orders.py (PID 4711) cannot send to 10.0.0.7:5672: the peer takes no more data (zero window)",
    ),
    (
        {"kind": Fate.TIMEOUT, "error": 110, "gap_ns": 61 * 10**9},
        "kernob.tcp.timeout",
        "orders.py (PID 4711) lost its connection to 10.0.0.7:5672: it timed out, "
        "nobody acknowledged what it sent, nothing came for 1 min 1 s",
    ),
    (
        {"kind": Fate.TIMEOUT, "reason": Timeout.KEEPALIVE, "error": 113},
        "kernob.tcp.timeout",
        "orders.py (PID 4711) lost its connection to 10.0.0.7:5672: it timed out, no route to host",
    ),
    (
        {"kind": Fate.CONNECTION, "side": 1, "age_ns": 90 * 10**9, "tx": 5, "rx": 2048},
        "kernob.tcp.connection",
        "orders.py (PID 4711) is done with 10.0.0.7:5672 after 1 min 30 s: 5 bytes sent, 2.0 KiB received",
    ),
]


@pytest.mark.parametrize(("row", "kind", "body"), SAID, ids=[said[2][:60] for said in SAID])
def test_every_fate_has_a_sentence(row: dict[str, Any], kind: str, body: str) -> None:
    """Each can be read aloud and names process, destination and reason."""
    event = only(**row)
    assert (event.kind, event.body) == (kind, body)
    assert kind in EVENT_KINDS


def test_a_process_that_nobody_knows_is_no_error() -> None:
    """Neither the kernel's capture nor /proc has it: the event comes all the same."""
    assert only(kind=Fate.STALL, flow=flow_key(13)).service == "?"
    assert only(kind=Fate.STALL, flow=flow_key(0)).body.startswith("An unknown process cannot send")


def test_what_is_beyond_the_cap_is_counted_and_summed_up_once() -> None:
    """25 resets in one second, 20 told, one summary of 5; the next second tells again."""
    state = EventState(Known(resolve), SeriesStore(), 20)
    rows: list[dict[str, Any]] = [
        {"kind": Fate.RESET, "side": 1, "time_ns": 10**9 + i * 10**7} for i in range(25)
    ]
    rows += [{"kind": Fate.STALL, "flow": flow_key(9), "time_ns": 1_100_000_000}]
    rows += [{"kind": Fate.RESET, "side": 1, "time_ns": 2 * 10**9}]
    told = state.update(records(*rows), UNIX)
    assert [event.service for event in told] == ["orders.py"] * 20 + ["worker.py"] + ["orders.py"]
    assert state.suppressed == 5
    (summary,) = state.summaries()
    assert (summary.suppressed, summary.count, summary.kind) == (5, 5, "kernob.tcp.reset")
    assert (summary.first_unix_ns, summary.time_unix_ns) == (UNIX + 1_200_000_000, UNIX + 1_240_000_000)
    assert summary.body == "orders.py: 5 more resets within 40 ms, not told one by one (at most 20 a second)"
    assert summary.severity is Severity.WARN
    assert state.summaries() == []
    assert state.suppressed == 5


def test_a_clock_that_was_set_back_mutes_nobody() -> None:
    """An hour back, in the middle of a crowded second: the seconds of then have their own events again."""
    state = EventState(Known(resolve), SeriesStore(), 2)
    hour = 3600 * 10**9
    row = {"kind": Fate.STALL, "time_ns": 10**9}
    assert len(state.update(records(*[row] * 5), UNIX)) == 2
    assert len(state.update(records(*[row] * 5), UNIX - hour)) == 2
    assert len(state.update(records(*[{**row, "time_ns": 2 * 10**9}] * 5), UNIX - hour)) == 2


def test_a_storm_is_told_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told and suppressed together are every record, whatever the mix of services and seconds."""
    generator = np.random.default_rng(7)
    state = EventState(Known(resolve), SeriesStore(), 3)
    told = suppressed = 0
    for _ in range(10):
        rows = [
            {
                "kind": Fate.CONNECTION,
                "reason": Outcome.REFUSED,
                "flow": flow_key(int(generator.integers(4711, 4714))),
                "time_ns": int(generator.integers(10**9, 9 * 10**9)),
            }
            for _ in range(100)
        ]
        told += len(state.update(records(*rows), UNIX))
        suppressed += sum(event.suppressed for event in state.summaries())
    assert told + suppressed == 1000
    assert suppressed == state.suppressed > 0


def test_a_record_of_a_later_version_is_counted_and_does_no_harm() -> None:
    """An unknown kind, reason or side: counted as undecoded; the others come."""
    state = EventState(Known(resolve), SeriesStore(), 20)
    told = state.update(
        records({"kind": 99}, {"kind": Fate.DROP, "reason": 77}, {"kind": Fate.DROP, "side": 9}, {"kind": 4}),
        UNIX,
    )
    assert ([event.kind for event in told], state.undecoded) == (["kernob.tcp.stall"], 3)
    assert state.update(records(), UNIX) == []


def test_the_latest_time_of_each_kind_is_a_gauge() -> None:
    """The greatest time wins, to the microsecond, also of events beyond the cap."""
    store = SeriesStore()
    state = EventState(Known(resolve), store, 1)
    times = (1_123_456_000, 3_123_456_000, 2_123_456_000)
    state.update(records(*({"kind": Fate.RESET, "side": 1, "time_ns": t} for t in times)), UNIX)
    state.export(UNIX)
    ((attributes, value),) = last_times(store)
    assert attributes == {
        "kernob.service": "orders.py",
        "server.address": "10.0.0.7",
        "kernob.event.kind": "kernob.tcp.reset",
    }
    assert value == pytest.approx(1_700_000_003.123456, abs=1e-6)


def test_the_gauges_are_capped_and_end_after_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the cap a service's addresses share ~other; a day without an event ends a series."""
    monkeypatch.setattr(last_times_module, "_LAST_TIMES", 3)
    store = SeriesStore()
    state = EventState(Known(resolve), store, 100)
    rows = [{"kind": Fate.STALL, "flow": flow_key(peer=f"10.0.1.{i}"), "time_ns": 10**9} for i in range(7)]
    state.update(records(*rows), UNIX)
    state.export(UNIX)
    addresses = sorted(attributes["server.address"] for attributes, _ in last_times(store))
    assert addresses == ["10.0.1.0", "10.0.1.1", "10.0.1.2", "~other"]
    assert state.folded == 4
    day = 24 * 3600 * 10**9
    state.update(records({"kind": Fate.STALL, "time_ns": day + 2 * 10**9}), UNIX)
    state.export(UNIX + day + 2 * 10**9)
    state.update(records({"kind": Fate.STALL, "time_ns": day + 3 * 10**9}), UNIX)
    state.export(UNIX + day + 3 * 10**9)
    alive = {a["server.address"]: v for a, v in last_times(store) if v is not None}
    assert set(alive) == {"~other", "10.0.0.7"}


def last_times(store: SeriesStore) -> list[tuple[dict[str, Any], float | None]]:
    batch = store.batch(UNIX + 10**9, everything=True)
    found = []
    for point in points_of(batch, "kernob.event.last_time"):
        attributes = {a.key: a.value.string_value for a in point.attributes}
        found.append((attributes, None if point.flags else point.as_double))
    return found


@pytest.mark.parametrize("step_ns", [0, 3_600_000_000_000, -7_200_000_000_000])
def test_the_offset_follows_the_wall_clock_also_after_a_step(step_ns: int) -> None:
    """Measured anew at each reading: a clock that is set in between changes later events only."""
    monotonic = iter(range(10**9, 10**10, 1000))
    wall = 1_700_000_000 * 10**9 + step_ns
    offset = unix_offset_ns(lambda: next(monotonic), lambda: wall + next(monotonic))
    assert abs(offset - wall) <= 1000


def test_the_narrowest_reading_of_the_clocks_counts() -> None:
    """A reading that was interrupted for 5 ms does not spoil the offset."""
    times = iter([0, 0, 5_000_000, 6_000_000, 6_000_050, 6_000_100] + [7_000_000, 7_100_000, 7_200_000] * 3)
    walls = iter([100, 6_000_050, 7_100_000, 7_100_000, 7_100_000])
    sequence = iter([v for i, v in enumerate(times) if i % 3 != 1])
    assert unix_offset_ns(lambda: next(sequence), lambda: next(walls)) == 0


def test_lengths_and_sizes_in_words() -> None:
    """At most two units, rounded, never '60 s'."""
    assert [span(s) for s in (0.0, 0.0006, 0.9996, 9.96, 59.6, 3600.0, 86399.9)] == [
        "0 ms", "0.6 ms", "1.0 s", "10 s", "1 min", "1 h", "1 d",
    ]  # fmt: skip
    assert [size(n) for n in (0, 1, 1023, 1024, 1048575, 5 << 40)] == [
        "0 bytes", "1 byte", "1023 bytes", "1.0 KiB", "1.0 MiB", "5.0 TiB",
    ]  # fmt: skip
