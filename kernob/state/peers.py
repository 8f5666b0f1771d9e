# SPDX-License-Identifier: Apache-2.0
"""Where a peer lives: localhost, internal or external, by rules that are data.

In: an address as text. Out: a `PeerClass`. Called once for each new flow; the answers are remembered.
A network file will later put its own rules before the default ones (first match wins).
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from kernob.model import PeerClass

REMEMBERED_ADDRESSES = 8192
"""Answers kept by a classifier, about 1.5 MB when full; beyond it the least used are worked out anew."""


@dataclass(frozen=True, slots=True)
class ClassRule:
    """Addresses within `network` (CIDR) belong to `peer_class`."""

    network: str
    peer_class: PeerClass


DEFAULT_RULES: tuple[ClassRule, ...] = (
    ClassRule("127.0.0.0/8", PeerClass.LOCALHOST),  # RFC 1122, 3.2.1.3
    ClassRule("::1/128", PeerClass.LOCALHOST),  # RFC 4291, 2.5.3
    ClassRule("0.0.0.0/32", PeerClass.UNKNOWN),
    ClassRule("::/128", PeerClass.UNKNOWN),
    ClassRule("10.0.0.0/8", PeerClass.INTERNAL),  # RFC 1918
    ClassRule("172.16.0.0/12", PeerClass.INTERNAL),
    ClassRule("192.168.0.0/16", PeerClass.INTERNAL),
    ClassRule("100.64.0.0/10", PeerClass.INTERNAL),  # RFC 6598, shared address space
    ClassRule("169.254.0.0/16", PeerClass.INTERNAL),  # RFC 3927, link-local
    ClassRule("fe80::/10", PeerClass.INTERNAL),  # RFC 4291, 2.5.6
    ClassRule("fc00::/7", PeerClass.INTERNAL),  # RFC 4193, unique local
    # Groups and broadcasts that no router passes on to the Internet: mDNS, VRRP and SSDP stay at home.
    ClassRule("224.0.0.0/24", PeerClass.INTERNAL),  # RFC 5771, 4
    ClassRule("239.0.0.0/8", PeerClass.INTERNAL),  # RFC 2365
    ClassRule("255.255.255.255/32", PeerClass.INTERNAL),  # RFC 919
    ClassRule("ff01::/16", PeerClass.INTERNAL),  # RFC 7346: interface-local,
    ClassRule("ff02::/16", PeerClass.INTERNAL),  # link-local,
    ClassRule("ff05::/16", PeerClass.INTERNAL),  # site-local,
    ClassRule("ff08::/16", PeerClass.INTERNAL),  # organization-local
    ClassRule("0.0.0.0/0", PeerClass.EXTERNAL),
    ClassRule("::/0", PeerClass.EXTERNAL),
)


class Classifier:
    """Gives addresses their class by the first rule that holds them."""

    def __init__(self, rules: Sequence[ClassRule] = DEFAULT_RULES) -> None:
        """Raises ValueError for a network that is no CIDR or has bits beyond its prefix set."""
        self._rules: dict[int, list[tuple[int, int, PeerClass]]] = {4: [], 6: []}
        for rule in rules:
            network = ipaddress.ip_network(rule.network)
            row = (int(network.netmask), int(network.network_address), rule.peer_class)
            self._rules[network.version].append(row)
        self.classify = functools.lru_cache(REMEMBERED_ADDRESSES)(self._classify)
        """Class of one address as text; `UNKNOWN` for what is empty, no address, or in no rule."""

    def _classify(self, address: str) -> PeerClass:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:  # "" of an unconnected UDP socket, or a name: nothing is known of it
            return PeerClass.UNKNOWN
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        number = int(parsed)
        for mask, network, peer_class in self._rules[parsed.version]:
            if number & mask == network:
                return peer_class
        return PeerClass.UNKNOWN


_DEFAULT = Classifier()


def peer_class(address: str) -> PeerClass:
    """Class of `address` by the default rules (MAP.md, Classes); v4-mapped v6 addresses count as v4.

    >>> peer_class("::ffff:10.1.2.3").value
    'internal'
    """
    return _DEFAULT.classify(address)
