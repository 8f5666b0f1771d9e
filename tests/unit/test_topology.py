# SPDX-License-Identifier: Apache-2.0
"""derive.topology: whose a connection is, in every way that services of one host reach each other."""

from __future__ import annotations

import pytest

from kernob.derive.topology import (
    Dial,
    Listener,
    Places,
    Reached,
    folded,
    incoming,
    outgoing,
    reached,
)
from kernob.model import NodeKind, PeerClass

HOST, BOX, OTHER = 1, 2, 3
ADDRESSES = {
    HOST: frozenset({"127.0.0.1", "::1", "10.0.0.5", "172.17.0.1"}),
    BOX: frozenset({"127.0.0.1", "172.17.0.2"}),
    OTHER: frozenset({"127.0.0.1", "172.17.0.3"}),
}


def places(*listeners: Listener, **more: object) -> Places:
    found: dict[tuple[int, int], tuple[Listener, ...]] = {}
    for each in listeners:
        found[each.netns, each.port] = (*found.get((each.netns, each.port), ()), each)
    return Places(ADDRESSES, found, **more)  # type: ignore[arg-type]


def whom(where: Places, dial: Dial, relayed: bool = False) -> str:
    answer = reached(where, dial, lambda _listener, _dial: relayed)
    return answer.service if answer else ""


POSTGRES = Listener(HOST, "127.0.0.1", 5432, "postgresql")
REDIS = Listener(BOX, "::", 6379, "redis")
PROXY = Listener(HOST, "0.0.0.0", 8080, "docker-proxy", ("172.17.0.2", 80))
WEB = Listener(BOX, "0.0.0.0", 80, "web")


@pytest.mark.parametrize(
    ("dial", "service"),
    [
        (Dial(HOST, "127.0.0.1", 5432), "postgresql"),
        (Dial(BOX, "127.0.0.1", 5432), ""),  # another namespace's loopback
        (Dial(HOST, "172.17.0.2", 6379), "redis"),  # into a container
        (Dial(OTHER, "172.17.0.2", 6379), "redis"),  # from one container into another
        (Dial(BOX, "172.17.0.2", 6379), "redis"),  # a container calls itself by its address
        (Dial(HOST, "10.0.0.9", 6379), ""),  # another host
        (Dial(HOST, "10.0.0.5", 5432), ""),  # listens on the loopback only
        (Dial(HOST, "10.0.0.5", 9), ""),  # nobody listens
    ],
)
def test_where_a_dial_ends(dial: Dial, service: str) -> None:
    """By the namespace the address is in, and who listens on it there."""
    assert whom(places(POSTGRES, REDIS), dial) == service


def test_the_listener_bound_closest_answers() -> None:
    """The very address before all addresses; the own family before the other."""
    both = places(
        Listener(HOST, "0.0.0.0", 80, "nginx"),
        Listener(HOST, "::", 80, "other"),
        Listener(HOST, "127.0.0.1", 80, "debug"),
    )
    assert whom(both, Dial(HOST, "127.0.0.1", 80)) == "debug"
    assert whom(both, Dial(HOST, "10.0.0.5", 80)) == "nginx"
    assert whom(both, Dial(HOST, "::1", 80)) == "other"


def test_who_accepts_counts_more_than_who_listens() -> None:
    """systemd may hold the socket of a service that accepts."""
    held = places(Listener(HOST, "0.0.0.0", 631, "init"), accepted={(HOST, "127.0.0.1", 631): "cups"})
    assert whom(held, Dial(HOST, "127.0.0.1", 631)) == "cups"
    assert whom(held, Dial(HOST, "10.0.0.5", 631)) == "init"


def test_a_published_port_leads_to_the_container() -> None:
    """docker-proxy only holds the port: the edge is to the container, and not certain."""
    answer = reached(places(PROXY, WEB), Dial(HOST, "10.0.0.5", 8080), lambda *_: False)
    assert answer == Reached("web", BOX, 80, sure=False)


def test_a_proxy_that_relays_is_shown() -> None:
    """It was seen accepting from this client, or cannot but: there are two connections, and so two edges."""
    assert whom(places(PROXY, WEB), Dial(HOST, "10.0.0.5", 8080), relayed=True) == "docker-proxy"
    assert whom(places(PROXY, WEB), Dial(HOST, "127.0.0.1", 8080)) == "docker-proxy"
    assert whom(places(PROXY), Dial(HOST, "127.0.0.1", 8080)) == "docker-proxy"  # the container is gone


def test_a_former_listener_answers_while_nobody_does() -> None:
    """A service that restarts refuses for a moment: who is refused meant it, unless somebody else listens."""
    gone = {(HOST, 5432): (POSTGRES,)}
    assert whom(places(former=gone), Dial(HOST, "127.0.0.1", 5432)) == "postgresql"
    new = Listener(HOST, "0.0.0.0", 5432, "pgbouncer")
    assert whom(places(new, former=gone), Dial(HOST, "127.0.0.1", 5432)) == "pgbouncer"


def test_one_address_in_two_namespaces_is_nobodys() -> None:
    """Two isolated networks may use the same addresses: nothing is guessed."""
    same = {HOST: frozenset({"127.0.0.1"}), BOX: frozenset({"10.1.0.2"}), OTHER: frozenset({"10.1.0.2"})}
    two = (Listener(BOX, "10.1.0.2", 80, "a"), Listener(OTHER, "10.1.0.2", 80, "b"))
    by_port = {(each.netns, each.port): (each,) for each in two}
    assert reached(Places(same, by_port), Dial(HOST, "10.1.0.2", 80), lambda *_: False) is None
    assert whom(Places(same, by_port), Dial(BOX, "10.1.0.2", 80)) == "a"  # its own comes first


def test_what_translation_did_is_remembered() -> None:
    """A dial that was seen to end somewhere else ends there."""
    learned = places(translated={(HOST, "203.0.113.9", 443): Reached("web", BOX, 80)})
    assert whom(learned, Dial(HOST, "203.0.113.9", 443)) == "web"


def test_nodes_and_classes_of_what_goes_out() -> None:
    """Service, name, address, loopback: each its own id and class."""
    external, local = PeerClass.EXTERNAL, PeerClass.LOCALHOST
    link = outgoing("vm", "app", Dial(HOST, "192.0.2.1", 443, "api.example"), external, None, here=False)
    assert (link.key, link.target.title, link.edge_class) == (
        ("vm/app", "dns/api.example", 443),
        "api.example",
        external,
    )
    link = outgoing("vm", "app", Dial(HOST, "192.0.2.1", 443, "192.0.2.1"), external, None, here=False)
    assert (link.target.id, link.target.kind) == ("ip/192.0.2.1", NodeKind.ADDRESS)
    link = outgoing("vm", "app", Dial(HOST, "127.0.0.1", 9), local, None, here=True)
    assert link.target.id == "vm/ip/127.0.0.1"
    same = Reached("redis", HOST, 6379)
    link = outgoing("vm", "app", Dial(HOST, "10.0.0.5", 6379, "db"), PeerClass.INTERNAL, same, here=True)
    assert (link.target.id, link.edge_class, link.serves) == ("vm/redis", local, 6379)
    boxed = Reached("web", BOX, 80)
    link = outgoing("vm", "app", Dial(HOST, "10.0.0.5", 8080), PeerClass.INTERNAL, boxed, here=True)
    assert (link.key, link.edge_class, link.serves) == (("vm/app", "vm/web", 8080), PeerClass.INTERNAL, 80)


def test_clients_from_outside_are_one_node_a_class() -> None:
    """Never one node per address; a name makes it somebody."""
    link = incoming("vm", "nginx", 443, PeerClass.EXTERNAL)
    assert (link.key, link.source.title) == (("clients/external", "vm/nginx", 443), "external clients")
    assert incoming("vm", "nginx", 443, PeerClass.INTERNAL, "bastion").source.id == "dns/bastion"


def test_what_a_cap_folds_keeps_its_source_and_class() -> None:
    """A scanner's thousand addresses are one edge."""
    link = outgoing("vm", "scan", Dial(HOST, "192.0.2.1", 1), PeerClass.EXTERNAL, None, here=False)
    assert folded(link).key == ("vm/scan", "others/external", 0)
