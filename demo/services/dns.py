# SPDX-License-Identifier: Apache-2.0
"""A name server that rotates: `dns.py ADDRESS NAME=IP[,IP...] ...`; one A record a time, TTL 1 s."""

from __future__ import annotations

import socket
import struct
import sys
from itertools import cycle

from wire import log

TYPE_A = 1


def question(query: bytes) -> tuple[str, int, int]:
    """Name and type that a query asks for, and where its question ends."""
    at, labels = 12, []
    while size := query[at]:
        labels.append(query[at + 1 : at + 1 + size].decode("ascii", "replace"))
        at += size + 1
    return ".".join(labels).lower(), struct.unpack_from(">H", query, at + 1)[0], at + 5


def main(address: str, *pairs: str) -> None:
    """See the module."""
    names = {name: cycle(ips.split(",")) for name, _, ips in (pair.partition("=") for pair in pairs)}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, 53))
        log("names are served")
        while True:
            query, whom = sock.recvfrom(512)
            try:
                name, kind, end = question(query)
            except (IndexError, struct.error):
                continue
            records = b""
            if name in names and kind == TYPE_A:
                ip = socket.inet_aton(next(names[name]))
                records = struct.pack(">HHHIH", 0xC00C, TYPE_A, 1, 1, 4) + ip
            code = 0 if name in names else 3
            flags = struct.pack(">HHHHH", 0x8580 | code, 1, bool(records), 0, 0)
            sock.sendto(query[:2] + flags + query[12:end] + records, whom)


if __name__ == "__main__":
    main(*sys.argv[1:])
