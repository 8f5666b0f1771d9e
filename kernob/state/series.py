# SPDX-License-Identifier: Apache-2.0
"""Cumulative series of many processes and flows, and what of them an export has to send.

Enters: attributes and values from `state.flows`, once a tick. Leaves: `MetricBatch` (see
`state.points`), read by the exporters of `kernob.export`. Called by the tick thread only.

Life of a series: admit -> set ... set -> end -> acknowledged with its last value -> forgotten.

Acknowledged is not yet stored: a backend that is killed loses what it took in its last seconds. What a
later point does not make good is a counter's 0 point and its last value, so these two are sent twice.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kernob.model import Attributes, MetricKind, MetricSpec
from kernob.state.points import AttributeTable, MetricBatch, MetricPoints

Slots = NDArray[np.int64]

_LIVE: Final = 1
_NEW: Final = 2
_DIRTY: Final = 4
_ENDED: Final = 8
_UNSURE: Final = 16
"""The 0 point was acknowledged, but not yet for a second time."""
_SETTLED: Final = 32
"""The value was acknowledged, and again a while later."""


class _Sequence:
    """Numbers of the newest batch that was made and of the newest that was acknowledged."""

    def __init__(self) -> None:
        self.made = 0
        self.acknowledged = 0


class SeriesBlock:
    """All series of one metric.

    `len(block)` counts the series in use, those included that have ended and wait for their last
    acknowledgement: compare it with the cap before admitting, and memory stays bounded also while
    no endpoint answers.
    """

    def __init__(self, spec: MetricSpec, sequence: _Sequence | None = None, confirm_ns: int = 0) -> None:
        if spec.kind not in (MetricKind.COUNTER, MetricKind.UPDOWN, MetricKind.GAUGE):
            raise ValueError(f"{spec.name}: a {spec.kind.value} has no number points")
        self.spec = spec
        self._sequence = sequence or _Sequence()
        self._confirm_ns = confirm_ns if spec.kind is MetricKind.COUNTER else 0
        self._columns = {key: column for column, key in enumerate(spec.attributes)}
        self._table = AttributeTable()
        self._used = 0
        self._forgotten = 0
        self._free: list[int] = []
        self._untouched = 0
        self._resting: deque[tuple[int, Slots]] = deque()
        self._flags = np.zeros(0, dtype=np.uint8)
        self._bits = np.zeros(0, dtype=np.int64)
        self._starts = np.zeros(0, dtype=np.int64)
        self._sent = np.zeros(0, dtype=np.int64)
        # when the 0 point, and when the value that stands, was acknowledged for the first time
        self._zero_known = np.zeros(0, dtype=np.int64)
        self._value_known = np.zeros(0, dtype=np.int64)
        self._attribute_bytes = np.zeros(0, dtype=np.int32)
        self._ids = np.zeros((0, len(self._columns)), dtype=np.uint32)

    def __len__(self) -> int:
        return self._used

    def admit(self, attributes: Attributes, start_unix_ns: int) -> int:
        """Add a series that counts from `start_unix_ns`, value 0; returns its slot.

        Raises ValueError for an attribute that the metric's spec does not list.
        """
        row = [0] * len(self._columns)
        length = 0
        for key, value in attributes:
            column = self._columns.get(key)
            if column is None:
                raise ValueError(f"{self.spec.name}: attribute {key} is not in its specification")
            row[column], size = self._table.intern(key, value)
            length += size
        slot = self._vacant()
        self._ids[slot] = row
        self._attribute_bytes[slot] = length
        self._starts[slot] = start_unix_ns
        self._bits[slot] = 0
        self._flags[slot] = _LIVE | _NEW | _DIRTY
        self._used += 1
        return slot

    def set(self, slots: Slots, values: NDArray[np.generic]) -> None:
        """Set the values of series: whole numbers -2**63..2**63-1, or floats if the spec says so.

        Values that do not change cost nothing later. Raises ValueError for a slot that is not in use.
        """
        wanted = np.asarray(values).astype(np.int64 if self.spec.integer else np.float64, copy=False)
        bits = wanted.view(np.int64)
        flags = self._flags[slots]
        if not (flags & _LIVE).all():
            raise ValueError(f"{self.spec.name}: a value for a series that was not admitted or is forgotten")
        changed = self._bits[slots] != bits
        touched = np.asarray(slots)[changed]
        self._bits[touched] = bits[changed]
        self._flags[touched] = (self._flags[touched] | _DIRTY) & np.uint8(0xFF & ~_SETTLED)

    def end(self, slots: Slots) -> None:
        """Say that the series get no more values; set the final ones before.

        Each is sent until acknowledged with that value (a counter twice, see the module), then forgotten.
        One whose final value is acknowledged already is forgotten at once, except that an ended gauge
        first says so to the backend with one point without a value.
        """
        slots = np.asarray(slots)
        slots = slots[(self._flags[slots] & (_LIVE | _ENDED)) == _LIVE]
        self._flags[slots] |= _ENDED if self.spec.kind is MetricKind.COUNTER else _ENDED | _DIRTY
        self._forget(slots[(self._flags[slots] & (_DIRTY | _UNSURE | _SETTLED)) == _SETTLED])

    def points(self, now_unix_ns: int, resend_ns: int, everything: bool) -> MetricPoints | None:
        """Return what a batch made now has to say of this metric; None for nothing (for the store)."""
        flags = self._flags
        wanted = (flags & _DIRTY) != 0
        idle_ns = now_unix_ns - self._sent
        wanted |= (flags != 0) & ((idle_ns >= resend_ns) | (idle_ns < 0) | everything)
        unsure = (flags & _UNSURE) != 0
        unsure &= now_unix_ns - self._zero_known >= self._confirm_ns
        unsettled = (flags & (_ENDED | _SETTLED)) == _ENDED
        unsettled &= now_unix_ns - self._value_known >= self._confirm_ns
        wanted |= unsure | unsettled
        slots = np.flatnonzero(wanted).astype(np.int32)
        if not len(slots):
            return None
        bits = self._bits[slots]
        gone: NDArray[np.bool_] | None = None
        zeros = slots[:0]
        if self.spec.kind is MetricKind.COUNTER:
            zeros = slots[((flags[slots] & _NEW) != 0) | unsure[slots]]
            slots = np.concatenate((zeros, slots))
            bits = np.concatenate((np.zeros(len(zeros), dtype=np.int64), bits))
        else:
            gone = (flags[slots] & _ENDED) != 0
        return MetricPoints(
            self.spec, now_unix_ns, len(zeros), slots, bits, gone,
            self._starts, self._attribute_bytes, self._ids, self._table.entries,
        )  # fmt: skip

    def acknowledged(self, points: MetricPoints) -> None:
        """Take note that the backend has these points."""
        slots, bits = points.slots[points.zeros :].astype(np.int64), points.bits[points.zeros :]
        # not those that were forgotten while the batch was under way
        said = (self._bits[slots] == bits) & ((self._flags[slots] & _LIVE) != 0)
        if points.gone is not None:
            said &= points.gone == ((self._flags[slots] & _ENDED) != 0)
        self._sent[slots] = points.time_unix_ns
        self._zeros_acknowledged(points.slots[: points.zeros].astype(np.int64), points.time_unix_ns)
        self._values_acknowledged(slots[said], points.time_unix_ns)

    def _zeros_acknowledged(self, slots: Slots, time_unix_ns: int) -> None:
        """Take note that the backend has the 0 points of these series."""
        first = slots[(self._flags[slots] & _NEW) != 0]
        again = slots[(self._flags[slots] & (_NEW | _UNSURE)) == _UNSURE]
        again = again[time_unix_ns - self._zero_known[again] >= self._confirm_ns]
        self._flags[again] &= np.uint8(0xFF & ~_UNSURE)
        self._flags[first] &= np.uint8(0xFF & ~_NEW)
        if self._confirm_ns:
            self._flags[first] |= _UNSURE
            self._zero_known[first] = time_unix_ns

    def _values_acknowledged(self, slots: Slots, time_unix_ns: int) -> None:
        """Take note that the backend has the values that these series stand at; forget what is over."""
        first = slots[(self._flags[slots] & _DIRTY) != 0]
        self._value_known[first] = time_unix_ns
        known = slots[time_unix_ns - self._value_known[slots] >= self._confirm_ns]
        self._flags[known] |= _SETTLED
        self._flags[slots] &= np.uint8(0xFF & ~_DIRTY)
        over = self._flags[slots] & (_ENDED | _UNSURE | _SETTLED)
        self._forget(slots[over == (_ENDED | _SETTLED)])

    def _forget(self, slots: Slots) -> None:
        """Drop series. Their slots rest until no batch that may name them can still be under way."""
        if len(slots):
            self._flags[slots] = 0
            self._used -= len(slots)
            self._forgotten += len(slots)
            self._resting.append((self._sequence.made, slots))
        self.wake()

    def wake(self) -> None:
        """Make slots reusable that only acknowledged (so finished) batches can name, and tidy the table."""
        while self._resting and self._resting[0][0] <= self._sequence.acknowledged:
            self._free.extend(self._resting.popleft()[1].tolist())
        if self._forgotten >= max(1024, self._used):
            self._forgotten = 0
            self._compact()

    def _compact(self) -> None:
        """Rebuild the table of attributes from what living series use."""
        live = np.flatnonzero(self._flags)
        used = np.union1d(self._ids[live].ravel(), np.zeros(1, dtype=np.uint32))
        ids = np.zeros_like(self._ids)
        ids[live] = np.searchsorted(used, self._ids[live])
        self._table = AttributeTable(self._table.entries[used])
        self._ids = ids

    def _vacant(self) -> int:
        """Return a slot that no series has: one used before, else the next that never was."""
        if self._free:
            return self._free.pop()
        if self._untouched == len(self._flags):
            self._grow()
        self._untouched += 1
        return self._untouched - 1

    def _grow(self) -> None:
        """Make room for a quarter more. Arrays are replaced: a batch reads on in its own."""
        old = len(self._flags)
        added = max(64, old // 4)

        self._flags = np.concatenate((self._flags, np.zeros(added, dtype=np.uint8)))
        self._bits = np.concatenate((self._bits, np.zeros(added, dtype=np.int64)))
        self._starts = np.concatenate((self._starts, np.zeros(added, dtype=np.int64)))
        self._sent = np.concatenate((self._sent, np.zeros(added, dtype=np.int64)))
        self._zero_known = np.concatenate((self._zero_known, np.zeros(added, dtype=np.int64)))
        self._value_known = np.concatenate((self._value_known, np.zeros(added, dtype=np.int64)))
        self._attribute_bytes = np.concatenate((self._attribute_bytes, np.zeros(added, dtype=np.int32)))
        self._ids = np.concatenate((self._ids, np.zeros((added, len(self._columns)), dtype=np.uint32)))


class SeriesStore:
    """All series of the agent, a block for each metric.

    `resend_interval_s` (seconds): a series that does not change is sent again this long after it
    was last acknowledged, so that backends do not take it for dead. `confirm_s` (seconds): a counter's 0
    point and its last value are sent again this long after they were first acknowledged; 0 for a
    receiver that never forgets what it acknowledged.
    """

    def __init__(self, resend_interval_s: float = 60.0, confirm_s: float = 0.0) -> None:
        self._resend_ns = int(resend_interval_s * 1e9)
        self._confirm_ns = int(confirm_s * 1e9)
        self._sequence = _Sequence()
        self._blocks: dict[str, SeriesBlock] = {}

    def block(self, spec: MetricSpec) -> SeriesBlock:
        """Return a metric's block, created at the first call; ValueError if the name means two things."""
        block = self._blocks.get(spec.name)
        if block is None:
            block = self._blocks[spec.name] = SeriesBlock(spec, self._sequence, self._confirm_ns)
        if block.spec != spec:
            raise ValueError(f"{spec.name}: specified twice, differently")
        return block

    def batch(self, now_unix_ns: int, everything: bool = False) -> MetricBatch:
        """Return what has to be sent now, which contains all that not yet acknowledged batches contained."""
        self._sequence.made += 1
        points = (block.points(now_unix_ns, self._resend_ns, everything) for block in self._blocks.values())
        metrics = tuple(each for each in points if each is not None)
        return MetricBatch(self._sequence.made, now_unix_ns, metrics)

    def acknowledge(self, batch: MetricBatch) -> None:
        """Say that the backend has all of `batch`.

        Call it only when every reader is done with this batch and with all earlier ones: slots of
        forgotten series are used again after it. A batch older than the newest acknowledged one
        says nothing new and is ignored.
        """
        if batch.sequence <= self._sequence.acknowledged:
            return
        self._sequence.acknowledged = batch.sequence
        for points in batch.metrics:
            self._blocks[points.spec.name].acknowledged(points)
        for block in self._blocks.values():
            block.wake()
