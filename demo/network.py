# SPDX-License-Identifier: Apache-2.0
"""The world outside: a network namespace behind an interface of this host, which nothing else is behind.

Addresses are of the range for benchmarks (RFC 2544), which no network routes, and of 10/8; no packet of the
demo's leaves the machine.
Faults of the network are nftables rules in the namespace. Needs root.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .owned import BrokenError, Owned, attempt, sh

OUTSIDE = "kernob-demo"
INTERFACE = "kdemo0"
HERE, DNS = "10.97.60.1", "10.97.60.2"
PAYMENTS = ("198.18.60.11", "198.18.60.12", "198.18.60.13", "198.18.60.14")
STORAGE, STRANGER, CUSTOMERS = "198.18.60.30", "198.18.60.66", "198.18.60.200"
BEHIND = ("ip", "netns", "exec", OUTSIDE)
_TABLE = "inet kernob_demo"


def build(owned: Owned) -> None:
    """Make it; what an earlier demo left is removed first. BrokenError where its addresses are in use."""
    _remove()
    taken = sh("ip", "-o", "address")
    for address in (HERE, "198.18.60."):
        if f" {address}" in taken:
            raise BrokenError(f"this host has the demo's address {address} already:\n{taken}")
    sh("ip", "netns", "add", OUTSIDE)
    owned.later(_remove)
    sh("ip", "link", "add", INTERFACE, "type", "veth", "peer", "name", "inside", "netns", OUTSIDE)
    # Segments as they are on a real wire, not of 64 kB: so that 3 % of them can get lost.
    sh("ip", "link", "set", INTERFACE, "up", "gso_max_segs", "1")
    sh("ip", "address", "add", f"{HERE}/24", "dev", INTERFACE)
    sh("ip", "route", "add", "198.18.60.0/24", "dev", INTERFACE)
    inside = ("ip", "-n", OUTSIDE)
    sh(*inside, "link", "set", "lo", "up")
    sh(*inside, "link", "set", "inside", "up", "gso_max_segs", "1")
    sh(*inside, "address", "add", f"{DNS}/24", "dev", "inside")
    for address in (*PAYMENTS, STORAGE, STRANGER, CUSTOMERS):
        sh(*inside, "address", "add", f"{address}/32", "dev", "inside")
    sh(*inside, "route", "add", "default", "via", HERE)
    sh(*BEHIND, "nft", f"add table {_TABLE}")
    sh(*BEHIND, "nft", f"add chain {_TABLE} input {{ type filter hook input priority 0; }}")


@contextlib.contextmanager
def rule(text: str) -> Iterator[None]:
    """A rule on what arrives outside, for a while: `tcp dport 80 drop`."""
    sh(*BEHIND, "nft", f"add rule {_TABLE} input {text}")
    try:
        yield
    finally:
        attempt(*BEHIND, "nft", f"flush chain {_TABLE} input")


def _remove() -> None:
    attempt("ip", "link", "delete", INTERFACE)
    attempt("ip", "netns", "delete", OUTSIDE)
