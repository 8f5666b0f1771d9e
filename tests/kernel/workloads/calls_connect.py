# SPDX-License-Identifier: Apache-2.0
"""Sockets with an unusual life: connected twice, connected to themselves, refused first, many at once.

Every case is a function of a ledger; `cases.py` runs each in a process of its own.
"""

from __future__ import annotations

import socket
import struct

import linux
from truth import End, Ledger, client_end, listener, server_end, tcp_pair


def self_connected(ledger: Ledger) -> None:
    """A TCP socket connected to itself receives what it sends; it opened the connection: client."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.connect(sock.getsockname())
    end = client_end(sock, ledger)
    end.send(777)
    end.drain(777)
    end.close()


def connected_twice(ledger: Ledger) -> None:
    """One socket, disconnected by AF_UNSPEC, then connected elsewhere: each peer its own bytes."""
    sock = socket.socket()
    nowhere = struct.pack("=H14x", socket.AF_UNSPEC)
    for size in (881, 882, 883):
        listening = listener()
        sock.connect(listening.getsockname())
        server = server_end(listening.accept()[0], ledger)
        client = client_end(sock, ledger)
        client.send(size)
        server.drain(size)
        server.send(5)
        client.drain(5)
        linux.checked(linux.libc.connect(sock.fileno(), nowhere, len(nowhere)))
        server.close()
        listening.close()
    sock.close()


def refused_first(ledger: Ledger) -> None:
    """A connect that is refused counts nothing; the same socket then connects and sends."""
    closed = listener()
    port = closed.getsockname()
    closed.close()
    sock = socket.socket()
    for _ in range(2):
        try:
            sock.connect(port)
        except ConnectionRefusedError:
            continue
        raise AssertionError("somebody took the port")
    listening = listener()
    sock.connect(listening.getsockname())
    server = server_end(listening.accept()[0], ledger)
    client = client_end(sock, ledger)
    client.send(31)
    server.drain(31)
    for end in (client, server, listening):
        end.close()


def nonblocking_connect(ledger: Ledger) -> None:
    """connect_ex that returns EINPROGRESS, and a send that waits in the queue for nothing."""
    listening = listener()
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(listening.getsockname())
    server = server_end(listening.accept()[0], ledger)
    sock.setblocking(True)
    client = client_end(sock, ledger)
    client.send(32)
    server.drain(32)
    for end in (client, server, listening):
        end.close()


def many_at_once(ledger: Ledger) -> None:
    """200 open connections used in turn, half of them closed before the others are used again."""
    listening = listener()
    pairs: list[tuple[End, End]] = []
    for _ in range(200):
        sock = socket.create_connection(listening.getsockname())
        pairs.append((client_end(sock, ledger), server_end(listening.accept()[0], ledger)))
    for turn in range(2):
        for index, (client, server) in enumerate(pairs):
            client.send(index + 1)
            server.drain(index + 1)
            server.send(2 * index + 1)
            client.drain(2 * index + 1)
            if turn == 0 and index % 2:
                client.close()
                server.close()
        pairs = pairs[::2]
    listening.close()


def half_closed(ledger: Ledger) -> None:
    """After shutdown of one direction the other still counts."""
    client, server = tcp_pair(ledger)
    client.send(61)
    client.sock.shutdown(socket.SHUT_WR)
    server.drain(61)
    server.send(6_161)
    client.drain(6_161)
    client.close()
    server.close()


def accepted_and_left_unread(ledger: Ledger) -> None:
    """What lay unread when its socket was closed was received by nobody."""
    client, server = tcp_pair(ledger)
    client.send(1_234)
    server.drain(1_000)
    server.close()
    client.close()


CASES = (
    self_connected,
    connected_twice,
    refused_first,
    nonblocking_connect,
    many_at_once,
    half_closed,
    accepted_and_left_unread,
)
