# SPDX-License-Identifier: Apache-2.0
"""Series with a cap: beyond it everything of a service counts into its `~other`.

In: attributes, growth, ends of processes. Out: series in a block. Called by `state.traffic` and
`state.connections`. Folding happens at admission only, never to a series that was sent.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from kernob.model import Attributes, ProcessKey
from kernob.state.blocks import Block, SeriesBlock, Slots
from kernob.state.histograms import HistogramBlock

AnyBlock = TypeVar("AnyBlock", bound=Block)


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
            del self._users[slot], self._slots[self._names.pop(slot)]
            ending.append(slot)
        self.block.end(np.array(ending, np.int64))

    def hold(self, slot: int) -> None:
        """Notes that something goes on counting into a series, until `release`."""
        self._holders[slot] = self._holders.get(slot, 0) + 1

    def release(self, slot: int) -> None:
        """Ends a series that nothing holds any more, unless it is `~other`."""
        self._holders[slot] -= 1
        if not self._holders[slot]:
            del self._holders[slot]
            if slot not in self._others:
                del self._slots[self._names.pop(slot)]
                self.block.end(np.array([slot], np.int64))


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
