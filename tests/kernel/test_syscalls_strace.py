# SPDX-License-Identifier: Apache-2.0
"""Durations of system calls against strace, and a writer to a slow disk: counts exact, sums within 1 %."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tcp_watch import watching
from test_syscalls_truth import Clock, come_first, played, within_a_percent

from kernob.kernel.session import Session
from kernob.probes import syscalls
from kernob.syscall_table import names

WRITES_A_SECOND = 20
WATCHED = ("read", "write", "futex", "epoll_wait", "epoll_pwait", "epoll_pwait2")
# A lock held by others for 180 ms each time, timeouts of epoll, a slow pipe, a slow disk: all in one process.
MIXED = """
import os, select, sys, threading, time
file = os.open(sys.argv[1], os.O_WRONLY | os.O_SYNC)
reader, writer = os.pipe()
lock, poll = threading.Lock(), select.epoll()
for _ in range(6):
    lock.acquire()
    threading.Timer(0.18, lock.release).start()
    with lock:
        pass
    poll.poll(0.1)
    threading.Timer(0.12, os.write, (writer, b"x")).start()
    os.read(reader, 1)
for _ in range(16):
    os.write(file, bytes(4096))
print(os.getpid())
"""


@pytest.fixture(scope="module")
def session(agents: Path) -> Iterator[Session]:
    """The programs as they are attached by default."""
    with watching(agents / "cache") as watch:
        yield watch.session


@contextlib.contextmanager
def throttled(device: str) -> Iterator[Path]:
    """A control group whose members write so often a second to a device; where a process joins it."""
    name, numbers = f"kernob-test-{os.getpid()}", Path(device).stat().st_rdev
    limit = f"{os.major(numbers)}:{os.minor(numbers)} "
    version1, version2 = Path("/sys/fs/cgroup/blkio"), Path("/sys/fs/cgroup")
    if (version1 / "blkio.throttle.write_iops_device").exists():
        group, file, limit = version1 / name, "blkio.throttle.write_iops_device", f"{limit}{WRITES_A_SECOND}"
    elif "io" in _text(version2 / "cgroup.subtree_control").split():
        group, file, limit = version2 / name, "io.max", f"{limit}wiops={WRITES_A_SECOND}"
    else:
        pytest.skip("missing feature: a control group that throttles a disk")
    group.mkdir()
    try:
        (group / file).write_text(limit)
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.fixture
def slow_disk(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A loop device, and the control group in which it is slow."""
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    done = subprocess.run(
        ["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"missing feature: loop devices: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        with throttled(device) as procs:
            yield device, procs
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_synchronous_writes_to_a_slow_disk(session: Session, slow_disk: tuple[str, Path]) -> None:
    """Who writes to a loop device with O_SYNC sees in write() what that takes, and so do we."""
    device, procs = slow_disk

    def play(clock: Clock) -> None:
        clock.time("write", os.write, os.open(procs, os.O_WRONLY), str(os.getpid()).encode())
        file = os.open(device, os.O_WRONLY | os.O_SYNC)
        for _ in range(20):
            clock.time("write", os.write, file, bytes(4096))

    truth, found = played(session, play)
    within_a_percent({"write": truth["write"]}, {"write": found["write"]})
    assert found["write"][1] > 15 / WRITES_A_SECOND * 1e9


def calls_of(session: Session, pid: int) -> dict[str, tuple[int, int]]:
    """How many and how long by name, of a process since the last reading."""
    rows = syscalls.read(session)
    found: dict[str, tuple[int, int]] = {}
    for key, value in zip(rows.keys, rows.values, strict=True):
        if int(key["tgid"]) == pid:
            count, ns = found.get(name := names()[int(key["number"])], (0, 0))
            found[name] = (count + int(value["durations"]["count"]), ns + int(value["durations"]["sum_ns"]))
    return found


def test_strace_counts_and_times_the_same(
    session: Session, slow_disk: tuple[str, Path], tmp_path: Path
) -> None:
    """strace -c -w: as many of each call as strace counts, sums within 1 %, for all threads of a process."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("missing feature: strace")
    device, procs = slow_disk
    summary, script = tmp_path / "summary", tmp_path / "mixed.py"
    script.write_text(MIXED)
    python = [os.path.realpath(sys.executable), "-I", "-S", str(script), device]
    command = [strace, "-f", "-c", "-w", "-U", "name,calls,time-total", "-o", str(summary), *python]

    def join() -> None:
        come_first()
        procs.write_text(str(os.getpid()))

    tracer = subprocess.run(command, preexec_fn=join, stdout=subprocess.PIPE, timeout=120, check=True)
    found = calls_of(session, int(tracer.stdout))
    truth: dict[str, tuple[int, float]] = {}
    for line in summary.read_text().splitlines():
        words = line.split()
        if words and words[0] in WATCHED:
            truth[words[0]] = (int(words[1]), float(words[2]) * 1e9)
    assert {name: count for name, (count, _) in found.items()} == {n: c for n, (c, _) in truth.items()}
    assert {"read", "write", "futex"} < truth.keys()
    for name, (_, ns) in truth.items():
        assert 0.99 * ns <= found[name][1] <= ns, (name, truth, found)
        assert ns > 0.5e9
