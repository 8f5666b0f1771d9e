# SPDX-License-Identifier: Apache-2.0
"""Which hostname an address stood for: per process first, then per network namespace, then on the host.

In: answers of resolvers, each with its source and, where one is known, its time to live. Out: a Name for
an address that a process talks to. Pure state with an injected clock; held by `features.names`, asked by
`state.known` once for each new flow. Bounded: the least recently used entries go first, and are counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kernob.model import Name, NameSource

HOST = ("host",)
Scope = tuple[str, ...] | tuple[str, int] | tuple[str, int, int]
"""Where an answer holds: ("process", pid, start_ticks), ("netns", inode) or HOST."""

DEFAULT_TTL_S = 300.0
"""Of answers that do not say how long they hold (getaddrinfo, SNI)."""

MAX_TTL_S = 86_400.0
_NOWHERE = ("0.0.0.0", "::")  # noqa: S104 - what filters answer for blocked names
_STRENGTH = {NameSource.DNS: 1, NameSource.SNI: 1, NameSource.GETADDRINFO: 2}
"""Within a process, what it asked its library for says more than what the library then asked on the wire."""


def process_scope(pid: int, start_ticks: int) -> Scope:
    """The scope of one process; exec keeps it."""
    return ("process", pid, start_ticks)


def netns_scope(netns: int) -> Scope:
    """The scope of a network namespace, by inode number: that of a container, mostly."""
    return ("netns", netns)


@dataclass(slots=True)
class _Entry:
    name: Name
    expires_s: float


class HostNames:
    """See the module. `evicted` counts answers that were dropped though they still held (cumulative)."""

    def __init__(self, clock: Callable[[], float], capacity: int = 50_000, grace_s: float = 3600.0) -> None:
        """`clock` gives monotonic seconds; an answer holds for `grace_s` beyond its time to live.

        For pools keep connecting to what they once resolved.
        """
        self._clock = clock
        self._capacity = capacity
        self._grace_s = grace_s
        self._entries: OrderedDict[tuple[Scope, str], _Entry] = OrderedDict()
        self._fixed: dict[str, Name] = {}
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._entries)

    def learn(
        self,
        scopes: Iterable[Scope],
        addresses: Iterable[str],
        name: Name,
        ttl_s: float = DEFAULT_TTL_S,
    ) -> list[tuple[Scope, str]]:
        """Notes that `name` had these addresses, in each of the scopes; returns what now stands so.

        Loopback addresses are noted for processes only: every service of a host shares them. A process's
        getaddrinfo is not replaced by what goes over the wire for it.
        """
        expires_s = self._clock() + min(max(ttl_s, 0.0), MAX_TTL_S) + self._grace_s
        wanted = [address for address in dict.fromkeys(addresses) if address not in _NOWHERE]
        keys = [
            (scope, address)
            for scope in scopes
            for address in wanted
            if scope[0] == "process" or not _is_loopback(address)
        ]
        return [key for key in keys if self._note(key, name, expires_s)]

    def _note(self, key: tuple[Scope, str], name: Name, expires_s: float) -> bool:
        old = self._entries.get(key)
        if old and key[0][0] == "process" and old.expires_s > self._clock():
            if _STRENGTH.get(old.name.source, 0) > _STRENGTH.get(name.source, 0):
                return False
            if old.name.host == name.host:
                expires_s = max(expires_s, old.expires_s)
        self._entries[key] = _Entry(name, expires_s)
        self._entries.move_to_end(key)
        if len(self._entries) > self._capacity:
            _key, dropped = self._entries.popitem(last=False)
            self.evicted += dropped.expires_s > self._clock()
        return True

    def configure(self, names: dict[str, Name]) -> None:
        """Names an operator gave to addresses: they come before everything learned."""
        self._fixed = dict(names)

    def of(
        self, pid: int, start_ticks: int, netns: int, address: str, connected_to: Name | None = None
    ) -> Name | None:
        """The name that `address` has for this process now, by the narrowest scope that knows one.

        `connected_to` is what the process had for it when it connected, where that is known.
        """
        fixed = self._fixed.get(address) or connected_to
        if fixed:
            return fixed
        now_s = self._clock()
        for scope in (process_scope(pid, start_ticks), netns_scope(netns), HOST):
            key = (scope, address)
            entry = self._entries.get(key)
            if entry is None:
                continue
            if entry.expires_s <= now_s:
                del self._entries[key]
                continue
            self._entries.move_to_end(key)
            return entry.name
        return None


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"
