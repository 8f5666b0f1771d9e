# SPDX-License-Identifier: Apache-2.0
"""DNS answers as they come over the wire (RFC 1035): which name was asked for, and what addresses it has.

In: the bytes of one message, which anybody may have sent. Out: an Answer, or None. Pure; never raises; looks
at each byte a bounded number of times. Called by `features.names`. A library would build objects for all that
a message may hold; this reads three types of records (docs/names.md has what that costs).
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

_HEADER = struct.Struct(">HHHHHH")
_RECORD = struct.Struct(">HHIH")
_A, _CNAME, _AAAA, _INTERNET = 1, 5, 28, 1
_RESPONSE, _OPCODE_AND_CODE = 0x8000, 0x780F
_LENGTHS = {_A: 4, _AAAA: 16}
_MAX_NAME_BYTES, _MAX_JUMPS = 255, 16
_MAX_RECORDS = 64
_MAPPED = bytes(10) + b"\xff\xff"
_MAX_CHAIN = 16


@dataclass(frozen=True, slots=True)
class Answer:
    """The question's name in text form, as it was asked, and the addresses it leads to, as text.

    `wire_name` is the same in wire format, lower case, without its last byte: what the kernel side hashes.
    `ttl_s` is the shortest time to live on the way.
    """

    name: bytes
    wire_name: bytes
    addresses: tuple[str, ...]
    ttl_s: int


def parse(message: bytes) -> Answer | None:
    """Reads a response to one question about addresses; None for anything else.

    Records behind damage or the message's end (it may have been cut short) are left out; those of names that
    the question does not lead to are ignored.
    """
    if len(message) < _HEADER.size:
        return None
    _id, flags, questions, answers, _authority, _additional = _HEADER.unpack_from(message)
    if not flags & _RESPONSE or flags & _OPCODE_AND_CODE or questions != 1:
        return None
    asked = _name(message, _HEADER.size)
    if asked is None or not asked[0]:
        return None
    labels, at = asked
    found: dict[bytes, list[tuple[str, int]]] = {}
    aliases: dict[bytes, tuple[bytes, int]] = {}
    at += 4  # type and class
    for _ in range(min(answers, _MAX_RECORDS)):
        at = _read_record(message, at, found, aliases)
        if not at:
            break
    addresses, ttl_s = _follow(_canonical(labels), found, aliases)
    if not addresses:
        return None
    wire = b"".join(bytes((len(label),)) + label for label in labels).lower()
    return Answer(b".".join(labels), wire, addresses, ttl_s)


def _read_record(
    message: bytes,
    at: int,
    found: dict[bytes, list[tuple[str, int]]],
    aliases: dict[bytes, tuple[bytes, int]],
) -> int:
    """Notes what one record says; returns the place behind it, 0 where it is not whole."""
    owner = _name(message, at)
    if owner is None or owner[1] + _RECORD.size > len(message):
        return 0
    kind, family, ttl_s, length = _RECORD.unpack_from(message, owner[1])
    begin = owner[1] + _RECORD.size
    end = begin + length
    if end > len(message):
        return 0
    if family != _INTERNET:
        return int(end)
    name = _canonical(owner[0])
    if ttl_s >> 31:  # RFC 2181, 8: as 0
        ttl_s = 0
    if _LENGTHS.get(kind) == length:
        found.setdefault(name, []).append((_text(message[begin:end]), ttl_s))
    elif kind == _CNAME:
        target = _name(message, begin)
        if target is not None:
            aliases.setdefault(name, (_canonical(target[0]), ttl_s))
    return int(end)


def _text(address: bytes) -> str:
    if len(address) == 16 and not address.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET6, address)
    return socket.inet_ntop(socket.AF_INET, address[-4:])


def _follow(
    name: bytes, found: dict[bytes, list[tuple[str, int]]], aliases: dict[bytes, tuple[bytes, int]]
) -> tuple[tuple[str, ...], int]:
    """Addresses at the end of the chain of aliases that begins with `name`, and the shortest time to live."""
    shortest = 2**31
    for _ in range(_MAX_CHAIN):
        if name in found:
            shortest = min(shortest, *(ttl_s for _address, ttl_s in found[name]))
            return tuple(dict.fromkeys(address for address, _ttl in found[name])), shortest
        if name not in aliases:
            break
        name, ttl_s = aliases[name]
        shortest = min(shortest, ttl_s)
    return (), 0


def _canonical(labels: tuple[bytes, ...]) -> bytes:
    """A key that is the same for equal names; a label may hold any byte, so its length goes with it."""
    return b"".join(bytes((len(label),)) + label for label in labels).lower()


def _name(message: bytes, at: int) -> tuple[tuple[bytes, ...], int] | None:
    """Labels of the name at a place, and the place behind it. Pointers lead backwards only."""
    labels: list[bytes] = []
    size, behind, limit = 0, 0, at
    for _ in range(_MAX_JUMPS):
        while True:
            if at >= len(message):
                return None
            length = message[at]
            if length >= 0xC0:
                break
            if length > 63 or at + 1 + length > len(message):
                return None
            at += 1 + length
            if not length:
                return tuple(labels), behind or at
            size += 1 + length
            if size >= _MAX_NAME_BYTES:
                return None
            labels.append(message[at - length : at])
        if at + 1 >= len(message):
            return None
        target = (length & 0x3F) << 8 | message[at + 1]
        behind = behind or at + 2
        if target >= limit:
            return None
        at = limit = target
    return None
