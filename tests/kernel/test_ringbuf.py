# SPDX-License-Identifier: Apache-2.0
"""kernel.ringbuf against the running kernel: a known number of records, none lost, overflow counted exactly.

A small program of its own writes one record for each getppid() that this process calls.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from harness import READY_LIMIT_S, wait_until
from tcp_watch import Watch, abort, listener

from kernob.config import Settings
from kernob.kernel import compiler, ringbuf
from kernob.kernel.attach import Loader, RawTracepoint
from kernob.kernel.maps import BpfMap
from kernob.kernel.ringbuf import RingBuffer, RingReader
from kernob.model import Fate, ProbeState
from kernob.pipeline import Pipeline
from kernob.probes.traffic import Loss

_GETPPID = {"x86_64": 110, "aarch64": 173}[platform.machine()]

_TEXT = """
struct record { u64 time_ns; u64 number; u32 cpu; u32 length; u8 filler[200]; };
BPF_RINGBUF_OUTPUT(ring, 4);
BPF_ARRAY(counts, u64, 2);
BPF_ARRAY(scratch, struct record, 1);

int written(struct bpf_raw_tracepoint_args *ctx)
{
    int zero = 0, one = 1;
    if (ctx->args[1] != SYSCALL || bpf_get_current_pid_tgid() >> 32 != PID)
        return 0;
    u64 *calls = counts.lookup(&zero);
    struct record *record = scratch.lookup(&zero);
    if (!calls || !record)
        return 0;
    record->time_ns = bpf_ktime_get_ns();
    record->number = *calls;
    record->length = *calls % 3 ? *calls % 3 == 1 ? 31 : sizeof(*record) : 24;
    __sync_fetch_and_add(calls, 1);
    if (*calls % 7 == 3) { /* some are reserved and given up again */
        void *given_up = ring.ringbuf_reserve(64);
        if (given_up)
            ring.ringbuf_discard(given_up, 0);
    }
    u32 kind = record->number % 3;
    long failed;
    if (kind == 0)
        failed = ring.ringbuf_output(record, 24, 0);
    else if (kind == 1)
        failed = ring.ringbuf_output(record, 31, 0);
    else
        failed = ring.ringbuf_output(record, sizeof(*record), 0);
    if (failed) {
        u64 *lost = counts.lookup(&one);
        if (lost)
            __sync_fetch_and_add(lost, 1);
    }
    return 0;
}
"""


class Source:
    """The program, attached; `call` makes it write."""

    def __init__(self, size_bytes: int) -> None:
        compiled = compiler.compile_text(
            _TEXT,
            ("written",),
            {"SYSCALL": _GETPPID, "PID": os.getpid()},
            None,
            compiler.SOURCES / "include",
        )
        self.maps = {name: BpfMap(spec) for name, spec in compiled.maps.items() if name != "ring"}
        self.maps["ring"] = BpfMap(compiled.maps["ring"], size_bytes)
        self.record = compiled.maps["scratch"].value
        self._link = RawTracepoint("sys_enter", "written").attach(Loader(compiled, self.maps, None))
        assert self._link
        self._libc = ctypes.CDLL(None)
        self.ring = RingBuffer(self.maps["ring"].fd, self.maps["ring"].max_entries)

    def call(self, count: int) -> None:
        for _ in range(count):
            self._libc.getppid()

    @property
    def written(self) -> int:
        return int(self.maps["counts"].read()[1][0])

    @property
    def lost(self) -> int:
        return int(self.maps["counts"].read()[1][1])

    def decode(self, raw: bytes) -> np.void:
        whole = np.zeros(1, self.record)
        whole.view(np.uint8)[: len(raw)] = np.frombuffer(raw, np.uint8)
        found: np.void = whole[0]
        return found

    def detach(self) -> None:
        if self._link:
            self._link.close()
            self._link = None

    def close(self) -> None:
        self.ring.close()
        for each in self.maps.values():
            each.close()


@pytest.fixture
def source(request: pytest.FixtureRequest) -> Iterator[Source]:
    made = Source(getattr(request, "param", mmap.PAGESIZE * 4))
    yield made
    made.detach()
    made.close()


@pytest.mark.lane
def test_every_record_comes_once_in_order_also_where_the_ring_wraps(source: Source) -> None:
    """1,009 records of three lengths through four pages, with discarded ones between: all, in order."""
    got: list[bytes] = []
    for _ in range(101):
        source.call(10 if len(got) < 1000 else 9)
        got += source.ring.read()
    assert (len(got), source.written, source.lost) == (1009, 1009, 0)
    for number, raw in enumerate(got):
        record = source.decode(raw)
        assert (int(record["number"]), int(record["length"])) == (number, len(raw))
    assert source.ring.waiting_bytes == 0
    assert source.ring.read() == ()


@pytest.mark.lane
def test_what_has_no_room_is_counted_exactly(source: Source) -> None:
    """A full ring keeps what it has; each record that did not fit is counted where it was written."""
    source.call(2003)
    kept: list[bytes] = []
    while batch := source.ring.read(100):
        assert len(batch) <= 100
        kept += batch
    assert source.lost > 1000
    assert len(kept) + source.lost == source.written == 2003
    numbers = [int(source.decode(raw)["number"]) for raw in kept]
    assert numbers == sorted(set(numbers))
    source.call(5)
    assert [int(source.decode(raw)["number"]) for raw in source.ring.read()] == list(range(2003, 2008))


def test_a_read_is_bounded_and_leaves_the_rest(source: Source) -> None:
    """A limit of three reads three; the next read goes on behind them."""
    source.call(7)
    batches = [source.ring.read(3) for _ in range(4)]
    assert [len(batch) for batch in batches] == [3, 3, 1, 0]


@pytest.mark.lane
@pytest.mark.parametrize("source", [1 << 20], indirect=True)
def test_the_thread_hands_over_every_record_and_wakes(source: Source) -> None:
    """3,001 records written while a thread reads: woken, none lost, the rest after it was stopped."""
    woken = threading.Event()
    reader = RingReader(source.ring, woken.set)
    reader.start()
    source.call(1)
    assert woken.wait(10)
    got = [raw for batch in reader.take() for raw in batch.raw]
    assert len(got) == 1
    source.call(3000)
    source.detach()
    reader.stop()
    reader.stop()
    got += [raw for batch in reader.take() for raw in batch.raw]
    assert [int(source.decode(raw)["number"]) for raw in got] == list(range(3001))
    assert source.lost == 0


@pytest.mark.parametrize("source", [1 << 20], indirect=True)
def test_what_nobody_takes_stays_in_the_ring(source: Source) -> None:
    """A reader whose records are not taken stops at its bound; the kernel then counts what does not fit."""
    woken = threading.Event()
    reader = RingReader(source.ring, woken.set, held_records=50)
    source.call(60)  # before it starts: it takes them at once, and is over its bound
    reader.start()
    assert woken.wait(10)
    source.call(500)
    time.sleep(0.2)  # in which it would read again
    first = [raw for batch in reader.take() for raw in batch.raw]
    assert len(first) == 60
    source.detach()
    reader.stop()
    rest = [raw for batch in reader.take() for raw in batch.raw]
    assert len(first) + len(rest) == 560
    assert source.lost == 0


@pytest.mark.lane
def test_a_record_is_at_the_wall_clocks_time_within_a_millisecond(source: Source) -> None:
    """The kernel's monotonic time plus the offset lies between the clock's readings around the event."""
    reader = RingReader(source.ring, lambda: None)
    for _ in range(20):
        before = time.time_ns()
        source.call(1)
        after = time.time_ns()
        assert reader._read() == 1
        (batch,) = reader.take()
        unix_ns = int(source.decode(batch.raw[0])["time_ns"]) + batch.unix_offset_ns
        assert before - 1_000_000 <= unix_ns <= after + 1_000_000
    reader.stop()


@pytest.mark.lane
def test_an_empty_ring_is_waited_on_without_work(source: Source) -> None:
    """poll sleeps while the ring is empty and returns when a record comes."""
    poller = select.epoll()
    poller.register(source.maps["ring"].fd, select.EPOLLIN)
    assert poller.poll(0.05) == []
    source.call(1)
    assert len(poller.poll(5)) == 1
    poller.close()


@pytest.mark.lane
def test_events_of_processes_take_no_room_from_those_of_connections(watch: Watch) -> None:
    """Processes fail until the ring of their events, which nobody reads here, is full: a loss by itself."""
    storm = subprocess.Popen(["/bin/sh", "-c", "while :; do (exit 1); done"])
    try:
        wait_until(lambda: watch.losses()[Loss.LIFE_EVENTS_FULL] > 0, "the ring to be full")
    finally:
        storm.kill()
        storm.wait()
    door = listener()
    door.settimeout(READY_LIMIT_S)
    with socket.create_connection(door.getsockname()) as client:
        abort(door.accept()[0])
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    door.close()
    watch.settle({os.getpid()})
    told = [event["kind"] for event in watch.events_of(os.getpid())]
    assert [kind for kind in told if kind != Fate.RETRANSMIT] == [Fate.RESET] * 2
    assert watch.lost() == {}


def test_this_kernel_has_ring_buffers() -> None:
    """Where these tests run, nothing is missing."""
    assert ringbuf.missing() == ""


def test_without_ring_buffers_all_but_events_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As before Linux 5.8: programs compile and attach, nothing is told, and doctor's line says why."""
    monkeypatch.setattr(ringbuf, "missing", lambda: "no BPF ring buffer (Linux 5.8): Invalid argument")
    with Pipeline(Settings(cache_dir=tmp_path)) as pipeline:
        assert pipeline.events() == []
        snapshot = pipeline.tick(1.0, with_flows=False)
        failed = [hook for hook in pipeline.hooks if hook.state is ProbeState.FAILED]
        pipeline.detach()
        # destinations that anybody on this machine calls for the first time come from the tables
        assert {event.kind for event in pipeline.events()} <= {"kernob.destination.new"}
        assert pipeline.summaries() == []
    assert [(hook.probe, hook.hook) for hook in failed] == [("tcp", "events")]
    assert failed[0].attempts[0].reason.startswith("no BPF ring buffer")
    assert (snapshot.losses["ring_full"], snapshot.losses["decode"]) == (0, 0)
