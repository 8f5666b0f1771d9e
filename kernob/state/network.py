# SPDX-License-Identifier: Apache-2.0
"""What an operator knows of the network: classes of peers, which are one, names, names of services.

In: rules, as `state.network_text` read them from the network file. Out: answers for one destination or
process. Pure; the first rule that matches decides, and what no rule matches is as without a file.
"""

from __future__ import annotations

import fnmatch
import functools
import ipaddress
from dataclasses import dataclass, field

from kernob.model import Name, PeerClass, ProcessInfo
from kernob.state.peers import peer_class
from kernob.state.text import wild

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Ports = tuple[int, int]
"""First and last port of a range."""

_REMEMBERED = 8192


@dataclass(frozen=True, slots=True)
class PeerRule:
    """Peers of `peer_class`: those within a network, under a hostname and at a port that it lists.

    A list that is empty leaves that open; a rule of another subject has the class UNKNOWN. `hosts` are
    patterns with * and ?, in lower case. `line` is where the rule stands in the file.
    """

    peer_class: PeerClass
    networks: tuple[Network, ...] = ()
    hosts: tuple[str, ...] = ()
    ports: tuple[Ports, ...] = ()
    line: int = 0

    def matches(self, address: Network | None, host: str, port: int) -> bool:
        """Whether a destination is meant; `address` as a network of itself, `host` "" where none is known."""
        return (
            (not self.networks or (address is not None and any(within(address, n) for n in self.networks)))
            and (not self.hosts or (host != "" and any(fnmatch.fnmatchcase(host, p) for p in self.hosts)))
            and (not self.ports or any(first <= port <= last for first, last in self.ports))
        )

    def hides(self, later: PeerRule) -> bool:
        """Whether whatever a later rule means is meant by this one already."""
        return (
            (not self.networks or (later.networks != () and all(self._holds(n) for n in later.networks)))
            and (not self.hosts or (later.hosts != () and all(self._covers(p) for p in later.hosts)))
            and (not self.ports or (later.ports != () and all(self._spans(p) for p in later.ports)))
        )

    def hidden_networks(self, later: PeerRule) -> tuple[Network, ...]:
        """Networks of a later rule that this one, which asks for nothing else, has taken already."""
        if self.hosts or self.ports:
            return ()
        return tuple(n for n in later.networks if self._holds(n))

    def _holds(self, network: Network) -> bool:
        return any(within(network, own) for own in self.networks)

    def _covers(self, pattern: str) -> bool:
        # a pattern's own * is an ordinary character here: *.a.example is covered by *.example
        return any(fnmatch.fnmatchcase(pattern, own) for own in self.hosts)

    def _spans(self, ports: Ports) -> bool:
        return any(first <= ports[0] and ports[1] <= last for first, last in self.ports)


@dataclass(frozen=True, slots=True)
class ServiceRule:
    """Processes that are called `name`: all patterns that are given (* and ?) must fit."""

    name: str
    cgroup: str = ""
    command: str = ""
    ports: tuple[Ports, ...] = ()
    line: int = 0

    def matches(self, info: ProcessInfo, listening: frozenset[int]) -> bool:
        """By the path of its control group, its command line, the ports it listens on."""
        return (
            (not self.cgroup or fnmatch.fnmatchcase("/" + "/".join(info.cgroup), wild(self.cgroup)))
            and (not self.command or fnmatch.fnmatchcase(" ".join(info.args), wild(self.command)))
            and (
                not self.ports
                or any(first <= port <= last for port in listening for first, last in self.ports)
            )
        )


@dataclass(frozen=True)
class NetworkFile:
    """All rules of one file; without any, everything is as by default."""

    classes: tuple[PeerRule, ...] = ()
    names: dict[str, Name] = field(default_factory=dict)
    services: tuple[ServiceRule, ...] = ()
    long_polls: tuple[PeerRule, ...] = ()
    folds: tuple[PeerRule, ...] = ()
    """Each of one network, or of one pattern of hostnames, and perhaps of ports."""

    def fold_of(self, address: str, host: str, port: int) -> str:
        """The network or the pattern that a destination is folded to, "" for none.

        Hostnames fold by patterns only, addresses that have none by networks; never the loopback's.
        """
        return self._fold_of(address, host, port) if self.folds else ""

    def fold_rule(self, address: str, host: str, port: int) -> PeerRule | None:
        """The rule by which a destination is folded; its only network or pattern is what it is folded to."""
        own = as_network(address)
        if own is not None and own.is_loopback:
            return None
        if host:
            return next((rule for rule in self.folds if rule.hosts and rule.matches(own, host, port)), None)
        return next((rule for rule in self.folds if rule.networks and rule.matches(own, "", port)), None)

    @functools.cached_property
    def _fold_of(self) -> functools._lru_cache_wrapper[str]:
        def decide(address: str, host: str, port: int) -> str:
            rule = self.fold_rule(address, host, port)
            return str((*rule.networks, *rule.hosts)[0]) if rule else ""

        return functools.lru_cache(_REMEMBERED)(decide)

    def is_long_poll(self, address: str, host: str, port: int) -> bool:
        """Whether a destination keeps its clients waiting by design."""
        if not self.long_polls:
            return False
        own = as_network(address)
        return any(rule.matches(own, host, port) for rule in self.long_polls)

    def rule_of(self, address: str, host: str, port: int) -> PeerRule | None:
        """The rule that decides a destination's class."""
        own = as_network(address)
        return next((rule for rule in self.classes if rule.matches(own, host, port)), None)

    def class_of(self, address: str, host: str, port: int) -> PeerClass:
        """The class of a destination: by the first rule that matches, else by default."""
        return self._class_of(address, host, port) if self.classes else peer_class(address)

    @functools.cached_property
    def _class_of(self) -> functools._lru_cache_wrapper[PeerClass]:
        def decide(address: str, host: str, port: int) -> PeerClass:
            rule = self.rule_of(address, host, port)
            return rule.peer_class if rule else peer_class(address)

        return functools.lru_cache(_REMEMBERED)(decide)

    def service_of(self, info: ProcessInfo, listening: frozenset[int] = frozenset()) -> str:
        """What a process is called by the first rule that fits, "" where none does."""
        return next((rule.name for rule in self.services if rule.matches(info, listening)), "")

    @property
    def wants_ports(self) -> bool:
        """Whether a service rule asks for ports."""
        return any(rule.ports for rule in self.services)

    def warnings(self) -> list[tuple[int, str]]:
        """Line and what is odd there: rules, or parts of them, that nothing can reach."""
        found = []
        for i, later in enumerate(self.classes):
            for earlier in self.classes[:i]:
                if earlier.hides(later):
                    found.append((later.line, f"nothing reaches this rule: line {earlier.line} comes first"))
                    break
                hidden = earlier.hidden_networks(later)
                if hidden:
                    networks = ", ".join(map(str, hidden))
                    found.append((later.line, f"{networks}: line {earlier.line} comes first"))
        for address in self.names:
            own = as_network(address)
            if own is not None and own.is_loopback:
                found.append((0, f"names: {address} would be the name of every service of this host"))
        return found + self._fold_warnings()

    def _fold_warnings(self) -> list[tuple[int, str]]:
        found = []
        for i, later in enumerate(self.folds):
            what = str((*later.networks, *later.hosts)[0])
            earlier = next((each for each in self.folds[:i] if each.hides(later)), None)
            if earlier is not None:
                found.append(
                    (later.line, f"{what}: nothing is folded to it: line {earlier.line} comes first")
                )
            elif any(network.is_loopback for network in later.networks):
                found.append((later.line, f"{what}: addresses of the loopback are not folded"))
            for rule in self.classes:
                parts = [
                    n for n in rule.networks for whole in later.networks if n != whole and within(n, whole)
                ]
                if parts:
                    said = f"{what}: line {rule.line} has its own class for {', '.join(map(str, parts))}"
                    found.append((later.line, f"{said}; the node's class is that of who is seen first"))
        return found


def as_network(address: str) -> Network | None:
    """An address as the network of itself, v4 where it is v4-mapped; None for what is no address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return ipaddress.ip_network(parsed)


def within(inner: Network, outer: Network) -> bool:
    """Whether a network is part of another, or is it."""
    if isinstance(inner, ipaddress.IPv4Network) and isinstance(outer, ipaddress.IPv4Network):
        return inner.subnet_of(outer)
    if isinstance(inner, ipaddress.IPv6Network) and isinstance(outer, ipaddress.IPv6Network):
        return inner.subnet_of(outer)
    return False
