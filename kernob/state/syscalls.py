# SPDX-License-Identifier: Apache-2.0
"""From system calls to series: how long they took, by executable and service, and by exact process.

In: one reading's histograms by process and call (struct syscall_key, syscall_val of bpf/types.h). Out: series
in a SeriesStore, and for screens the histogram of each process that lives. Called by `features.syscalls`, in
the tick thread. Cost follows change: a process that made no call since the last reading costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernob.model import Attributes, MetricSpec
from kernob.state.buckets import BUCKETS
from kernob.state.capped import Capped, CappedHistograms, CappedSums
from kernob.state.destinations import NOBODY, OTHER, identity
from kernob.state.histograms import HistogramBlock
from kernob.state.lifecycle import Program
from kernob.state.processes import UNKNOWN_NAME, Process, ProcessTable
from kernob.state.series import SeriesStore
from kernob.state.text import sanitize

_IDLE_S: Final = 900.0
_SWEEP_S: Final = 30.0
_GONE_MOST: Final = 1_000
_RAW_BYTES: Final = 10  # of struct syscall_key: the process


@dataclass(slots=True)
class CallHistogram:
    """One call of one process since it is known: `buckets` as in `state.buckets`.

    `pid` 0: processes that ended before anybody looked, together by executable.
    """

    pid: int
    executable: str
    service: str
    number: int
    process: Process | None = None
    sum_ns: int = 0
    buckets: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BUCKETS, np.int64))

    @property
    def alive(self) -> bool:
        """Whether its process is not known to have ended."""
        return self.process is not None and self.process.alive


def nobody(_number: int) -> Program | None:
    """Knows no program."""
    return None


@dataclass(slots=True)
class _Series:
    """A series of durations, and when it last grew; `~other` ones have no attributes here."""

    attributes: Attributes
    slot: int
    grew_s: float = 0.0


class SyscallState:
    """Everything known of system calls. `specs` are (durations, time by process); `names` those of calls."""

    def __init__(
        self,
        store: SeriesStore,
        specs: tuple[MetricSpec, MetricSpec],
        caps: tuple[int, int],
        processes: ProcessTable,
        names: Mapping[int, str],
        program_of: Callable[[int], Program | None] = nobody,
    ) -> None:
        """`caps`: series of durations, series by process. `program_of`: see `features.lifecycle`."""
        self._program_of = program_of
        self._durations: CappedHistograms = Capped[HistogramBlock](store.histogram(specs[0]), caps[0])
        self._times = CappedSums(store.block(specs[1]), caps[1])
        self._processes = processes
        self._names = names
        self._calls: dict[tuple[bytes | str, int], CallHistogram] = {}
        self._series: dict[Attributes, _Series] = {}
        self._time_slots: dict[tuple[bytes | str, int], int] = {}
        self._others = np.zeros((0, BUCKETS), np.int64)
        self._others_ns = np.zeros(0, np.int64)
        self._swept_s = 0.0

    @property
    def folded(self) -> int:
        """How often a series was folded into `~other` for a cap (cumulative)."""
        return self._durations.folded + self._times.folded

    def calls(self) -> Iterator[CallHistogram]:
        """The histograms of all processes that are known now."""
        return iter(self._calls.values())

    def name(self, number: int) -> str:
        """What a call is called."""
        return self._names.get(number, str(number))

    def update(
        self,
        keys: NDArray[Any],
        values: NDArray[Any],
        others: NDArray[Any],
        since_unix_ns: int,
        now_s: float,
    ) -> None:
        """Folds one reading in. New series start at `since_unix_ns`; `others` is cumulative."""
        slots: list[int] = []
        time_slots: list[int] = []
        sums_ns = values["durations"]["sum_ns"].astype(np.int64)
        buckets = values["durations"]["buckets"].astype(np.int64)
        for row, key in enumerate(keys):
            number, raw = int(key["number"]), key.tobytes()[:_RAW_BYTES]
            call = self._call(raw, number, values[row], now_s)
            call.sum_ns += int(sums_ns[row])
            call.buckets += buckets[row]
            slots.append(self._duration_slot(call, since_unix_ns, now_s))
            time_slots.append(self._time_slot(raw, call, since_unix_ns))
        if slots:
            self._durations.block.add(np.array(slots, np.int64), sums_ns, buckets)
            self._times.add(np.array(time_slots, np.int64), sums_ns / 1e9)
        self._add_others(others, since_unix_ns, now_s)
        if now_s - self._swept_s >= _SWEEP_S:
            self._swept_s = now_s
            self._sweep(now_s)

    def _call(self, raw: bytes, number: int, value: np.void, now_s: float) -> CallHistogram:
        call = self._calls.get((raw, number))
        if call is not None and (call.process is None or self._processes.by_raw(raw) is call.process):
            return call
        self._forget_time((raw, number), now_s)  # its process was forgotten, and its series with it
        process = self._processes.find(raw)
        if process is not None:
            call = CallHistogram(process.key.pid, process.executable, process.service, number, process)
            self._calls[raw, number] = call
            return call
        name, service = self._gone(value)
        found = self._calls.get((f"{service}\0{name}", number))
        if found is None:
            found = self._calls[f"{service}\0{name}", number] = CallHistogram(0, name, service, number)
        return found

    def _gone(self, value: np.void) -> tuple[str, str]:
        """Executable and service of a process that ended before anybody looked: those of its program."""
        program = self._program_of(int(value["image"]))
        if program is not None:
            return program.executable, program.service
        return sanitize(value["comm"].tobytes().partition(b"\0")[0]) or UNKNOWN_NAME, UNKNOWN_NAME

    def _duration_slot(self, call: CallHistogram, since_unix_ns: int, now_s: float) -> int:
        service = (("kernob.service", call.service), ("kernob.syscall", self.name(call.number)))
        attributes = (("process.executable.name", call.executable), *service)
        found = self._series.get(attributes)
        if found is None:
            slot = self._durations.slot(attributes, (*NOBODY, *service), since_unix_ns)
            found = _Series(attributes, slot)
            self._series[attributes] = found
            self._durations.hold(slot)
        found.grew_s = now_s
        return found.slot

    def _time_slot(self, raw: bytes, call: CallHistogram, since_unix_ns: int) -> int:
        name = raw if call.process else f"{call.service}\0{call.executable}"
        slot = self._time_slots.get((name, call.number))
        if slot is not None:
            return slot
        who, service = identity(call.pid, call.executable, call.service)
        what = (*service, ("kernob.syscall", self.name(call.number)))
        other = (*NOBODY, *what)
        slot = self._times.slot((*who, *what) if call.process else other, other, since_unix_ns)
        if call.process and self._times.is_own(slot):
            self._times.use(slot, call.process.key)
            call.process.series.add((self._times, slot))
        else:
            self._times.hold(slot)
        self._time_slots[name, call.number] = slot
        return slot

    def _forget_time(self, key: tuple[bytes | str, int], now_s: float) -> None:
        slot = self._time_slots.pop(key, None)
        if slot is not None and self._times.is_held(slot):
            self._times.rest((slot,), now_s)

    def _add_others(self, others: NDArray[Any], since_unix_ns: int, now_s: float) -> None:
        """What the kernel side could not keep by process: it has the call alone."""
        now, now_ns = others["buckets"].astype(np.int64), others["sum_ns"].astype(np.int64)
        if not len(self._others):
            self._others, self._others_ns = np.zeros_like(now), np.zeros_like(now_ns)
        grown, grown_ns = now - self._others, now_ns - self._others_ns
        self._others, self._others_ns = now, now_ns
        for number in np.flatnonzero(grown.any(axis=1)).tolist():
            call = self._calls.setdefault((OTHER, number), CallHistogram(0, OTHER, OTHER, number))
            call.sum_ns += int(grown_ns[number])
            call.buckets += grown[number]
            slots = np.array([self._duration_slot(call, since_unix_ns, now_s)])
            self._durations.block.add(slots, grown_ns[[number]], grown[[number]])
            times = np.array([self._time_slot(b"", call, since_unix_ns)])
            self._times.add(times, grown_ns[[number]] / 1e9)

    def _sweep(self, now_s: float) -> None:
        """Forgets processes that `known` has forgotten, and series that nobody has added to for long."""
        for key, call in list(self._calls.items()):
            if call.process and self._processes.by_raw(bytes(key[0])) is not call.process:  # type: ignore[arg-type]
                del self._calls[key]
                self._forget_time(key, now_s)
        gone = [key for key, call in self._calls.items() if call.process is None]
        if len(gone) > _GONE_MOST:
            for key in gone:
                del self._calls[key]
                self._forget_time(key, now_s)
        for found in [each for each in self._series.values() if now_s - each.grew_s > _IDLE_S]:
            del self._series[found.attributes]
            self._durations.rest((found.slot,), found.grew_s)
        self._durations.sweep(now_s)
        self._times.sweep(now_s)
