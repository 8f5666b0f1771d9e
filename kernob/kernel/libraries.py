# SPDX-License-Identifier: Apache-2.0
"""The C libraries that processes have mapped, on the host and in containers, and probes on each of them.

In: /proc, programs loaded by `uprobes`. Out: probes on the resolver functions of every libc inode there is:
glibc and musl, mapped by whom ever, replaced by an upgrade, or deleted and still mapped. Called by
`features.names` in the tick thread. A scan reads the maps of processes that are new, and of others ever more
rarely, so that a quiet machine costs the listing of /proc only.
"""

from __future__ import annotations

import logging
import os
import re
import resource
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from kernob.kernel import uprobes
from kernob.kernel.hostfs import HostRoot
from kernob.kernel.programs import Program
from kernob.kernel.symbols import function_offsets

log = logging.getLogger(__name__)

LIBRARIES = 256
"""Inodes that are probed at most; each takes two descriptors a function."""

_BUDGET = 256  # processes looked at in one scan, but for the first
_CLOSERS = 32
_RAREST = 64  # scans between two looks at one process
_LIBC = re.compile(
    rb"^([0-9a-f]+-[0-9a-f]+) r[-w]x[ps] [0-9a-f]+ ([0-9a-f]+:[0-9a-f]+ [0-9]+) +"
    rb"(/.*/(?:libc\.so(?:\.6)?|libc-2\.[0-9]+\.so|ld-musl-[^/\n]*|libc\.musl-[^/\n]*)(?: \(deleted\))?)$",
    re.MULTILINE,
)

Inode = tuple[int, int, int, int]
"""Number, size and times of change: the same file seen through two containers' overlays is one."""


@dataclass(slots=True)
class _Library:
    path: str
    probes: list[int] = field(default_factory=list)
    users: set[int] = field(default_factory=set)
    deleted: bool = False


@dataclass(slots=True)
class _Seen:
    """A process: when (in scans) it is due again, and how long to wait after that."""

    due: int
    wait: int


class Libraries:
    """See the module. `refused` counts libraries that could not be probed (cumulative); `why`: the last."""

    def __init__(
        self, proc_root: Path, functions: Mapping[str, tuple[Program, Program]], prober: uprobes.Prober
    ) -> None:
        """`functions`: symbol -> programs for its entry and for its return."""
        self._prober = prober
        self._proc = proc_root
        self._functions = functions
        # half of what we may open stays for all else: /proc is read all the time
        files, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        per_library = 2 * max(1, len(functions))
        self._most = LIBRARIES if files < 0 else max(1, min(LIBRARIES, files // 2 // per_library))
        self._libraries: dict[Inode, _Library] = {}
        self._by_mapping: dict[bytes, Inode] = {}
        self._seen: dict[int, _Seen] = {}
        self._scan = 0
        self.refused = 0
        self.why = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """What is probed now, each inode once, by the path somebody maps it under."""
        return tuple(library.path for library in self._libraries.values())

    def scan(self) -> None:
        """Looks for libraries that are new, and lets go of deleted ones that nobody maps any more."""
        self._scan += 1
        pids = {int(name) for name in os.listdir(self._proc) if name.isdecimal()}  # noqa: PTH208 - half the time
        for gone in self._seen.keys() - pids:
            del self._seen[gone]
        new = pids - self._seen.keys()
        due = [pid for pid, seen in self._seen.items() if seen.due <= self._scan]
        wanted = [*sorted(new, reverse=True), *due]
        for pid in wanted if self._scan == 1 else wanted[:_BUDGET]:
            self._look(pid)
        for inode in [i for i, lib in self._libraries.items() if self._is_over(lib, pids)]:
            self._drop(inode)

    def close(self) -> None:
        """Takes every probe away; safe to call twice."""
        _close([fd for library in self._libraries.values() for fd in library.probes])
        self._libraries.clear()
        self._by_mapping.clear()

    def _look(self, pid: int) -> None:
        seen = self._seen.get(pid)
        wait = min(seen.wait * 2, _RAREST) if seen else 1
        self._seen[pid] = _Seen(self._scan + wait, wait)
        try:
            maps = (self._proc / str(pid) / "maps").read_bytes()
        except OSError:  # ended, or not ours to see
            return
        for library in self._libraries.values():
            library.users.discard(pid)
        for match in _LIBC.finditer(maps):
            self._found(pid, match[1], match[2], match[3])

    def _found(self, pid: int, span: bytes, mapping: bytes, path: bytes) -> None:
        mapped = mapping + b" " + path.removesuffix(b" (deleted)")
        if mapped in self._by_mapping:
            library = self._libraries.get(self._by_mapping[mapped])
            if library:
                library.users.add(pid)
                library.deleted |= path.endswith(b" (deleted)")
            return
        if len(self._by_mapping) > 4 * LIBRARIES:
            self._by_mapping.clear()
        fd = self._open(pid, span, mapping, path)
        if fd is None:
            return
        try:
            self._by_mapping[mapped] = self._attach(fd, pid, os.fsdecode(path))
        finally:
            os.close(fd)

    def _open(self, pid: int, span: bytes, mapping: bytes, path: bytes) -> int | None:
        """The mapped file itself: by its mapping, which works for deleted ones too, else by its path."""
        folder = self._proc / str(pid)
        try:
            return os.open(folder / "map_files" / span.decode(), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # takes CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE
            pass
        try:
            with HostRoot(folder / "root").opened(os.fsdecode(path), os.O_NONBLOCK) as fd:
                status = os.fstat(fd)
                if stat.S_ISREG(status.st_mode) and status.st_ino == int(mapping.split()[1]):
                    return os.dup(fd)
        except OSError:
            pass
        return None

    def _attach(self, fd: int, pid: int, path: str) -> Inode:
        status = os.fstat(fd)
        inode = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        deleted = path.endswith(" (deleted)") or not status.st_nlink
        if inode in self._libraries:
            self._libraries[inode].users.add(pid)
            return inode
        if len(self._libraries) >= self._most:
            self._refuse(path, f"{self._most} libraries are probed already")
            return inode
        library = _Library(path, users={pid}, deleted=deleted)
        try:
            for name, offset in function_offsets(fd, tuple(self._functions)).items():
                for at_return, program in enumerate(self._functions[name]):
                    library.probes.append(self._prober(program, fd, offset, bool(at_return)))
        except (OSError, ValueError) as error:
            _close(library.probes)
            self._refuse(path, error.strerror or str(error) if isinstance(error, OSError) else str(error))
            return inode
        if not library.probes:
            return inode
        self._libraries[inode] = library
        log.debug("resolver calls are watched in %s (process %d)", path, pid)
        return inode

    def _refuse(self, path: str, why: str) -> None:
        self.refused += 1
        self.why = f"{path}: {why}"
        log.debug("resolver calls are not watched in %s", self.why)

    def _is_over(self, library: _Library, pids: set[int]) -> bool:
        library.users &= pids
        return library.deleted and not library.users

    def _drop(self, inode: Inode) -> None:
        _close(self._libraries.pop(inode).probes)
        self._by_mapping = {m: i for m, i in self._by_mapping.items() if i != inode}


def _close(probes: list[int]) -> None:
    """Closes probes at the same time: the kernel waits some 50 ms for each, and does so for many at once."""
    if probes:
        with ThreadPoolExecutor(min(len(probes), _CLOSERS), "uprobes") as closers:
            list(closers.map(os.close, probes))
        probes.clear()
