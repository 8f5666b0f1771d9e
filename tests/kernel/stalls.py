# SPDX-License-Identifier: Apache-2.0
"""Times at which a processor ran nothing of ours: a process pinned to each sleeps, and notes late wakings.

Many cases hold what Kernob says against what they did within a second, or after it. An emulated processor
that its host keeps from running, or a virtual one, stands still for longer than that; nothing in the case can
know. Used by replay.py; run as a program it is one of those processes: FILE PROCESSOR PARENT.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

SLEEP_S = 0.05
LATE_S = 0.25
_PDEATHSIG = 1
_COUNT = struct.Struct("=Q")


class Stalls:
    """Counts from its making until `close`. Raises OSError where no process can be started."""

    def __init__(self) -> None:
        self.processors = sorted(os.sched_getaffinity(0))
        descriptor, name = tempfile.mkstemp(prefix="kernob-stalls-")
        self._path = Path(name)
        os.truncate(descriptor, mmap.PAGESIZE)
        self._counts = mmap.mmap(descriptor, mmap.PAGESIZE)
        os.close(descriptor)
        self.sleepers = [
            subprocess.Popen(
                [sys.executable, "-ES", __file__, name, str(number), str(cpu), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            for number, cpu in enumerate(self.processors)
        ]

    def __call__(self) -> Counter[str]:
        """By processor, how often it has stood still; what lasts until now is seen SLEEP_S later."""
        counts = [
            _COUNT.unpack_from(self._counts, number * _COUNT.size)[0]
            for number in range(len(self.processors))
        ]
        return Counter(
            {
                f"processor {cpu} stood still": count
                for cpu, count in zip(self.processors, counts, strict=True)
                if count
            }
        )

    def close(self) -> None:
        """Ends the processes; safe to call twice."""
        for sleeper in self.sleepers:
            sleeper.kill()
            sleeper.wait()
        self._counts.close()
        self._path.unlink(missing_ok=True)


def watch(path: str, number: int, cpu: int, parent: int) -> None:
    """Counts late wakings of this processor in the file, until killed or orphaned."""
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.sched_setaffinity(0, {cpu})
    with Path(path).open("r+b") as file, mmap.mmap(file.fileno(), mmap.PAGESIZE) as counts:
        late = 0
        asleep_s = time.monotonic()
        while os.getppid() == parent:
            time.sleep(SLEEP_S)
            awake_s = time.monotonic()
            if awake_s - asleep_s > SLEEP_S + LATE_S:
                late += 1
                _COUNT.pack_into(counts, number * _COUNT.size, late)
            asleep_s = awake_s


if __name__ == "__main__":
    watch(sys.argv[1], *map(int, sys.argv[2:5]))
