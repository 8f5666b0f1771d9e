# SPDX-License-Identifier: Apache-2.0
"""Connects to hosts by name, over and over, by one way of resolving; prints what it sent to each name.

Arguments: the way (getaddrinfo, gethostbyname, gethostbyname_r, gethostbyname2_r, numeric, wire-udp,
wire-udp-unconnected, wire-tcp, each with -6; sni, for
hosts given as NAME@ADDRESS; after "wait:" it prints "waiting" and begins with a line of
input), rounds, pause in seconds, port, hosts. Prints one JSON line: pid, {host: [connections, bytes]}, and
all addresses it was given.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import ssl
import struct
import sys
import time
from pathlib import Path

libc = ctypes.CDLL(None)


class Hostent(ctypes.Structure):
    """struct hostent."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("aliases", ctypes.c_void_p),
        ("family", ctypes.c_int),
        ("length", ctypes.c_int),
        ("addresses", ctypes.POINTER(ctypes.POINTER(ctypes.c_ubyte * 4))),
    )


def by_reentrant(host: str, with_family: bool) -> str:
    """gethostbyname_r or gethostbyname2_r of the C library."""
    entry, buffer = Hostent(), ctypes.create_string_buffer(8192)
    result, code = ctypes.POINTER(Hostent)(), ctypes.c_int()
    rest = (
        ctypes.byref(entry),
        buffer,
        ctypes.c_size_t(len(buffer)),
        ctypes.byref(result),
        ctypes.byref(code),
    )
    if with_family:
        status = libc.gethostbyname2_r(host.encode(), socket.AF_INET, *rest)
    else:
        status = libc.gethostbyname_r(host.encode(), *rest)
    if status or not bool(result):
        raise OSError(status, f"{host}: h_errno {code.value}")
    return socket.inet_ntoa(bytes(result.contents.addresses[0].contents))


def by_wire(way: str, host: str) -> str:
    """Asks the server of resolv.conf itself: udp, udp-unconnected, tcp; -6 behind it for a v6 address."""
    kind = 28 if way.endswith("-6") else 1
    way = way.removesuffix("-6")
    lines = Path("/etc/resolv.conf").read_text().splitlines()
    server = (next(line.split()[1] for line in lines if line.startswith("nameserver")), 53)
    name = b"".join(bytes([len(label)]) + label.encode() for label in host.upper().split("."))
    question = b"\7\7\1\0\0\1\0\0\0\0\0\0" + name + struct.pack(">BHH", 0, kind, 1)
    if way == "tcp":
        with socket.create_connection(server) as there:
            there.sendall(struct.pack(">H", len(question)) + question)
            reply = there.recv(65535)[2:]
    else:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
            if way == "udp":
                there.connect(server)
                there.send(question)
            else:
                there.sendto(question, server)
            reply = there.recv(65535)
    first = reply.rindex(struct.pack(">HHI", kind, 1, 1)) + 10
    family = socket.AF_INET6 if kind == 28 else socket.AF_INET
    return socket.inet_ntop(family, reply[first : first + (16 if kind == 28 else 4)])


def hello(host: str) -> bytes:
    """The first bytes of a TLS client that asks for a host."""
    out = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname=host).do_handshake()
    return out.read()


def resolve(way: str, host: str) -> str:
    """An address of the host."""
    if way == "getaddrinfo":
        return str(socket.getaddrinfo(host, None)[0][4][0])
    if way == "gethostbyname":
        libc.gethostbyname.restype = ctypes.POINTER(Hostent)
        return socket.inet_ntoa(bytes(libc.gethostbyname(host.encode()).contents.addresses[0].contents))
    if way == "numeric":
        return host
    if way.startswith("wire-"):
        return by_wire(way.removeprefix("wire-"), host)
    return by_reentrant(host, with_family=way == "gethostbyname2_r")


def main() -> None:
    """See the module."""
    way, rounds, pause, port, *hosts = sys.argv[1:]
    if way.startswith("wait:"):
        way = way.removeprefix("wait:")
        print("waiting", flush=True)
        sys.stdin.readline()
    ledger = {host.partition("@")[0]: [0, 0] for host in hosts}
    addresses = set()
    for turn in range(int(rounds)):
        for i, wanted in enumerate(hosts):
            host, _, numeric = wanted.partition("@")
            address = numeric or resolve(way, host)
            addresses.add(address)
            message = hello(host) if way == "sni" else b"q" * (1000 + 10 * turn + i)
            size = len(message)
            with socket.create_connection((address, int(port))) as there:
                there.sendall(message)
                there.shutdown(socket.SHUT_WR)
                received = 0
                while data := there.recv(65536):
                    received += len(data)
                assert received == size, (host, received)
                # RST instead of TIME_WAIT: many turns need no more ports than one
                there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
            ledger[host][0] += 1
            ledger[host][1] += size
        time.sleep(float(pause))
    print(json.dumps({"pid": os.getpid(), "hosts": ledger, "addresses": sorted(addresses)}))


if __name__ == "__main__":
    main()
