# SPDX-License-Identifier: Apache-2.0
"""Customers: `customers.py ADDRESS PORT PAGES ORDERS`; so many a second, each on a connection of its own."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time

AT_ONCE = threading.Semaphore(60)


def ask(place: tuple[str, int], request: bytes) -> None:
    """One request, its answer read to the end; whatever happens, the next one comes."""
    with AT_ONCE, contextlib.suppress(OSError), socket.create_connection(place, 10) as sock:
        sock.sendall(request)
        while sock.recv(65_536):
            pass


def steadily(place: tuple[str, int], request: bytes, a_second: float) -> None:
    """Ask so often."""
    due_s = time.monotonic()
    while True:
        threading.Thread(target=ask, args=(place, request), daemon=True).start()
        due_s = max(due_s + 1 / a_second, time.monotonic() - 1)
        time.sleep(max(0.0, due_s - time.monotonic()))


def main(address: str, port: str, pages: str, orders: str) -> None:
    """See the module."""
    tail = b"Host: shop\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    place = (address, int(port))
    threading.Thread(
        target=steadily, args=(place, b"GET /product HTTP/1.1\r\n" + tail, float(pages)), daemon=True
    ).start()
    steadily(place, b"POST /order HTTP/1.1\r\n" + tail, float(orders))


if __name__ == "__main__":
    main(*sys.argv[1:])
