# SPDX-License-Identifier: Apache-2.0
"""What /proc and /sys tell: processes, listening ports, clocks, interfaces and routes.

In: a proc root (/proc, or a container's view of the host's) and the functions that make hostile text
harmless. Out: frozen records. Called by the agent: at its start for everything that already runs, per
tick for interface counters, now and then for one process whose captured command line was too short.

Processes vanish while they are read, files can be forbidden, and lines can be of a kernel to come: such
a process, namespace or line is left out, and what is returned is what could be read.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kernob.model import ProcessInfo, ProcessKey

Clean = Callable[[bytes, int], str]
"""Turns raw bytes into at most so many printable characters (`kernob.state.names.sanitize`)."""

SplitArgs = Callable[[bytes, int], "tuple[str, ...]"]
"""Splits at most so many bytes of a command line (`kernob.state.names.split_args`)."""

TICKS_PER_SECOND = 100
"""USER_HZ, the unit of times in /proc/PID/stat on every architecture BPF runs on."""

ARGS_BYTES = 192
"""Command line read by default: as much as the kernel side captures."""

ARGS_BYTES_MAX = 65536
"""Enough for the class path of a large JVM; for one process at a time, not to be kept."""

_NAME_CHARACTERS = 64
_PATH_CHARACTERS = 256
_FILE_BYTES_MAX = 1 << 20  # a router's table can have a million routes; the default one comes first
_STAT_BYTES_MAX = 4096
_LISTEN = b"0A"  # TCP_LISTEN, include/net/tcp_states.h
_RTF_REJECT, _RTF_LOCAL = 0x0200, 0x80000000  # include/uapi/linux/route.h, ipv6_route.h
_V1_PREFERENCE = (b"name=systemd", b"pids", b"memory", b"cpu")
_VIRTUAL_NAME = re.compile(
    r"lo\Z|veth|docker|br-|br\d|virbr|vnet|tun|tap|wg|dummy|ifb|cni|flannel|cali|cilium|lxc|lxd|podman|kube-"
    r"|vxlan|geneve|gre|erspan|sit\d|ip6tnl|tunl|ip_vti|ip6_vti|nlmon|tailscale|zt|weave|incus"
)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class InterfaceCounters(NamedTuple):
    """Totals of one interface since it exists; bytes count link headers, not frame checksums."""

    rx_bytes: int
    rx_packets: int
    tx_bytes: int
    tx_packets: int


class Route(NamedTuple):
    """Which interface packets to a network leave by; the host's own addresses are on "lo"."""

    network: Network
    interface: str


@dataclass(frozen=True, slots=True)
class ClockOffsets:
    """Unix time minus the kernel's clocks, measured at `boottime_ns` (ns since boot, sleep included)."""

    unix_minus_boottime_ns: int
    unix_minus_monotonic_ns: int
    boottime_ns: int

    def start_unix_ns(self, start_ticks: int) -> int:
        """Unix time of a process start given as `ProcessKey.start_ticks`; early by less than 10 ms."""
        tick_ns = 1_000_000_000 // TICKS_PER_SECOND
        now_ticks = self.boottime_ns // tick_ns
        age_ticks = (now_ticks - start_ticks) % 2**32  # the key wraps after 497 days of uptime
        return (now_ticks - age_ticks) * tick_ns + self.unix_minus_boottime_ns


def measure_clocks(read_ns: Callable[[int], int] = time.clock_gettime_ns) -> ClockOffsets:
    """Read the wall clock between two readings of each kernel clock, five times; keep the tightest.

    The error is at most half the time between the two readings, normally well under a microsecond.
    """
    boottime = [_offset_ns(read_ns, time.CLOCK_BOOTTIME) for _ in range(5)]
    monotonic = [_offset_ns(read_ns, time.CLOCK_MONOTONIC) for _ in range(5)]
    return ClockOffsets(min(boottime)[1], min(monotonic)[1], read_ns(time.CLOCK_BOOTTIME))


def _offset_ns(read_ns: Callable[[int], int], clock: int) -> tuple[int, int]:
    """(time the reading took, Unix time minus `clock`), both in ns."""
    before = read_ns(clock)
    unix = read_ns(time.CLOCK_REALTIME)
    after = read_ns(clock)
    return after - before, unix - (before + after) // 2


class ProcFs:
    """Reader of one proc root; keeps nothing between calls."""

    def __init__(
        self, root: Path, clean: Clean, split_args: SplitArgs, sys_root: Path = Path("/sys")
    ) -> None:
        self._root = os.fspath(root)
        self._clean = clean
        self._split_args = split_args
        self._net_class = sys_root / "class" / "net"

    def pids(self) -> list[int]:
        """PIDs of all processes (not threads) there are now, ascending. Raises OSError without a root."""
        with os.scandir(self._root) as entries:
            return sorted(int(entry.name) for entry in entries if entry.name.isdecimal())

    def read_process(self, pid: int, args_bytes: int = ARGS_BYTES) -> ProcessInfo | None:
        """Describe one process; None when it is gone or its stat may not be read.

        The directory is held open, so all facts are of one process even if the PID is reused meanwhile.
        `key.exec_id` is 0 (/proc does not show it) and `executable` "" for kernel threads and where the
        link may not be followed. At most `args_bytes` of the command line are read.
        """
        directory = _open(f"{self._root}/{pid}", os.O_DIRECTORY)
        if directory < 0:
            return None
        try:
            stat = _read("stat", directory)
            start_ticks = _start_ticks(stat)
            if start_ticks is None:
                return None
            comm = _read("comm", directory).removesuffix(b"\n")
            executable = _executable(_readlink("exe", directory))
            return ProcessInfo(
                key=ProcessKey(pid, start_ticks % 2**32, 0),
                executable=self._clean(executable, _NAME_CHARACTERS) if executable else "",
                comm=self._clean(comm, _NAME_CHARACTERS),
                args=self._split_args(_read("cmdline", directory, args_bytes), args_bytes),
                cgroup=tuple(
                    self._clean(part, _PATH_CHARACTERS) for part in _cgroup(_read("cgroup", directory))
                ),
                netns=_netns(_readlink("ns/net", directory)),
            )
        finally:
            os.close(directory)

    def start_ticks(self, pid: int) -> int | None:
        """When a process started (`ProcessKey.start_ticks`), None where there is none any more.

        Raises OSError where that cannot be told, for want of a descriptor for example.
        """
        try:
            with open(f"{self._root}/{pid}/stat", "rb") as file:  # noqa: PTH123 - one of very many
                ticks = _start_ticks(file.read(_STAT_BYTES_MAX))
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if ticks is None else ticks % 2**32

    def listening_ports(self) -> set[tuple[int, int]]:
        """(network namespace inode, port) of every TCP listener, in all namespaces some process is in."""
        seen: set[int] = set()
        ports: set[tuple[int, int]] = set()
        for pid in self.pids():
            netns = _netns(_readlink(f"{self._root}/{pid}/ns/net"))
            if netns == 0 or netns in seen:
                continue
            found = [_listeners(f"{self._root}/{pid}/net/{table}") for table in ("tcp", "tcp6")]
            if found[0] is None:  # gone meanwhile: let the namespace's next process tell
                continue
            seen.add(netns)
            ports.update((netns, port) for table in found if table is not None for port in table)
        return ports

    def host_netns(self) -> int:
        """Inode of the host's network namespace: process 1's, else ours, 0 when neither may be seen."""
        return _netns(_readlink(f"{self._root}/1/ns/net")) or _netns(_readlink(f"{self._root}/self/ns/net"))

    def interfaces(self) -> dict[str, InterfaceCounters]:
        """Counters of the interfaces in the host's network namespace, as process 1 sees them, else we."""
        counters: dict[str, InterfaceCounters] = {}
        for line in self._host_net("dev").splitlines():
            name, colon, numbers = line.rpartition(b":")
            fields = numbers.split()
            if not colon or len(fields) < 10 or not all(field.isdigit() for field in fields[:10]):
                continue  # the two lines of headings
            values = [int(fields[column]) for column in (0, 1, 8, 9)]
            counters[self._clean(name.strip(), _NAME_CHARACTERS)] = InterfaceCounters(*values)
        return counters

    def counted_interfaces(self, present: Iterable[str], wanted: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Those of the `present` interfaces whose bytes are compared with what processes moved.

        The `wanted` ones when there are any; else those that have a device behind them; else, in a
        machine without any such (a container), those whose names are not of a virtual kind.
        """
        names = sorted(present)
        if wanted:
            return tuple(name for name in names if name in wanted)
        physical = tuple(name for name in names if self._is_physical(name))
        return physical or tuple(name for name in names if not _VIRTUAL_NAME.match(name))

    def routes(self) -> tuple[Route, ...]:
        """The host's routes, most specific first, then by metric: main table, and own addresses on "lo"."""
        found = [
            *_routes4(self._host_net("route")),
            *_local4(self._host_net("fib_trie")),
            *_routes6(self._host_net("ipv6_route")),
        ]
        found.sort(key=lambda row: (-row[0].network.prefixlen, row[1]))
        return tuple(dict.fromkeys(route for route, _ in found))  # fib_trie tells some of them twice

    def _is_physical(self, name: str) -> bool:
        return "/" not in name and (self._net_class / name / "device").exists()

    def _host_net(self, table: str) -> bytes:
        return _read(f"{self._root}/1/net/{table}") or _read(f"{self._root}/self/net/{table}")


def _open(path: str, flags: int = 0, directory: int | None = None) -> int:
    """A file descriptor, or -1 where the file is gone, forbidden or was never there."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=directory)
    except OSError:
        return -1


def _read(path: str, directory: int | None = None, limit_bytes: int = _FILE_BYTES_MAX) -> bytes:
    """Content up to the limit; what was read so far when the process ends meanwhile, b"" if nothing."""
    file = _open(path, directory=directory)
    if file < 0:
        return b""
    chunks: list[bytes] = []
    try:
        while limit_bytes > 0:
            chunk = os.read(file, min(limit_bytes, 65536))
            if not chunk:
                break
            chunks.append(chunk)
            limit_bytes -= len(chunk)
    except OSError:  # ESRCH: the process ended; its first chunks are still true
        return b"".join(chunks)
    finally:
        os.close(file)
    return b"".join(chunks)


def _readlink(path: str, directory: int | None = None) -> bytes:
    try:
        return os.readlink(os.fsencode(path), dir_fd=directory)
    except OSError:  # a kernel thread's exe, another user's namespace, a process that ended
        return b""


def _start_ticks(stat: bytes) -> int | None:
    """Field 22 of /proc/PID/stat (proc_pid_stat(5)); comm may hold blanks and parentheses."""
    fields = stat.rpartition(b")")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[19].isdigit() else None


def _executable(link: bytes) -> bytes:
    link = link.removesuffix(b" (deleted)")
    if link.startswith(b"/memfd:"):
        return link.split(b":", 2)[1]
    return link.rpartition(b"/")[2]


def _netns(link: bytes) -> int:
    """Inode number out of "net:[4026531840]", 0 when it is not known."""
    match = re.fullmatch(rb"net:\[(\d+)\]", link)
    return int(match[1]) if match else 0


def _cgroup(content: bytes) -> list[bytes]:
    """Path of control groups out of /proc/PID/cgroup, as names from the root down.

    Where v1 hierarchies are in use, systemd's own, then pids, memory, cpu; there v2's line may name the
    unit of a runtime instead of the container (Docker on hybrid hierarchies). Else v2's.
    """
    paths: dict[bytes, bytes] = {}
    for line in content.splitlines():
        fields = line.split(b":", 2)
        if len(fields) == 3:
            for controller in fields[1].split(b","):
                paths[controller] = fields[2].removesuffix(b" (deleted)")
    for controller in (*_V1_PREFERENCE, b""):
        names = [name for name in paths.get(controller, b"").split(b"/") if name not in (b"", b"..")]
        if names:
            return names
    return []


def _listeners(path: str) -> set[int] | None:
    """Ports in state LISTEN of one /proc/PID/net/tcp*, None when it cannot be read.

    The kernel lists all listeners before anything else (tcp_get_idx), so reading stops after them: the
    table of a busy proxy has 100,000 more lines.
    """
    ports: set[int] = set()
    try:
        with open(path, "rb") as lines:  # noqa: PTH123 - the path is text already, for one of many processes
            for fields in _rows(lines):
                if fields[3] != _LISTEN:
                    break
                ports.add(int(fields[1].rpartition(b":")[2], 16))
    except OSError:
        return None
    return ports


def _rows(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Well-formed rows of a socket table, split at blanks; the heading and broken lines are not."""
    for line in lines:
        fields = line.split(None, 4)
        if len(fields) == 5 and re.fullmatch(rb"[0-9A-F]{8,32}:[0-9A-F]{4}", fields[1]):
            yield fields


def _routes4(table: bytes) -> Iterator[tuple[Route, int]]:
    """(route, metric) of /proc/net/route: hexadecimal addresses in the machine's byte order."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8 or not all(_is_hex(fields[column], 8) for column in (1, 7)):
            continue
        if not _is_hex(fields[3], len(fields[3])) or not fields[6].isdigit():
            continue
        destination, mask = (int(fields[column], 16).to_bytes(4, sys.byteorder) for column in (1, 7))
        prefix = int.from_bytes(mask, "big").bit_count()
        if not int(fields[3], 16) & _RTF_REJECT:
            network = ipaddress.IPv4Network((destination, prefix), strict=False)
            yield Route(network, fields[0].decode("ascii", "replace")), int(fields[6])


def _local4(trie: bytes) -> Iterator[tuple[Route, int]]:
    """The host's own addresses out of /proc/net/fib_trie: a line "|-- address", then "/32 host LOCAL"."""
    address = ""
    for line in trie.decode("ascii", "replace").splitlines():
        words = line.split()
        if words[:1] == ["|--"] and len(words) == 2:
            address = words[1]
        elif len(words) == 3 and words[2] == "LOCAL":
            network = _network4(address + words[0])
            if network is not None:
                yield Route(network, "lo"), 0


def _network4(text: str) -> ipaddress.IPv4Network | None:
    try:
        return ipaddress.IPv4Network(text, strict=False)
    except ValueError:
        return None


def _routes6(table: bytes) -> Iterator[tuple[Route, int]]:
    """(route, metric) of /proc/net/ipv6_route, which lists every table, own addresses included."""
    for line in table.splitlines():
        fields = line.split()
        if len(fields) < 10 or not all(
            _is_hex(fields[at], size) for at, size in ((0, 32), (1, 2), (5, 8), (8, 8))
        ):
            continue
        flags, prefix = int(fields[8], 16), int(fields[1], 16)
        if (flags & _RTF_REJECT and not flags & _RTF_LOCAL) or prefix > 128:
            continue
        network = ipaddress.IPv6Network((int(fields[0], 16), prefix), strict=False)
        interface = "lo" if flags & _RTF_LOCAL else fields[9].decode("ascii", "replace")
        yield Route(network, interface), int(fields[5], 16)


def _is_hex(field: bytes, digits: int) -> bool:
    return len(field) == digits > 0 and re.fullmatch(rb"[0-9A-Fa-f]+", field) is not None
