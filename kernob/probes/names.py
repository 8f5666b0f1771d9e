# SPDX-License-Identifier: Apache-2.0
"""Probe `names`: what resolvers answered.

Hooks: see bpf/names.bpf.c and names_wire.bpf.c. In: records of the lookups ring. Out: Lookups. Called by
`features.names`.
"""

from __future__ import annotations

import enum
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from kernob.kernel.attach import CgroupSkb, all_of, first_of
from kernob.kernel.uprobes import Uprobe, UprobeMulti
from kernob.probes.probe import Probe

RETURN = "urp__resolver"
ENTRIES = {
    "getaddrinfo": "up__getaddrinfo",
    "gethostbyname": "up__gethostbyname",
    "gethostbyname2": "up__gethostbyname",
    "gethostbyname_r": "up__gethostbyname_r",
    "gethostbyname2_r": "up__gethostbyname2_r",
}
"""Function of a C library -> program for its entry."""

_PROGRAMS = (*dict.fromkeys(ENTRIES.values()), RETURN)

PROBE = Probe(
    name="names",
    sources=("names.bpf.c", "names_wire.bpf.c"),
    hooks=(
        first_of(
            "names",
            "calls",
            *(all_of(*(way(p.split("__")[1], p) for p in _PROGRAMS)) for way in (UprobeMulti, Uprobe)),
            essential=False,
        ),
        first_of("names", "wire", all_of(CgroupSkb("ingress", "skb__answers")), essential=False),
        first_of("names", "hello", all_of(CgroupSkb("egress", "skb__asks")), essential=False),
    ),
    blind_spots=(
        "hostnames of programs that are linked statically and ask by DNS over TLS or HTTPS",
        "answers of more than 16 addresses: those beyond are known by what the wire or other calls tell",
    ),
)


class Kind(enum.IntEnum):
    """enum lookup_kind of bpf/types.h, in its order."""

    CALL = 0
    WIRE = 1
    HELLO = 2


@dataclass(frozen=True, slots=True)
class Lookup:
    """One struct lookup. Of CALL: `name` as the process wrote it and `addresses`; else bytes in `data`."""

    kind: Kind
    pid: int
    start_ticks: int
    netns: int
    name_id: int
    name: bytes
    addresses: tuple[str, ...]
    data: bytes
    by_tcp: bool = False
    peer: str = ""


_HEAD = struct.Struct("=QQIIIBBHBBH16sI")
_NAME_BYTES = 256
_ADDRESS = struct.Struct("=I16s")


def decode(records: tuple[bytes, ...]) -> Iterator[Lookup | None]:
    """Each record of the ring; None for one that makes no sense."""
    for record in records:
        yield _decode(record)


def _decode(record: bytes) -> Lookup | None:
    if len(record) < _HEAD.size:
        return None
    head = _HEAD.unpack_from(record)
    _time, name_id, pid, start, netns, kind, count, length, family, flag, _port, peer, _pad = head
    if kind not in Kind._value2member_map_:
        return None
    body = record[_HEAD.size :]
    name, addresses = b"", tuple[str, ...]()
    if kind == Kind.CALL:
        name = body[:_NAME_BYTES].partition(b"\0")[0]
        found = body[_NAME_BYTES : _NAME_BYTES + count * _ADDRESS.size]
        addresses = tuple(
            _text(family, raw) for family, raw in _ADDRESS.iter_unpack(found[: len(found) // 20 * 20])
        )
    there = _text(family, peer) if kind == Kind.HELLO else ""
    return Lookup(Kind(kind), pid, start, netns, name_id, name, addresses, body[:length], bool(flag), there)


def _text(family: int, raw: bytes) -> str:
    if family == socket.AF_INET6:
        return socket.inet_ntop(socket.AF_INET6, raw)
    return socket.inet_ntop(socket.AF_INET, raw[:4])
