# SPDX-License-Identifier: Apache-2.0
"""One-byte sends without number: `million.py COUNT` sends COUNT single bytes to a second process.

Prints {"processes": [receiver, sender]} with the sender's and receiver's own `ss` figures in the notes.
"""

from __future__ import annotations

import socket
import sys

from children import Child
from truth import Ledger, client_end, listener, say, server_end, ss_figures, tcp_info, wait_until


def send(address: tuple[str, int], count: int, ledger: Ledger) -> None:
    """`count` single-byte calls, then the kernel's own figure."""
    sock = socket.create_connection(address)
    end = client_end(sock, ledger)
    call, one, done = sock.send, b"x", 0
    for _ in range(count):
        done += call(one)
    end.sent(done)
    wait_until(lambda: tcp_info(sock)[1] == count + 1, "the last acknowledgement")
    ledger.notes["bytes_acked"] = tcp_info(sock)[1] - 1
    shown = ss_figures(sock)
    ledger.notes["ss_acked"] = shown[0][0] - 1 if shown else None
    end.sent(sock.send(one))  # tells the receiver that we are through


def receive(listening: socket.socket, count: int, ledger: Ledger) -> None:
    """Read one more than `count` bytes."""
    end = server_end(listening.accept()[0], ledger)
    end.drain(count + 1)
    ledger.notes["bytes_received"] = tcp_info(end.sock)[2]


def main(count: int) -> int:
    """Fork both ends and print what they know."""
    listening = listener()
    address = listening.getsockname()
    children = [
        Child(lambda ledger: receive(listening, count, ledger)),
        Child(lambda ledger: send(address, count, ledger)),
    ]
    say({"processes": [child.result() for child in children], "notes": {}})
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
