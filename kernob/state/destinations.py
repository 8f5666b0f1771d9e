# SPDX-License-Identifier: Apache-2.0
"""Whom a flow connects, and the attributes that say so on series.

In: struct flow_key (bpf/types.h), names of processes and hosts. Out: Destinations and attributes. Called by
`state.known`, `state.traffic`, `state.connections` and `state.events`.
"""

from __future__ import annotations

import dataclasses
import functools
import socket
from dataclasses import dataclass

from kernob.model import Attributes, Name, NameSource, PeerClass, Role, Transport
from kernob.state.names import peer_class

OTHER = "~other"
"""Stands for everything a cap did not admit, one series a service."""

NOBODY: Attributes = (("process.executable.name", OTHER),)
NOWHERE: Attributes = (("server.address", OTHER),)

_MAPPED = bytes(10) + b"\xff\xff"
DIRECTIONS = ("transmit", "receive")


@dataclass(frozen=True, slots=True)
class Destination:
    """A flow's other end, and our own address where we are the server.

    `name` is the hostname of the peer of a client, "" where none is known; `where` and `host` then have the
    address. `name_id` is what the kernel side knew of it when the connection began (see bpf/names.bpf.c).
    """

    role: Role
    transport: Transport
    address: str
    port: int
    peer: str
    peer_class: PeerClass
    family: int
    netns: int
    where: Attributes = ()
    name: str = ""
    name_source: NameSource = NameSource.IP
    name_id: int = 0

    @property
    def host(self) -> str:
        """What an operator calls the other end: its hostname, else its address."""
        return self.name or self.address

    def named(self, name: Name | None) -> Destination:
        """The same, under a hostname; only what we connected to has one."""
        if name is None or self.role is not Role.CLIENT:
            return self
        where: Attributes = (("server.address", name.host), ("server.port", self.port))
        return dataclasses.replace(self, where=where, name=name.host, name_source=name.source)


def decode_destination(key: bytes) -> Destination:
    """Reads a struct flow_key (bpf/types.h), bytes 10 to 52."""
    port = int.from_bytes(key[10:12], "little")
    family, role, transport = key[12], Role(key[13]), Transport(key[14])
    netns = int.from_bytes(key[16:20], "little")
    if role is Role.UNKNOWN:
        return Destination(role, transport, "", 0, "", PeerClass.UNKNOWN, family, netns)
    peer, local = _address(family, key[20:36]), _address(family, key[36:52])
    address = local if role is Role.SERVER else peer
    where: Attributes = (("server.address", address), ("server.port", port))
    name_id = int.from_bytes(key[36:44], "little") if role is Role.CLIENT else 0
    return Destination(
        role, transport, address, port, peer, peer_class(peer), family, netns, where, name_id=name_id
    )


def destination_of(
    is_server: bool, local: bytes, local_port: int, peer: bytes, peer_port: int, netns: int
) -> Destination:
    """Whom a TCP connection with these ends connects; addresses of 4 or 16 bytes."""
    family = socket.AF_INET if len(peer) == 4 or peer.startswith(_MAPPED) else socket.AF_INET6
    ours, theirs = (_address(family, raw[-4:] if family == socket.AF_INET else raw) for raw in (local, peer))
    address, port = (ours, local_port) if is_server else (theirs, peer_port)
    where: Attributes = (("server.address", address), ("server.port", port))
    role = Role.SERVER if is_server else Role.CLIENT
    return Destination(role, Transport.TCP, address, port, theirs, peer_class(theirs), family, netns, where)


def _address(family: int, raw: bytes) -> str:
    if family == socket.AF_INET6:
        return socket.inet_ntop(socket.AF_INET6, raw)
    return socket.inet_ntop(socket.AF_INET, raw[:4])


# Equal pairs are one object each: what a series' name costs is then its outer tuple.


@functools.lru_cache(1024)
def identity(pid: int, executable: str, service: str) -> tuple[Attributes, Attributes]:
    """What names a process, and what names its service."""
    who = (("process.pid", pid), ("process.executable.name", executable))
    return who, (("kernob.service", service),)


@functools.lru_cache(16)
def direction_and_transport(direction: int, transport: Transport) -> Attributes:
    """Attributes of bytes that move one way (index of DIRECTIONS)."""
    return (
        ("network.io.direction", DIRECTIONS[direction]),
        ("network.transport", transport.name.lower()),
    )


@functools.lru_cache(16)
def side_of(role: Role, peer_class: PeerClass) -> Attributes:
    """The class of the peer and, where it is known, who connected."""
    side: Attributes = (("kernob.peer.class", peer_class.value),)
    return side if role is Role.UNKNOWN else (*side, ("network.tcp.handshake.role", role.name.lower()))
