# SPDX-License-Identifier: Apache-2.0
"""The payment service, a dependency by name: `payments.py PORT MODE_FILE`.

The file says how it behaves from the next request on: `ok`, `slow` (50 ms more), `reset` (half the answer,
then RST), `stalled` (half the answer, then nothing), `silent` (nothing).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
import time
from pathlib import Path

from wire import log

BODY = b'{"state": "charged", "receipt": "' + b"r" * 2000 + b'"}\n'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(BODY) + BODY


def serve(sock: socket.socket, mode: str) -> None:
    """One request."""
    with sock:
        if not take(sock):
            return
        if mode == "slow":
            time.sleep(0.05)
        if mode in ("reset", "stalled"):
            sock.sendall(ANSWER[:1000])
        if mode == "reset":
            time.sleep(0.02)  # the half has arrived when the reset comes
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif mode in ("stalled", "silent"):
            sock.recv(1)  # until the caller gives up
        else:
            sock.sendall(ANSWER)


def take(sock: socket.socket) -> bool:
    """Read a request to its end; False if it never comes there."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (part := sock.recv(65_536)):
            return False
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    left = int(head.lower().split(b"content-length:")[1].split()[0]) - len(body)
    while left > 0:
        if not (part := sock.recv(65_536)):
            return False
        left -= len(part)
    return True


def guarded(sock: socket.socket, mode: str) -> None:
    """The same; a caller that went away is no news."""
    with contextlib.suppress(OSError):
        serve(sock, mode)


def main(port: str, mode_file: str) -> None:
    """See the module."""
    listener = socket.create_server(("0.0.0.0", int(port)), backlog=128)
    log("payments are open")
    while True:
        sock, _ = listener.accept()
        mode = Path(mode_file).read_text().strip()
        threading.Thread(target=guarded, args=(sock, mode), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
