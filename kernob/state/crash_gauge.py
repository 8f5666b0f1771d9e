# SPDX-License-Identifier: Apache-2.0
"""kernob.process.crash_loop: restarts within the window, of programs that were seen in a crash loop.

In: the loops that go on. Out: series, which say 0 for an hour after the last loop and then end. Called by
`features.lifecycle`, in the tick thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

import numpy as np

from kernob.state.blocks import SeriesBlock
from kernob.state.lifecycle import Program

MOST: Final = 500
"""Series it may have; more programs than that do not crash at once, and their events tell of them."""

_KEPT_NS: Final = 3600 * 10**9


class CrashGauge:
    """See the module."""

    def __init__(self, block: SeriesBlock) -> None:
        self._block = block
        self._slots: dict[tuple[str, str], int] = {}
        self._values: dict[tuple[str, str], int] = {}
        self._last_ns: dict[tuple[str, str], int] = {}

    def update(self, loops: Iterable[tuple[Program, int]], now_unix_ns: int) -> None:
        """Takes the restarts within the window of every loop that goes on."""
        now: Counter[tuple[str, str]] = Counter()
        for program, restarts in loops:
            now[program.executable, program.service] += max(1, restarts)
        for key in now:
            if key not in self._slots and len(self._slots) < MOST:
                names = (("process.executable.name", key[0]), ("kernob.service", key[1]))
                self._slots[key] = self._block.admit(names, now_unix_ns)
            if key in self._slots:
                self._last_ns[key] = now_unix_ns
        for key, slot in list(self._slots.items()):
            if now_unix_ns - self._last_ns[key] > _KEPT_NS:
                del self._slots[key], self._last_ns[key], self._values[key]
                self._block.end(np.array([slot], np.int64))
            elif self._values.get(key) != now[key]:
                self._values[key] = now[key]
                self._block.set(np.array([slot], np.int64), np.array([now[key]], np.int64))
