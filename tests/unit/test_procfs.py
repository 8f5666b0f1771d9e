# SPDX-License-Identifier: Apache-2.0
"""Reading processes and clocks: a /proc made by hand for what is rare, the running kernel's for the rest."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kernob.kernel.procfs import ClockOffsets, ProcFs, measure_clocks
from kernob.model import ProcessInfo, ProcessKey
from kernob.state.names import sanitize, split_args
from tests.unit.proc_tree import HOST_NETNS, STAT, add_process, own_netns, reader


def test_a_process_is_described_from_its_files(tmp_path: Path) -> None:
    """Every field of ProcessInfo comes from its file, with exec_id 0."""
    add_process(
        tmp_path,
        4711,
        exe="/usr/sbin/nginx",
        netns=f"net:[{HOST_NETNS}]",
        cmdline=b"nginx: worker process\0\0\0",
        cgroup="0::/system.slice/nginx.service\n",
    )
    assert reader(tmp_path).read_process(4711) == ProcessInfo(
        key=ProcessKey(4711, 123456, 0),
        executable="nginx",
        comm="nginx",
        args=("nginx: worker process",),
        cgroup=("system.slice", "nginx.service"),
        netns=HOST_NETNS,
    )


@pytest.mark.parametrize("comm", ["a b", "x) S 1 2", "((", ")", "", "\\n", ") R 9 (", "a\x1b[2J"])
def test_the_start_time_survives_any_comm(tmp_path: Path, comm: str) -> None:
    """Fields of stat are counted after the last parenthesis, whatever the process calls itself."""
    add_process(tmp_path, 7, stat=STAT.format(pid=7, comm=comm, ticks=4242), comm=comm + "\n")
    info = reader(tmp_path).read_process(7)
    assert info is not None
    assert info.key == ProcessKey(7, 4242, 0)
    assert info.comm == sanitize(comm)


def test_the_start_time_is_kept_modulo_two_to_the_32(tmp_path: Path) -> None:
    """After 497 days of uptime the key wraps exactly as the kernel side's 32 bits do."""
    add_process(tmp_path, 7, stat=STAT.format(pid=7, comm="x", ticks=2**32 + 5))
    info = reader(tmp_path).read_process(7)
    assert info is not None
    assert info.key.start_ticks == 5


@pytest.mark.parametrize(
    ("link", "executable"),
    [
        ("/usr/bin/python3.11", "python3.11"),
        ("/usr/sbin/nginx (deleted)", "nginx"),
        ("/opt/my app/run me", "run me"),
        ("/memfd:runc_cloned:/proc/self/exe (deleted)", "runc_cloned"),
        ("/memfd:payload (deleted)", "payload"),
        ("/", ""),
        (b"/tmp/a\nb\xff", "a\ufffdb\ufffd"),
    ],
)
def test_the_executable_is_the_link_s_last_part(tmp_path: Path, link: str | bytes, executable: str) -> None:
    """Deleted files, anonymous memory and hostile names give a clean basename."""
    add_process(tmp_path, 7, exe=link)
    info = reader(tmp_path).read_process(7)
    assert info is not None
    assert info.executable == executable


@pytest.mark.parametrize(
    ("content", "path"),
    [
        pytest.param("0::/system.slice/ssh.service\n", "/system.slice/ssh.service", id="v2"),
        pytest.param("0::/\n", "/", id="v2, root"),
        pytest.param(
            "9:name=systemd:/system.slice/a.service\n8:pids:/x\n4:memory:/y\n",
            "/system.slice/a.service",
            id="v1",
        ),
        pytest.param(
            "12:pids:/docker/f00\n1:name=systemd:/docker/f00\n0::/system.slice/containerd.service\n",
            "/docker/f00",
            id="hybrid: v2's line is the runtime's",
        ),
        pytest.param("8:pids:/p\n4:memory:/m\n2:cpu,cpuacct:/c\n0::/\n", "/p", id="v1 without systemd: pids"),
        pytest.param("9:name=systemd:/\n8:pids:/\n4:memory:/m/n\n1:cpu:/c\n0::/\n", "/m/n", id="then memory"),
        pytest.param("2:cpuacct,cpu:/c\n0::/\n", "/c", id="then cpu, mounted with another"),
        pytest.param("5:devices:/d\n0::/v2\n", "/v2", id="other v1 hierarchies do not count"),
        pytest.param("0::/system.slice/a.service (deleted)\n", "/system.slice/a.service", id="removed"),
        pytest.param("0::/../nginx.service\n", "/nginx.service", id="seen from a cgroup namespace"),
        pytest.param("0::/a:b/c::d\n", "/a:b/c::d", id="colons in names"),
        pytest.param("", "/", id="empty"),
        pytest.param("nonsense\n:\n::\n0\n", "/", id="malformed"),
    ],
)
def test_the_cgroup_path_is_the_one_that_names_things(tmp_path: Path, content: str, path: str) -> None:
    """v1's systemd, pids, memory, cpu where they are in use, else v2; given as names from the root down."""
    add_process(tmp_path, 7, cgroup=content)
    info = reader(tmp_path).read_process(7)
    assert info is not None
    assert info.cgroup == tuple(part for part in path.split("/") if part)


def test_a_process_with_nothing_readable_but_its_stat_is_still_known(tmp_path: Path) -> None:
    """A kernel thread has no executable, arguments or groups; that is no error."""
    add_process(tmp_path, 2, comm="kworker/0:1\n", cmdline=b"")
    assert reader(tmp_path).read_process(2) == ProcessInfo(ProcessKey(2, 123456, 0), "", "kworker/0:1")


@pytest.mark.parametrize(
    "stat", [b"", b"7", b"7 (x", b"7 (x) S 1 2 3\n", b"7 (x) " + b"- " * 30, b"\xff" * 99]
)
def test_a_malformed_stat_is_no_process(tmp_path: Path, stat: bytes) -> None:
    """Without a start time there is no key, so there is no process."""
    add_process(tmp_path, 7, stat=stat)
    assert reader(tmp_path).read_process(7) is None


def test_a_process_that_is_not_there_is_none(tmp_path: Path) -> None:
    """A PID without a directory, or with a directory already emptied, is None."""
    (tmp_path / "proc" / "8").mkdir(parents=True)
    assert reader(tmp_path).read_process(7) is None
    assert reader(tmp_path).read_process(8) is None


def test_long_arguments_are_read_up_to_the_bound_asked_for(tmp_path: Path) -> None:
    """By default 192 bytes are read and the cut is marked; more can be asked for."""
    command = b"java\0-cp\0" + b"j" * 1000 + b"\0kafka.Kafka\0"
    add_process(tmp_path, 7, cmdline=command)
    short = reader(tmp_path).read_process(7)
    full = reader(tmp_path).read_process(7, args_bytes=65536)
    assert short is not None
    assert full is not None
    assert short.args == ("java", "-cp", "j" * 183 + "…")
    assert full.args[-1] == "kafka.Kafka"


def test_pids_are_directories_with_numbers(tmp_path: Path) -> None:
    """Other entries of /proc are no processes."""
    for name in ("1", "42", "self", "net", "7x", "³"):
        (tmp_path / "proc" / name).mkdir(parents=True)
    assert reader(tmp_path).pids() == [1, 42]


def test_clocks_are_read_around_each_other_and_the_tightest_pair_is_kept() -> None:
    """The offset is Unix time minus the middle of the two readings that lie closest together."""
    now_ns = {time.CLOCK_BOOTTIME: 1_000_000, time.CLOCK_MONOTONIC: 400_000, time.CLOCK_REALTIME: 9_000_000}
    steps = iter([500, 300, 20, 400, 600] * 100)
    step = [0]

    def read_ns(clock: int) -> int:
        if clock == time.CLOCK_REALTIME:
            return now_ns[clock] + step[0]
        if clock in now_ns:
            step[0] += next(steps)
        return now_ns[clock] + step[0]

    offsets = measure_clocks(read_ns)
    assert abs(offsets.unix_minus_boottime_ns - 8_000_000) <= 250
    assert abs(offsets.unix_minus_monotonic_ns - 8_600_000) <= 250


def test_a_start_becomes_unix_time_across_the_wrap() -> None:
    """Ticks of ten milliseconds since boot are added to the boot's Unix time, past 2**32 ticks too."""
    boot_unix_ns = 1_700_000_000_000_000_000
    offsets = ClockOffsets(boot_unix_ns, boot_unix_ns, boottime_ns=60_000_000_000)
    assert offsets.start_unix_ns(5_900) == boot_unix_ns + 59_000_000_000
    wrapped = ClockOffsets(boot_unix_ns, boot_unix_ns, boottime_ns=(2**32 + 1_000) * 10_000_000)
    assert wrapped.start_unix_ns(900) == boot_unix_ns + (2**32 + 900) * 10_000_000
    assert wrapped.start_unix_ns(2**32 - 1) == boot_unix_ns + (2**32 - 1) * 10_000_000


def test_this_very_process_is_read_from_the_running_kernel() -> None:
    """The real /proc gives this process's own name, arguments, namespace, and a start in the past."""
    info = ProcFs(Path("/proc"), sanitize, split_args).read_process(os.getpid())
    assert info is not None
    assert info.executable == Path("/proc/self/exe").readlink().name
    assert info.netns == own_netns()
    assert info.args
    started = measure_clocks().start_unix_ns(info.key.start_ticks)
    assert 0 <= time.time_ns() - started < 10**9 * 86_400 * 365


def test_a_process_that_has_ended_is_gone_or_has_no_arguments() -> None:
    """A zombie keeps its key and nothing else; once reaped it is None."""
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    proc = ProcFs(Path("/proc"), sanitize, split_args)
    zombie = proc.read_process(child.pid)
    assert zombie is not None
    assert (zombie.executable, zombie.args) == ("", ())
    child.wait()
    assert proc.read_process(child.pid) is None
