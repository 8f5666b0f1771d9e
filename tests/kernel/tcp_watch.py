# SPDX-License-Identifier: Apache-2.0
"""What the programs say of connections, read straight from their maps; processes to make connections with.

Used by tests/kernel/test_tcp_*.py. A case is played by processes of its own, so that facts are told apart by
process id; what a case does not name must not have happened to them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from harness import environment
from numpy.typing import NDArray

from kernob.config import load_settings
from kernob.kernel.ringbuf import RingBuffer
from kernob.kernel.session import Session
from kernob.model import Fate
from kernob.pipeline import new_session
from kernob.probes import tcp
from kernob.probes.traffic import Loss
from kernob.syscall_table import numbers

ROLES = ("", "client", "server")
OUTCOMES = (
    "ok",
    "refused",
    "timed_out",
    "reset",
    "host_unreachable",
    "net_unreachable",
    "cancelled",
    "other",
)
DROPS = ("unanswered", "reset_mid_response", "eof_mid_response", "stalled_mid_response")
CLOSED_BY = ("peer", "self", "network")
TIMEOUTS = ("unacknowledged", "keepalive")
DIRECTIONS = ("sent", "received")
FACTS_LOST = (
    Loss.SOCKS_FULL, Loss.FATES_FULL, Loss.DURATIONS_FULL, Loss.EVENTS_FULL, Loss.CALLS_FULL,
)  # fmt: skip
CLOSE_LIMIT_S = 20.0
TURN_LIMIT_S = 60.0
"""A case fails whose one end waits longer for the other: that one has failed."""
ASK, ANSWER = b"q" * 100, b"a" * 300
Play = Callable[[socket.socket], None]
_PDEATHSIG = 1


def name_of(fate: np.void) -> str:
    """A fact in words: "connection ok", "reset received idle", "drop unanswered by peer"."""
    kind, reason, side = Fate(int(fate["kind"])), int(fate["reason"]), int(fate["side"])
    if kind is Fate.CONNECTION:
        return f"connection {OUTCOMES[reason]}"
    if kind is Fate.RESET:
        return f"reset {DIRECTIONS[side]}{' idle' if fate['idle'] else ''}"
    if kind is Fate.DROP:
        return f"drop {DROPS[reason]} by {CLOSED_BY[side]}"
    if kind is Fate.TIMEOUT:
        return f"timeout {TIMEOUTS[reason]}"
    return kind.name.lower()


@dataclass
class Watch:
    """A loaded session and everything drained from it so far."""

    session: Session
    ring: RingBuffer
    facts: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    by_netns: Counter[tuple[int, str]] = field(default_factory=Counter)
    durations: list[tuple[int, str, int, float]] = field(default_factory=list)
    events: list[np.void] = field(default_factory=list)
    lost_before: tuple[int, ...] = ()
    resent: Counter[int] = field(default_factory=Counter)  # by netns, since the programs came

    def anew(self) -> Watch:
        """The same programs, with nothing seen or lost yet."""
        self.drain()
        lost = tuple(map(int, self.session.losses()))
        return Watch(self.session, self.ring, lost_before=lost, resent=self.resent)

    def drain(self) -> None:
        """Reads what there is."""
        rows = tcp.read(self.session)
        for fate, count in zip(rows.fates, rows.counts, strict=True):
            flow = fate["flow"]
            fact = ROLES[flow["role"]], name_of(fate)
            self.facts[int(flow["tgid"]), fact[0], fact[1]] += int(count)
            self.by_netns[int(flow["netns"]), " ".join(fact)] += int(count)
            if int(fate["kind"]) == Fate.RETRANSMIT:
                self.resent[int(flow["netns"])] += int(count)
        for key, value in zip(rows.durations, rows.histograms, strict=True):
            kind = tcp.Duration(int(key["kind"])).name.lower()
            tgid, count = int(key["flow"]["tgid"]), int(value["count"])
            assert int(value["buckets"].sum()) == count
            self.durations.append((tgid, kind, count, int(value["sum_ns"]) / 1e9))
        while raw := self.ring.read():
            self.events += list(tcp.events(self.session, raw))

    def sockets(self, pids: set[int]) -> NDArray[Any]:
        """struct sock_val of the live sockets that these processes own or used last."""
        _keys, values = self.session.map("socks").read()
        return values[np.isin(values["key"]["tgid"], [*pids]) | np.isin(values["user"]["tgid"], [*pids])]

    def settle(self, pids: set[int]) -> None:
        """Waits until the kernel has destroyed every socket of these processes, and drains."""
        deadline = time.monotonic() + CLOSE_LIMIT_S
        while len(left := self.sockets(pids)):
            assert time.monotonic() < deadline, left
            time.sleep(0.01)
        self.drain()

    def of(self, *pids: int, retransmits: bool = False) -> dict[str, int]:
        """Facts of these processes together, by "role fact".

        Retransmits are left out unless asked for: a busy machine's kernel sends segments again over loopback,
        too. That no more of them are told than it counts itself is held when the programs are taken away.
        """
        self.settle(set(pids))
        found: Counter[str] = Counter()
        for (pid, role, fact), count in self.facts.items():
            if pid in pids and (retransmits or fact != "retransmit"):
                found[f"{role} {fact}"] += count
        return dict(found)

    def by_fact(self, netns: int) -> Counter[str]:
        """All facts of a network namespace, by "role fact", whoever's they are."""
        self.drain()
        return Counter({fact: count for (where, fact), count in self.by_netns.items() if where == netns})

    def events_of(self, *pids: int) -> list[np.void]:
        """Events of these processes, in order."""
        self.drain()
        return [event for event in self.events if int(event["flow"]["tgid"]) in pids]

    def lost(self) -> dict[str, int]:
        """What was lost of facts since this watch began, by cause; {} for nothing.

        Flows, processes, names, calls and lives, which nobody reads here, fill up in the course of time.
        """
        now = self.losses()
        return {cause.name: now[cause] for cause in FACTS_LOST if now[cause]}

    def losses(self) -> list[int]:
        """The losses array, since this watch began."""
        now = [int(count) for count in self.session.losses()]
        return [count - before for count, before in zip(now, self.lost_before or [0] * len(now), strict=True)]


@contextlib.contextmanager
def watching(cache: Path, **settings: object) -> Iterator[Watch]:
    """All programs of Kernob attached, without an agent."""
    chosen = {k: v for k, v in environment(**settings).items() if k.startswith("KERNOB_")}
    loaded = load_settings({**chosen, "KERNOB_CACHE_DIR": str(cache)})
    with new_session(loaded) as session:
        events = session.map("events")
        ring = RingBuffer(events.fd, events.max_entries)
        try:
            yield Watch(session, ring)
        finally:
            ring.close()


@dataclass
class Actor:
    """A forked process that runs one function; `result` waits for its end."""

    pid: int
    _name: str

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal; `wait` still has to be called."""
        os.kill(self.pid, number)

    def wait(self, code: int = 0) -> None:
        """Its end, and how it must have ended (a negative code: by that signal)."""
        _pid, status = os.waitpid(self.pid, 0)
        assert os.waitstatus_to_exitcode(status) == code, f"{self._name} ended with {status}"


def act(function: Callable[..., Any], *arguments: Any) -> Actor:
    """Forks a process that calls the function and ends."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Actor(pid, getattr(function, "__name__", "actor"))
    code = 0
    try:
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # none outlives a test that fails
        function(*arguments)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        os._exit(code)


def listener(backlog: int = 128, host: str = "127.0.0.1") -> socket.socket:
    """A listening socket of this process; who inherits it accepts."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind((host, 0))
    found.listen(backlog)
    return found


def read_exactly(sock: socket.socket, count: int) -> bytes:
    """`count` bytes, or fewer when the peer closed."""
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            break
        data += part
    return data


def abort(sock: socket.socket) -> None:
    """Closes with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


class Gate:
    """One process waits here until another one opens; whoever made it has forked both."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_SEMAPHORE)

    def __del__(self) -> None:
        os.close(self._fd)

    def open(self) -> None:
        """Lets one pass, now or later."""
        os.eventfd_write(self._fd, 1)

    def wait(self) -> None:
        """Passes, once for each time it is opened."""
        _wait_for(self._fd, select.POLLIN)
        os.eventfd_read(self._fd)


def wait_for_fin(sock: socket.socket) -> None:
    """Until the peer's FIN is there. That is no receive call, and no wait that runs out."""
    _wait_for(sock.fileno(), select.POLLRDHUP)


def wait_for_reset(sock: socket.socket) -> None:
    """Until the peer's RST has ended the connection, which the next call is told. Likewise."""
    _wait_for(sock.fileno(), select.POLLHUP)


def _wait_for(fd: int, event: int) -> None:
    poller = select.poll()
    poller.register(fd, event)
    came = 0
    while not came & event:  # POLLERR may come a moment before POLLHUP
        ((_fd, came),) = poller.poll(TURN_LIMIT_S * 1000)


def in_call(tid: int, *names: str) -> bool:
    """Whether a thread sleeps in one of these system calls."""
    call = Path(f"/proc/{tid}/syscall").read_text().split()[0]
    return call in [str(numbers()[name]) for name in names if name in numbers()]


def snmp() -> Counter[str]:
    """TCP's counters of this network namespace."""
    rows = [
        row.split() for row in Path("/proc/self/net/snmp").read_text().splitlines() if row.startswith("Tcp:")
    ]
    return Counter({name: int(value) for name, value in zip(rows[0][1:], rows[1][1:], strict=True)})


def retransmits_of(sock: socket.socket) -> int:
    """Segments that a connection has sent again so far (tcpi_total_retrans), also when it has ended."""
    return int.from_bytes(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[100:], sys.byteorder)


def play(
    watch: Watch, client: Play, server: Play, server_code: int = 0
) -> tuple[dict[str, int], dict[str, int]]:
    """One connection: the client's facts and the server's, each in a process of its own.

    Retransmits are left out of what is returned; they must not be more than the namespace's RetransSegs.
    """
    door = listener()
    address = door.getsockname()
    before = snmp()["RetransSegs"]

    def serve() -> None:
        sock, _ = door.accept()
        door.close()
        server(sock)

    def connect() -> None:
        door.close()
        sock = socket.create_connection(address)
        client(sock)

    second = act(serve)
    first = act(connect)
    door.close()
    first.wait()
    second.wait(server_code)
    found = watch.of(first.pid, retransmits=True), watch.of(second.pid, retransmits=True)
    again = found[0].pop("client retransmit", 0) + found[1].pop("server retransmit", 0)
    assert again <= snmp()["RetransSegs"] - before
    return found


def exchange(sock: socket.socket, ask: bytes = ASK) -> None:
    """Asks and reads the whole answer."""
    sock.sendall(ask)
    assert len(read_exactly(sock, len(ANSWER))) == len(ANSWER)


def answer(sock: socket.socket, ask: int = len(ASK)) -> None:
    """Reads a whole request and answers it."""
    assert len(read_exactly(sock, ask)) == ask
    sock.sendall(ANSWER)


def call(address: tuple[str, int], count: int = 1) -> None:
    """So many connections, each with one exchange."""
    for _ in range(count):
        with socket.create_connection(address) as sock:
            sock.sendall(ASK)
            assert read_exactly(sock, len(ANSWER)) == ANSWER


def serve(sock: socket.socket) -> None:
    """One exchange from the other side."""
    with sock:
        read_exactly(sock, len(ASK))
        sock.sendall(ANSWER)
        sock.recv(1)
