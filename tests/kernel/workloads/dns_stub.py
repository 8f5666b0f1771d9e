# SPDX-License-Identifier: Apache-2.0
"""A resolver on this host that asks another one, as systemd-resolved and dnsmasq do: UDP and TCP.

Arguments: address to listen on, address to ask. Prints "ready". Standard library only.
"""

from __future__ import annotations

import socket
import sys
import threading


def ask(message: bytes, upstream: str) -> bytes:
    """What the other one answers, by a socket of its own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        there.connect((upstream, 53))
        there.send(message)
        return there.recv(65535)


def serve_udp(listener: socket.socket, upstream: str) -> None:
    """Answer datagrams for ever."""
    while True:
        message, peer = listener.recvfrom(4096)
        listener.sendto(ask(message, upstream), peer)


def main() -> None:
    """See the module."""
    where, upstream = sys.argv[1:3]
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind((where, 53))
    streams = socket.create_server((where, 53))
    threading.Thread(target=serve_udp, args=(datagrams, upstream), daemon=True).start()
    print("ready", flush=True)
    while True:
        peer, _ = streams.accept()
        with peer:
            reply = ask(peer.recv(65535)[2:], upstream)
            peer.sendall(len(reply).to_bytes(2, "big") + reply)


if __name__ == "__main__":
    main()
