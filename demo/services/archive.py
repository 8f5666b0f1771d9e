# SPDX-License-Identifier: Apache-2.0
"""Writes to a disk: `archive.py FILE BYTES PAUSE_S`; so much, until it is there, then a pause."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from wire import log


def main(path: str, size: str, pause_s: str) -> None:
    """See the module."""
    data = os.urandom(int(size))
    with Path(path).open("wb", buffering=0) as file:
        log("archiving")
        while True:
            file.seek(0)
            file.write(data)
            os.fdatasync(file.fileno())
            time.sleep(float(pause_s))


if __name__ == "__main__":
    main(*sys.argv[1:])
