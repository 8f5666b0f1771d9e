# SPDX-License-Identifier: Apache-2.0
"""Where backups go: `storage.py ADDRESS PORT`; takes whatever comes."""

from __future__ import annotations

import socket
import sys
import threading

from wire import log


def take(sock: socket.socket) -> None:
    """Read to the end."""
    with sock:
        while sock.recv(1 << 20):
            pass


def main(address: str, port: str) -> None:
    """See the module."""
    listener = socket.create_server((address, int(port)))
    log("storage is open")
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=take, args=(sock,), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
