# SPDX-License-Identifier: Apache-2.0
"""Crash loops: the same command line, failing and started again by the same parent, again and again.

In: once a tick what the kernel side counted of command lines that failed. Out: which loops began and ended,
and which go on. Pure: time comes with the rows; who started whom is asked through `judge`. Called by
`features.lifecycle`.

A restart is a failed life that began after another one had failed, so that many workers killed at once are
none. One success breaks a loop. So short that a logger never flushed, or longer: lives do not matter.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CrashRow:
    """One struct crash_val; all counts cumulative, `key` is its struct crash_key."""

    key: tuple[int, int, int]
    image: int
    pid: int
    restarts: int
    failures: int
    successes: int
    siblings: int
    siblings_before: int
    last_ns: int
    life_ns: int
    forked: bool
    codes: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Loop:
    """A crash loop as far as it has come.

    `restarts`, `failures`, `codes` (a wait status, how often) and `life_s` (mean seconds) since it began, the
    lives that made it one included; `recent`: restarts within the window. Times are CLOCK_MONOTONIC.
    """

    row: CrashRow
    began_ns: int
    last_ns: int
    restarts: int
    recent: int
    failures: int
    codes: Mapping[int, int]
    life_s: float
    over: str = ""


@dataclass(slots=True)
class _Seen:
    """What is remembered of a key: the last row, and each reading with growth within the window."""

    row: CrashRow
    growth: deque[tuple[CrashRow, CrashRow]] = field(default_factory=deque)
    start: CrashRow | None = None  # counts as they stood before the loop; None: there is none
    began_ns: int = 0


Judge = Callable[[CrashRow, int, int], bool]
"""Whether failures of a row can be a crash loop at all: (row, failures, siblings); that many ended children
of its parent, the failures among them, are of the same time."""


class CrashLoops:
    """See the module. A loop begins with `restarts` in `window_ns`, and ends when one had no failure."""

    def __init__(self, restarts: int, window_ns: int, judge: Judge) -> None:
        self._restarts = restarts
        self._window_ns = window_ns
        self._judge = judge
        self._seen: dict[tuple[int, int, int], _Seen] = {}

    def update(self, rows: Iterable[CrashRow], now_ns: int) -> list[Loop]:
        """Takes one reading; returns the loops that began (`over` is "") and those that ended."""
        changed, present = [], set()
        for row in rows:
            present.add(row.key)
            seen = self._seen.get(row.key)
            if seen is None or row.failures < seen.row.failures:  # new, or a new one in an old one's place
                seen = self._seen[row.key] = _Seen(_unspoilt(row))
            if row.successes > seen.row.successes:
                if seen.start:
                    changed.append(self._loop(seen, now_ns, "it ended well"))
                seen.growth.clear()
                seen.start, seen.row = None, row
            elif row.failures > seen.row.failures:
                seen.growth.append((seen.row, row))
                seen.row = row
                self._age(seen, now_ns)
                if seen.start is None and self._is_loop(seen):
                    seen.start, seen.began_ns = seen.growth[0][0], row.last_ns
                    changed.append(self._loop(seen, now_ns))
        return changed + self._calm(present, now_ns)

    def current(self, now_ns: int) -> list[Loop]:
        """The loops that go on, the latest failure first."""
        loops = [self._loop(seen, now_ns) for seen in self._seen.values() if seen.start]
        return sorted(loops, key=lambda loop: -loop.last_ns)

    def _is_loop(self, seen: _Seen) -> bool:
        if not seen.growth:
            return False
        before, after = seen.growth[0]
        if seen.row.restarts - before.restarts < self._restarts:
            return False
        if len(seen.growth) > 1:  # the first reading's siblings may be of a long time
            before = after
        return self._judge(seen.row, seen.row.failures - before.failures, seen.row.siblings - before.siblings)

    def _calm(self, present: set[tuple[int, int, int]], now_ns: int) -> list[Loop]:
        """Ends loops in which nothing failed for a window; forgets what the kernel side has forgotten."""
        ended = []
        for key, seen in list(self._seen.items()):
            self._age(seen, now_ns)
            if seen.start and not seen.growth:
                ended.append(self._loop(seen, now_ns, "nothing failed any more"))
                seen.start = None
            if key not in present and not seen.start:
                del self._seen[key]
        return ended

    def _age(self, seen: _Seen, now_ns: int) -> None:
        while seen.growth and seen.growth[0][1].last_ns < now_ns - self._window_ns:
            seen.growth.popleft()

    @staticmethod
    def _loop(seen: _Seen, now_ns: int, over: str = "") -> Loop:
        row, start = seen.row, seen.start or seen.row
        failures = row.failures - start.failures
        codes = Counter(row.codes)
        codes.subtract(start.codes)
        return Loop(
            row=row,
            began_ns=seen.began_ns,
            last_ns=row.last_ns,
            restarts=row.restarts - start.restarts,
            recent=row.restarts - seen.growth[0][0].restarts if seen.growth else 0,
            failures=failures,
            codes={code: count for code, count in codes.most_common() if count > 0},
            life_s=(row.life_ns - start.life_ns) / failures / 1e9 if failures else 0.0,
            over=over,
        )


def _unspoilt(row: CrashRow) -> CrashRow:
    """The same command line before it failed for the first time."""
    return dataclasses.replace(
        row, restarts=0, failures=0, successes=row.successes, siblings=row.siblings_before, last_ns=0,
        life_ns=0, codes={},
    )  # fmt: skip
