# SPDX-License-Identifier: Apache-2.0
"""A plain server or client with a known exchange, for namespaces and for load.

`peer.py serve ADDRESS PORT COUNT` answers COUNT connections, then prints its ledger; before that it prints
{"port": n}. `peer.py ask ADDRESS PORT COUNT UP DOWN` makes COUNT connections, each sending UP bytes and
reading DOWN. `peer.py load SECONDS PAUSE` talks to itself over loopback, PAUSE seconds (0: none) between two
steps, until standard input says something or SECONDS passed, and prints at the end its ledger and, in
notes, "timeline": rows of [CLOCK_MONOTONIC s, bytes sent so far], taken before the sends that follow.
An exchange starts with two numbers of 4 bytes, the sizes up and down (counted like all else).
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import time

from truth import Ledger, client_end, say, server_end, tcp_pair


def family_of(address: str) -> int:
    """AF_INET6 when the address has a colon."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def serve(address: str, port: int, count: int) -> Ledger:
    """Answer `count` connections, one after the other."""
    ledger = Ledger()
    listening = socket.create_server((address, port), family=family_of(address), backlog=64)
    say({"port": listening.getsockname()[1]})
    for _ in range(count):
        end = server_end(listening.accept()[0], ledger)
        header = end.sock.recv(8, socket.MSG_WAITALL)
        end.received(len(header))
        up, down = struct.unpack("!II", header)
        end.drain(up)
        end.send(down)
        end.close()
    return ledger


def ask(address: str, port: int, count: int, up: int, down: int) -> Ledger:
    """Make `count` exchanges."""
    ledger = Ledger()
    for _ in range(count):
        sock = socket.socket(family_of(address), socket.SOCK_STREAM)
        sock.connect((address, port))
        end = client_end(sock, ledger)
        end.sent(sock.send(struct.pack("!II", up, down)))
        end.send(up)
        end.drain(down)
        end.close()
    return ledger


def load(seconds: float, pause_s: float) -> Ledger:
    """Talk to itself in steps of 10,000 bytes, with a row in the timeline every few milliseconds."""
    ledger = Ledger()
    client, server = tcp_pair(ledger)
    timeline: list[tuple[float, int]] = []
    total, end_at = 0, time.monotonic() + seconds
    while time.monotonic() < end_at:
        now = time.monotonic()
        if not timeline or now - timeline[-1][0] > 0.005:
            timeline.append((now, total))
            if select.select([sys.stdin], [], [], 0)[0]:
                break
        total += client.send(10_000)
        server.drain(10_000)
        if pause_s:
            time.sleep(pause_s)
    timeline.append((time.monotonic(), total))
    ledger.notes["timeline"] = timeline
    return ledger


def main(arguments: list[str]) -> int:
    """Run the named part and print its ledger."""
    part, *rest = arguments
    if part == "serve":
        ledger = serve(rest[0], int(rest[1]), int(rest[2]))
    elif part == "ask":
        ledger = ask(rest[0], int(rest[1]), int(rest[2]), int(rest[3]), int(rest[4]))
    else:
        ledger = load(float(rest[0]), float(rest[1]))
    say(ledger.as_dict())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
