# SPDX-License-Identifier: Apache-2.0
"""A DNS server whose answers rotate, and TCP servers on every address it answers: the truth for names tests.

Arguments: DNS address, TCP port, then NAME=POOL ... where POOL is addresses separated by commas; a name of
the form ALIAS=@NAME is a CNAME. Prints "ready". Each second, each name's answer moves on by an address of
its pool; answers hold for one second. UDP and TCP. Every TCP connection to the port is read to its end, after
which as many bytes are sent back. Standard library only.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
import time

A, CNAME, AAAA = 1, 5, 28
PER_ANSWER = 2


def read_name(message: bytes, at: int) -> tuple[str, int]:
    """A name without compression, as questions have it."""
    labels = []
    while message[at]:
        labels.append(message[at + 1 : at + 1 + message[at]].decode())
        at += 1 + message[at]
    return ".".join(labels).lower(), at + 1


def written(name: str) -> bytes:
    """A name in wire format."""
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def answer(message: bytes, pools: dict[str, list[str]]) -> bytes:
    """The reply to one question: an alias's chain, then two addresses of the pool, by the clock."""
    name, at = read_name(message, 12)
    kind, _class = struct.unpack_from(">HH", message, at)
    question = message[12 : at + 4]
    records, pointer = [], b"\xc0\x0c"
    while pools.get(name, [""])[0].startswith("@"):
        name = pools[name][0][1:]
        records.append(pointer + struct.pack(">HHIH", CNAME, 1, 1, len(written(name))) + written(name))
        pointer = written(name)
    pool = [p for p in pools.get(name, []) if (":" in p) == (kind == AAAA)] if kind in (A, AAAA) else []
    for i in range(min(PER_ANSWER, len(pool))):
        address = pool[(int(time.time()) + i) % len(pool)]
        raw = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
        records.append(pointer + struct.pack(">HHIH", kind, 1, 1, len(raw)) + raw)
    flags = 0x8580 if name in pools else 0x8583
    return message[:2] + struct.pack(">HHHHH", flags, 1, len(records), 0, 0) + question + b"".join(records)


def serve_udp(listener: socket.socket, pools: dict[str, list[str]]) -> None:
    """Answer datagrams for ever."""
    while True:
        message, peer = listener.recvfrom(4096)
        listener.sendto(answer(message, pools), peer)


def serve_tcp(listener: socket.socket, pools: dict[str, list[str]]) -> None:
    """Answer one question a connection for ever."""
    while True:
        peer, _ = listener.accept()
        with peer:
            size = struct.unpack(">H", peer.recv(2))[0]
            reply = answer(peer.recv(size), pools)
            peer.sendall(struct.pack(">H", len(reply)) + reply)


def echo(peer: socket.socket) -> None:
    """Read to the end, send as many bytes back; to an HTTP request, answer at once."""
    with peer:
        size = 0
        while data := peer.recv(65536):
            if not size and data.startswith(b"GET "):
                peer.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")
                return
            size += len(data)
        peer.sendall(b"r" * size)


def main() -> None:
    """See the module."""
    where, port = sys.argv[1], int(sys.argv[2])
    pools = {name: pool.split(",") for name, _, pool in (a.partition("=") for a in sys.argv[3:])}
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind((where, 53))
    streams = socket.create_server((where, 53))
    web = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=256)
    for target, listener in ((serve_udp, datagrams), (serve_tcp, streams)):
        threading.Thread(target=target, args=(listener, pools), daemon=True).start()
    print("ready", flush=True)
    while True:
        peer, _ = web.accept()
        threading.Thread(target=echo, args=(peer,), daemon=True).start()


if __name__ == "__main__":
    main()
