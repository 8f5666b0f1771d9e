# SPDX-License-Identifier: Apache-2.0
"""A noisy neighbour that also leaks: every half second it writes to the disk and forgets descriptors.

`neighbour.py FILE BYTES DESCRIPTORS`: each time BYTES into FILE (from its beginning) until they are on the
disk, and DESCRIPTORS more open ones, until standard input ends. Prints {"pid": n} first. Standard library
only.
"""

from __future__ import annotations

import json
import os
import select
import sys
from pathlib import Path

PAUSE_S = 0.5


def main(path: str, size: int, descriptors: int) -> None:
    """See the module."""
    sys.stdout.write(json.dumps({"pid": os.getpid()}) + "\n")
    sys.stdout.flush()
    forgotten: list[int] = []
    with Path(path).open("wb", buffering=0) as file:
        while not select.select([sys.stdin], [], [], PAUSE_S)[0]:
            file.seek(0)
            file.write(os.urandom(size))
            os.fdatasync(file.fileno())
            forgotten += [os.dup(file.fileno()) for _ in range(descriptors)]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
