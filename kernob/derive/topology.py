# SPDX-License-Identifier: Apache-2.0
"""Who stands at the ends of a connection: nodes, edges and classes of the service map (MAP).

In: a flow as one side saw it, and `Places`: which addresses are this host's, who listens on them. Out: a
`Link`, or None for the side that does not tell. Pure functions of their arguments; called by `features.map`.

A connection within the host has two flows and is one edge: the client's flow tells it, the server's only who
accepts. Whom the client reached is found by where it connected to, not by its port, so that connections that
are over before anybody looks are joined, too.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kernob.model import Link, MapNode, NodeKind, PeerClass

ANY4, ANY6 = "0.0.0.0", "::"  # noqa: S104  what a listener on every address is bound to


@dataclass(frozen=True, slots=True)
class Listener:
    """Who listens on an address and port of a network namespace (inode number).

    `forward` is where a port mapping leads that this listener only reserves (docker-proxy), address and port.
    """

    netns: int
    address: str
    port: int
    service: str
    forward: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Dial:
    """What a client asked for: its own namespace, the address and port it connected to, their hostname."""

    netns: int
    address: str
    port: int
    hostname: str = ""


@dataclass(frozen=True, slots=True)
class Reached:
    """Who answers a dial on this host. `sure` is False where later knowledge may say otherwise."""

    service: str
    netns: int
    port: int
    sure: bool = True


Relayed = Callable[[Listener, Dial], bool]
"""Whether a forwarding listener was seen accepting connections from this client itself."""


@dataclass(frozen=True, slots=True)
class Places:
    """What is where on this host, at one moment.

    `addresses` by namespace; `listeners` by (namespace, port). `accepted` has who was seen accepting by
    (namespace, address, port), which is worth more than who listens: a listening socket may be held by
    somebody who never accepts (systemd). `translated` has what was learned of address translation, by dial.
    `former` are listeners that are gone: who is refused while a service restarts meant that service.
    """

    addresses: Mapping[int, frozenset[str]] = field(default_factory=dict)
    listeners: Mapping[tuple[int, int], tuple[Listener, ...]] = field(default_factory=dict)
    former: Mapping[tuple[int, int], tuple[Listener, ...]] = field(default_factory=dict)
    accepted: Mapping[tuple[int, str, int], str] = field(default_factory=dict)
    translated: Mapping[tuple[int, str, int], Reached] = field(default_factory=dict)

    def homes(self, netns: int, address: str) -> tuple[int, ...]:
        """Namespaces that an address, seen from `netns`, may be in; the own one comes alone."""
        if is_loopback(address) or address in self.addresses.get(netns, ()):
            return (netns,)
        return tuple(other for other, known in self.addresses.items() if address in known)

    def is_here(self, netns: int, address: str) -> bool:
        """Whether an address, seen from `netns`, is this host's."""
        return bool(self.homes(netns, address))

    def listener(self, netns: int, address: str, port: int) -> Listener | None:
        """Who listens there: on that very address, else on all of its family, else on all; else who did."""
        family = ANY6 if ":" in address else ANY4
        for known in (self.listeners, self.former):
            found = known.get((netns, port), ())
            for wanted in (address, family, ANY6, ANY4):
                for listener in found:
                    if listener.address == wanted:
                        return listener
        return None


@functools.lru_cache(8192)
def is_loopback(address: str) -> bool:
    """Whether an address is one of the loopback's; what is no address is not.

    >>> is_loopback("127.0.0.53"), is_loopback("::1"), is_loopback("10.0.0.1"), is_loopback("db.example")
    (True, True, False, False)
    """
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def reached(places: Places, dial: Dial, relayed: Relayed) -> Reached | None:
    """Who on this host answers a dial; None where nobody does, or several might."""
    learned = places.translated.get((dial.netns, dial.address, dial.port))
    if learned is not None:
        return learned
    found: dict[str, Reached] = {}
    for home in places.homes(dial.netns, dial.address):
        answer = _answers(places, home, dial, relayed)
        if answer is not None:
            found.setdefault(answer.service, answer)
    return next(iter(found.values())) if len(found) == 1 else None


def _answers(places: Places, netns: int, dial: Dial, relayed: Relayed) -> Reached | None:
    """Who answers in one namespace."""
    listener = places.listener(netns, dial.address, dial.port)
    forward = listener.forward if listener is not None and not _relays(listener, dial, relayed) else None
    if forward is not None:
        address, port = forward
        for home in places.homes(netns, address):
            behind = places.listener(home, address, port)
            service = places.accepted.get((home, address, port)) or (behind.service if behind else "")
            if service:
                return Reached(service, home, port, sure=False)
    service = places.accepted.get((netns, dial.address, dial.port)) or (listener.service if listener else "")
    return Reached(service, netns, dial.port, sure=forward is None) if service else None


def _relays(listener: Listener, dial: Dial, relayed: Relayed) -> bool:
    """Whether docker-proxy answers itself: the engine's NAT rule in OUTPUT leaves out 127.0.0.0/8 and ::1."""
    return is_loopback(dial.address) or relayed(listener, dial)


def outgoing(
    host: str,
    service: str,
    dial: Dial,
    peer_class: PeerClass,
    to: Reached | None,
    *,
    here: bool,
    fold: str = "",
) -> Link:
    """The edge of a connection that a service of this host opened.

    `to` is who answers on this host, if anybody; `here` says that the address is this host's all the same;
    `fold` is the network or the pattern of hostnames that the file folds the destination to, if any.
    """
    source = service_node(host, service)
    if to is not None:
        near = is_loopback(dial.address) or to.netns == dial.netns
        target, kind = service_node(host, to.service), PeerClass.LOCALHOST if near else PeerClass.INTERNAL
    elif dial.hostname and dial.hostname != dial.address and not here:
        title = fold or dial.hostname
        target, kind = MapNode(f"dns/{title}", NodeKind.NAME, title, peer_class), peer_class
    elif is_loopback(dial.address):  # the same address on every host: not the same node
        title = f"{dial.address} ({host})"
        target, kind = MapNode(f"{host}/ip/{dial.address}", NodeKind.ADDRESS, title, peer_class), peer_class
    else:
        title = dial.address if here else fold or dial.address
        target, kind = MapNode(f"ip/{title}", NodeKind.ADDRESS, title, peer_class), peer_class
    host = dial.hostname or dial.address
    return Link(source, target, dial.port, kind, dial.address, to.port if to else 0, host)


def incoming(host: str, service: str, port: int, peer_class: PeerClass, name: str = "") -> Link:
    """The edge of a connection from outside; clients that have no name are one node a class."""
    kind = peer_class if peer_class is not PeerClass.UNKNOWN else PeerClass.EXTERNAL
    if name:
        source = MapNode(f"dns/{name}", NodeKind.NAME, name, kind)
    else:
        source = MapNode(f"clients/{kind.value}", NodeKind.CLIENTS, f"{kind.value} clients", kind)
    return Link(source, service_node(host, service), port, kind, "", port)


def folded(link: Link) -> Link:
    """The edge that stands for those beyond a cap: one a class."""
    kind = link.edge_class
    others = MapNode(f"others/{kind.value}", NodeKind.OTHERS, f"other {kind.value} destinations", kind)
    return Link(link.source, others, 0, kind, "", 0)


def service_node(host: str, service: str) -> MapNode:
    """The node of a service of this host."""
    return MapNode(f"{host}/{service}", NodeKind.SERVICE, service, None)
