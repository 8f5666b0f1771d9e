# SPDX-License-Identifier: Apache-2.0
"""features.map with an injected clock: a day of restarts, short-lived clients and refusals is the truth."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from kernob.config import Settings
from kernob.features.feature import Tick
from kernob.features.map import Map
from kernob.features.places import PlaceWatch
from kernob.kernel.listening import ListeningSocket, Namespaces
from kernob.model import Event, Fate, Outcome, ProcessInfo, ProcessKey
from kernob.probes import tcp
from kernob.probes.traffic import TrafficRows
from kernob.state.connections import ConnectionState, TcpCaps
from kernob.state.known import Known
from kernob.state.map_series import EDGE
from kernob.state.series import SeriesStore
from kernob.state.store import Store
from tests.unit.records import closed, fates, flow_key, live
from tests.unit.series_points import points_of

NETNS = 4026531840
S = 10**9
BEGIN_NS = 1_800_000_000 * S
TICK_S = 60
HOUR = 3600 // TICK_S
OURS = frozenset({"127.0.0.1", "10.0.0.5"})


class Proc:
    """Who listens, in the place of /proc."""

    def __init__(self) -> None:
        self.sockets: dict[int, tuple[ListeningSocket, int]] = {}
        self.commands: dict[int, tuple[str, ...]] = {}
        self.host = NETNS

    def listen(self, pid: int, address: str, port: int) -> None:
        inode = len(self.sockets) + 1000 * port + pid
        self.sockets = {i: s for i, s in self.sockets.items() if s[0].port != port}
        self.sockets[inode] = ListeningSocket(NETNS, address, port, inode), pid

    def close(self, port: int) -> None:
        self.sockets = {i: s for i, s in self.sockets.items() if s[0].port != port}

    def read(self) -> Namespaces:
        sockets = tuple(socket for socket, _ in self.sockets.values())
        return Namespaces(sockets, {NETNS: OURS}, frozenset({"10.0.0.5"}), self.host)

    def holders(self, inodes: Collection[int]) -> dict[int, int]:
        return {inode: self.sockets[inode][1] for inode in inodes}

    def command_line(self, pid: int) -> tuple[str, ...]:
        return self.commands.get(pid, ())

    def map(self, _name: str) -> Proc:
        """The kernel side's listeners, as the map that tells whether anything changed."""
        return SimpleNamespace(read=lambda: (np.array(sorted(self.sockets)), np.zeros(1)))  # type: ignore[return-value]


class World:
    """One host; processes are named by `services`."""

    def __init__(self, directory: Path, kept: Store | None = None, **settings: Any) -> None:
        self.proc = Proc()
        self.services: dict[int, str] = {}
        self.store = SeriesStore()
        self.known = Known(self._resolve)
        self.connections = ConnectionState(self.store, tcp.SPECS, TcpCaps(1000, 100_000, 100), self.known)
        self.known.keep(self.connections)
        places = PlaceWatch(self.proc, self.proc, lambda pid: self.services[pid])  # type: ignore[arg-type]
        chosen = dataclasses.replace(
            Settings(), state_dir=directory, resource_attributes=(("host.name", "vm"),), **settings
        )
        self.map = Map(chosen, self.store, self.known, self.connections, places, kept)
        self.now_s = 0
        self.ahead_s = 0  # of the wall clock
        self.events: list[Event] = []

    def _resolve(self, key: ProcessKey) -> ProcessInfo:
        return ProcessInfo(key, self.services[key.pid], "", service=self.services[key.pid], netns=NETNS)

    def tick(self, flows: list[tuple[bytes, int, int]], facts: list[Any], seconds: int = TICK_S) -> None:
        """One tick: bytes of closed connections, and what became of connections."""
        self.now_s += seconds
        keys, values = closed(*flows)
        sockets = live()
        growth = self.known.flows.update(keys, values, sockets, self.now_s)
        self.known.learn()
        now_ns = BEGIN_NS + (self.now_s + self.ahead_s) * S
        since_ns = now_ns - seconds * S
        nothing = np.zeros(0, np.dtype([("flow", keys.dtype), ("kind", "u1")]))
        self.connections.update(fates(*facts), (nothing, np.zeros(0)), sockets, since_ns)
        rows = TrafficRows(keys, values, sockets, sockets, sockets)
        self.map.tick(Tick(self.proc, rows, growth, self.now_s, now_ns, since_ns, None))  # type: ignore[arg-type]
        self.events += self.map.events()
        self.known.sweep(self.now_s, lambda _process: None)
        self.known.processes.mark_ended(
            [p.key for p in self.known.processes.alive() if p.key.pid not in self.services]
        )

    def edges(self) -> set[tuple[str, str, int]]:
        rows = self.map.reports()["map"]({})["edges"]
        return {(row["source"], row["target"], row["port"]) for row in rows}


def connection(key: bytes, outcome: Outcome = Outcome.OK) -> tuple[bytes, int, int, int, int, int]:
    return key, Fate.CONNECTION, outcome, 0, 0, 1


def both_ends(
    client: int, server: int, port: int, address: str = "127.0.0.1"
) -> list[tuple[bytes, int, int]]:
    """A connection within the host: the client's flow and the server's."""
    return [
        (flow_key(client, address, port), 100, 300),
        (flow_key(server, address, port, role=2, local=address), 300, 100),
    ]


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


def test_another_service_on_the_same_port_is_another_edge(tmp_path: Path) -> None:
    """The client's process and its flow go on; whom it reaches has changed."""
    world = World(tmp_path)
    world.services |= {1: "app", 2: "redis", 3: "valkey"}
    world.proc.listen(2, "127.0.0.1", 6379)
    world.tick(both_ends(1, 2, 6379), [])
    world.proc.listen(3, "127.0.0.1", 6379)
    world.tick(both_ends(1, 3, 6379), [])
    assert world.edges() == {("vm/app", "vm/redis", 6379), ("vm/app", "vm/valkey", 6379)}


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


def test_a_service_that_takes_over_a_port_is_a_new_destination(tmp_path: Path) -> None:
    """Although the client's flow goes on."""
    world = World(tmp_path)
    world.services |= {1: "app", 2: "redis", 3: "valkey"}
    world.proc.listen(2, "127.0.0.1", 6379)
    world.tick(both_ends(1, 2, 6379), [])
    world.proc.listen(3, "127.0.0.1", 6379)
    world.tick(both_ends(1, 3, 6379), [])
    known = {row["target"] for row in world.map.reports()["destinations"]({})["destinations"]}
    assert known == {"vm/redis", "vm/valkey"}
    assert len(world.events) == 2
