# SPDX-License-Identifier: Apache-2.0
"""state.service_map, state.map_history and state.baseline: what the map keeps, forgets and remembers."""

from __future__ import annotations

import dataclasses
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from kernob.derive.topology import Dial, Reached, folded, incoming, outgoing
from kernob.model import DestinationRow, DestinationState, Link, MapNode, NameSource, NodeKind, PeerClass
from kernob.state.baseline import Baseline
from kernob.state.map_history import read_map, write_destinations, write_map
from kernob.state.series import SeriesStore
from kernob.state.service_map import MapState
from kernob.state.store import FILE_NAME, migrate
from tests.unit.series_points import points_of

S = 10**9
NOW = 1_800_000_000 * S
DAY_S = 86_400


def to(address: str, port: int = 443, service: str = "app") -> Link:
    return outgoing("vm", service, Dial(1, address, port), PeerClass.EXTERNAL, None, here=False)


def to_service(target: str, port: int, service: str = "app") -> Link:
    dial = Dial(1, "127.0.0.1", port)
    return outgoing("vm", service, dial, PeerClass.LOCALHOST, Reached(target, 1, port), here=True)


def grow(state: MapState, link: Link, tx: int, now_ns: int = NOW) -> int:
    edge = state.edge(link, now_ns)
    state.add(np.array([edge]), np.array([[tx, 2 * tx, 1, 0]]), now_ns)
    return edge


def edges(state: MapState) -> dict[tuple[str, str, int], tuple[int, int, int, int]]:
    return {row.key: (row.tx_bytes, row.rx_bytes, row.connections, row.failures) for row in state.rows()[1]}


def test_edges_add_up_and_nodes_are_named_by_what_they_serve() -> None:
    """One edge for source, target and port; a server's title has its ports; loopback-only is localhost."""
    state = MapState(1000, folded)
    grow(state, to_service("redis", 6379), 10)
    grow(state, to_service("redis", 6379), 5)
    grow(state, to("192.0.2.1"), 7)
    assert edges(state) == {
        ("vm/app", "vm/redis", 6379): (15, 30, 2, 0),
        ("vm/app", "ip/192.0.2.1", 443): (7, 14, 1, 0),
    }
    nodes = {row.id: (row.title, row.node_class) for row in state.rows()[0]}
    assert nodes == {
        "vm/app": ("app", "self"),
        "vm/redis": ("redis:6379", "localhost"),
        "ip/192.0.2.1": ("192.0.2.1", "external"),
    }


def test_changes_are_told_once() -> None:
    """A tick in which nothing moved has nothing to store; an idle connection is noted once a minute."""
    state = MapState(1000, folded)
    edge = grow(state, to("192.0.2.1"), 7)
    nodes, rows, _, _ = state.changes()
    assert (len(nodes), [row.tx_bytes for row in rows]) == (2, [7])
    assert not any(state.changes())
    state.touch(np.array([edge]), NOW + 10 * S)
    assert not any(state.changes())
    state.touch(np.array([edge]), NOW + 70 * S)
    assert [row.last_unix_ns for row in state.changes()[1]] == [NOW + 70 * S]


def test_what_turns_out_to_be_somebody_is_moved() -> None:
    """An address that is a container's published port: its bytes go to the container's edge."""
    state = MapState(1000, folded)
    old = grow(state, to("10.0.0.5", 8080), 7)
    state.changes()
    new = grow(state, to_service("web", 8080), 1, NOW + S)
    state.move(old, new)
    assert edges(state) == {("vm/app", "vm/web", 8080): (8, 16, 2, 0)}
    _nodes, rows, gone_nodes, gone = state.changes()
    assert gone == [("vm/app", "ip/10.0.0.5", 8080)]
    assert gone_nodes == ["ip/10.0.0.5"]
    assert [(row.key, row.first_unix_ns) for row in rows] == [(("vm/app", "vm/web", 8080), NOW)]


def test_a_scanner_folds_and_leaves_room_for_others() -> None:
    """A tenth of the map for one source; what is beyond it is one edge a class, and counted."""
    state = MapState(2000, folded)
    for number in range(1000):
        grow(state, to(f"192.0.{number // 250}.{number % 250}", service="scan"), 1)
    assert len(state) == 201
    assert state.folded == 800
    assert edges(state)["vm/scan", "others/external", 0] == (800, 1600, 800, 0)
    grow(state, to("192.0.2.1"), 1)
    assert len(state) == 202


def test_what_was_not_seen_for_long_goes() -> None:
    """Its nodes too, unless something else needs them."""
    state = MapState(1000, folded)
    grow(state, to("192.0.2.1"), 1, NOW)
    grow(state, to("192.0.2.2"), 1, NOW + 100 * S)
    state.expire(NOW + 50 * S)
    assert {row.id for row in state.rows()[0]} == {"vm/app", "ip/192.0.2.2"}
    assert [row.target for row in state.rows()[1]] == ["ip/192.0.2.2"]


def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    """Nodes, totals, times, ports and dials come back out of the file as they were."""
    state = MapState(1000, folded)
    grow(state, to_service("redis", 6379), 10)
    grow(state, to("192.0.2.1"), 7, NOW + S)
    grow(state, incoming("vm", "app", 80, PeerClass.INTERNAL), 3)
    with sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None) as connection:
        migrate(connection)
        for _ in range(2):  # a transaction that failed is written again
            connection.execute("BEGIN")
            write_map(connection, *state.rows())
            connection.execute("COMMIT")
    nodes, rows, destinations = read_map(tmp_path)
    assert destinations == []
    later = MapState(1000, folded)
    later.restore(nodes, rows)
    assert sorted(map(str, later.rows()[0])) == sorted(map(str, state.rows()[0]))
    assert sorted(map(str, later.rows()[1])) == sorted(map(str, state.rows()[1]))
    assert not any(later.changes())
    before = later.dialled("vm/app", "127.0.0.1", 6379)
    assert before is not None
    assert before.target.id == "vm/redis"
    grow(later, to_service("redis", 6379), 1)
    assert edges(later)["vm/app", "vm/redis", 6379] == (11, 22, 2, 0)


def make_baseline(per_minute: int = 10) -> Baseline:
    return Baseline(SeriesStore(), DAY_S, per_minute)


def test_a_destination_is_new_once() -> None:
    """The first sight is an event; so is another port; what is known is none, also after a restart."""
    baseline = make_baseline()
    since = NOW - 2 * DAY_S * S
    (event,) = baseline.see(to("192.0.2.1"), since, NOW)
    assert event.kind == "kernob.destination.new"
    assert (event.service, event.address, event.port) == ("app", "192.0.2.1", 443)
    assert event.details == (("kernob.learning", False),)
    assert baseline.see(to("192.0.2.1"), since, NOW) == []
    assert len(baseline.see(to("192.0.2.1", 444), since, NOW)) == 1
    later = make_baseline()
    later.restore(baseline.rows())
    assert later.see(to("192.0.2.1"), since, NOW) == []


def test_in_its_first_day_a_service_only_learns() -> None:
    """Such events are marked, and their state is learned."""
    baseline = make_baseline()
    (event,) = baseline.see(to("192.0.2.1"), NOW - 3600 * S, NOW)
    assert event.details == (("kernob.learning", True),)
    (late,) = baseline.see(to("192.0.2.2"), NOW - DAY_S * S, NOW)
    assert late.details == (("kernob.learning", False),)
    assert [row.state for row in baseline.rows()] == [DestinationState.LEARNED, DestinationState.NEW]


def test_the_addresses_of_a_name_may_change() -> None:
    """A hostname is one destination, whatever it resolves to."""
    baseline = make_baseline()
    for address, count in (("192.0.2.1", 1), ("192.0.2.2", 0)):
        dial = Dial(1, address, 443, "api.example")
        link = outgoing("vm", "app", dial, PeerClass.EXTERNAL, None, here=False)
        assert len(baseline.see(link, NOW - 2 * DAY_S * S, NOW)) == count


def test_a_scanner_is_summed_up() -> None:
    """So many a minute by themselves, the rest in one event; the next minute begins anew."""
    baseline = make_baseline(per_minute=10)
    told = [
        event
        for number in range(500)
        for event in baseline.see(to("192.0.2.1", number + 1), NOW - 2 * DAY_S * S, NOW)
    ]
    assert len(told) == 10
    (summary,) = baseline.summaries(NOW)
    assert (summary.suppressed, summary.count, baseline.suppressed) == (490, 490, 490)
    assert baseline.summaries(NOW) == []
    assert len(baseline.see(to("192.0.2.9"), NOW - 2 * DAY_S * S, NOW + 61 * S)) == 1


def test_a_destination_that_was_another_one_all_the_time_is_known_as_that() -> None:
    """Since its first sight, in the state it had; what was known of the other one stays, but for the time."""
    since, was, link = NOW - 2 * DAY_S * S, to("10.0.0.5", 8080), to_service("web", 8080)
    for is_known, expected in ((False, DestinationState.NEW), (True, DestinationState.ACCEPTED)):
        baseline = make_baseline()
        baseline.see(was, since, NOW)
        if is_known:
            baseline.see(link, since, NOW + S)
            baseline.accept([("app", "vm/web", 8080)])
        baseline.move(was, link)
        (row,) = baseline.rows()
        assert (row.target, row.address, row.state, row.first_unix_ns) == (
            "vm/web",
            "127.0.0.1",
            expected,
            NOW,
        )
        assert baseline.changes() == ([row], [("app", "ip/10.0.0.5", 8080)])
        assert baseline.see(link, since, NOW) == []
    baseline.move(was, link)
    baseline.move(link, folded(link))
    assert baseline.rows() == []


def test_a_clock_that_goes_back_holds_nothing_up() -> None:
    """What was seen in the future stays as new as it was; single events are told again at once."""
    state = MapState(1000, folded)
    grow(state, to("192.0.2.1"), 1, NOW)
    edge = grow(state, to("192.0.2.1"), 1, NOW - 10_000 * S)
    state.touch(np.array([edge]), NOW - 9_000 * S)
    state.expire(NOW - S)
    assert [row.last_unix_ns for row in state.rows()[1]] == [NOW]
    baseline = make_baseline(per_minute=1)
    since = NOW - 2 * DAY_S * S
    assert [len(baseline.see(to("192.0.2.1", port), since, NOW)) for port in (1, 2)] == [1, 0]
    baseline.export(NOW)
    assert len(baseline.see(to("192.0.2.1", 3), since, NOW - 3600 * S)) == 1


def test_a_baseline_that_fills_up_gives_the_old_and_unused_away(caplog: pytest.LogCaptureFixture) -> None:
    """Not what was accepted or is on the map; where all is, one line, and what is missed is counted."""
    baseline = Baseline(SeriesStore(), DAY_S, 10, most=100)
    since = NOW - 2 * DAY_S * S
    for number in range(95):
        baseline.see(to("192.0.2.1", number + 1), since, NOW + number)
    baseline.accept([("app", "ip/192.0.2.1", 1)])
    baseline.changes()
    baseline.trim(lambda key: key[2] == 2)
    ports = [row.port for row in baseline.rows()]
    assert ports == [1, 2, *range(18, 96)]
    assert len(baseline.changes()[1]) == 15
    for number in range(1000, 1030):
        baseline.see(to("192.0.2.1", number), since, NOW)
    assert (len(baseline), baseline.folded) == (100, 10)
    for _ in range(2):
        baseline.trim(lambda _key: True)
    assert len(baseline) == 100
    assert [record.getMessage() for record in caplog.records] == [
        "100 destinations are known, as many as there is room for: new ones are not told until some are "
        "forgotten (kernob destinations forget)"
    ]


def test_accepted_and_forgotten(tmp_path: Path) -> None:
    """Accepting changes the state; forgetting makes it new again. The file follows."""
    baseline = make_baseline()
    since = NOW - 2 * DAY_S * S
    baseline.see(to("192.0.2.1"), since, NOW)
    baseline.see(to("192.0.2.2"), since, NOW)
    key = ("app", "ip/192.0.2.1", 443)
    with sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None) as connection:
        migrate(connection)
        write_destinations(connection, *baseline.changes())
        assert baseline.accept([key]) == 1
        assert baseline.accept([key]) == 0
        assert baseline.forget([("app", "ip/192.0.2.2", 443), ("app", "x", 1)]) == 1
        write_destinations(connection, *baseline.changes())
    (row,) = read_map(tmp_path)[2]
    assert (row.target, row.state) == ("ip/192.0.2.1", DestinationState.ACCEPTED)
    assert len(baseline.see(to("192.0.2.2"), since, NOW)) == 1


@pytest.mark.parametrize("age_s", [0, 6 * DAY_S, 8 * DAY_S])
def test_the_metric_stands_for_a_week(age_s: int) -> None:
    """kernob.destination.first_seen has the time; what is older ends."""
    store = SeriesStore()
    baseline = Baseline(store, DAY_S, 10)
    baseline.see(to("192.0.2.1"), NOW - 2 * DAY_S * S, NOW)
    baseline.export(NOW + age_s * S)
    batch = store.batch(NOW + age_s * S)
    assert len(batch) == (1 if age_s < 7 * DAY_S else 0)


def test_the_metric_says_where_the_name_is_from() -> None:
    """As soon as it was met since our start; a service of this host has none, nor what was only restored."""
    store = SeriesStore()
    baseline = Baseline(store, DAY_S, 10)
    named = dataclasses.replace(
        to("192.0.2.1"), target=MapNode("dns/a.example", NodeKind.NAME, "a.example", PeerClass.EXTERNAL)
    )
    old = DestinationRow("app", "dns/b.example", 443, "b.example", DestinationState.NEW, NOW)
    baseline.restore([old])
    baseline.see(named, NOW - 2 * DAY_S * S, NOW, NameSource.SNI)
    baseline.see(to("192.0.2.3"), NOW - 2 * DAY_S * S, NOW, NameSource.SNI)
    baseline.export(NOW)

    def told() -> dict[str, str]:
        found = {}
        for point in points_of(store.batch(NOW, everything=True), "kernob.destination.first_seen"):
            said = {kv.key: kv.value.string_value for kv in point.attributes}
            if not point.flags & 1:
                found[said["server.address"]] = said.get("kernob.name.source", "")
        return found

    assert told() == {"a.example": "sni", "b.example": "", "192.0.2.3": "ip"}
    again = dataclasses.replace(
        named, target=MapNode("dns/b.example", NodeKind.NAME, "b.example", PeerClass.EXTERNAL)
    )
    baseline.see(again, NOW - 2 * DAY_S * S, NOW, NameSource.HOSTS)
    baseline.export(NOW)
    assert told() == {"a.example": "sni", "b.example": "hosts", "192.0.2.3": "ip"}
