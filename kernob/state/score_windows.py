# SPDX-License-Identifier: Apache-2.0
"""Windows of recent counts and durations, one a dependency: what scores are formed from.

In: counts and histograms with the time at which they happened. Out: sums over the window, weighted by age
and raw, and histograms, for `derive.scores`. Called by `features.scores`, in the tick thread.

A window is a ring of buckets; bucket number n holds what happened in [n, n + 1) * bucket_s. At any time the
last `buckets` of them count, the newest with weight 1, each older one with 2^(-bucket_s / half_life_s) of
the next. So after a window and one bucket nothing is left of anything. Durations are kept as one
weighted histogram a row, from which each bucket's part is taken away when the window leaves it.

Memory for 10,000 rows: 19 MB of counts, 36 MB of histograms, and 5 bytes for each kind, bucket and length of
duration that was seen in the window.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernob.model import ScoreRules
from kernob.state.buckets import BUCKETS

Rows = NDArray[np.int64]


class Column(enum.IntEnum):
    """What is counted. RETRANSMITS are segments, and not among SEGMENTS twice."""

    ATTEMPTS = 0
    FAILED = 1
    FINISHED = 2
    DROPPED = 3
    SEGMENTS = 4
    RETRANSMITS = 5
    WAITED = 6
    SILENT = 7


class Timed(enum.IntEnum):
    """What is timed."""

    CONNECT = 0
    RESPONSE = 1


_COLUMNS: Final = len(Column)
_KINDS: Final = len(Timed)
_FIRST_ROOM: Final = 64


@dataclass(frozen=True, slots=True)
class Sums:
    """What the window holds, a row each: weighted (float) and raw counts by Column, raw counts by Timed."""

    weighted: NDArray[np.float64]
    raw: NDArray[np.int64]
    timed: NDArray[np.int64]


@dataclass(slots=True)
class _Bucket:
    """Durations and reasons of one bucket, to be taken away again: histograms as (place, count) pairs."""

    number: int
    places: list[NDArray[np.uint32]] = field(default_factory=list)
    counts: list[NDArray[Any]] = field(default_factory=list)
    reasons: dict[tuple[int, str], int] = field(default_factory=dict)

    def merge(self) -> None:
        """Has each place once, however often it was added to."""
        if len(self.places) > 1:
            places, back = np.unique(np.concatenate(self.places), return_inverse=True)
            counts = np.bincount(back.reshape(-1), np.concatenate(self.counts)).astype(np.uint32)
            self.places = [places]
            self.counts = [counts.astype(np.min_scalar_type(int(counts.max(initial=0))))]


class ScoreWindows:
    """Rows are the caller's numbers, from 0 up. Times are seconds of any one clock, never far back."""

    def __init__(self, rules: ScoreRules) -> None:
        self.rules = rules
        self._decay = 2.0 ** (-rules.bucket_s / rules.half_life_s)
        self._slow_decay = 2.0 ** (-rules.bucket_s / rules.baseline_half_life_s)
        self._ring = np.zeros((_FIRST_ROOM, _COLUMNS, rules.buckets), np.float32)
        self._raw = np.zeros((_FIRST_ROOM, _COLUMNS), np.int64)
        self._recent = np.zeros((_FIRST_ROOM, _KINDS, BUCKETS), np.float32)
        self._seen = np.zeros((_FIRST_ROOM, _KINDS, BUCKETS), np.int32)
        self._usual = np.zeros((_FIRST_ROOM, _KINDS, BUCKETS), np.float32)
        self._current: int | None = None
        self._buckets: deque[_Bucket] = deque()
        self._reasons: dict[int, dict[str, int]] = {}

    def make_room(self, rows: int, most: int) -> None:
        """Is ready for rows below `rows`, of which there will never be more than `most`."""
        room = len(self._raw)
        if rows <= room:
            return
        for name in ("_ring", "_raw", "_recent", "_seen", "_usual"):
            array: NDArray[Any] = getattr(self, name)
            grown = np.zeros((max(rows, min(most, room + room // 4)), *array.shape[1:]), array.dtype)
            grown[:room] = array
            setattr(self, name, grown)

    @property
    def now_s(self) -> float:
        """Where the newest bucket begins."""
        return (self._current or 0) * self.rules.bucket_s

    def number(self, at_s: float) -> int:
        """The bucket of a moment."""
        return math.floor(at_s / self.rules.bucket_s)

    def advance(self, now_s: float) -> None:
        """Moves the window so that it ends with the bucket of `now_s`; never back."""
        now = self.number(now_s)
        if self._current is None:
            self._current = now
        steps = now - self._current
        if steps <= 0:
            return
        self._current = now
        if steps >= self.rules.buckets:
            self._ring[:] = 0
            self._raw[:] = 0
        else:
            for number in range(now - steps + 1, now + 1):
                place = number % self.rules.buckets
                self._raw -= self._ring[:, :, place].astype(np.int64)
                self._ring[:, :, place] = 0
        self._recent *= np.float32(self._decay**steps)
        self._usual *= np.float32(self._slow_decay**steps)
        while self._buckets and self._buckets[0].number <= now - self.rules.buckets:
            self._drop(self._buckets.popleft(), now)

    def _drop(self, old: _Bucket, now: int) -> None:
        """Takes a bucket's durations and reasons away."""
        weight = self._decay ** (now - old.number)
        recent, seen = self._recent.reshape(-1), self._seen.reshape(-1)
        for places, counts in zip(old.places, old.counts, strict=True):
            recent[places] -= counts * np.float32(weight)
            seen[places] -= counts.astype(np.int32)
            # rounding leaves no trace: neither of what is gone, nor below zero
            recent[places] = np.where(seen[places] > 0, np.maximum(recent[places], 0), 0)
        for (row, reason), count in old.reasons.items():
            left = self._reasons.get(row, {})
            left[reason] = left.get(reason, 0) - count
            if left[reason] <= 0:
                del left[reason]
            if not left:
                self._reasons.pop(row, None)

    def _weight(self, at_s: float) -> tuple[int, float]:
        """The bucket and weight of a moment: of the newest bucket where it is yet to come."""
        if self._current is None:
            self.advance(at_s)
        current = self._current or 0
        number = min(self.number(at_s), current)
        return number, self._decay ** (current - number) if current - number < self.rules.buckets else 0.0

    def count(self, rows: Rows, column: Column, counts: NDArray[Any], at_s: float) -> None:
        """Adds counts that happened at `at_s`; a row may stand there more than once."""
        number, weight = self._weight(at_s)
        if weight and len(rows):
            grown = np.bincount(rows, counts)
            self._ring[: len(grown), column, number % self.rules.buckets] += grown
            self._raw[: len(grown), column] += grown.astype(np.int64)

    def time(self, rows: Rows, kinds: Rows, histograms: NDArray[Any], at_s: float) -> None:
        """Adds histograms of durations (shape (n, BUCKETS)) of rows and kinds (Timed).

        A row and kind may stand there more than once: several processes may be one service.
        """
        number, weight = self._weight(at_s)
        found = np.flatnonzero(histograms != 0)
        if not weight or not len(found):
            return
        counts: NDArray[Any] = np.ascontiguousarray(histograms).reshape(-1)[found].astype(np.uint32)
        owners = rows * _KINDS + kinds
        places = ((owners - np.arange(len(owners))) * BUCKETS)[found // BUCKETS] + found
        if np.bincount(owners).max() > 1:
            places, back = np.unique(places, return_inverse=True)
            counts = np.bincount(back, counts).astype(np.uint32)
        at = places.astype(np.uint32)
        self._recent.reshape(-1)[at] += counts * np.float32(weight)
        self._seen.reshape(-1)[at] += counts.astype(np.int32)
        self._usual.reshape(-1)[at] += counts
        bucket = self._bucket(number)
        bucket.places.append(at)
        bucket.counts.append(counts.astype(np.min_scalar_type(int(counts.max()))))

    def blame(self, row: int, reason: str, count: int, at_s: float) -> None:
        """Notes why something failed."""
        number, weight = self._weight(at_s)
        if weight:
            reasons = self._bucket(number).reasons
            reasons[row, reason] = reasons.get((row, reason), 0) + count
            mine = self._reasons.setdefault(row, {})
            mine[reason] = mine.get(reason, 0) + count

    def _bucket(self, number: int) -> _Bucket:
        for bucket in reversed(self._buckets):
            if bucket.number == number:
                return bucket
            if bucket.number < number:
                break
        if self._buckets:
            self._buckets[-1].merge()
        found = _Bucket(number)
        self._buckets.append(found)
        if len(self._buckets) > 1 and self._buckets[-2].number > number:
            self._buckets = deque(sorted(self._buckets, key=lambda each: each.number))
        return found

    def sums(self, rows: int) -> Sums:
        """What the window holds of the first `rows` rows, as of the last `advance`."""
        ages = (self._current or 0) - np.arange(self.rules.buckets)
        weights = self._decay ** (ages % self.rules.buckets)
        flat = self._ring[:rows].reshape(rows * _COLUMNS, self.rules.buckets)
        weighted = (flat @ weights.astype(np.float32)).reshape(rows, _COLUMNS).astype(np.float64)
        return Sums(weighted, self._raw[:rows].copy(), self._seen[:rows].sum(axis=2, dtype=np.int64))

    def recent(self, rows: slice) -> NDArray[np.float32]:
        """The window's weighted histograms of these rows, by Timed; not to be written to."""
        return self._recent[rows]

    def usual(self, rows: slice) -> NDArray[np.float32]:
        """The slow histograms, likewise: of days rather than minutes."""
        return self._usual[rows]

    def blamed(self) -> Mapping[int, Mapping[str, int]]:
        """Rows in whose window something failed, with the reasons; not to be changed."""
        return self._reasons

    def reasons(self, row: int) -> dict[str, int]:
        """Why what failed in the window failed, and how often."""
        return dict(self._reasons.get(row, {}))

    def clear_in_s(self, row: int, column: Column) -> float | None:
        """How long until the latest of these has left the window; None where it holds none."""
        if self._current is None or not self._raw[row, column]:
            return None
        numbers = self._current - (self._current - np.arange(self.rules.buckets)) % self.rules.buckets
        latest = int(numbers[self._ring[row, column] != 0].max(initial=self._current - self.rules.buckets))
        return (latest + self.rules.buckets - self._current) * self.rules.bucket_s

    def dump(self, rows: int) -> tuple[dict[str, NDArray[Any]], list[list[Any]]]:
        """What is not zero in the first rows, with ages in buckets; and reasons: age, row, why, count."""
        current = self._current or 0
        flat = self._ring[:rows].reshape(-1)
        found = np.flatnonzero(flat)
        slow = self._usual[:rows].reshape(-1)
        usual = np.flatnonzero(slow)
        places = [np.zeros(0, np.uint32)]
        counts = [np.zeros(0, np.uint32)]
        ages = [np.zeros(0, np.int32)]
        reasons: list[list[Any]] = []
        for bucket in self._buckets:
            bucket.merge()
            age = current - bucket.number
            for where, count in zip(bucket.places, bucket.counts, strict=True):
                places.append(where)
                counts.append(count.astype(np.uint32))
                ages.append(np.full(len(where), age, np.int32))
            reasons += [[age, row, reason, count] for (row, reason), count in bucket.reasons.items()]
        arrays = {
            "counted": (found // self.rules.buckets).astype(np.uint32),
            "counted_ages": ((current - found) % self.rules.buckets).astype(np.int32),
            "counts": flat[found],
            "timed": np.concatenate(places),
            "timed_ages": np.concatenate(ages),
            "timed_counts": np.concatenate(counts),
            "usual": usual.astype(np.uint32),
            "usual_counts": slow[usual],
        }
        return arrays, reasons

    def load(
        self, arrays: Mapping[str, NDArray[Any]], reasons: list[list[Any]], rows: Rows, away_s: float,
        *, window: bool,
    ) -> None:  # fmt: skip
        """Takes what `dump` gave so long ago; row n then is `rows[n]` now, or none for -1.

        `window`: also what counts by buckets, which must be the same; else only what is usual. Raises
        IndexError for rows that were not dumped.
        """
        size = _KINDS * BUCKETS
        mine = rows[arrays["usual"] // size]
        slow = arrays["usual_counts"] * np.float32(0.5 ** (away_s / self.rules.baseline_half_life_s))
        places = mine * size + arrays["usual"] % size
        self._usual.reshape(-1)[places[mine >= 0]] += slow[mine >= 0]
        if not window or self._current is None:
            return
        away = math.ceil(away_s / self.rules.bucket_s)
        self._load_counts(arrays, rows, away)
        self._load_times(arrays, rows, away)
        for age, row, reason, count in reasons:
            if rows[row] >= 0:
                at_s = (self._current - int(age) - away) * self.rules.bucket_s
                self.blame(int(rows[row]), str(reason), int(count), at_s)

    def _load_counts(self, arrays: Mapping[str, NDArray[Any]], rows: Rows, away: int) -> None:
        mine = rows[arrays["counted"] // _COLUMNS]
        columns, ages = arrays["counted"] % _COLUMNS, arrays["counted_ages"] + away
        good = (mine >= 0) & (ages < self.rules.buckets) & (ages >= 0)
        places = ((self._current or 0) - ages[good]) % self.rules.buckets
        self._ring[mine[good], columns[good], places] += arrays["counts"][good]
        np.add.at(self._raw, (mine[good], columns[good]), arrays["counts"][good].astype(np.int64))

    def _load_times(self, arrays: Mapping[str, NDArray[Any]], rows: Rows, away: int) -> None:
        size = _KINDS * BUCKETS
        mine = rows[arrays["timed"] // size]
        ages = arrays["timed_ages"] + away
        good = (mine >= 0) & (ages < self.rules.buckets) & (ages >= 0)
        for age in np.unique(ages[good])[::-1].tolist():
            chosen = good & (ages == age)
            places = (mine[chosen] * size + arrays["timed"][chosen] % size).astype(np.uint32)
            counts = arrays["timed_counts"][chosen]
            np.add.at(self._recent.reshape(-1), places, counts * np.float32(self._decay**age))
            np.add.at(self._seen.reshape(-1), places, counts.astype(np.int32))
            bucket = self._bucket((self._current or 0) - age)
            bucket.places.append(places)
            bucket.counts.append(counts)

    def forget(self, rows: Rows) -> None:
        """Empties rows, which may then stand for something else."""
        for name in ("_ring", "_raw", "_recent", "_seen", "_usual"):
            getattr(self, name)[rows] = 0
        gone = set(rows.tolist())
        for row in gone:
            self._reasons.pop(row, None)
        for bucket in self._buckets:
            bucket.reasons = {key: n for key, n in bucket.reasons.items() if key[0] not in gone}
            for index, places in enumerate(bucket.places):
                kept = ~np.isin(places // (_KINDS * BUCKETS), rows)
                bucket.places[index], bucket.counts[index] = places[kept], bucket.counts[index][kept]
