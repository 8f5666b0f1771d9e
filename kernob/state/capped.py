# SPDX-License-Identifier: Apache-2.0
"""Series with a cap: beyond it everything of a service counts into its `~other`.

In: attributes, growth, ends of processes. Out: series in a block. Called by `state.traffic`,
`state.connections` and others that count. Folding happens at admission only, never to a series that was sent.

Services and destinations come and go as processes do, a container each minute on some hosts: a series that
nobody counts into any more rests for a while and then ends, `~other` included. Else every cap would be
reached in time, and stay so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from kernob.model import Attributes, ProcessKey
from kernob.state.blocks import Block, SeriesBlock, Slots
from kernob.state.histograms import HistogramBlock

AnyBlock = TypeVar("AnyBlock", bound=Block)

REST_S: Final = 900.0
"""How long a series outlives the last that counted into it: a job that comes every 15 min goes on with it."""


class Capped(Generic[AnyBlock]):
    """One metric's block with its cap: which attributes have a series, and which processes count into it."""

    def __init__(self, block: AnyBlock, cap: int) -> None:
        self.block = block
        self.cap = cap
        self.folded = 0
        self._slots: dict[Attributes, int] = {}
        self._names: dict[int, Attributes] = {}
        self._users: dict[int, tuple[ProcessKey, ...]] = {}
        self._others: set[int] = set()
        self._holders: dict[int, int] = {}
        self._resting: dict[int, float] = {}

    def slot(self, attributes: Attributes, other: Attributes, start_unix_ns: int) -> int:
        """The series of these attributes; beyond the cap, that of `other`."""
        slot = self._slots.get(attributes)
        if slot is not None:
            return slot
        if len(self.block) - len(self._others) >= self.cap:
            self.folded += 1
            slot = self._slots.get(other)
            if slot is not None:
                return slot
            attributes = other
        slot = self.block.admit(attributes, start_unix_ns)
        self._slots[attributes] = slot
        self._names[slot] = attributes
        if attributes is other:
            self._others.add(slot)
        self._begin(slot)
        return slot

    def _begin(self, slot: int) -> None:
        """Prepare for a new series."""

    def is_own(self, slot: int) -> bool:
        """Whether a series names a process, which `~other` does not."""
        return self._names[slot][0][0] == "process.pid"

    def use(self, slot: int, process: ProcessKey) -> None:
        """Notes that a process counts into a series of its own (not `~other`)."""
        users = self._users.get(slot, ())
        if process not in users:
            self._users[slot] = (*users, process)

    def end(self, slots: set[int], process: ProcessKey) -> None:
        """Ends the series of a process, unless a later image of it (exec) goes on with them."""
        ending = []
        for slot in slots:
            users = self._users.get(slot, ())
            if process not in users:
                continue
            rest = tuple(user for user in users if user != process)
            if rest:
                self._users[slot] = rest
                continue
            del self._users[slot]
            ending.append(slot)
        self._drop(ending)

    def hold(self, slot: int) -> None:
        """Notes that something goes on counting into a series, until `release` or `rest`."""
        self._holders[slot] = self._holders.get(slot, 0) + 1
        self._resting.pop(slot, None)

    def is_held(self, slot: int) -> bool:
        """Whether something goes on counting into it."""
        return slot in self._holders

    def release(self, slot: int) -> None:
        """Ends a series, for gauges: at once, where nothing else holds it."""
        if self._let_go(slot):
            self._drop([slot])

    def rest(self, slots: Iterable[int], now_s: float) -> None:
        """Lets go of series, each as often as it was held (or never): `sweep` ends them in time.

        `now_s` is monotonic.
        """
        for slot in slots:
            if self._let_go(slot):
                self._resting.pop(slot, None)  # the longest at rest come first
                self._resting[slot] = now_s

    def sweep(self, now_s: float) -> None:
        """Ends what has rested for long, once the backend has its last value.

        Before that it stays, lest two series of one name are told at once should it come back.
        """
        over = []
        for slot, since_s in self._resting.items():
            if now_s - since_s < REST_S:
                break
            if self.block.is_settled(slot):
                over.append(slot)
        for slot in over:
            del self._resting[slot]
        self._drop(over)

    def _let_go(self, slot: int) -> bool:
        """Whether nothing holds it any more."""
        left = self._holders.get(slot, 0) - 1
        if left > 0:
            self._holders[slot] = left
            return False
        self._holders.pop(slot, None)
        return True

    def _drop(self, slots: list[int]) -> None:
        if slots:
            for slot in slots:
                del self._slots[self._names.pop(slot)]
                self._others.discard(slot)
            self.block.end(np.array(slots, np.int64))


class CappedCounters(Capped[SeriesBlock]):
    """Counters, and the sums they stand at."""

    def __init__(self, block: SeriesBlock, cap: int) -> None:
        super().__init__(block, cap)
        self._sums = np.zeros(1024, np.int64)

    def _begin(self, slot: int) -> None:
        while slot >= len(self._sums):
            self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)])
        self._sums[slot] = 0

    def add(self, slots: Slots, growth: NDArray[np.int64]) -> None:
        """Adds to series; a slot may stand there more than once. For gauges, growth may be negative."""
        np.add.at(self._sums, slots, growth)
        unique = np.unique(slots)
        self.block.set(unique, self._sums[unique])


class CappedSums(Capped[SeriesBlock]):
    """Counters of what is no whole number, and the sums they stand at."""

    def __init__(self, block: SeriesBlock, cap: int) -> None:
        super().__init__(block, cap)
        self._sums = np.zeros(1024)

    def _begin(self, slot: int) -> None:
        while slot >= len(self._sums):
            self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)])
        self._sums[slot] = 0

    def add(self, slots: Slots, growth: NDArray[np.float64]) -> None:
        """Adds to series; a slot may stand there more than once."""
        np.add.at(self._sums, slots, growth)
        unique = np.unique(slots)
        self.block.set(unique, self._sums[unique])


CappedHistograms = Capped[HistogramBlock]
