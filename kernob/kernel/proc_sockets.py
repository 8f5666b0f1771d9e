# SPDX-License-Identifier: Apache-2.0
"""Which TCP connections /proc says are open, in every network namespace, and which process holds them.

In: a proc root. Out: records. Called by `pipeline` about once a minute, to find what the kernel side's own
bookkeeping does not have: connections older than the agent, and entries that nothing stands behind.

A table is read in pieces while it changes, so that a connection may be missing in one reading; what is not
there twice running is gone.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

ACTIVE_STATES = {b"01": 1, b"08": 8}
"""ESTABLISHED and CLOSE_WAIT as the tables write them (include/net/tcp_states.h)."""

_ENDS = struct.Struct("<IHH16s16s")
_MAPPED = bytes(10) + b"\xff\xff"


def ends_of(netns: int, local: bytes, local_port: int, peer: bytes, peer_port: int) -> bytes:
    """One connection's name: both ends and where. Addresses of 4 or 16 bytes; v4-mapped ones are v4."""
    plain = (a[12:16] if a.startswith(_MAPPED) and len(a) == 16 else a for a in (local, peer))
    return _ENDS.pack(netns, local_port, peer_port, *plain)


@dataclass(frozen=True, slots=True)
class ProcSocket:
    """An open connection; addresses of 4 or 16 bytes. `inode` is 0 while nobody has accepted it."""

    netns: int
    local: bytes
    local_port: int
    peer: bytes
    peer_port: int
    state: int
    inode: int

    @property
    def ends(self) -> bytes:
        """See `ends_of`."""
        return ends_of(self.netns, self.local, self.local_port, self.peer, self.peer_port)


class ProcSockets:
    """Reader of one proc root; keeps nothing between calls."""

    def __init__(self, root: Path) -> None:
        self._root = os.fspath(root)

    def active(self) -> tuple[list[ProcSocket], set[int]]:
        """All active connections, and the namespaces (inode numbers) that could be read."""
        found: list[ProcSocket] = []
        seen: set[int] = set()
        for pid in self.pids():
            netns = self.netns(pid)
            if not netns or netns in seen:
                continue
            try:
                for table in ("tcp", "tcp6"):
                    found += _read_table(f"{self._root}/{pid}/net/{table}", netns)
            except FileNotFoundError:
                if table == "tcp6":  # no IPv6 in this kernel
                    seen.add(netns)
                continue  # ended meanwhile: let the namespace's next process tell
            except OSError:
                continue
            seen.add(netns)
        return found, seen

    def holders(self, inodes: Collection[int]) -> dict[int, int]:
        """Socket inode -> PID of a process that has it open: the lowest PID where several have."""
        wanted = {f"socket:[{inode}]": inode for inode in inodes}
        found: dict[int, int] = {}
        for pid in self.pids():
            if len(found) == len(wanted):
                break
            for _number, link in links(f"{self._root}/{pid}/fd"):
                inode = wanted.get(link)
                if inode is not None:
                    found.setdefault(inode, pid)
        return found

    def pids(self) -> list[int]:
        """PIDs of all processes, ascending."""
        with os.scandir(self._root) as entries:
            return sorted(int(entry.name) for entry in entries if entry.name.isdecimal())

    def netns(self, pid: int) -> int:
        """Inode number of a process's network namespace, 0 where it is not known."""
        try:
            link = os.readlink(f"{self._root}/{pid}/ns/net")  # noqa: PTH115 - one of very many paths
        except OSError:
            return 0
        number = link.removeprefix("net:[").removesuffix("]")
        return int(number) if number.isdecimal() else 0


def links(directory: str) -> Iterator[tuple[str, str]]:
    """The descriptors of a process, and what they point to; nothing where it is gone or forbidden."""
    try:
        names = os.listdir(directory)  # noqa: PTH208 - likewise
    except OSError:
        return
    for name in names:
        try:
            yield name, os.readlink(f"{directory}/{name}")  # noqa: PTH115 - likewise
        except OSError:
            continue


def _read_table(path: str, netns: int) -> list[ProcSocket]:
    found = []
    with open(path, "rb") as lines:  # noqa: PTH123 - the path is text already, for one of many processes
        for line in lines:
            fields = line.split(None, 10)
            if len(fields) < 10 or fields[3] not in ACTIVE_STATES or not fields[9].isdigit():
                continue
            try:
                local, peer = read_end(fields[1]), read_end(fields[2])
            except ValueError:
                continue
            found.append(ProcSocket(netns, *local, *peer, ACTIVE_STATES[fields[3]], int(fields[9])))
    return found


def read_end(field: bytes) -> tuple[bytes, int]:
    """Address and port out of "0100007F:0016": words in the machine's byte order."""
    address, _, port = field.partition(b":")
    raw = bytes.fromhex(address.decode("ascii"))
    if sys.byteorder == "little":
        raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    return raw, int(port, 16)


def listening_ports_of(root: Path, pid: int) -> frozenset[int]:
    """TCP ports that a process listens on; none for one that has ended or may not be seen."""
    folder = Path(root) / str(pid)
    targets = (target for _number, target in links(os.fspath(folder / "fd")))
    inodes = {target[8:-1] for target in targets if target.startswith("socket:[")}
    ports = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), (folder / "net" / table).open(encoding="ascii") as lines:
            next(lines, None)
            for line in lines:
                fields = line.split(None, 10)
                if len(fields) < 10 or fields[3] != "0A":  # the kernel lists listeners first
                    break
                if fields[9] in inodes:
                    ports.add(int(fields[1].rpartition(":")[2], 16))
    return frozenset(ports)
