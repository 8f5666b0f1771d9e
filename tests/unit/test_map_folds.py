# SPDX-License-Identifier: Apache-2.0
"""Networks and patterns of hostnames that are one node of the map each, from the flow to the store."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kernob.derive.scores import worst
from kernob.derive.topology import Dial, Reached, incoming, outgoing
from kernob.model import (
    DestinationRow,
    DestinationState,
    EdgeRow,
    MapNode,
    Name,
    NameSource,
    NodeKind,
    NodeRow,
    PeerClass,
)
from kernob.state import network_text
from kernob.state.map_folds import refolded
from kernob.state.map_history import read_map
from kernob.state.network import NetworkFile
from kernob.state.service_map import HOSTS_OF_EDGE
from kernob.state.store import Store
from tests.unit.map_world import World
from tests.unit.records import flow_key
from tests.unit.series_points import points_of

NETWORK, PATTERN = "203.0.113.0/24", "*.s3.example"
RULES = network_text.parse(f'[[fold]]\nnetworks = ["{NETWORK}"]\nports = [443]\nhosts = ["{PATTERN}"]')
NAMES = {
    "198.51.100.1": "a.s3.example",
    "198.51.100.2": "b.s3.example",
    "203.0.113.50": "api.example",
    "198.51.100.3": "client.s3.example",
}


def folding(directory: Path, rules: NetworkFile = RULES, kept: Store | None = None) -> World:
    """One host whose network file has these rules; some addresses have a hostname."""
    world = World(directory, kept)
    world.known.name_by(
        lambda _process, there: Name(NAMES[there.peer], NameSource.DNS) if there.peer in NAMES else None
    )
    world.map.fold_by(rules.fold_of)
    world.map.name_clients({"198.51.100.3": Name(NAMES["198.51.100.3"], NameSource.CONFIGURED)})
    return world


def labels(world: World, metric: str) -> list[dict[str, Any]]:
    """Attributes of each point of a metric."""
    batch = world.store.batch(time.time_ns(), everything=True)
    return [
        {kv.key: kv.value.string_value or kv.value.int_value for kv in point.attributes}
        for point in points_of(batch, metric)
        if not point.flags & 1
    ]


def rows(world: World) -> dict[tuple[str, str, int], Mapping[str, Any]]:
    """The map's edges by what makes them the ones they are."""
    found = world.map.reports()["map"]({})["edges"]
    return {(row["source"], row["target"], row["port"]): row for row in found}


def test_what_is_folded_is_one_node_edge_and_destination(tmp_path: Path) -> None:
    """Two hundred addresses of a network are one of each; a hostname, another port are not folded by it."""
    world = folding(tmp_path)
    world.services[1] = "app"
    flows = [(flow_key(1, f"203.0.113.{number}", 443), 10, 20) for number in range(1, 201) if number != 50]
    flows += [(flow_key(1, "203.0.113.50", 443), 1, 1), (flow_key(1, "203.0.113.9", 22), 2, 2)]
    flows += [(flow_key(1, f"198.51.100.{number}", 443), 100, 100) for number in (1, 2)]
    world.tick(flows, [])
    assert {key: row["tx_bytes"] for key, row in rows(world).items()} == {
        ("vm/app", f"ip/{NETWORK}", 443): 1990,
        ("vm/app", "dns/api.example", 443): 1,
        ("vm/app", "ip/203.0.113.9", 22): 2,
        ("vm/app", f"dns/{PATTERN}", 443): 200,
    }
    assert [(event.address, event.port) for event in world.events] == [
        (NETWORK, 443),
        ("api.example", 443),
        ("203.0.113.9", 22),
        (PATTERN, 443),
    ]
    assert world.events[0].body.startswith(
        f"app talks to {NETWORK} port 443 (203.0.113.1) for the first time"
    )
    assert world.events[0].peer == "203.0.113.1"
    edges = {row["id"]: row["server.address"] for row in labels(world, "kernob.map.edge")}
    assert edges[f"vm/app|ip/{NETWORK}|443"] == NETWORK
    assert edges[f"vm/app|dns/{PATTERN}|443"] == PATTERN
    seen = {
        (row["server.address"], row["server.port"]) for row in labels(world, "kernob.destination.first_seen")
    }
    assert seen == {(NETWORK, 443), ("api.example", 443), ("203.0.113.9", 22), (PATTERN, 443)}
    titles = {row["id"]: row["title"] for row in labels(world, "kernob.map.node")}
    assert titles[f"ip/{NETWORK}"] == NETWORK
    # one more is nothing new; and no address tells the backend to put one service in the place of all
    world.tick([(flow_key(1, "203.0.113.250", 443), 10, 20)], [])
    assert len(world.events) == 4
    joins = {row["id"] for row in labels(world, "kernob.map.edge.address")}
    assert joins == {"vm/app|ip/203.0.113.9|22", "vm/app|dns/api.example|443"}


def test_the_baseline_is_managed_by_network(tmp_path: Path) -> None:
    """Accepted and forgotten under the name that is shown."""
    world = folding(tmp_path)
    world.services[1] = "app"
    world.tick([(flow_key(1, "203.0.113.7", 443), 1, 1), (flow_key(1, "198.51.100.1", 443), 1, 1)], [])
    ask = world.map.reports()["destinations"]
    for where in (NETWORK, PATTERN, f"ip/{NETWORK}"):
        words = {"service": "app", "destination": where}
        assert ask(words | {"do": "accept"})["matched"] == 1
    assert {row["address"]: row["state"] for row in ask({})["destinations"]} == {
        NETWORK: "accepted",
        PATTERN: "accepted",
    }
    ask({"do": "forget", "service": "app", "destination": NETWORK})
    world.tick([(flow_key(1, "203.0.113.8", 443), 1, 1)], [])
    assert len(world.events) == 3


def test_services_and_addresses_of_this_host_are_never_folded(tmp_path: Path) -> None:
    """Whatever the file says of the network they are in."""
    world = folding(tmp_path, network_text.parse('[[fold]]\nnetworks = ["0.0.0.0/0"]\nhosts = ["*"]'))
    world.services |= {1: "app", 2: "redis"}
    world.proc.listen(2, "10.0.0.5", 6379)
    flows = [(flow_key(1, address, port), 1, 1) for address, port in (("10.0.0.5", 6379), ("10.0.0.5", 9))]
    flows += [(flow_key(1, "127.0.0.1", 9), 1, 1), (flow_key(1, "10.0.0.6", 9), 1, 1)]
    world.tick(flows, [])
    assert world.edges() == {
        ("vm/app", "vm/redis", 6379),
        ("vm/app", "ip/10.0.0.5", 9),
        ("vm/app", "vm/ip/127.0.0.1", 9),
        ("vm/app", "ip/0.0.0.0/0", 9),
    }


def test_clients_that_the_file_names_fold_by_their_name(tmp_path: Path) -> None:
    """Those without a name are one node a class as ever."""
    world = folding(tmp_path)
    world.services[1] = "app"
    served = [
        (flow_key(1, peer, 443, role=2, local="10.0.0.5"), 5, 7) for peer in ("198.51.100.3", "203.0.113.7")
    ]
    world.tick(served, [])
    assert world.edges() == {(f"dns/{PATTERN}", "vm/app", 443), ("clients/external", "vm/app", 443)}


def test_an_edge_to_several_is_as_healthy_as_the_worst_of_them(tmp_path: Path) -> None:
    """Per dimension, over the latest hosts; those of an earlier life are not known any more."""
    asked: list[str] = []

    def score(_service: str, host: str, _port: int) -> dict[str, float]:
        asked.append(host)
        return {"203.0.113.1": {"latency": 0.1}, "203.0.113.2": {"latency": 0.9, "stability": 0.4}}.get(
            host, {}
        )

    world = folding(tmp_path)
    world.map._score_of = score
    world.services[1] = "app"
    world.tick([(flow_key(1, f"203.0.113.{number}", 443), 1, 1) for number in (1, 2, 3)], [])
    (row,) = rows(world).values()
    assert row["scores"] == {"latency": 0.1, "stability": 0.4}
    world.tick(
        [(flow_key(1, f"203.0.113.{number}", 443), 1, 1) for number in range(100, HOSTS_OF_EDGE + 98)], []
    )
    asked.clear()
    (row,) = rows(world).values()
    assert len(asked) == HOSTS_OF_EDGE
    assert row["scores"] == {"latency": 0.9, "stability": 0.4}


def test_one_of_many_that_turns_out_to_be_a_service_takes_only_itself_along(tmp_path: Path) -> None:
    """The edge to the network stays with the others; it goes where there were none."""
    for others in ((), ("203.0.113.8",)):
        world = folding(tmp_path)
        world.services |= {1: "app", 2: "web"}
        key = flow_key(1, "203.0.113.7", 443)
        more = [(flow_key(1, address, 443), 100, 1) for address in others]
        world.tick([(key, 1, 1), *more], [])
        dial, to = Dial(4026531840, "203.0.113.7", 443), Reached("web", 4026531840, 8443)
        world.map._places.translate(dial, to)
        assert world.map._latest is not None
        flow = int(world.known.flows.indices()[0])
        world.map._reassign(flow, world.map._latest)
        world.tick([(key, 1, 1), *more], [])
        moved = {edge: row["tx_bytes"] for edge, row in rows(world).items()}
        if others:
            assert moved == {("vm/app", "vm/web", 443): 1, ("vm/app", f"ip/{NETWORK}", 443): 201}
        else:
            assert moved == {("vm/app", "vm/web", 443): 2}


def lived(directory: Path, world: World, store: Store, flows: list[Any]) -> None:
    """One tick of a life that ends."""
    store.start()
    world.tick(flows, [])
    store.commit()
    deadline = time.monotonic() + 30
    while store.staged and time.monotonic() < deadline:
        time.sleep(0.001)
    store.close(30)


def test_a_fold_that_is_written_later_takes_what_was_known_along(tmp_path: Path) -> None:
    """Nodes, edges and baseline of an earlier life become one, in memory and in the file; nothing is new."""
    flows = [(flow_key(1, f"203.0.113.{number}", 443), 10, 20) for number in range(1, 41) if number != 50]
    flows += [(flow_key(1, f"198.51.100.{number}", 443), 100, 100) for number in (1, 2)]
    flows += [(flow_key(1, "192.0.2.1", 443), 1, 1), (flow_key(1, "203.0.113.9", 22), 2, 2)]
    store = Store(tmp_path, 100)
    world = folding(tmp_path, NetworkFile(), store)
    world.services[1] = "app"
    lived(tmp_path, world, store, flows)
    assert len(read_map(tmp_path)[1]) == 44
    store = Store(tmp_path, 100)
    later = folding(tmp_path, RULES, store)
    later.services, later.now_s = world.services, world.now_s
    later.map.open(None)  # type: ignore[arg-type]
    lived(tmp_path, later, store, [(flow_key(1, "203.0.113.200", 443), 5, 5)])
    assert later.events == []
    expected = {
        ("vm/app", f"ip/{NETWORK}", 443): 405,
        ("vm/app", f"dns/{PATTERN}", 443): 200,
        ("vm/app", "ip/192.0.2.1", 443): 1,
        ("vm/app", "ip/203.0.113.9", 22): 2,
    }
    assert {key: row["tx_bytes"] for key, row in rows(later).items()} == expected
    nodes, edges, destinations = read_map(tmp_path)
    assert {row.key: row.tx_bytes for row in edges} == expected
    assert {row.id for row in nodes} == {"vm/app"} | {target for _, target, _ in expected}
    assert {(row.target, row.port): row.address for row in destinations} == {
        (target, port): target.partition("/")[2] for _, target, port in expected
    }
    last = folding(tmp_path, RULES, Store(tmp_path, 100))
    last.map.open(None)  # type: ignore[arg-type]
    assert last.edges() == set(expected)


def test_who_knew_an_address_by_its_name_still_does(tmp_path: Path) -> None:
    """After a restart: a connection older than the agent has no name. To others it is an address."""
    store = Store(tmp_path, 100)
    world = folding(tmp_path, RULES, store)
    world.services |= {1: "app", 2: "job"}
    api = ("203.0.113.50", 443)
    lived(tmp_path, world, store, [(flow_key(1, *api), 9, 9), (flow_key(1, "203.0.113.50", 22), 5, 5)])
    later = folding(tmp_path, RULES, Store(tmp_path, 100))
    later.known.name_by(lambda _process, _there: None)
    later.services, later.now_s = world.services, world.now_s
    later.map.open(None)  # type: ignore[arg-type]
    later.tick([(flow_key(1, *api), 1, 1), (flow_key(1, "203.0.113.50", 8443), 3, 3)], [])
    later.tick([(flow_key(2, *api), 2, 2)], [])
    assert {key: row["tx_bytes"] for key, row in rows(later).items()} == {
        ("vm/app", "dns/api.example", 443): 10,
        ("vm/app", "dns/api.example", 22): 5,
        ("vm/app", "ip/203.0.113.50", 8443): 3,
        ("vm/job", f"ip/{NETWORK}", 443): 2,
    }
    assert [(event.service, event.address) for event in later.events] == [
        ("app", "203.0.113.50"),
        ("job", NETWORK),
    ]


def test_edges_of_an_earlier_life_are_not_taken_for_those_of_one_host(tmp_path: Path) -> None:
    """After a restart the hosts behind a folded edge are unknown: none of them takes its history along."""
    store = Store(tmp_path, 100)
    world = folding(tmp_path, RULES, store)
    world.services[1] = "app"
    lived(tmp_path, world, store, [(flow_key(1, f"203.0.113.{number}", 443), 9, 9) for number in (1, 2)])
    later = folding(tmp_path, RULES, Store(tmp_path, 100))
    later.services, later.now_s = world.services, world.now_s
    later.map.open(None)  # type: ignore[arg-type]
    later.tick([(flow_key(1, "203.0.113.1", 443), 1, 1)], [])
    assert later.map._state.hosts(0) == ("", "203.0.113.1")


def destination(target: str, state: DestinationState, first_ns: int) -> DestinationRow:
    return DestinationRow("app", f"ip/{target}", 443, target, state, first_ns)


def test_what_is_accepted_stays_so_only_where_all_of_it_was() -> None:
    """Else the whole is as the first of it that nobody accepted; known since the first of all."""
    accepted, new, learned = DestinationState.ACCEPTED, DestinationState.NEW, DestinationState.LEARNED
    one, two, three = "203.0.113.1", "203.0.113.2", "203.0.113.3"
    for states, expected in (
        ((accepted, accepted, accepted), accepted),
        ((accepted, new, learned), new),
        ((accepted, learned, new), learned),
    ):
        baseline = [
            destination(a, s, n) for n, (a, s) in enumerate(zip((one, two, three), states, strict=True))
        ]
        (_, _, found), replaced = refolded(([], [], baseline), RULES.fold_of)
        assert found == [destination(NETWORK, expected, 0)]
        assert replaced.destinations == [("app", f"ip/{each}", 443) for each in (one, two, three)]


def test_a_fold_that_is_widened_takes_the_narrow_one_along() -> None:
    """Not the other way round: which addresses they were is not known any more."""
    wide = network_text.parse('[[fold]]\nnetworks = ["203.0.0.0/16"]')
    narrow = network_text.parse('[[fold]]\nnetworks = ["203.0.113.0/25"]')
    known = [destination(NETWORK, DestinationState.LEARNED, 7)]
    assert refolded(([], [], known), wide.fold_of)[0][2][0].target == "ip/203.0.0.0/16"
    assert refolded(([], [], known), narrow.fold_of)[0][2] == known
    assert refolded(([], [], known), RULES.fold_of)[0][2] == known


ENDS = st.sampled_from(
    [
        "vm/app",
        "ip/203.0.113.1",
        "ip/203.0.113.2",
        "dns/a.s3.example",
        "dns/x.example",
        "ip/10.0.0.1",
        "ip/x/y",
    ]
)
EDGES = st.dictionaries(
    st.tuples(ENDS, ENDS, st.sampled_from([22, 443])),
    st.tuples(*[st.integers(0, 9)] * 4, st.integers(1, 9), st.integers(1, 9)),
    max_size=12,
)


@given(EDGES)
def test_folding_neither_adds_nor_loses(edges: dict[tuple[str, str, int], tuple[int, ...]]) -> None:
    """Sums over all edges stay; ends are nodes; keys are unique; doing it again changes nothing."""
    given_edges = [EdgeRow(*key, "external", "", *values) for key, values in edges.items()]
    ends = {end for row in given_edges for end in (row.source, row.target)}
    nodes = [NodeRow(end, "address", end, "external", (), 1, 1) for end in ends]
    (shown, found, _), replaced = refolded((nodes, given_edges, []), RULES.fold_of)
    for name in ("tx_bytes", "rx_bytes", "connections", "failures"):
        assert sum(getattr(row, name) for row in found) == sum(getattr(row, name) for row in given_edges)
    assert len({row.key for row in found}) == len(found)
    assert {end for row in found for end in (row.source, row.target)} == {node.id for node in shown}
    assert not set(replaced.edges) & {row.key for row in found}
    again, nothing = refolded((shown, found, []), RULES.fold_of)
    assert (again, nothing.edges, nothing.nodes) == ((shown, found, []), [], [])


def test_a_node_knows_what_it_stands_for() -> None:
    """By what the store keeps of it; loopback nodes and services stand for themselves."""
    external = PeerClass.EXTERNAL
    dial = Dial(1, "203.0.113.7", 443)
    link = outgoing("vm", "app", dial, external, None, here=False, fold=NETWORK)
    assert (link.target, link.server) == (
        MapNode(f"ip/{NETWORK}", NodeKind.ADDRESS, NETWORK, external),
        NETWORK,
    )
    named = dataclasses.replace(dial, hostname="a.s3.example")
    link = outgoing("vm", "app", named, external, None, here=False, fold=PATTERN)
    assert (link.target.fold, link.server, link.host) == (PATTERN, PATTERN, "a.s3.example")
    own = outgoing("vm", "app", dial, external, None, here=True, fold=NETWORK)
    assert (own.target.id, own.target.fold, own.server) == ("ip/203.0.113.7", "", "203.0.113.7")
    loopback = outgoing("ip", "app", Dial(1, "127.0.0.1", 9), PeerClass.LOCALHOST, None, here=True)
    assert (loopback.target.id, loopback.target.fold) == ("ip/ip/127.0.0.1", "")
    assert incoming("ip", "a/b", 80, external).target.fold == ""
    assert worst([{"a": 1.0}, {"a": 0.5, "b": 1.0}]) == {"a": 0.5, "b": 1.0}
