# SPDX-License-Identifier: Apache-2.0
"""features.map with an injected clock: a day of restarts, short-lived clients and refusals is the truth."""

from __future__ import annotations

import time
from pathlib import Path
from unittest import mock

from kernob.model import Outcome
from kernob.state.map_series import EDGE
from kernob.state.store import Store
from tests.unit.map_world import (
    BEGIN_NS,
    HOUR,
    NETNS,
    TICK_S,
    S,
    World,
    both_ends,
    connection,
)
from tests.unit.records import flow_key
from tests.unit.series_points import points_of

TRUTH = {
    ("vm/app", "vm/redis", 6379),
    ("vm/curl", "vm/app", 80),
    ("vm/app", "ip/192.0.2.1", 443),
    ("clients/external", "vm/app", 80),
}


def test_a_day_of_restarts_is_the_truth(tmp_path: Path) -> None:
    """Each hour both servers restart with new PIDs, clients are refused meanwhile, each minute curl runs."""
    world = World(tmp_path)
    app, redis, curl = 100, 50_000, 1_000
    moved = 0
    for minute in range(26 * HOUR):
        if minute % HOUR == 0:
            world.services.pop(app, None)
            app, redis = app + 1, redis + 1
            world.services |= {app: "app", redis: "redis"}
            world.proc.listen(app, "0.0.0.0", 80)
            world.proc.close(6379)
        if minute % HOUR == 1:
            world.proc.listen(redis, "127.0.0.1", 6379)
        world.services.pop(curl, None)
        curl += 1
        world.services[curl] = "curl"
        up = minute % HOUR != 0 or minute == 0
        if minute == 0:
            world.proc.listen(redis, "127.0.0.1", 6379)
        asked = both_ends(app, redis, 6379) if up else []
        moved += 100 if up else 0
        outside = [(flow_key(app, "192.0.2.1", 443), 10, 20)]
        outside.append((flow_key(app, f"198.51.100.{minute % 250}", 80, role=2, local="10.0.0.5"), 7, 5))
        outcome = Outcome.OK if up else Outcome.REFUSED
        facts = [connection(flow_key(app, "127.0.0.1", 6379), outcome)]
        world.tick([*asked, *both_ends(curl, app, 80, "10.0.0.5"), *outside], facts)
        assert world.edges() == TRUTH, minute
    rows = {(r["source"], r["target"]): r for r in world.map.reports()["map"]({})["edges"]}
    assert rows["vm/app", "vm/redis"]["tx_bytes"] == moved
    assert rows["vm/app", "vm/redis"]["connections"] == 26 * HOUR
    assert rows["vm/app", "vm/redis"]["failures"] == 25
    assert rows["clients/external", "vm/app"]["rx_bytes"] == 7 * 26 * HOUR  # the acceptor's, mirrored
    told = [(event.service, event.port, dict(event.details)) for event in world.events]
    assert sorted(told, key=str) == [
        ("app", 443, {"kernob.learning": True}),
        ("app", 6379, {"kernob.learning": True}),
        ("curl", 80, {"kernob.learning": True}),
    ]
    world.tick([(flow_key(app, "192.0.2.99", 443), 1, 1)], [])
    assert dict(world.events[-1].details) == {"kernob.learning": False}


def test_a_service_that_starts_late_takes_over_its_address(tmp_path: Path) -> None:
    """Refused before anybody ever listened there: an edge to the address, until there is a service."""
    world = World(tmp_path)
    world.services |= {1: "app", 2: "redis"}
    key = flow_key(1, "127.0.0.1", 6379)
    world.tick([], [connection(key, Outcome.REFUSED)])
    assert world.edges() == {("vm/app", "vm/ip/127.0.0.1", 6379)}
    world.proc.listen(2, "127.0.0.1", 6379)
    world.tick(both_ends(1, 2, 6379), [connection(key)])
    assert world.edges() == {("vm/app", "vm/redis", 6379)}
    (row,) = world.map.reports()["map"]({})["edges"]
    assert (row["connections"], row["failures"], row["tx_bytes"]) == (2, 1, 100)
    (known,) = world.map.reports()["destinations"]({})["destinations"]
    assert (known["target"], known["port"], known["first_unix_ns"]) == (
        "vm/redis",
        6379,
        BEGIN_NS + TICK_S * S,
    )
    assert len(world.events) == 1


def test_the_backend_is_told_that_an_edge_was_another_one(tmp_path: Path) -> None:
    """For two minutes it stands at 0; then it ends, and at once where it begins anew."""
    world = World(tmp_path)
    world.services |= {1: "app", 2: "redis"}
    key = flow_key(1, "10.0.0.5", 6379)

    def stands() -> dict[str, int]:
        """Edges by the address dialled or the service that answers."""
        batch = world.store.batch(BEGIN_NS + world.now_s * S, everything=True)
        world.store.acknowledge(batch)
        found = {}
        for point in points_of(batch, EDGE.name):
            names = {each.key: each.value.string_value for each in point.attributes}
            if not point.flags & 1:  # one that ended says so once
                found[names["target"]] = point.as_int
        return found

    world.tick([], [connection(key, Outcome.REFUSED)])
    assert stands() == {"ip/10.0.0.5": 1}
    world.proc.listen(2, "10.0.0.5", 6379)
    world.tick(both_ends(1, 2, 6379, "10.0.0.5"), [connection(key)])
    assert stands() == {"ip/10.0.0.5": 0, "vm/redis": 1}
    world.tick(both_ends(1, 2, 6379, "10.0.0.5"), [])
    assert stands() == {"ip/10.0.0.5": 0, "vm/redis": 1}
    world.tick(both_ends(1, 2, 6379, "10.0.0.5"), [])
    assert stands() == {"vm/redis": 1}


def published(directory: Path) -> World:
    """app dials a port that docker-proxy holds for web."""
    world = World(directory)
    world.services |= {1: "app", 3: "docker-proxy", 4: "web"}
    mapping = "-host-ip 0.0.0.0 -host-port 8080 -container-ip 10.0.0.5 -container-port 8000"
    world.proc.commands[3] = ("/usr/bin/docker-proxy", *mapping.split())
    world.proc.listen(3, "0.0.0.0", 8080)
    world.proc.listen(4, "10.0.0.5", 8000)
    return world


def test_an_edge_through_a_published_port_waits_for_what_the_proxy_accepts(tmp_path: Path) -> None:
    """It accepted nothing in two ticks: the kernel translates. All that moved meanwhile is the edge's."""
    world = published(tmp_path)
    key = flow_key(1, "10.0.0.5", 8080)
    for _ in range(2):
        world.tick([(key, 10, 20)], [connection(key)])
        assert world.edges() == set()
    world.tick([(key, 10, 20)], [connection(key)])
    assert world.edges() == {("vm/app", "vm/web", 8080)}
    (row,) = world.map.reports()["map"]({})["edges"]
    assert (row["connections"], row["tx_bytes"], row["rx_bytes"]) == (3, 30, 60)


def test_a_proxy_that_is_seen_accepting_late_is_between_from_the_beginning(tmp_path: Path) -> None:
    """A tick late, on a busy machine: no edge past it was ever told."""
    world = published(tmp_path)
    key = flow_key(1, "10.0.0.5", 8080)
    world.tick([(key, 10, 20)], [connection(key)])
    accepted = flow_key(3, "10.0.0.5", 8080, role=2, local="10.0.0.5")
    world.tick([(accepted, 20, 10), *both_ends(3, 4, 8000, "10.0.0.5")], [])
    assert world.edges() == {("vm/app", "vm/docker-proxy", 8080), ("vm/docker-proxy", "vm/web", 8000)}


def test_a_client_that_ends_in_doubt_has_its_edge(tmp_path: Path) -> None:
    """By what is known then."""
    world = published(tmp_path)
    key = flow_key(1, "10.0.0.5", 8080)
    world.tick([(key, 10, 20)], [connection(key)])
    del world.services[1]
    for _ in range(2):
        world.tick([], [])
    assert world.edges() == {("vm/app", "vm/web", 8080)}


def test_another_service_on_the_same_port_is_another_edge_and_destination(tmp_path: Path) -> None:
    """The client's process and its flow go on; whom it reaches has changed."""
    world = World(tmp_path)
    world.services |= {1: "app", 2: "redis", 3: "valkey"}
    world.proc.listen(2, "127.0.0.1", 6379)
    world.tick(both_ends(1, 2, 6379), [])
    world.proc.listen(3, "127.0.0.1", 6379)
    world.tick(both_ends(1, 3, 6379), [])
    assert world.edges() == {("vm/app", "vm/redis", 6379), ("vm/app", "vm/valkey", 6379)}
    known = {row["target"] for row in world.map.reports()["destinations"]({})["destinations"]}
    assert known == {"vm/redis", "vm/valkey"}
    assert len(world.events) == 2


def test_what_was_forgotten_is_new_again(tmp_path: Path) -> None:
    """Also where the same process goes on with the same flow."""
    world = World(tmp_path)
    world.services[1] = "app"
    key = flow_key(1, "192.0.2.1", 443)
    world.tick([(key, 1, 1)], [])
    world.tick([(key, 1, 1)], [])
    assert len(world.events) == 1
    words = {"do": "forget", "service": "app", "destination": "192.0.2.1"}
    assert world.map.reports()["destinations"](words) == {"changed": 1, "matched": 1}
    world.tick([(key, 1, 1)], [])
    world.tick([(key, 1, 1)], [])
    assert len(world.events) == 2


def test_a_quarter_of_an_hour_without_traffic_ends_the_series_not_the_memory(tmp_path: Path) -> None:
    """The edge is exported no more, and begins anew when it is seen again; its totals go on."""
    world = World(tmp_path)
    world.services[1] = "app"
    key = flow_key(1, "192.0.2.1", 443)
    world.tick([(key, 10, 20)], [])
    block = world.store.block(EDGE)
    assert len(block) == 1
    world.store.acknowledge(world.store.batch(1))
    world.tick([], [], seconds=1000)
    world.store.acknowledge(world.store.batch(2))
    assert len(block) == 0
    world.tick([(key, 10, 20)], [])
    assert len(block) == 1
    (row,) = world.map.reports()["map"]({})["edges"]
    assert row["tx_bytes"] == 20


def test_a_rush_of_new_edges_is_taken_in_steps_and_nothing_of_it_is_lost(tmp_path: Path) -> None:
    """3,000 at once: a tick takes 400, what the others move meanwhile is added once they are there."""
    world = World(tmp_path)
    keys = []
    for number in range(3000):
        world.services[number % 30 + 1] = f"app-{number % 30}"
        keys.append(flow_key(number % 30 + 1, f"198.18.{number >> 8}.{number & 255}", 443))
    rows = [(key, 10, 20) for key in keys]
    facts = [connection(key) for key in keys]
    counts = []
    for _ in range(8):
        world.tick(rows, facts)
        counts.append(len(world.edges()))
        facts = []
    assert counts == [400, 800, 1200, 1600, 2000, 2400, 2800, 3000]
    edges = world.map.reports()["map"]({})["edges"]
    assert {(row["tx_bytes"], row["rx_bytes"], row["connections"]) for row in edges} == {(80, 160, 1)}


def test_a_process_that_ends_in_a_rush_has_its_edges(tmp_path: Path) -> None:
    """Its flows are forgotten before their turn comes: they get their edges then, with all they moved."""
    world = World(tmp_path)
    rows = []
    for number in range(900):
        world.services[number % 9 + 1] = f"app-{number % 9}"
        rows.append((flow_key(number % 9 + 1, f"198.18.{number >> 8}.{number & 255}", 443), 10, 20))
    world.tick(rows, [])
    assert len(world.edges()) == 400
    flows = world.known.flows.indices()
    with mock.patch.object(world.known.flows, "quiet", return_value=flows):
        world.known.sweep(world.now_s, lambda _process: None)
    edges = world.map.reports()["map"]({})["edges"]
    assert {(row["tx_bytes"], row["rx_bytes"]) for row in edges} == {(10, 20)}
    assert len(edges) == 900
    world.tick([], [])
    assert len(world.edges()) == 900


def test_after_a_restart_the_series_of_known_edges_begin_in_steps(tmp_path: Path) -> None:
    """Edges that are active and idle are exported again, so many a tick."""
    store = Store(tmp_path, 100)
    world = World(tmp_path, kept=store)
    store.start()
    for number in range(1000):
        world.services[number % 10 + 1] = f"app-{number % 10}"
    rows = [(flow_key(n % 10 + 1, f"198.18.{n >> 8}.{n & 255}", 443), 10, 20) for n in range(1000)]
    for _ in range(3):
        world.tick(rows, [], seconds=1)
        store.commit()
        deadline = time.monotonic() + 30
        while store.staged and time.monotonic() < deadline:
            time.sleep(0.001)
    store.close(30)
    later = World(tmp_path, kept=Store(tmp_path, 100))
    later.map.open(None)  # type: ignore[arg-type]
    later.services, later.now_s = world.services, world.now_s
    counts = []
    for _ in range(3):
        later.tick([], [], seconds=1)
        counts.append(len(later.store.block(EDGE)))
    assert counts == [400, 800, 1000]


def test_other_namespaces_are_other_hosts_where_one_says_so(tmp_path: Path) -> None:
    """KERNOB_MAP_OWN_NAMESPACE: neither clients nor servers of another namespace are on the map."""
    for mine, expected in ((True, 2), (False, 0)):
        world = World(tmp_path, map_own_namespace=True)
        world.services[1] = "app"
        world.proc.host = NETNS if mine else NETNS + 1
        client = (flow_key(1, "192.0.2.1", 443), 1, 1)
        server = (flow_key(1, "198.51.100.7", 80, role=2, local="10.0.0.5"), 1, 1)
        world.tick([client, server], [])
        assert len(world.edges()) == expected


def test_a_clock_that_is_set_right_forgets_edges_and_not_what_their_flows_move(tmp_path: Path) -> None:
    """A machine that starts in 1970: all it saw is out of date at once; whatever goes on is told anew."""
    world = World(tmp_path)
    world.services |= {1: "app", 2: "cron"}
    flow, other = flow_key(1, "192.0.2.1", 443), flow_key(2, "192.0.2.2", 443)
    world.tick([(flow, 10, 20), (other, 1, 1)], [])
    world.ahead_s = 200 * 86400
    world.tick([], [])
    assert world.edges() == set()
    world.tick([(flow_key(1, "192.0.2.3", 443), 5, 5)], [])  # takes the place of one that is gone
    world.tick([(flow, 10, 20), (other, 1, 1)], [])
    edges = {
        (row["source"], row["target"]): row["tx_bytes"] for row in world.map.reports()["map"]({})["edges"]
    }
    assert edges == {
        ("vm/app", "ip/192.0.2.3"): 5,
        ("vm/app", "ip/192.0.2.1"): 10,
        ("vm/cron", "ip/192.0.2.2"): 1,
    }


def test_an_edge_that_makes_room_ends_its_series(tmp_path: Path) -> None:
    """In a map that is full of edges unseen for an hour, also where they are exported for a day."""
    world = World(tmp_path, max_map_edges=100, map_active_s=86_400.0)
    for number in range(100):
        world.services[number + 1] = f"app-{number}"
    world.tick([(flow_key(number + 1, "192.0.2.1", 443), 1, 1) for number in range(100)], [])
    world.tick([(flow_key(1, "192.0.2.1", 443), 1, 1)], [], seconds=4000)
    world.tick([(flow_key(1, "192.0.2.9", 443), 7, 7)], [])
    rows = {
        (row["source"], row["target"]): row["tx_bytes"] for row in world.map.reports()["map"]({})["edges"]
    }
    assert len(rows) == 100
    assert rows["vm/app-0", "ip/192.0.2.9"] == 7
    world.store.acknowledge(world.store.batch(1))
    assert len(world.store.block(EDGE)) == 100
