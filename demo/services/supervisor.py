# SPDX-License-Identifier: Apache-2.0
"""Starts a program again and again, as supervisors do: `supervisor.py LIVES_FILE PROGRAM...`.

Each life that ended is a line of the file: process id, exit code, Unix time. Its log says nothing of them.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from wire import log

PAUSE_S = 0.5


def main(lives: str, *program: str) -> None:
    """See the module."""
    log("supervising")
    with Path(lives).open("w") as file:
        while True:
            process = subprocess.Popen(program)
            code = process.wait()
            file.write(f"{process.pid} {code} {time.time():.6f}\n")
            file.flush()
            time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
