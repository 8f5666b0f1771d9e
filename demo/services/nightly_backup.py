# SPDX-License-Identifier: Apache-2.0
"""The backup that cron starts: `nightly_backup.py HOST PORT BYTES_PER_S`; sends until it is ended."""

from __future__ import annotations

import socket
import sys
import time

from wire import log


def main(host: str, port: str, rate: str) -> None:
    """See the module."""
    piece = bytes(int(rate) // 20)
    with socket.create_connection((host, int(port)), 30) as sock:
        sock.settimeout(None)
        log("backup started")
        due_s = time.monotonic()
        while True:
            sock.sendall(piece)
            due_s = max(due_s + 0.05, time.monotonic() - 0.5)
            time.sleep(max(0.0, due_s - time.monotonic()))


if __name__ == "__main__":
    main(*sys.argv[1:])
