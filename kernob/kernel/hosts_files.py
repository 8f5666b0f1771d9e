# SPDX-License-Identifier: Apache-2.0
"""/etc/hosts as each process sees it: names of addresses that no resolver call and no packet tells.

In: a proc root, a PID. Out: address -> first name. Called by `features.names` for an address that has no
other name: programs without libc (Go, static binaries) read this file by themselves, and containers' runtimes
write it. A file is read again when it has changed; one that many processes share is read once.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kernob.kernel.hostfs import HostRoot

_MAX_BYTES = 1 << 18  # some 10,000 lines, which take 0.1 s; a container may write what it likes
_FILES = 256  # remembered, about as many as there are containers
_NAMES = 1 << 16  # remembered of all of them together, about 11 MB
_PROCESSES = 4096
_FRESH_S = 5.0  # neither a process's file is looked at more often, nor a file read by whoever has it

Inode = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _File:
    """What a file held when it was read; `version` is its size and time of change."""

    read_s: float
    version: tuple[int, int]
    names: dict[str, bytes]


class HostsFiles:
    """Reader of one proc root, bounded; `clock` gives monotonic seconds."""

    def __init__(self, proc_root: Path, clock: Callable[[], float]) -> None:
        self._root = proc_root
        self._clock = clock
        self._files: OrderedDict[Inode, _File] = OrderedDict()
        self._names = 0
        self._seen: OrderedDict[int, tuple[float, Inode | None]] = OrderedDict()

    def __len__(self) -> int:
        """How many names are remembered."""
        return self._names

    def name_of(self, pid: int, address: str) -> bytes:
        """The first name that the process's /etc/hosts has for an address, as it stands there; else b""."""
        now_s = self._clock()
        at_s, inode = self._seen.get(pid, (-_FRESH_S, None))
        if now_s - at_s >= _FRESH_S:
            inode = self._read(pid)
            self._seen[pid] = (now_s, inode)
            self._seen.move_to_end(pid)
            if len(self._seen) > _PROCESSES:
                self._seen.popitem(last=False)
        held = self._files.get(inode) if inode else None
        return held.names.get(address, b"") if held else b""

    def _read(self, pid: int) -> Inode | None:
        root = HostRoot(self._root / str(pid) / "root")
        try:
            with root.opened("etc/hosts", os.O_NONBLOCK) as fd:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    return None
                inode, version = (status.st_dev, status.st_ino), (status.st_size, status.st_mtime_ns)
                held, now_s = self._files.get(inode), self._clock()
                if held is None or (held.version != version and now_s - held.read_s >= _FRESH_S):
                    self._keep(
                        inode, _File(now_s, version, parse_hosts(_whole_lines(os.read(fd, _MAX_BYTES))))
                    )
        except OSError:  # ended, not ours to see, or none there
            return None
        self._files.move_to_end(inode)
        return inode

    def _keep(self, inode: Inode, file: _File) -> None:
        """Remembers a file as it is now; those that were asked for least lately go where it is too much."""
        replaced = self._files.pop(inode, None)
        self._files[inode] = file
        self._names += len(file.names) - (len(replaced.names) if replaced else 0)
        while len(self._files) > 1 and (len(self._files) > _FILES or self._names > _NAMES):
            _inode, dropped = self._files.popitem(last=False)
            self._names -= len(dropped.names)


def _whole_lines(raw: bytes) -> bytes:
    """Without the line that the limit cut: half a name would be another one."""
    return raw if len(raw) < _MAX_BYTES else raw[: raw.rfind(b"\n") + 1]


def parse_hosts(raw: bytes) -> dict[str, bytes]:
    r"""hosts(5): address -> the first name of its first line; loopback is left out, as everybody has it.

    >>> parse_hosts(b"127.0.0.1 localhost\n10.0.0.7  db db.example # main\n")
    {'10.0.0.7': b'db'}
    """
    found: dict[str, bytes] = {}
    for line in raw.splitlines():
        fields = line.partition(b"#")[0].split()
        if len(fields) < 2:
            continue
        try:
            address = ipaddress.ip_address(fields[0].decode("ascii"))
        except (ValueError, UnicodeError):
            continue
        if not (address.is_loopback or address.is_unspecified or address.is_multicast):
            found.setdefault(str(address), fields[1])
    return found
