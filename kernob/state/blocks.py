# SPDX-License-Identifier: Apache-2.0
"""The series of one metric, and what of them an export has to send.

Enters: attributes and values from `state`, once a tick. Leaves: `MetricPoints`, through the batches of
`state.series`. Called by the tick thread only. `state.histograms` has the same for histograms.

Life of a series: admit -> set ... set -> end -> acknowledged with its last value -> forgotten.

Acknowledged is not yet stored: a backend that is killed loses what it took in its last seconds. What a
later point does not make good is a counter's 0 point and its last value, so these two are sent twice.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from opentelemetry.proto.metrics.v1.metrics_pb2 import NumberDataPoint

from kernob.model import Attributes, MetricKind, MetricSpec
from kernob.state.points import AttributeTable, MetricPoints

Slots = NDArray[np.int64]

LIVE: Final = 1
NEW: Final = 2
DIRTY: Final = 4
ENDED: Final = 8
_UNSURE: Final = 16
"""The 0 point was acknowledged, but not yet for a second time."""
_SETTLED: Final = 32
"""The value was acknowledged, and again a while later."""

_SUMS: Final = (MetricKind.COUNTER, MetricKind.HISTOGRAM)


class Sequence:
    """Numbers of the newest batch that was made and of the newest that was acknowledged."""

    def __init__(self) -> None:
        self.made = 0
        self.acknowledged = 0


class Block:
    """All series of one metric: which there are, what of them is new, changed, ended or due again.

    What a value is, is for the classes below to say: `_bits` is what tells one value from the next.

    `len(block)` counts the series in use, those included that have ended and wait for their last
    acknowledgement: compare it with the cap before admitting, and memory stays bounded also while
    no endpoint answers.
    """

    def __init__(
        self,
        spec: MetricSpec,
        table: AttributeTable,
        sequence: Sequence | None = None,
        confirm_ns: int = 0,
    ) -> None:
        self.spec = spec
        self._confirm_ns = confirm_ns
        self._sequence = sequence or Sequence()
        self._columns = {key: column for column, key in enumerate(spec.attributes)}
        self._table = table
        self._used = 0
        self._forgotten = 0
        self._free: list[int] = []
        # gauges that ended and whose end the backend has yet to acknowledge, by their attributes' numbers
        self._leaving: dict[bytes, int] = {}
        self._untouched = 0
        self._resting: deque[tuple[int, Slots]] = deque()
        self._per_slot = ["_flags", "_bits", "_starts", "_sent", "_zero_known", "_value_known"]
        self._per_slot += ["_attribute_bytes", "_ids"]
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

        A gauge that comes back before the backend has heard of its end goes on: while no endpoint answers
        one that comes and goes is one series. Raises ValueError for an attribute that the metric's spec
        does not list.
        """
        row = [0] * len(self._columns)
        length = 0
        for key, value in attributes:
            column = self._columns.get(key)
            if column is None:
                raise ValueError(f"{self.spec.name}: attribute {key} is not in its specification")
            row[column], size = self._table.intern(key, value)
            length += size
        leaving = self._leaving.pop(np.array(row, np.uint32).tobytes(), None) if self._leaving else None
        if leaving is not None:
            self._bits[leaving] = 0
            self._flags[leaving] = LIVE | NEW | DIRTY
            return leaving
        slot = self._vacant()
        self._ids[slot] = row
        self._attribute_bytes[slot] = length
        self._starts[slot] = start_unix_ns
        self._bits[slot] = 0
        self._flags[slot] = LIVE | NEW | DIRTY
        self._used += 1
        return slot

    def _require(self, slots: Slots) -> None:
        if not (self._flags[slots] & LIVE).all():
            raise ValueError(f"{self.spec.name}: a value for a series that was not admitted or is forgotten")

    def _changed(self, slots: Slots) -> None:
        self._flags[slots] = (self._flags[slots] | DIRTY) & np.uint8(0xFF & ~_SETTLED)

    def end(self, slots: Slots) -> None:
        """Say that the series get no more values; set the final ones before.

        Each is sent until acknowledged with that value (a counter twice, see the module), then forgotten.
        One whose final value is acknowledged already is forgotten at once, except that an ended gauge
        first says so to the backend with one point without a value.
        """
        slots = np.asarray(slots)
        slots = slots[(self._flags[slots] & (LIVE | ENDED)) == LIVE]
        if self.spec.kind in _SUMS:
            self._flags[slots] |= ENDED
        else:
            self._flags[slots] |= ENDED | DIRTY
            self._leaving.update((self._ids[slot].tobytes(), slot) for slot in slots.tolist())
        self._forget(slots[(self._flags[slots] & (DIRTY | _UNSURE | _SETTLED)) == _SETTLED])

    def is_settled(self, slot: int) -> bool:
        """Whether the backend has all of a series that there is to tell: `end` then forgets it at once."""
        return bool((self._flags[slot] & (DIRTY | _UNSURE | _SETTLED)) == _SETTLED)

    def _due(self, now_unix_ns: int, resend_ns: int, everything: bool) -> NDArray[np.int32]:
        """Return the slots that a batch made now has to speak of."""
        wanted = (self._flags & DIRTY) != 0
        idle_ns = now_unix_ns - self._sent
        wanted |= (self._flags != 0) & ((idle_ns >= resend_ns) | (idle_ns < 0) | everything)
        unsettled = (self._flags & (ENDED | _SETTLED)) == ENDED
        unsettled &= now_unix_ns - self._value_known >= self._confirm_ns
        wanted |= self._unsure(now_unix_ns) | unsettled
        return np.flatnonzero(wanted).astype(np.int32)

    def _unsure(self, now_unix_ns: int) -> NDArray[np.bool_]:
        """Which series' 0 points are to be sent for the second time."""
        unsure: NDArray[np.bool_] = (self._flags & _UNSURE) != 0
        unsure &= now_unix_ns - self._zero_known >= self._confirm_ns
        return unsure

    def _zeros_acknowledged(self, slots: Slots, time_unix_ns: int) -> None:
        """Take note that the backend has the 0 points of these series."""
        first = slots[(self._flags[slots] & NEW) != 0]
        again = slots[(self._flags[slots] & (NEW | _UNSURE)) == _UNSURE]
        again = again[time_unix_ns - self._zero_known[again] >= self._confirm_ns]
        self._flags[again] &= np.uint8(0xFF & ~_UNSURE)
        self._flags[first] &= np.uint8(0xFF & ~NEW)
        if self._confirm_ns:
            self._flags[first] |= _UNSURE
            self._zero_known[first] = time_unix_ns

    def _values_acknowledged(self, slots: Slots, said: NDArray[np.bool_], time_unix_ns: int) -> None:
        """Take note that the backend heard of `slots`, and where `said`, the value that they stand at."""
        self._sent[slots] = time_unix_ns
        # not those that were forgotten while the batch was under way
        slots = slots[said & ((self._flags[slots] & LIVE) != 0)]
        first = slots[(self._flags[slots] & DIRTY) != 0]
        self._value_known[first] = time_unix_ns
        known = slots[time_unix_ns - self._value_known[slots] >= self._confirm_ns]
        self._flags[known] |= _SETTLED
        self._flags[slots] &= np.uint8(0xFF & ~DIRTY)
        over = self._flags[slots] & (ENDED | _UNSURE | _SETTLED)
        self._forget(slots[over == (ENDED | _SETTLED)])

    def _forget(self, slots: Slots) -> None:
        """Drop series. Their slots rest until no batch that may name them can still be under way."""
        if len(slots):
            for slot in slots.tolist() if self._leaving else ():
                if self._leaving.get(key := self._ids[slot].tobytes()) == slot:
                    del self._leaving[key]
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
        self._table = AttributeTable(self._table.message, self._table.entries[used])
        self._ids = ids
        self._leaving = {ids[slot].tobytes(): slot for slot in self._leaving.values()}

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
        for name in self._per_slot:
            array: NDArray[Any] = getattr(self, name)
            more = np.zeros((added, *array.shape[1:]), dtype=array.dtype)
            setattr(self, name, np.concatenate((array, more)))


class SeriesBlock(Block):
    """All series of a metric whose values are numbers."""

    def __init__(self, spec: MetricSpec, sequence: Sequence | None = None, confirm_ns: int = 0) -> None:
        if spec.kind not in (MetricKind.COUNTER, MetricKind.UPDOWN, MetricKind.GAUGE):
            raise ValueError(f"{spec.name}: a {spec.kind.value} has no number points")
        sums = spec.kind is MetricKind.COUNTER
        super().__init__(spec, AttributeTable(NumberDataPoint), sequence, confirm_ns if sums else 0)

    def set(self, slots: Slots, values: NDArray[np.generic]) -> None:
        """Set the values of series: whole numbers -2**63..2**63-1, or floats if the spec says so.

        Values that do not change cost nothing later. Raises ValueError for a slot that is not in use.
        """
        wanted = np.asarray(values).astype(np.int64 if self.spec.integer else np.float64, copy=False)
        bits = wanted.view(np.int64)
        self._require(slots)
        changed = self._bits[slots] != bits
        touched = np.asarray(slots)[changed]
        self._bits[touched] = bits[changed]
        self._changed(touched)

    def points(self, now_unix_ns: int, resend_ns: int, everything: bool) -> MetricPoints | None:
        """Return what a batch made now has to say of this metric; None for nothing (for the store)."""
        slots, flags = self._due(now_unix_ns, resend_ns, everything), self._flags
        if not len(slots):
            return None
        bits = self._bits[slots]
        gone: NDArray[np.bool_] | None = None
        zeros = slots[:0]
        if self.spec.kind is MetricKind.COUNTER:
            zeros = slots[((flags[slots] & NEW) != 0) | self._unsure(now_unix_ns)[slots]]
            slots = np.concatenate((zeros, slots))
            bits = np.concatenate((np.zeros(len(zeros), dtype=np.int64), bits))
        else:
            gone = (flags[slots] & ENDED) != 0
        return MetricPoints(
            self.spec, now_unix_ns, len(zeros), slots, bits, gone,
            self._starts, self._attribute_bytes, self._ids, self._table.entries,
        )  # fmt: skip

    def acknowledged(self, points: MetricPoints) -> None:
        """Take note that the backend has these points."""
        slots, bits = points.slots[points.zeros :].astype(np.int64), points.bits[points.zeros :]
        said = self._bits[slots] == bits
        if points.gone is not None:
            said &= points.gone == ((self._flags[slots] & ENDED) != 0)
        self._zeros_acknowledged(points.slots[: points.zeros].astype(np.int64), points.time_unix_ns)
        self._values_acknowledged(slots, said, points.time_unix_ns)
