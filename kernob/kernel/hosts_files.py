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
from pathlib import Path

from kernob.kernel.hostfs import HostRoot

_MAX_BYTES = 1 << 20
_FILES = 256  # remembered, about as many as there are containers
_PROCESSES = 4096
_FRESH_S = 5.0  # a process's file is not looked at more often

Key = tuple[int, int, int, int]


class HostsFiles:
    """Reader of one proc root, bounded; `clock` gives monotonic seconds."""

    def __init__(self, proc_root: Path, clock: Callable[[], float]) -> None:
        self._root = proc_root
        self._clock = clock
        self._files: OrderedDict[Key, dict[str, bytes]] = OrderedDict()
        self._seen: OrderedDict[int, tuple[float, Key | None]] = OrderedDict()

    def name_of(self, pid: int, address: str) -> bytes:
        """The first name that the process's /etc/hosts has for an address, as it stands there; else b""."""
        now_s = self._clock()
        at_s, key = self._seen.get(pid, (-_FRESH_S, None))
        if now_s - at_s >= _FRESH_S:
            key = self._read(pid)
            self._seen[pid] = (now_s, key)
            self._seen.move_to_end(pid)
            if len(self._seen) > _PROCESSES:
                self._seen.popitem(last=False)
        return self._files.get(key, {}).get(address, b"") if key else b""

    def _read(self, pid: int) -> Key | None:
        root = HostRoot(self._root / str(pid) / "root")
        try:
            with root.opened("etc/hosts", os.O_NONBLOCK) as fd:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    return None
                key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
                if key not in self._files:
                    self._files[key] = parse_hosts(os.read(fd, _MAX_BYTES))
        except OSError:  # ended, not ours to see, or none there
            return None
        self._files.move_to_end(key)
        if len(self._files) > _FILES:
            self._files.popitem(last=False)
        return key


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
