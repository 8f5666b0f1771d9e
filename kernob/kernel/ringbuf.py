# SPDX-License-Identifier: Apache-2.0
"""BPF ring buffers: records as the kernel wrote them, in order, without BCC or libbpf.

In: the descriptor of a ring buffer map (Linux 5.8). Out: `Records`, raw, with the offset of the wall clock
measured when they were read. Called by `pipeline`; what the records mean is the probes' business. Layout and
protocol: kernel/bpf/ringbuf.c, "struct bpf_ringbuf" and "bpf_ringbuf_commit".

Nothing is lost here: what is not taken away stays in the ring, and what the ring has no room for its writer
counts. So there is one place of loss, and it is counted exactly.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from kernob.errors import MapError
from kernob.kernel import syscall

_log = logging.getLogger(__name__)

_HEADER_BYTES = 8  # u32 length and flags, u32 page offset
_BUSY, _DISCARDED = 1 << 31, 1 << 30
_LENGTH_MASK = _DISCARDED - 1
_TYPE = 27  # BPF_MAP_TYPE_RINGBUF
MAX_BATCH = 4096
"""Records taken in one read."""

GATHER_S = 0.05
"""How long the reader lets events gather after it has woken the tick thread."""

_HELD_RECORDS = 32_768
"""What may wait for the tick thread; more stays in the ring."""


@dataclass(frozen=True, slots=True)
class Records:
    """Raw records, oldest first. A time on CLOCK_MONOTONIC plus `unix_offset_ns` is Unix time."""

    raw: tuple[bytes, ...]
    unix_offset_ns: int


def missing() -> str:
    """Why this kernel has no ring buffers; "" where it has."""
    page = mmap.PAGESIZE
    try:
        fd = syscall.bpf(syscall.MAP_CREATE, struct.pack("=IIIII", _TYPE, 0, 0, page, 0))
    except OSError as error:
        return f"no BPF ring buffer (Linux 5.8): {error.strerror}"
    os.close(fd)
    return ""


def fitting_bytes(wanted: int) -> int:
    """The size a ring buffer may have: a power of two of at least one page."""
    return max(mmap.PAGESIZE, 1 << (max(1, wanted) - 1).bit_length())


def unix_offset_ns(
    monotonic_ns: Callable[[], int] = time.monotonic_ns, unix_ns: Callable[[], int] = time.time_ns
) -> int:
    """Unix time less CLOCK_MONOTONIC, now; the narrowest of a few readings, good to microseconds."""
    best, width = 0, -1
    for _ in range(5):
        before, wall, after = monotonic_ns(), unix_ns(), monotonic_ns()
        if width < 0 or after - before < width:
            best, width = wall - (before + after) // 2, after - before
    return best


class RingBuffer:
    """One mapped ring; for one reader. `fd` stays the caller's."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        """Maps the ring; `size_bytes` is the map's max_entries. Raises MapError."""
        self.fd = fd
        self.size_bytes = size_bytes
        page = mmap.PAGESIZE
        try:
            self._consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            # the data pages are mapped twice in a row, so that no record is ever cut in two
            self._producer = mmap.mmap(
                fd, page + 2 * size_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
            )
        except OSError as error:
            raise MapError(f"ring buffer: mmap: {error.strerror}") from error
        self._consumed = memoryview(self._consumer).cast("Q")
        self._produced = memoryview(self._producer)[:8].cast("Q")
        self._headers = memoryview(self._producer)[page:].cast("I")
        self._data_at = page
        self._barrier = threading.Lock()

    @property
    def waiting_bytes(self) -> int:
        """What was written and not read, headers and discarded records included."""
        return int(self._produced[0] - self._consumed[0])

    def read(self, limit: int = MAX_BATCH) -> tuple[bytes, ...]:
        """At most `limit` records, oldest first; their room is free again when this returns."""
        found: list[bytes] = []
        mask = self.size_bytes - 1
        position, end = self._consumed[0], self._produced[0]
        while position < end and len(found) < limit:
            at = position & mask
            header = self._headers[at >> 2]
            # A weakly ordered processor must not have read the record before its header: taking a lock
            # orders the two (as would smp_load_acquire).
            with self._barrier:
                pass
            if header & _BUSY:
                break
            length = header & _LENGTH_MASK
            if not header & _DISCARDED:
                first = self._data_at + at + _HEADER_BYTES
                found.append(self._producer[first : first + length])
            position += (length + _HEADER_BYTES + 7) & ~7
        with self._barrier:
            self._consumed[0] = position
        return tuple(found)

    def close(self) -> None:
        """Unmaps; safe to call twice."""
        for view in (self._consumed, self._produced, self._headers):
            view.release()
        self._consumer.close()
        self._producer.close()


class RingReader:
    """A thread that only takes records out of a ring and calls `wake`; `take` is for the tick thread."""

    def __init__(self, ring: RingBuffer, wake: Callable[[], None], held_records: int = _HELD_RECORDS) -> None:
        self._ring = ring
        self._wake = wake
        self._room = held_records
        self._held: deque[Records] = deque()
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._taken = threading.Event()
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    def take(self) -> list[Records]:
        """Everything read since the last call."""
        with self._lock:
            found = list(self._held)
            self._held.clear()
        self._taken.set()
        return found

    def take_all(self) -> list[Records]:
        """Everything that was written before this call, also what the thread has not come to yet."""
        while self._read():
            pass
        return self.take()

    def stop(self) -> None:
        """Ends the thread, then reads what is left in the ring, for a last `take`. Safe to call twice."""
        if self._stop_fd < 0:
            return
        self._stopping.set()
        self._taken.set()
        os.eventfd_write(self._stop_fd, 1)
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._stop_fd)
        self._stop_fd = -1
        while self._read():
            pass

    def _run(self) -> None:
        with contextlib.closing(select.epoll()) as poller:
            poller.register(self._ring.fd, select.EPOLLIN)
            poller.register(self._stop_fd, select.EPOLLIN)
            while not self._stopping.is_set():
                poller.poll()
                if self._stopping.is_set():
                    return
                if self._read():
                    self._wake()
                # A burst is handed over as a whole; this also bounds the wake-ups while a record is busy.
                self._stopping.wait(GATHER_S)
                self._wait_for_room()

    def _wait_for_room(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                self._taken.clear()
                if sum(len(batch.raw) for batch in self._held) < self._room:
                    return
            self._taken.wait()

    def _read(self) -> int:
        """Moves what is in the ring, up to the bound, to where `take` finds it; how many records."""
        moved = 0
        with self._reading:
            while moved < self._room:
                raw = self._ring.read()
                if not raw:
                    break
                batch = Records(raw, unix_offset_ns())
                with self._lock:
                    self._held.append(batch)
                moved += len(raw)
        return moved
