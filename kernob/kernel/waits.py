# SPDX-License-Identifier: Apache-2.0
"""What a thread that sits in a system call waits for, as far as /proc tells.

In: a thread, the call it is in. Out: `Wait`: the kind of thing, and on request a line that names it: the
other end of a socket, who holds a pipe's other end, a file's path, a futex's owner where the
kernel keeps one. Called by `features.blocked`. Threads go on meanwhile: what is no
longer in that call has no Wait.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kernob.kernel.proc_sockets import links, read_end
from kernob.syscall_table import words

BY_DESCRIPTOR: Final = frozenset(
    words(
        "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 recvfrom recvmsg recvmmsg",
        "sendto sendmsg sendmmsg epoll_wait epoll_pwait epoll_pwait2 accept accept4 connect fsync fdatasync",
        "flock fcntl ioctl getdents64 ftruncate fallocate sendfile splice tee io_uring_enter syncfs",
        "sync_file_range",
    )
)
"""Calls whose first argument is a descriptor."""

_ANONYMOUS: Final = re.compile(r"anon_inode:\[?([a-z_]+)")
_KINDS: Final = {"eventpoll": "epoll", "io_uring": "io_uring"}
_NUMBERED: Final = re.compile(r"(socket|pipe):\[(\d+)\]")
_TCP_STATES: Final = (
    "", "established", "connecting", "accepting", "closing", "closing", "time wait", "closed",
    "closed by the peer", "closing", "listening", "closing", "accepting",
)  # fmt: skip
_FUTEX_COMMAND, _FUTEX_TID = 0x7F, 0x3FFFFFFF
_FUTEX_OF_OWNERS: Final = frozenset((6, 11, 13))  # LOCK_PI, WAIT_REQUEUE_PI, LOCK_PI2 (linux/futex.h)
_O_ACCMODE, _O_RDONLY = 3, 0
_TABLES: Final = ("tcp", "tcp6", "udp", "udp6", "unix")
_MOST_DESCRIPTORS = 64


@dataclass(frozen=True, slots=True)
class Wait:
    """One thread in a call.

    `on`: socket, pipe, file, device, terminal, epoll, eventfd, timerfd, ..., futex, nothing, unknown. `state`
    is the letter of /proc/PID/stat (D: cannot be interrupted); `interactive`: its process has a terminal.
    """

    pid: int
    tid: int
    call: str
    thread: str
    state: str
    on: str
    arguments: tuple[int, ...]
    link: str = ""
    inode: int = 0
    interactive: bool = False


@dataclass(slots=True)
class Surroundings:
    """What was read for one answer, so that it is read once: socket tables, holders of pipes.

    `deadline_s` (monotonic): after that nothing expensive is begun any more.
    """

    deadline_s: float = field(default_factory=lambda: time.monotonic() + 1.0)
    tables: dict[int, dict[int, str]] = field(default_factory=dict)
    pipes: dict[int, list[tuple[int, int]]] | None = None

    @property
    def late(self) -> bool:
        """Whether the time is used up."""
        return time.monotonic() > self.deadline_s


class Waits:
    """Reader of one proc root. `clean` makes hostile text harmless: raw bytes, at most so many characters."""

    def __init__(self, root: Path, clean: Callable[[bytes, int], str]) -> None:
        self._root = os.fspath(root)
        self._clean = clean

    def look(self, pid: int, tid: int, number: int, call: str) -> Wait | None:
        """What this thread waits for, if it is in that call now; about 50 us."""
        task = f"{self._root}/{pid}/task/{tid}"
        try:
            arguments = _arguments(_text(f"{task}/syscall"), number)
        except PermissionError:  # yama's ptrace_scope 3 lets nobody look
            arguments = ()
        except OSError:
            return None
        if arguments is None:
            return None
        try:
            thread = self._clean(Path(f"{task}/comm").read_bytes().strip(), 16)
            state, *others = _text(f"{task}/stat").rpartition(")")[2].split()[:5]
        except (OSError, ValueError):  # it ended
            return None
        on, link, inode = self._object(pid, call, arguments)
        interactive = len(others) == 4 and others[3] != "0"
        return Wait(pid, tid, call, thread, state, on, arguments, link, inode, interactive)

    def _object(self, pid: int, call: str, arguments: tuple[int, ...]) -> tuple[str, str, int]:
        if call == "futex":
            return "futex", "", 0
        if not arguments:
            return ("unknown", "", 0) if call in BY_DESCRIPTOR else ("nothing", "", 0)
        return self._descriptor(pid, arguments[0]) if call in BY_DESCRIPTOR else ("nothing", "", 0)

    def _descriptor(self, pid: int, number: int) -> tuple[str, str, int]:
        """Kind, link and inode of a descriptor."""
        path = f"{self._root}/{pid}/fd/{number}"
        try:
            link = os.readlink(path)  # noqa: PTH115 - one of very many paths
        except OSError:
            return "unknown", "", 0
        if found := _NUMBERED.fullmatch(link):
            return found[1], link, int(found[2])
        if found := _ANONYMOUS.match(link):
            return _KINDS.get(found[1], found[1]), link, 0
        try:
            status = os.stat(path)  # noqa: PTH116 - likewise
        except OSError:
            return "file", link, 0
        if stat.S_ISFIFO(status.st_mode):
            return "pipe", link, status.st_ino
        if stat.S_ISCHR(status.st_mode):
            return (
                ("terminal" if link.startswith(("/dev/pts/", "/dev/tty", "/dev/console")) else "device"),
                link,
                0,
            )
        return "file", link, 0

    def explain(self, wait: Wait, around: Surroundings) -> str:
        """One line about what is waited for; "" where nothing more is known than its kind."""
        if wait.on == "socket":
            return self._socket(wait.pid, wait.inode, around)
        if wait.on == "pipe":
            return self._pipe(wait, around)
        if wait.on == "epoll":
            return self._epoll(wait, around)
        if wait.on == "futex":
            return self._futex(wait)
        if wait.on in ("file", "device", "terminal"):
            return self._clean(wait.link.encode("utf-8", "surrogateescape"), 128)
        return ""

    def _socket(self, pid: int, inode: int, around: Surroundings) -> str:
        try:
            netns = os.stat(f"{self._root}/{pid}/ns/net").st_ino  # noqa: PTH116 - likewise
        except OSError:
            return ""
        if netns not in around.tables:
            if around.late:
                return ""
            around.tables[netns] = self._sockets(pid)
        return around.tables[netns].get(inode, "socket of another family")

    def _sockets(self, pid: int) -> dict[int, str]:
        """Inode -> what the tables of this process's network namespace say of a socket."""
        found: dict[int, str] = {}
        for table in _TABLES:
            try:
                lines = Path(f"{self._root}/{pid}/net/{table}").read_bytes().splitlines()[1:]
            except OSError:
                continue
            for line in lines:
                inode, text = self._unix(line) if table == "unix" else _internet(table, line)
                if inode:
                    found[inode] = text
        return found

    def _unix(self, line: bytes) -> tuple[int, str]:
        fields = line.split(None, 7)
        if len(fields) < 7 or not fields[6].isdigit():
            return 0, ""
        name = self._clean(fields[7].strip(), 108) if len(fields) > 7 else ""
        return int(fields[6]), f"unix {name}" if name else "unix socket without a name"

    def _pipe(self, wait: Wait, around: Surroundings) -> str:
        """Who has the end that this thread waits for."""
        if around.pipes is None:
            if around.late:
                return ""
            around.pipes = self._holders(around)
        wants_writer = not wait.call.startswith(("write", "pwrite", "send"))
        others: Counter[int] = Counter()
        for pid, mode in around.pipes.get(wait.inode, []):
            if mode == os.O_RDWR or (mode != _O_RDONLY) == wants_writer:
                others[pid] += 1
        verb = "written" if wants_writer else "read"
        if not others:
            return f"a pipe that nobody has open to be {verb}" if not around.late else ""
        names = [f"{self._comm(pid)}[{pid}]" for pid in list(others)[:3]]
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        return f"pipe {verb} by {', '.join(names)}{more}"

    def _holders(self, around: Surroundings) -> dict[int, list[tuple[int, int]]]:
        """Inode of a pipe -> (process, how it has it open) of everybody who has."""
        found: dict[int, list[tuple[int, int]]] = {}
        with os.scandir(self._root) as entries:
            pids = [entry.name for entry in entries if entry.name.isdecimal()]
        for pid in pids:
            if around.late:
                break
            for number, link in links(f"{self._root}/{pid}/fd"):
                inode = _inode_of_pipe(f"{self._root}/{pid}/fd/{number}", link)
                if inode:
                    mode = self._mode(pid, number)
                    found.setdefault(inode, []).append((int(pid), mode))
        return found

    def _mode(self, pid: str, number: str) -> int:
        try:
            info = _text(f"{self._root}/{pid}/fdinfo/{number}")
        except OSError:
            return os.O_RDWR
        flags = re.search(r"^flags:\s*([0-7]+)", info, re.MULTILINE)
        return int(flags[1], 8) & _O_ACCMODE if flags else os.O_RDWR

    def _comm(self, pid: int) -> str:
        try:
            return self._clean(
                _text(f"{self._root}/{pid}/comm").strip().encode("utf-8", "surrogateescape"), 16
            )
        except OSError:
            return "?"

    def _epoll(self, wait: Wait, around: Surroundings) -> str:
        """What an epoll descriptor watches: how many of which, and the sockets by name where they are few."""
        try:
            text = _text(f"{self._root}/{wait.pid}/fdinfo/{wait.arguments[0]}")
        except OSError:
            return ""
        watched = re.findall(r"^tfd:\s*(\d+)", text, re.MULTILINE)
        kinds: Counter[str] = Counter()
        for number in watched[:_MOST_DESCRIPTORS]:
            kind, _link, inode = self._descriptor(wait.pid, int(number))
            kinds[self._socket(wait.pid, inode, around) or kind if kind == "socket" else kind] += 1
        named = [name if count == 1 else f"{count} {name}" for name, count in kinds.most_common(3)]
        rest = len(watched) - sum(count for _, count in kinds.most_common(3))
        if not watched:
            return "nothing: a timer only"
        return f"{len(watched)} watched: {', '.join(named)}{f', {rest} more' if rest else ''}"

    def _futex(self, wait: Wait) -> str:
        """The lock's address; its owner for PI futexes, whose word holds it by the kernel's own protocol."""
        if len(wait.arguments) < 2:
            return ""
        address, command = wait.arguments[0], wait.arguments[1] & _FUTEX_COMMAND
        until = "with a timeout" if len(wait.arguments) > 3 and wait.arguments[3] else "until it is woken"
        if command not in _FUTEX_OF_OWNERS:
            return f"futex {address:#x}, {until}"
        owner = self._word(wait.pid, address) & _FUTEX_TID
        if not owner:
            return f"PI futex {address:#x}"
        return f"PI futex {address:#x} held by thread {owner} ({self._comm(owner)})"

    def _word(self, pid: int, address: int) -> int:
        try:
            memory = os.open(f"{self._root}/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return 0
        try:
            return int(struct.unpack("=I", os.pread(memory, 4, address))[0])
        except (OSError, struct.error, OverflowError):
            return 0
        finally:
            os.close(memory)


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123 - likewise
        return file.read(65536)


def _arguments(text: str, number: int) -> tuple[int, ...] | None:
    """Six arguments out of /proc/PID/task/TID/syscall; None where the thread is not in that call."""
    fields = text.split()
    if not fields or fields[0] != str(number):
        return None
    return tuple(int(each, 16) for each in fields[1:7])


def _inode_of_pipe(path: str, link: str) -> int:
    found = _NUMBERED.fullmatch(link)
    if found:
        return int(found[2]) if found[1] == "pipe" else 0
    if not link.startswith("/") or link.startswith("/dev/"):
        return 0
    try:
        status = os.stat(path)  # noqa: PTH116 - one of very many paths
    except OSError:
        return 0
    return status.st_ino if stat.S_ISFIFO(status.st_mode) else 0


def _internet(table: str, line: bytes) -> tuple[int, str]:
    """Inode and words of one line of /proc/net/tcp and the like."""
    fields = line.split(None, 10)
    if len(fields) < 10 or not fields[9].isdigit():
        return 0, ""
    try:
        local, peer = _shown(fields[1]), _shown(fields[2])
        state = int(fields[3], 16)
    except ValueError:
        return 0, ""
    protocol = table[:3]
    if protocol == "udp":
        return int(fields[9]), f"udp {local}" if peer.endswith(":0") else f"udp {peer}"
    if state == 10:
        return int(fields[9]), f"tcp listening on {local}"
    word = _TCP_STATES[state] if state < len(_TCP_STATES) else ""
    return int(fields[9]), f"tcp {local} - {peer}" + ("" if state == 1 else f", {word}")


def _shown(field: bytes) -> str:
    address, port = read_end(field)
    ip = ipaddress.ip_address(address)
    mapped = getattr(ip, "ipv4_mapped", None) or ip
    return f"[{mapped}]:{port}" if ":" in str(mapped) else f"{mapped}:{port}"
