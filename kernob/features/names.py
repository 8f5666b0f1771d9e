# SPDX-License-Identifier: Apache-2.0
"""Hostnames: what resolvers answered becomes the name of what processes talk to.

In: the lookups ring, C libraries that appear. Out: answers to `known`, which asks once for each new flow.
What was answered before a connection began is known when its flow is read: the ring is emptied first.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from kernob.config import Settings
from kernob.features.feature import Feature, Tick
from kernob.kernel import uprobes
from kernob.kernel.hosts_files import HostsFiles
from kernob.kernel.libraries import Libraries
from kernob.kernel.ringbuf import RingBuffer, RingReader
from kernob.model import Event, Name, NameSource, ProcessKey
from kernob.probes import names as probe
from kernob.probes.names import Kind, Lookup
from kernob.probes.traffic import Loss
from kernob.state import dns_message
from kernob.state.destinations import Destination
from kernob.state.hostname_text import name_id, normalise
from kernob.state.hostnames import HOST, HostNames, Scope, netns_scope, process_scope
from kernob.state.tls_hello import server_name

if TYPE_CHECKING:
    from kernob.kernel.session import Session

_SCAN_S = 0.9


class Names(Feature):
    """See the module. Does nothing where names are switched off or this kernel has none of the hooks."""

    def __init__(self, settings: Settings, wake: Callable[[], None]) -> None:
        """`wake` is called from a thread when answers wait to be taken."""
        self._settings = settings
        self._wake = wake
        self.table = HostNames(time.monotonic, settings.max_names)
        self._hosts = HostsFiles(settings.proc_root, time.monotonic)
        self._by_id: OrderedDict[int, Name | None] = OrderedDict()
        self._libraries: Libraries | None = None
        self._ring: RingBuffer | None = None
        self._reader: RingReader | None = None
        self._scanned_s = 0.0
        self._undecoded = self._unreadable = 0
        self.needs_admin = False
        """Whether probes on libraries that appear later take CAP_SYS_ADMIN."""

    def open(self, session: Session) -> None:
        """Puts probes on the libraries that are mapped now. Raises MapError."""
        if not self._settings.names:
            return
        try:
            ring = session.map("lookups")
        except KeyError:
            return
        self._ring = RingBuffer(ring.fd, ring.max_entries)
        self._reader = RingReader(self._ring, self._wake)
        functions = {}
        at_return = session.program(probe.RETURN)
        for function, entry in probe.ENTRIES.items():
            program = session.program(entry)
            if program and at_return:
                functions[function] = (program, at_return)
        if functions:
            by_link = session.strategy("names", "calls").startswith("uprobe_multi")
            prober = uprobes.probe_by_link if by_link else uprobes.probe
            self.needs_admin = not by_link
            self._libraries = Libraries(self._settings.proc_root, functions, prober)
            self._scan()

    def configure(self, names: dict[str, Name]) -> None:
        """Names an operator gave to addresses, also where nothing else is learned."""
        self.table.configure(names)

    def start(self) -> None:
        """Begins to read, in a thread that has no more capabilities than the caller's."""
        if self._reader:
            self._reader.start()

    def _scan(self) -> None:
        if self._libraries:
            self._libraries.scan()
            self._scanned_s = time.monotonic()

    def tick(self, tick: Tick) -> None:
        """Looks for libraries that are new, once a second at most."""
        if tick.now_s - self._scanned_s >= _SCAN_S:
            self._scan()

    def events(self) -> list[Event]:
        """Takes what was answered; there are no events of it."""
        self._take()
        return []

    def of(self, process: ProcessKey, there: Destination) -> Name | None:
        """The hostname of what a process talks to: what it had when it connected, else what is known now."""
        self._take()
        known = self._by_id.get(there.name_id) if there.name_id else None
        if known:
            self._by_id.move_to_end(there.name_id)
        found = self.table.of(process.pid, process.start_ticks, there.netns, there.address, known)
        if found or not self._settings.names:
            return found
        host = normalise(self._hosts.name_of(process.pid, there.address))
        return Name(host, NameSource.HOSTS) if host else None

    def _take(self) -> None:
        for batch in self._reader.take_all() if self._reader else ():
            for lookup in probe.decode(batch.raw):
                if lookup is None:
                    self._undecoded += 1
                elif lookup.kind is Kind.CALL:
                    self._called(lookup)
                elif lookup.kind is Kind.WIRE:
                    self._answered(lookup)
                else:
                    self._greeted(lookup)

    def _called(self, lookup: Lookup) -> None:
        name = self._identify(lookup.name_id, lookup.name, NameSource.GETADDRINFO)
        if name:
            self.table.learn(_scopes(lookup), lookup.addresses, name)

    def _answered(self, lookup: Lookup) -> None:
        answer = dns_message.parse(lookup.data)
        if answer is None:
            self._unreadable += 1
            return
        name = self._identify(name_id(answer.wire_name), answer.name, NameSource.DNS)
        if name:
            self.table.learn(_scopes(lookup), answer.addresses, name, answer.ttl_s)

    def _greeted(self, lookup: Lookup) -> None:
        """A TLS client's first bytes: told only where the connection began without a name."""
        host = normalise(server_name(lookup.data))
        known = self.table.of(lookup.pid, lookup.start_ticks, lookup.netns, lookup.peer)
        if host and known is None:
            own = (process_scope(lookup.pid, lookup.start_ticks),)
            self.table.learn(own, (lookup.peer,), Name(host, NameSource.SNI))

    def _identify(self, number: int, raw: bytes, source: NameSource) -> Name | None:
        """Notes what a number of the kernel side stands for; None for what is no hostname."""
        host = normalise(raw)
        name = Name(host, source) if host else None
        self._by_id[number] = name
        self._by_id.move_to_end(number)
        if len(self._by_id) > self._settings.max_names:
            self._by_id.popitem(last=False)
        return name

    def losses(self, counts: NDArray[Any]) -> dict[str, int]:
        """Answers that were not kept, by cause."""
        if not self._settings.names:
            return {}
        return {
            "names_full": self.table.evicted,
            "names_ring_full": int(counts[Loss.LOOKUPS_FULL]),
            "names_undecoded": self._undecoded,
        }

    def detach(self) -> None:
        """Takes the probes away and ends the reading thread; what is in the ring then is still taken."""
        if self._libraries:
            self._libraries.close()
            self._libraries = None
        if self._reader:
            self._reader.stop()

    def close(self) -> None:
        """Lets go of everything. Safe to call twice."""
        self.detach()
        self._reader = None
        if self._ring:
            self._ring.close()
            self._ring = None


def _scopes(lookup: Lookup) -> tuple[Scope, ...]:
    wider: tuple[Scope, ...] = (netns_scope(lookup.netns), HOST) if lookup.netns else (HOST,)
    return (process_scope(lookup.pid, lookup.start_ticks), *wider) if lookup.pid else wider
