# SPDX-License-Identifier: Apache-2.0
"""The server's name in the first bytes that a TLS client sends (RFC 8446 4.1.2, RFC 6066 3).

In: bytes that anybody may have written, perhaps cut short. Out: the name as it stands there, b"" where there
is none. Pure; never raises. Called by `features.names`.
"""

from __future__ import annotations

_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME, _HOST_NAME = 22, 1, 0, 0
_BEFORE_SESSION = 5 + 4 + 2 + 32  # record and handshake headers, version, random
_MAX_EXTENSIONS = 64


def server_name(data: bytes) -> bytes:
    """Reads SNI. With Encrypted ClientHello it is the name of the provider's front, which is in the open."""
    if len(data) <= _BEFORE_SESSION or data[0] != _HANDSHAKE or data[5] != _CLIENT_HELLO:
        return b""
    at = _BEFORE_SESSION
    for length_bytes in (1, 2, 1):  # session, cipher suites, compression methods
        at = _behind(data, at, length_bytes)
        if not at:
            return b""
    at += 2  # length of all extensions: what is there counts
    for _ in range(_MAX_EXTENSIONS):
        if at + 4 > len(data):
            return b""
        kind, length = _number(data, at), _number(data, at + 2)
        if kind == _SERVER_NAME:
            return _host_name(data[at + 4 : at + 4 + length])
        at += 4 + length
    return b""


def _behind(data: bytes, at: int, length_bytes: int) -> int:
    """The place behind a vector, 0 where it is not whole."""
    if at + length_bytes > len(data):
        return 0
    end = at + length_bytes + int.from_bytes(data[at : at + length_bytes], "big")
    return end if end <= len(data) else 0


def _host_name(extension: bytes) -> bytes:
    """Out of a ServerNameList: list length, then type, length, name; one of type host_name is allowed."""
    if len(extension) < 5 or extension[2] != _HOST_NAME:
        return b""
    length = _number(extension, 3)
    name = extension[5 : 5 + length]
    return name if len(name) == length else b""


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")
