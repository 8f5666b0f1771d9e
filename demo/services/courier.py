# SPDX-License-Identifier: Apache-2.0
"""Carries things: `courier.py HOST:PORT SIGNAL_FILE OTHER_HOST:PORT`; to the first place twice a second.

From when the file is there it goes once to the other place, too. Its log says that it carries.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

from wire import log


def carry(place: str) -> None:
    """One connection, a few bytes."""
    host, _, port = place.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as sock:
        sock.sendall(b"parcel")


def main(usual: str, signal_file: str, other: str) -> None:
    """See the module."""
    carry(usual)
    log("carrying")
    went = False
    while True:
        if not went and Path(signal_file).exists():
            carry(other)
            went = True
        carry(usual)
        time.sleep(0.5)


if __name__ == "__main__":
    main(*sys.argv[1:])
