# SPDX-License-Identifier: Apache-2.0
"""Keeps `Places` true: who listens on which address, in every network namespace of this host.

In: the kernel side's map of listeners, /proc. Out: `places`. Called by `features.map`, in the tick thread.
/proc is looked at when the map changed, and once a minute for what it does not tell (new addresses).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kernob.derive.topology import Dial, Listener, Places, Reached
from kernob.kernel.listening import Listening, Namespaces, forward_of
from kernob.kernel.maps import BpfMap
from kernob.kernel.proc_sockets import ProcSockets

_LOOK_S: Final = 60.0
_TRIES: Final = 4
"""So many looks, a tick apart, are for a listener whose holder is not found (it may just start, or move)."""
_REMEMBERED_MOST: Final = 8192


class PlaceWatch:
    """One for the life of the agent.

    `changed` says that the last `look` found something new; `announced` has (service, address, port) by
    which other hosts reach services of this one.
    """

    def __init__(self, listening: Listening, sockets: ProcSockets, service_of: Callable[[int], str]) -> None:
        """`service_of` names the service of a process by its PID, "" where it is gone."""
        self._listening = listening
        self._sockets = sockets
        self._service_of = service_of
        self._signature: tuple[bytes, bytes] | None = None
        self._looked_s = 0.0
        self._by_inode: dict[int, Listener] = {}
        self._in_vain: dict[int, int] = {}  # inode of who has no name yet: looks so far
        self._former: dict[tuple[int, int], tuple[Listener, ...]] = {}
        self._accepted: dict[tuple[int, str, int], str] = {}
        self._translated: dict[tuple[int, str, int], Reached] = {}
        self._relaying: set[tuple[int, str, int, str]] = set()
        self.own: frozenset[str] = frozenset()
        self.host_netns = 0
        self.changed = False
        self.announced: tuple[tuple[str, str, int], ...] = ()
        self.places = Places()

    def look(self, listeners: BpfMap, now_s: float) -> None:
        """Looks again where that is due. Raises MapError."""
        keys, values = listeners.read()
        signature = (keys.tobytes(), values.tobytes())
        self.changed = False
        unnamed = any(looks < _TRIES for looks in self._in_vain.values())
        if unnamed or signature != self._signature or now_s - self._looked_s >= _LOOK_S:
            self._signature, self._looked_s = signature, now_s
            self.take(self._listening.read())

    def take(self, found: Namespaces) -> None:
        """Takes one reading of /proc."""
        new = [each for each in found.listening if each.inode not in self._by_inode]
        holders = self._sockets.holders({each.inode for each in new}) if new else {}
        looks_before, self._in_vain = self._in_vain, {}
        for each in new:
            pid = holders.get(each.inode)
            service = self._service_of(pid) if pid else ""
            if pid is None or not service:  # it ended meanwhile, or cannot be seen; the next look may tell
                self._in_vain[each.inode] = looks_before.get(each.inode, 0) + 1
                continue
            forward = forward_of(self._listening.command_line(pid))
            listener = Listener(each.netns, each.address, each.port, service, forward)
            self._by_inode[each.inode] = listener
            self._forget_accepted(listener)
        present = {each.inode for each in found.listening}
        for inode in [inode for inode in self._by_inode if inode not in present]:
            self._remember(self._by_inode.pop(inode))
        listeners: dict[tuple[int, int], tuple[Listener, ...]] = {}
        for listener in self._by_inode.values():
            at = (listener.netns, listener.port)
            listeners[at] = (*listeners.get(at, ()), listener)
        places = Places(found.addresses, listeners, self._former, self._accepted, self._translated)
        self.changed = (places.addresses, places.listeners) != (self.places.addresses, self.places.listeners)
        self.places, self.own, self.host_netns = places, found.own, found.host
        self.announced = self._find_announced()
        if self.changed:
            self._translated.clear()

    def accept(self, netns: int, address: str, port: int, peer: str, service: str) -> bool:
        """Takes note of who accepts; True where that changes who answers there."""
        if len(self._accepted) >= _REMEMBERED_MOST:
            self._accepted.clear()
        before = self._accepted.get((netns, address, port))
        self._accepted[netns, address, port] = service
        listener = self.places.listener(netns, address, port)
        if listener is not None and listener.forward is not None:
            if len(self._relaying) >= _REMEMBERED_MOST:
                self._relaying.clear()
            new = (netns, address, port, peer) not in self._relaying
            self._relaying.add((netns, address, port, peer))
            return new
        return before != service

    def translate(self, dial: Dial, to: Reached) -> None:
        """Takes note of where a dial really ended."""
        if len(self._translated) >= _REMEMBERED_MOST:
            self._translated.clear()
        self._translated[dial.netns, dial.address, dial.port] = to

    def relayed(self, listener: Listener, dial: Dial) -> bool:
        """Whether a forwarding listener was seen accepting from this client's own addresses."""
        local = self.places.addresses.get(dial.netns, frozenset())
        at = (listener.netns, dial.address, dial.port)
        return any((*at, peer) in self._relaying for peer in (*local, dial.address))

    def _find_announced(self) -> tuple[tuple[str, str, int], ...]:
        found: set[tuple[str, str, int]] = set()
        for listener in self._by_inode.values():
            if listener.netns != self.host_netns:
                continue
            everywhere = listener.address in ("0.0.0.0", "::")  # noqa: S104
            addresses = self.own if everywhere else self.own & {listener.address}
            if listener.address == "0.0.0.0":  # noqa: S104
                addresses = frozenset(address for address in addresses if ":" not in address)
            service = self._behind(listener)
            found.update((service, address, listener.port) for address in addresses)
        return tuple(sorted(found))

    def _behind(self, listener: Listener) -> str:
        """Whose the port is: where a mapping leads, unless it is seen relaying for others itself."""
        if listener.forward is None:
            return listener.service
        address, port = listener.forward
        for home in self.places.homes(listener.netns, address):
            behind = self.places.listener(home, address, port)
            if behind is not None:
                return behind.service
        return listener.service

    def _forget_accepted(self, listener: Listener) -> None:
        """A new listener: whoever accepted there before does so no more."""
        at = (listener.netns, listener.port)
        for key in [key for key in self._accepted if (key[0], key[2]) == at]:
            if self._accepted[key] != listener.service:
                del self._accepted[key]
        if at in self._former:
            rest = tuple(each for each in self._former[at] if each.address != listener.address)
            self._former[at] = rest

    def _remember(self, listener: Listener) -> None:
        if len(self._former) >= _REMEMBERED_MOST:
            self._former.clear()
        at = (listener.netns, listener.port)
        rest = tuple(each for each in self._former.get(at, ()) if each.address != listener.address)
        self._former[at] = (*rest, listener)
