# SPDX-License-Identifier: Apache-2.0
"""Reading /proc: a tree made by hand for what is rare, the running kernel's for what is real."""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernob.kernel.procfs import ClockOffsets, InterfaceCounters, ProcFs, Route, measure_clocks
from kernob.model import ProcessInfo, ProcessKey
from kernob.state.names import sanitize, split_args

STAT = "{pid} ({comm}) S 1 4711 4711 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 {ticks} 12345 99 4294967295\n"
TCP_HEADING = (
    b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
)
HOST_NETNS, OTHER_NETNS = 4026531840, 4026532300


def reader(root: Path) -> ProcFs:
    """Make a reader of `root`/proc and `root`/sys."""
    return ProcFs(root / "proc", sanitize, split_args, root / "sys")


def add_process(root: Path, pid: int, **files: bytes | str) -> Path:
    """Add /proc/`pid`: `exe` and `netns` become links, all else files; stat and comm have defaults."""
    directory = root / "proc" / str(pid)
    (directory / "ns").mkdir(parents=True)
    (directory / "net").mkdir()
    contents = {"stat": STAT.format(pid=pid, comm="nginx", ticks=123456), "comm": "nginx\n", **files}
    if "exe" in contents:
        os.symlink(contents.pop("exe"), os.fsencode(directory / "exe"))  # noqa: PTH211 - bytes too
    if "netns" in contents:
        (directory / "ns" / "net").symlink_to(str(contents.pop("netns")))
    for name, content in contents.items():
        raw = content if isinstance(content, bytes) else content.encode()
        (directory / name.replace("net_", "net/")).write_bytes(raw)
    return directory


def own_netns() -> int:
    """Inode number of this process's network namespace, as the running kernel prints it."""
    return int(str(Path("/proc/self/ns/net").readlink()).removeprefix("net:[").removesuffix("]"))


def tcp_table(*rows: tuple[int, str], width: int = 8) -> bytes:
    """Write a /proc/net/tcp (width 8) or tcp6 (32) of (local port, state) rows."""
    zero = "0" * width
    lines = [
        f"{n:4}: {zero}:{port:04X} {zero}:0000 {state} 00000000:00000000 00:00000000 00000000  0 0 {n} 1 0\n"
        for n, (port, state) in enumerate(rows)
    ]
    return TCP_HEADING + "".join(lines).encode()


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


def test_listeners_of_every_namespace_are_found_once(tmp_path: Path) -> None:
    """One process of each namespace tells its listeners, v4 and v6; other states are not listeners."""
    add_process(
        tmp_path,
        1,
        netns=f"net:[{HOST_NETNS}]",
        net_tcp=tcp_table((22, "0A"), (443, "0A"), (51234, "01")),
        net_tcp6=tcp_table((443, "0A"), (8080, "0A"), (22, "06"), width=32),
    )
    add_process(tmp_path, 2, netns=f"net:[{HOST_NETNS}]", net_tcp=tcp_table((9, "0A")))
    add_process(tmp_path, 3, netns=f"net:[{OTHER_NETNS}]", net_tcp=tcp_table((443, "0A")))
    add_process(tmp_path, 4, netns="mnt:[1]", net_tcp=tcp_table((5, "0A")))
    assert reader(tmp_path).listening_ports() == {
        (HOST_NETNS, 22),
        (HOST_NETNS, 443),
        (HOST_NETNS, 8080),
        (OTHER_NETNS, 443),
    }


def test_a_process_that_vanished_leaves_its_namespace_to_the_next(tmp_path: Path) -> None:
    """Where the first process of a namespace cannot be read any more, another one tells."""
    add_process(tmp_path, 1, netns=f"net:[{HOST_NETNS}]")
    add_process(tmp_path, 2, netns=f"net:[{HOST_NETNS}]", net_tcp=tcp_table((80, "0A")))
    assert reader(tmp_path).listening_ports() == {(HOST_NETNS, 80)}


def test_broken_lines_of_a_socket_table_are_left_out(tmp_path: Path) -> None:
    """Lines that are cut, not hexadecimal or empty are skipped, the others count."""
    table = TCP_HEADING + b"\n   0: 0000\n   1: 0100007F:XXXX 0:0 0A 0\n\xff\xfe\n" + tcp_table((80, "0A"))
    add_process(tmp_path, 1, netns=f"net:[{HOST_NETNS}]", net_tcp=table)
    assert reader(tmp_path).listening_ports() == {(HOST_NETNS, 80)}


def test_the_host_s_namespace_is_the_first_process_s(tmp_path: Path) -> None:
    """Process 1 tells it; where its links may not be followed, our own; else it is 0."""
    assert reader(tmp_path).host_netns() == 0
    add_process(tmp_path, 9, netns=f"net:[{OTHER_NETNS}]")
    (tmp_path / "proc" / "self").symlink_to("9")
    assert reader(tmp_path).host_netns() == OTHER_NETNS
    add_process(tmp_path, 1, netns=f"net:[{HOST_NETNS}]")
    assert reader(tmp_path).host_netns() == HOST_NETNS


NET_DEV = b"""Inter-|   Receive                             |  Transmit
 face |bytes packets errs drop fifo frame compressed|bytes packets errs drop fifo colls carrier
    lo:    3193  29 0 0 0 0 0 0     3193    29 0 0 0 0 0 0
  eth0:372565220 9516 0 0 0 0 0 0 606842  5482 0 0 0 0 0 0
eth0.7:      10   1 0 0 0 0 0 0       20     2 0 0 0 0 0 0
docker0:      1   2 0 0 0 0 0 0        3     4 0 0 0 0 0 0
br-0a1b: broken
short: 1 2 3
"""


def test_interfaces_are_read_from_the_first_process(tmp_path: Path) -> None:
    """Counters come from the host's namespace, also where a number touches the name; broken lines do not."""
    add_process(tmp_path, 1, net_dev=NET_DEV)
    add_process(tmp_path, 9, net_dev=b"own: " + b"1 " * 16)
    (tmp_path / "proc" / "self").symlink_to("9")
    assert reader(tmp_path).interfaces() == {
        "lo": InterfaceCounters(3193, 29, 3193, 29),
        "eth0": InterfaceCounters(372565220, 9516, 606842, 5482),
        "eth0.7": InterfaceCounters(10, 1, 20, 2),
        "docker0": InterfaceCounters(1, 2, 3, 4),
    }


def test_without_the_first_process_our_own_interfaces_count(tmp_path: Path) -> None:
    """Where /proc/1/net may not be read, /proc/self/net is."""
    add_process(tmp_path, 9, net_dev=b"own: " + b"1 " * 16)
    (tmp_path / "proc" / "self").symlink_to("9")
    assert reader(tmp_path).interfaces() == {"own": InterfaceCounters(1, 1, 1, 1)}
    assert reader(tmp_path / "nowhere").interfaces() == {}


def test_interfaces_with_a_device_are_counted(tmp_path: Path) -> None:
    """Bridges, tunnels, VLANs and bonds carry again what the devices below them carry: not counted."""
    for name in ("eth0", "wlan0"):
        (tmp_path / "sys/class/net" / name / "device").mkdir(parents=True)
    names = ["wlan0", "lo", "eth0", "eth0.7", "bond0", "docker0", "wg0"]
    assert reader(tmp_path).counted_interfaces(names) == ("eth0", "wlan0")
    assert reader(tmp_path).counted_interfaces(names, ("bond0", "eth9")) == ("bond0",)


def test_without_devices_names_tell_what_is_virtual(tmp_path: Path) -> None:
    """In a container whose interface is one end of a veth, its name decides."""
    virtual = ["lo", "veth1a2b", "docker0", "br-0a1b", "virbr0", "cni0", "wg0", "tun0", "dummy0", "flannel.1"]
    assert reader(tmp_path).counted_interfaces(["eth0", "ens3", "enp1s0", *virtual]) == (
        "enp1s0",
        "ens3",
        "eth0",
    )


FIB_TRIE = b"""Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
           |-- 127.0.0.0
              /8 host LOCAL
           |-- 192.0.2.2
              /32 host LOCAL
        |-- 192.0.2.255
           /32 link BROADCAST
        |-- nonsense
           /32 host LOCAL
"""


def hexadecimal(address: str) -> str:
    """Write a v4 address as /proc/net/route does."""
    number = int.from_bytes(ipaddress.IPv4Address(address).packed, sys.byteorder)
    return f"{number:08X}"


def test_routes_are_ordered_as_the_kernel_would_choose(tmp_path: Path) -> None:
    """Own addresses and networks before the default route, of two defaults the one of lower metric."""
    rows = [
        ("wlan0", "0.0.0.0", "0003", 600, "0.0.0.0"),
        ("eth0", "0.0.0.0", "0003", 100, "0.0.0.0"),
        ("docker0", "172.17.0.0", "0001", 0, "255.255.0.0"),
        ("*", "10.9.0.0", "0201", 0, "255.255.0.0"),
        ("eth1", "10.8.0.0", "0001", "many", "255.255.0.0"),
    ]
    route = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n" + "".join(
        f"{name}\t{hexadecimal(to)}\t00000000\t{flags}\t0\t0\t{metric}\t{hexadecimal(mask)}\t0\t0\t0\n"
        for name, to, flags, metric, mask in rows
    )
    route6 = "".join(
        f"{int(ipaddress.IPv6Address(to)):032x} {prefix:02x} {0:032x} 00 {0:032x}"
        f" {metric:08x} 00000001 00000000 {flags:08x} {name}\n"
        for name, to, prefix, metric, flags in [
            ("eth0", "::", 0, 1024, 0x3),
            ("lo", "::", 0, 0xFFFFFFFF, 0x200200),
            ("eth0", "2001:db8::2", 128, 0, 0x80200001),
            ("lo", "::1", 128, 0, 0x80200001),
        ]
    )
    add_process(
        tmp_path, 1, net_route=route + "broken\n", net_fib_trie=FIB_TRIE, net_ipv6_route=route6 + "zz\n"
    )
    assert [(str(network), interface) for network, interface in reader(tmp_path).routes()] == [
        ("2001:db8::2/128", "lo"),
        ("::1/128", "lo"),
        ("192.0.2.2/32", "lo"),
        ("172.17.0.0/16", "docker0"),
        ("127.0.0.0/8", "lo"),
        ("0.0.0.0/0", "eth0"),
        ("0.0.0.0/0", "wlan0"),
        ("::/0", "eth0"),
    ]


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=400))
def test_no_content_of_any_table_raises(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    """Arbitrary bytes in every file give empty or partial answers, never an exception."""
    root = tmp_path_factory.mktemp("proc")
    names = ("tcp", "tcp6", "dev", "route", "fib_trie", "ipv6_route")
    tables: dict[str, bytes | str] = {f"net_{name}": junk for name in names}
    add_process(
        root, 1, stat=junk, comm=junk, cmdline=junk, cgroup=junk, netns=f"net:[{HOST_NETNS}]", **tables
    )
    proc = reader(root)
    proc.read_process(1)
    proc.listening_ports()
    proc.interfaces()
    proc.routes()


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


def test_a_listener_of_this_process_is_found_in_the_running_kernel() -> None:
    """A socket that listens appears with this process's namespace; one that is only bound does not."""
    netns = own_netns()
    with socket.socket() as bound, socket.create_server(("127.0.0.1", 0)) as listener:
        bound.bind(("127.0.0.1", 0))
        ports = ProcFs(Path("/proc"), sanitize, split_args).listening_ports()
        assert (netns, listener.getsockname()[1]) in ports
        assert (netns, bound.getsockname()[1]) not in ports


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


def test_routes_and_interfaces_of_the_running_kernel_have_loopback() -> None:
    """The real tables hold lo and its network; nothing of lo is counted."""
    proc = ProcFs(Path("/proc"), sanitize, split_args)
    assert Route(ipaddress.ip_network("127.0.0.0/8"), "lo") in proc.routes()
    assert "lo" in proc.interfaces()
    assert "lo" not in proc.counted_interfaces(proc.interfaces())
